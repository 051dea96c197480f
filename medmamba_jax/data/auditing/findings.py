"""The findings of the audit, and the file that holds them."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from medmamba_jax.data.auditing.fingerprints import Decode, Fingerprints, fingerprint, near_pairs
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.files import write_atomically

VERSION = 3  # Increase it when the code may find something else in an image; old files then expire.

_MOST_NEAR_PAIRS = 1000

Image = tuple[str, int]  # split, row


@dataclasses.dataclass(frozen=True)
class Findings:
    """The findings from decoding every image.

    Attributes:
        unreadable: images that cannot be decoded, and the reasons.
        identical: sets of images with the same pixels.
        near: nearly equal pairs of images from two splits, see `near_pairs`; at most 1,000.
        num_near: the number of all such pairs.
        sizes: (width, height, number of images), the most frequent first.
        windows: numbers of grey DICOM images without and with a window in the file.
    """

    unreadable: list[tuple[Image, str]]
    identical: list[list[Image]]
    near: list[tuple[Image, Image]]
    num_near: int
    sizes: list[tuple[int, int, int]]
    windows: tuple[int, int]

    @classmethod
    def of(cls, splits: Mapping[str, LabelledImages], decode: Decode, frame: int = 0) -> "Findings":
        """Decodes every image once, see `fingerprint`."""
        prints = {name: fingerprint(split, decode, frame) for name, split in splits.items()}
        pairs = {
            (one, other): near_pairs(prints[one], prints[other])
            for one, other in combinations(prints, 2)
        }
        near = [
            ((one, int(first)), (other, int(second)))
            for (one, other), rows in pairs.items()
            for first, second in rows[:_MOST_NEAR_PAIRS]
        ]
        return cls(
            unreadable=[
                ((name, row), problem)
                for name, found in prints.items()
                for row, problem in found.problems.items()
            ],
            identical=_identical(prints),
            near=near[:_MOST_NEAR_PAIRS],
            num_near=sum(map(len, pairs.values())),
            sizes=_sizes(prints),
            windows=(_windows(prints, 0), _windows(prints, 1)),
        )

    def write(self, path: Path, key: str) -> None:
        """Writes the findings for `read`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"key": key, **dataclasses.asdict(self)}))

    @classmethod
    def read(cls, path: Path, key: str) -> "Findings | None":
        """Reads the findings that `write` saved under this key, or returns None."""
        try:
            values = json.loads(path.read_text())
            if values.pop("key") != key:
                return None
            return cls(
                unreadable=[(tuple(image), why) for image, why in values["unreadable"]],
                identical=[[tuple(image) for image in images] for images in values["identical"]],
                near=[(tuple(one), tuple(other)) for one, other in values["near"]],
                num_near=values["num_near"],
                sizes=[tuple(size) for size in values["sizes"]],
                windows=tuple(values["windows"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def _identical(prints: Mapping[str, Fingerprints]) -> list[list[Image]]:
    found: dict[str, list[Image]] = {}
    for name, split in prints.items():
        for row, sha256 in enumerate(split.sha256.tolist()):
            if sha256:
                found.setdefault(sha256, []).append((name, row))
    return [images for images in found.values() if len(images) > 1]


def _sizes(prints: Mapping[str, Fingerprints]) -> list[tuple[int, int, int]]:
    counts = Counter(
        tuple(size)
        for split in prints.values()
        for row, size in enumerate(split.sizes.tolist())
        if row not in split.problems
    )
    return [(width, height, count) for (width, height), count in counts.most_common()]


def _windows(prints: Mapping[str, Fingerprints], kind: int) -> int:
    """Counts the images whose entry in `Fingerprints.windows` is `kind`."""
    return sum(int((found.windows == kind).sum()) for found in prints.values())
