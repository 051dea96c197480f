"""The subcommands `medmamba list` and `medmamba prepare`."""

import argparse
import re
from collections.abc import Sequence
from typing import Any

from medmamba_jax.data.build import build_dataset
from medmamba_jax.data.config import DataConfig, PublicConfig
from medmamba_jax.data.public.catalogue import CATALOGUE
from medmamba_jax.data.split_names import PUBLIC_SPLITS

_SIZE_SUFFIX = re.compile(r"_(64|128|224)$")


def add_list(subcommands: Any) -> None:
    """Adds `list` to the subcommands of a parser."""
    subcommands.add_parser("list", help="the public sets").set_defaults(run=lambda _: list_sets())


def add_prepare(subcommands: Any) -> None:
    """Adds `prepare` to the subcommands of a parser."""
    parser = subcommands.add_parser("prepare", help="download a public set, and write it for TFDS")
    parser.add_argument("name", metavar="NAME", help="a name that `medmamba list` shows")
    parser.add_argument("--data-dir", default="", help="like data.public.data_dir of a run")
    parser.add_argument("--manual-dir", default="", help="folder of an archive that you downloaded")
    parser.add_argument("--splits", choices=tuple(PUBLIC_SPLITS), default=PublicConfig.splits)
    parser.add_argument("--split-seed", type=int, default=0)
    parser.add_argument(
        "--accept-changed-files",
        action="store_true",
        help="accept a file with another checksum than the published one",
    )
    parser.set_defaults(run=_prepare)


def list_sets() -> str:
    """Returns a table of the public sets. It lists a MedMNIST set once, not in every size."""
    rows = [("name", "images", "classes", "download", "splits", "paper: OA, AUC", "licence")]
    for public_set in CATALOGUE.values():
        if _SIZE_SUFFIX.search(public_set.name):
            continue
        scores = public_set.scores
        rows.append(
            (
                public_set.name,
                f"{public_set.num_images:,}",
                str(len(public_set.class_names)),
                public_set.archive.about or "not known",
                ", ".join(public_set.splits),
                f"{scores.accuracy:.1f} %, {scores.auc:.3f}",
                public_set.licence or "not known",
            )
        )
    return "\n".join(
        [
            *_aligned(rows),
            "Names that end in mnist mean 28 px; append _64, _128 or _224 for other sizes.",
            "`medmamba prepare NAME` downloads a set and counts its images.",
        ]
    )


def _prepare(options: argparse.Namespace) -> str:
    public = PublicConfig(
        data_dir=options.data_dir,
        manual_dir=options.manual_dir,
        splits=options.splits,
        accept_changed_files=options.accept_changed_files,
    )
    config = DataConfig(name=options.name, public=public, split_seed=options.split_seed)
    dataset = build_dataset(config)
    counts = dataset.counts()
    rows = [
        ("class", *counts),
        *((name, *(str(counts[split][name]) for split in counts)) for name in dataset.class_names),
    ]
    rows.append(("all", *(str(len(split)) for split in dataset.splits.values())))
    return "\n".join(_aligned(rows))


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
