"""The subcommand `medmamba inspect`, which describes the images of a data set."""

import argparse
import dataclasses
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medmamba_jax.data.auditing.findings import Findings
from medmamba_jax.data.auditing.overlaps import (
    identical_images,
    image_sizes,
    near_images,
    shared_groups,
    unreadable_images,
)
from medmamba_jax.data.build import find_images, source_of
from medmamba_jax.data.config import CsvConfig, DataConfig, FolderConfig, PublicConfig
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.images.augmentation import POLICIES
from medmamba_jax.data.images.decoding import open_image
from medmamba_jax.data.inspection.image_kinds import image_kind
from medmamba_jax.data.inspection.sheets import augmentation_sheet, contact_sheet
from medmamba_jax.data.naming import listed
from medmamba_jax.data.public.commands import Subcommands
from medmamba_jax.data.sources.tfds_source import is_stored
from medmamba_jax.data.splits.as_configured import as_found
from medmamba_jax.errors import UserError
from medmamba_jax.files import write_atomically

_SHOWN = 8  # images of a class
_AUGMENTED = 6  # images of all classes together
_SECTIONS = (FolderConfig, CsvConfig, PublicConfig)  # their settings become flags


def add_inspect(subcommands: Subcommands) -> None:
    """Adds `inspect` to the subcommands of a parser."""
    parser = subcommands.add_parser(
        "inspect", help="count the images of a set, look for damage and overlap, and draw some"
    )
    parser.add_argument(
        "what",
        metavar="NAME|PATH",
        help="a folder, a table, an npz file, or a public set, which is prepared if necessary",
    )
    parser.add_argument(
        "--augment", choices=tuple(POLICIES), help="draw a few images as this policy changes them"
    )
    parser.add_argument("--output", metavar="PNG", help="the picture file; by default NAME.png")
    parser.add_argument("--overwrite", action="store_true", help="replace the picture if it exists")
    for section in _SECTIONS:
        for field in dataclasses.fields(section):
            flag, help_text = (
                f"--{field.name.replace('_', '-')}",
                f"as {section.title}.{field.name}",
            )
            if field.type is bool:
                parser.add_argument(flag, action="store_true", help=help_text)
            else:
                parser.add_argument(
                    flag, default=field.default, help=f"{help_text} ({field.default!r})"
                )
    parser.set_defaults(run=inspect)


def inspect(options: argparse.Namespace) -> str:
    """Reads every image once, writes a picture, and returns a description of the images.

    Raises:
        DataUnavailableError: the images have to be downloaded, and the download fails.
        FileNotFoundError: there is no such file or folder.
        UserError: the files do not make a data set, or the picture cannot be written.
    """
    dataset = as_found(find_images(_config(options)))
    policy = f"_{options.augment}" if options.augment else ""
    picture = Path(options.output or f"{dataset.name}{policy}.png")
    if picture.exists() and not options.overwrite:  # fail before all images are read
        raise UserError(
            f"{picture} exists: choose another file with --output, or replace it with --overwrite"
        )
    findings = Findings.of(dataset.splits, _decode)
    _draw(dataset, findings, options.augment, picture)
    return "\n".join(
        [
            f"{dataset.name}: {dataset.description}",
            *_counts(dataset),
            "",
            *_remarks(dataset, findings),
            f"picture: {picture}",
        ]
    )


def _config(options: argparse.Namespace) -> DataConfig:
    sections: dict[str, Any] = {
        section.title.rpartition(".")[2]: section(
            **{field.name: getattr(options, field.name) for field in dataclasses.fields(section)}
        )
        for section in _SECTIONS
    }
    by_name = DataConfig(name=options.what, **sections)
    is_name = source_of(by_name) != "public" or is_stored(by_name)
    if is_name and not Path(options.what).expanduser().exists():
        return by_name
    return DataConfig(path=options.what, **sections)


def _decode(image: bytes | np.ndarray) -> np.ndarray:
    """Decodes an image to uint8 (h, w, c), with its own number of channels."""
    return np.atleast_3d(np.asarray(open_image(image)))


def _counts(dataset: Dataset) -> list[str]:
    counts = dataset.counts()
    rows = [["", *counts]]
    rows += [[name, *(f"{row[name]:,}" for row in counts.values())] for name in dataset.class_names]
    rows.append(["images", *(f"{len(split):,}" for split in dataset.splits.values())])
    if _knows_patients(dataset):
        groups = [split.groups for split in dataset.splits.values()]
        known = ["-" if part is None else f"{len(np.unique(part)):,}" for part in groups]
        rows.append(["patients", *known])
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]).rstrip() for row in rows
    ]


def _remarks(dataset: Dataset, findings: Findings) -> list[str]:
    kinds = Counter(
        image_kind(split.read(row))
        for split in dataset.splits.values()
        for row in range(len(split))
    )
    across, within = identical_images(dataset, findings)
    found = {
        "cannot be read": _listed(unreadable_images(dataset, findings)),
        "the same pixels again in a split": _listed(within),
    }
    if len(dataset.splits) > 1:
        found["the same pixels in several splits"] = _listed(across)
        near = _listed(near_images(dataset, findings), findings.num_near)
        found["nearly the same pixels in two splits"] = near
        if _knows_patients(dataset):
            found["patients in several splits"] = _listed(shared_groups(dataset))
    return [
        f"sizes: {image_sizes(findings)}",
        f"kinds: {', '.join(f'{kind} ({count:,})' for kind, count in kinds.most_common())}",
        *(f"{what}: {items}" for what, items in found.items()),
    ]


def _knows_patients(dataset: Dataset) -> bool:
    return any(split.groups is not None for split in dataset.splits.values())


def _listed(items: list[str], count: int | None = None) -> str:
    """Returns the number of items and the first few of them as text.

    `count` is the number of all items, if `items` holds only the first ones.
    """
    count = len(items) if count is None else count
    return f"{count:,}: {listed(items, count)}" if items else "none"


def _draw(dataset: Dataset, findings: Findings, augment: str | None, path: Path) -> None:
    unreadable = {image for image, _ in findings.unreadable}
    rows = {
        label: [
            (name, int(row))
            for name, split in dataset.splits.items()
            for row in np.flatnonzero(_shows(split.labels, label))
            if (name, int(row)) not in unreadable
        ]
        for label in range(len(dataset.class_names))
    }

    def pixels(images: list[tuple[str, int]], count: int) -> list[np.ndarray]:
        if not images:
            return []
        chosen = np.unique(np.linspace(0, len(images) - 1, count).astype(int))
        picked = (images[i] for i in chosen)
        return [_decode(dataset.splits[name].read(row)) for name, row in picked]

    if augment:
        one_of_each = [images[:1] for images in rows.values()]
        several = pixels([image for images in one_of_each for image in images], _AUGMENTED)
        sheet = augmentation_sheet(several, augment, seed=0)
    else:
        sheet = contact_sheet(
            {
                f"{dataset.class_names[label]} ({len(images):,})": pixels(images, _SHOWN)
                for label, images in rows.items()
            }
        )
    content = io.BytesIO()
    try:
        sheet.save(content, format=Image.registered_extensions()[path.suffix.lower()])
        write_atomically(path, content.getvalue())
    except KeyError:
        raise UserError(f"{path} has no ending of a picture: give another --output") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be written ({error}): give another --output") from error


def _shows(labels: np.ndarray, label: int) -> np.ndarray:
    return labels[:, label] == 1 if labels.ndim == 2 else labels == label
