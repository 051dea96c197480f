"""The subcommand `inspect` of `python -m medmamba_jax.data`: what images there are."""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from medmamba_jax.data.auditing.findings import Findings
from medmamba_jax.data.auditing.overlaps import (
    identical_images,
    image_sizes,
    near_images,
    shared_groups,
    unreadable_images,
)
from medmamba_jax.data.build import BUILDERS, FINDERS
from medmamba_jax.data.config import PUBLIC_SPLITS, DataConfig
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.images.augmentation import POLICIES
from medmamba_jax.data.images.decoding import IMAGE_SUFFIXES, open_image
from medmamba_jax.data.inspection.augmentation_sheet import augmentation_sheet
from medmamba_jax.data.inspection.contact_sheet import contact_sheet
from medmamba_jax.data.inspection.image_kinds import image_kind
from medmamba_jax.data.naming import listed
from medmamba_jax.data.public.catalogue import CATALOGUE
from medmamba_jax.data.tfds_source import DEFAULT_DATA_DIR

_SHOWN = 8  # images of a class
_AUGMENTED = 6  # images in all
_OPTIONS = (
    *("path_column", "label_column", "split_column", "group_column", "weight_column"),
    "group_pattern",
)


def add_inspect(subcommands) -> None:
    """Adds `inspect` to the subcommands of a parser."""
    parser = subcommands.add_parser(
        "inspect", help="count the images of a set, look for damage and overlap, and draw some"
    )
    parser.add_argument(
        "what",
        metavar="NAME|FOLDER|CSV|NPZ",
        help="a folder, a .csv or .npz file, or a public set, which is prepared if need be",
    )
    parser.add_argument(
        "--augment", choices=tuple(POLICIES), help="draw what this policy makes of a few images"
    )
    parser.add_argument("--output", metavar="PNG", help="the picture; by default NAME.png here")
    for field in _OPTIONS:
        default = getattr(DataConfig, field)
        flag = f"--{field.replace('_', '-')}"
        parser.add_argument(flag, default=default, help=f"as data.{field} ({default!r})")
    parser.add_argument("--data-dir", default="", help="the data.root of a run with a public set")
    parser.add_argument("--splits", choices=PUBLIC_SPLITS, default=DataConfig.splits)
    parser.set_defaults(run=inspect)


def inspect(options: argparse.Namespace) -> str:
    """Reads every image once, writes a picture and returns what there is to say, as text.

    Raises:
        DataUnavailableError, FileNotFoundError: if there are no images.
        ValueError: if they make no data set, or the picture cannot be written.
    """
    config = _config(options)
    if config.source in FINDERS:
        dataset = FINDERS[config.source](config).as_found()
    else:
        dataset = BUILDERS[config.source](config)
    findings = Findings.of(dataset.splits, _decode)
    policy = f"_{options.augment}" if options.augment else ""
    picture = Path(options.output or f"{dataset.name}{policy}.png")
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
    path = Path(options.what).expanduser()
    columns = {field: getattr(options, field) for field in _OPTIONS}
    if path.is_dir():
        return DataConfig(source="image_folder", root=str(path), **columns)
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return DataConfig(source="csv", table=str(path), **columns)
    if suffix in IMAGE_SUFFIXES:
        raise ValueError(f"{path} is a single image: give the folder of all, or a table")
    if suffix == ".npz" or path.is_file():
        return DataConfig(source="npz", root=str(path))
    prepared = Path(options.data_dir or DEFAULT_DATA_DIR).expanduser() / options.what
    if options.what not in CATALOGUE and not prepared.is_dir():
        raise FileNotFoundError(f"no folder or file {path}: give one, or a name that `list` shows")
    return DataConfig(
        source="tfds", name=options.what, root=options.data_dir, splits=options.splits
    )


def _decode(image: bytes | np.ndarray) -> np.ndarray:
    """Decodes to the channels that the image has, uint8 (h, w, c)."""
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
        image_kind(split[row]["image"])
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
    """Returns how many there are, of which `items` may be the first, and a few of them."""
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

    def pixels(images, count):
        chosen = np.unique(np.linspace(0, len(images) - 1, count).astype(int)) if images else []
        picked = (images[i] for i in chosen)
        return [_decode(dataset.splits[name][row]["image"]) for name, row in picked]

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
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be written ({error}): give another --output") from error


def _shows(labels: np.ndarray, label: int) -> np.ndarray:
    return labels[:, label] == 1 if labels.ndim == 2 else labels == label
