"""The subcommand `medmamba inspect`, which describes the images of a data set."""

import argparse
import dataclasses
import functools
import io
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from medmamba_jax.data.auditing.checks import (
    image_sizes,
    near_images,
    one_class_each,
    same_images,
    shared_groups,
    unreadable_images,
)
from medmamba_jax.data.auditing.duplicates import Duplicates, write_duplicates
from medmamba_jax.data.auditing.fingerprints import Facts
from medmamba_jax.data.build import find_images, require_two_classes, source_of
from medmamba_jax.data.config import CsvConfig, DataConfig, FolderConfig, PublicConfig
from medmamba_jax.data.csv_table import write_csv_table
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.first_pass import first_pass
from medmamba_jax.data.images.augmentation import ON_DEVICE, POLICIES
from medmamba_jax.data.images.decoding import open_image
from medmamba_jax.data.images.dicom import header_tag, mixed_windows
from medmamba_jax.data.images.preprocessing import Preprocessing
from medmamba_jax.data.inspection.image_kinds import image_kind
from medmamba_jax.data.inspection.sheets import InStep, augmentation_sheet, contact_sheet
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.labels import shown_classes
from medmamba_jax.data.naming import listed
from medmamba_jax.data.public.stored import is_stored
from medmamba_jax.data.sources.frames import frames_in, note_frames
from medmamba_jax.data.split_names import SPLITS
from medmamba_jax.data.splits.as_configured import as_found, split_problems, with_split_file
from medmamba_jax.data.splits.header_patients import header_patients, looked_at, note_patients
from medmamba_jax.data.stratified import Strata
from medmamba_jax.errors import UserError
from medmamba_jax.files import expanded, write_atomically
from medmamba_jax.sections import Section

FOUND = 3  # the exit code if something was found that needs attention
_SHOWN = 8  # images of a class
_AUGMENTED = 6  # images of all classes together
_SECTIONS = (DataConfig, FolderConfig, CsvConfig, PublicConfig)  # their settings become flags
# Settings of `DataConfig` that are no flags: what the images are is an argument, and the others
# take effect only after the images were found and looked at.
_NO_FLAGS = frozenset(
    "path name image_size resize mean std augmentation num_workers cache audit"
    " allow_contradictions allow_overlap allow_unreadable".split()
)


def add_inspect(subcommands: Any, in_step: InStep | None = None) -> None:
    """Adds `inspect` to the subcommands of a parser.

    Args:
        subcommands: the subcommands of the parser.
        in_step: changes images as the training step does, see `augmentation_sheet`.
    """
    parser = subcommands.add_parser(
        "inspect", help="count the images of a set, look for damage and overlap, and draw some"
    )
    parser.add_argument(
        "what",
        metavar="NAME|PATH",
        help="a folder, a table, an npz file, or a public set, which is prepared if necessary",
    )
    parser.add_argument(
        "--augment",
        choices=[name for name in POLICIES if in_step is not None or name not in ON_DEVICE],
        help="draw a few images as this policy changes them",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="a new folder, outside the images, for what is written; by default NAME_inspected",
    )
    for section in _SECTIONS:
        for field in _settings(section):
            flag, help_text = (
                f"--{field.name.replace('_', '-')}",
                f"as {section.title}.{field.name}",
            )
            if field.type is bool:
                parser.add_argument(flag, action="store_true", help=help_text)
            else:
                parser.add_argument(
                    flag,
                    default=field.default,
                    type=field.type if field.type in (int, float) else str,
                    help=f"{help_text} ({field.default!r})",
                )
    parser.set_defaults(run=functools.partial(inspect, in_step=in_step))


def _settings(section: type[Section]) -> list[dataclasses.Field]:
    """Returns the fields of a section that are flags, with their defaults."""
    return [
        field
        for field in dataclasses.fields(section)  # type: ignore[arg-type]
        if not isinstance(field.default, Section)
        and not (section is DataConfig and field.name in _NO_FLAGS)
    ]


def inspect(options: argparse.Namespace, in_step: InStep | None = None) -> tuple[str, int]:
    """Reads every image once, and describes the images.

    It writes into a new folder: `sheet.png`, a picture, if an image can be read; `findings.csv`, a
    row for each kind of finding with its number; and `duplicates.csv`, see `write_duplicates`.

    Returns:
        The description, and the exit code: `FOUND` if something needs attention, else 0.

    Raises:
        DataUnavailableError: the images have to be downloaded, and the download fails.
        FileNotFoundError: there is no such file or folder.
        UserError: the files do not make a data set, an image that can be read lacks the tag
            `--group-tag`, or the folder exists, cannot be made, or is inside the data set.
    """
    config = _config(options)
    found = find_images(config)
    require_two_classes(found)
    if config.split_file:
        found = with_split_file(found, config)
    tag, few = looked_at(found, config)
    folder = _new_folder(options.out, found.name, config.path)
    kinds, frames = ["unreadable"] * len(found), np.ones(len(found), int)

    def look(row: int, image: bytes | np.ndarray) -> str | None:
        kinds[row], frames[row] = image_kind(image), frames_in(image)
        return header_tag(found.file(row, image), tag) if row in few else None

    preprocessing = _OwnChannels(**vars(config.preprocessing(3)))
    try:
        seen = first_pass(
            dataclasses.replace(found, synthetic=False),  # the pass would leave out drawings
            preprocessing,
            config,
            look=look,
        )
        facts = seen.facts
        assert facts is not None and seen.store.identities is not None  # `data.audit` is on
        if config.group_tag:
            # An image that cannot be read is a finding, and not one without a patient.
            unread = {row: f"not read: {row}" for row in facts.problems}
            headers = {row: seen.looked[row] or unread.get(row) for row in few}
            groups = header_patients(found, headers, seen.store.identities, tag)
            found = dataclasses.replace(found, groups=groups)
        else:
            note_patients({row: seen.looked[row] for row in few})
    except BaseException:
        folder.rmdir()
        raise
    note_frames(frames, config.frame)
    duplicates = Duplicates.among(facts)
    findings = _findings(found, config, facts, duplicates, Counter(kinds))
    if facts.readable.any():
        _draw(found, facts, preprocessing, options.augment, in_step, folder / "sheet.png")
    write_duplicates(folder / "duplicates.csv", found, duplicates)
    write_csv_table(
        folder / "findings.csv",
        ["finding", "count", "needs_attention"],
        ([one.what, one.count, "yes" if one.needs_attention else "no"] for one in findings),
    )
    text = "\n".join(
        [
            f"{found.name}: {found.description}",
            *_counts(as_found(found)),
            "",
            *(f"{finding.what}: {finding.text()}" for finding in findings),
            f"written: {folder}",
        ]
    )
    return text, FOUND if any(finding.needs_attention for finding in findings) else 0


class _OwnChannels(Preprocessing):
    """Decodes images with their own number of channels."""

    def decode(self, image: str | Path | bytes | np.ndarray) -> np.ndarray:
        assert not isinstance(image, str | Path)  # labelled images are read already
        frame = max(self.frame, 0)  # with ALL_FRAMES, labelled images are single frames
        opened = open_image(image, window=self.window, frame=frame, max_pixels=self.max_pixels)
        return np.atleast_3d(np.asarray(opened))


def _new_folder(out: str | None, name: str, path: str) -> Path:
    """Makes the folder that `--out` names, or one of its own.

    It is never one that exists, nor one inside the images at `path`, where the next start would
    take the picture for an image. A folder of its own is in the current folder, or beside the
    images.
    """
    images = expanded(path).resolve() if path else None
    if out:
        folder = expanded(out)
        if images and folder.resolve().is_relative_to(images):
            raise UserError(
                f"the folder {folder} would be inside the images of {images}: name one outside by"
                " --out"
            )
    else:
        inside = images is not None and Path().resolve().is_relative_to(images)
        parent = images.parent if images and inside else Path()
        stem = f"{name}_inspected".replace(":", "_")
        numbered = (f"{stem}_{number}" for number in itertools.count(2))
        names = itertools.chain([stem], numbered)
        folder = next(parent / each for each in names if not (parent / each).exists())
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be made ({error.strerror}): name a new one by --out"
        ) from error
    return folder


@dataclasses.dataclass(frozen=True)
class _Finding:
    """What was found of one kind: its number, texts that name the first, and whether it is bad."""

    what: str
    count: int
    items: list[str]
    serious: bool = False

    @property
    def needs_attention(self) -> bool:
        return self.serious and self.count > 0

    def text(self) -> str:
        return f"{self.count:,}: {listed(self.items)}" if self.count else "none"


def _findings(
    found: LabelledImages,
    config: DataConfig,
    facts: Facts,
    duplicates: Duplicates,
    kinds: Counter[str],
) -> list[_Finding]:
    def items(what: str, items: list[str], *, serious: bool = True) -> _Finding:
        return _Finding(what, len(items), items, serious)

    sizes = facts.of["size"][facts.readable]
    same = same_images(found, duplicates)
    across = [one.text for one in same if len(one.splits) > 1]
    within = [one for one in same if len(one.splits) == 1]
    again = f"the same pixels again{'' if found.splits is None else ' in a split'}"
    contradictions = [one.text for one in same if one.contradict]
    strata = Strata(found.labels, groups=found.groups, class_names=found.class_names)
    small = strata.small_classes(len(SPLITS))
    empty = [f"class {name!r} has 0 images" for name, count in found.counts().items() if not count]
    near = [
        f"{found.names[one]} ~ {found.names[other]} ({distance} bits)"
        for one, other, distance in duplicates.pairs()
        if distance or duplicates.same[one] != duplicates.same[other]
    ]
    findings = [
        _Finding("sizes", len(np.unique(sizes, axis=0)), [image_sizes(sizes)]),
        _Finding("kinds", len(kinds), ["; ".join(f"{k} ({n:,})" for k, n in kinds.most_common())]),
        items("cannot be read", unreadable_images(found, facts)),
        items(f"classes too small for {len(SPLITS)} splits", small + empty),
        items("cannot be split", split_problems(found, config, duplicates)),
        _Finding(again, sum(one.copies for one in within), [one.text for one in within]),
        items("the same pixels with different labels", contradictions),
        items("nearly the same pixels", near, serious=False),
    ]
    if config.window == "auto" and (mixed := mixed_windows(kinds)):
        findings.append(items("DICOM with and without a window", [mixed]))
    if one_class := one_class_each(as_found(found)):
        findings.append(
            items("one class an image in a multi-label set", [one_class], serious=False)
        )
    if found.splits is not None:
        findings += [
            items("the same pixels in several splits", across),
            items("nearly the same pixels in two splits", near_images(found, duplicates)),
        ]
        if found.groups is not None:
            findings.append(items("patients in several splits", shared_groups(as_found(found))))
    return findings


def _config(options: argparse.Namespace) -> DataConfig:
    values = {
        section: {field.name: getattr(options, field.name) for field in _settings(section)}
        for section in _SECTIONS
    }
    settings: dict[str, Any] = {"cache": "none", "allow_unreadable": True, **values.pop(DataConfig)}
    for section, of_section in values.items():
        settings[section.title.rpartition(".")[2]] = section(**of_section)
    by_name = DataConfig(name=options.what, **settings)
    is_name = source_of(by_name) != "public" or is_stored(by_name)
    if is_name and not expanded(options.what).exists():
        return by_name
    return DataConfig(path=options.what, **settings)


def _counts(dataset: Dataset) -> list[str]:
    counts = dataset.counts()
    rows = [["", *counts]]
    rows += [[name, *(f"{row[name]:,}" for row in counts.values())] for name in dataset.class_names]
    rows.append(["images", *(f"{len(split):,}" for split in dataset.splits.values())])
    groups = [split.groups for split in dataset.splits.values()]
    if any(part is not None for part in groups):
        known = ["-" if part is None else f"{len(np.unique(part)):,}" for part in groups]
        rows.append(["patients", *known])
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]).rstrip() for row in rows
    ]


def _draw(
    found: LabelledImages,
    facts: Facts,
    preprocessing: Preprocessing,
    augment: str | None,
    in_step: InStep | None,
    path: Path,
) -> None:
    shown = shown_classes(found.labels, len(found.class_names))
    rows = [np.flatnonzero(of_class & facts.readable) for of_class in shown.T]

    def pixels(rows: np.ndarray, count: int) -> list[np.ndarray]:
        if not len(rows):
            return []
        chosen = np.unique(np.linspace(0, len(rows) - 1, count).astype(int))
        return [preprocessing.decode(found.read(row)) for row in rows[chosen].tolist()]

    if augment:
        several = pixels(np.concatenate([of_class[:1] for of_class in rows]), _AUGMENTED)
        sheet = augmentation_sheet(several, augment, 0, preprocessing.fit, in_step)
    else:
        sheet = contact_sheet(
            {
                f"{name} ({len(of_class):,})": pixels(of_class, _SHOWN)
                for name, of_class in zip(found.class_names, rows, strict=True)
            }
        )
    content = io.BytesIO()
    sheet.save(content, "PNG")
    write_atomically(path, content.getvalue())
