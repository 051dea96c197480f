"""The `data` section of a run's configuration."""

import dataclasses
import math
import re
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from medmamba_jax.data.images.windowing import ALLOWED as WINDOWS
from medmamba_jax.data.images.windowing import Window, parse_window

SOURCES = ("phantom", "image_folder", "csv", "npz", "tfds")
RESIZE_FILTERS = ("bilinear", "bicubic", "lanczos", "nearest")
AUGMENTATIONS = ("none", "official", "light", "light_flip")
CACHES = ("auto", "none", "memory", "disk")
ALL_FRAMES = -1
PUBLIC_SPLITS = ("paper", "official", "patient")

_STRINGS = (
    *("name", "root", "table", "path_column", "split_column", "group_column", "weight_column"),
    *("group_pattern", "manual_dir", "cache_dir", "fold", "split_file"),
)
_CACHE_FOLDER = "~/.cache/medmamba-jax"
_MIN_IMAGE_SIZE = 32  # the model halves the image five times
_MIN_PHANTOM_IMAGES = 30


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they reach the model.

    All values are scalars or flat tuples that a command-line flag can set, but for an image_size
    of (height, width), which takes a config file.

    Attributes:
        source: "phantom" (synthetic, drawn on the fly), "image_folder", "csv", "npz" or "tfds".
        name: a public set (`python -m medmamba_jax.data list`), or any set that you prepared with
            TFDS in `root`. Read by source "tfds" only.
        root: the image folder, the npz file, or the TFDS data directory. "" means unset: an error
            for "image_folder" and "npz", `~/tensorflow_datasets` for "tfds".
        table: the CSV file, with a header and a line for each image. Read by source "csv" only,
            as are the columns.
        path_column: name of the column of image files, relative to the folder of the table.
        label_column: name of the column of classes. Several names, with commas between them, make
            a multi-label set: each column is a class and holds 1, 0, or nothing, NaN or -1 for
            not known.
        split_column: name of the column with train, val or test. "" means none; so does a table
            without a column of the default name.
        group_column: name of the column of patients, whose images stay in one split. "" means
            none; so does a table without a column of the default name.
        weight_column: name of the column of weights: positive numbers that say how much each image
            counts in the training loss, which is divided by their sum in the batch. Validation
            loss and all metrics count images alike. "" means none; so does a table without a
            column of the default name.
        group_pattern: regular expression with one group, searched in each image's path below the
            root; what the group matches is the patient. Read by source "image_folder" only.
        manual_dir: where an archive or folder fetched by hand lies; "" means unset. Read by
            source "tfds" only.
        splits: how a public set is split: "paper" (the sizes reported for MedMamba, by
            `split_seed`), "official" (the publisher's own) or "patient" (no patient in two
            splits, by `split_seed`). Not every set has each. Read by source "tfds" only.
        accept_changed_files: prepare a public set from a file that is not, byte for byte, the
            published one; its structure is still checked. Read by source "tfds" only.
        image_size: pixels, one side of a square or (height, width); 32 or more.
        resize: resampling filter; every filter but "nearest" is antialiased.
        mean: subtracted after scaling to 0..1; one value, or one per channel.
        std: divisor after subtracting the mean; one value, or one per channel.
        window: which intensities of images with more than 8 bits (16-bit files, DICOM, arrays of
            other types) become 0..255: "auto", what a DICOM file says, else from the smallest to
            the largest value of each image; "full", all that the file's type can hold; or
            "LOW,HIGH", the same for all images (of DICOM in its own units, such as Hounsfield).
            Values below LOW become 0 and above HIGH 255. 8-bit images are not touched.
        frame: of files with several (DICOM, TIFF, GIF, WebP), counted from 0; -1 makes an image of
            each, with the file's label.
        augmentation: training policy, see `medmamba_jax.data.images.augmentation`.
        val_fraction: part of all images split off for validation where the data bring no split
            of their own.
        test_fraction: the same for testing.
        split_seed: seed of those splits, and of the phantom drawings.
        fold: "2/5" tests on the second of five folds of all images, and splits val off the
            others; splits that the data bring are set aside. "" means no cross-validation. Not
            for sets of your own that source "tfds" reads; nor is `split_file`.
        split_file: a CSV file with the columns path and split that says where each image belongs,
            such as the `split.csv` of a run. "" means none.
        allow_overlap: only warn of a patient, or an image, that is in two splits, as the configs of
            the paper's sets do, whose published splits are what they are.
        allow_unreadable: drop image files that cannot be decoded instead of stopping. Read by
            the sources "image_folder" and "csv".
        num_workers: Grain worker processes; 0 decodes in threads of this process.
        cache: whether decoded images are kept: "none"; "memory", from when each is first read;
            "disk", written before the first is read and found again by later runs; or "auto", one
            of these by size, see `medmamba_jax.data.reading.caching`. No pixel depends on it.
        cache_dir: folder of the disk cache, and of what was found in images before training;
            may be deleted at any time. "" means `~/.cache/medmamba-jax`.
        phantom_images: synthetic images in all, before the split.

    Raises:
        ValueError: if a field holds a value that is not allowed.
    """

    source: str = "phantom"
    name: str = "cpn_xray"
    root: str = ""
    table: str = ""
    path_column: str = "path"
    label_column: str | tuple[str, ...] = "label"
    split_column: str = "split"
    group_column: str = "patient_id"
    weight_column: str = "weight"
    group_pattern: str = ""
    manual_dir: str = ""
    splits: str = "paper"
    accept_changed_files: bool = False
    image_size: int | tuple[int, int] = 224
    resize: str = "bilinear"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    window: Window = "auto"
    frame: int = 0
    augmentation: str = "none"
    val_fraction: float = 0.1
    test_fraction: float = 0.3
    split_seed: int = 0
    fold: str = ""
    split_file: str = ""
    allow_overlap: bool = False
    allow_unreadable: bool = False
    num_workers: int = 0
    cache: str = "auto"
    cache_dir: str = ""
    phantom_images: int = 900

    def __post_init__(self):
        for field in ("image_size", "mean", "std", "label_column"):
            value = getattr(self, field)
            if isinstance(value, list):  # how JSON returns a tuple
                object.__setattr__(self, field, tuple(value))
        self._require("source", self.source in SOURCES, f"one of {SOURCES}")
        for field in _STRINGS:
            self._require(field, isinstance(getattr(self, field), str), "a string")
        self._require(
            "table",
            not self.table or self.source == "csv",
            f"empty for source {self.source!r}; or set data.source=csv",
        )
        self._require(
            "root",
            not self.root or self.source != "csv",
            "empty for source 'csv', whose paths are relative to the folder of data.table",
        )
        self._require_columns()
        self._require("splits", self.splits in PUBLIC_SPLITS, f"one of {PUBLIC_SPLITS}")
        self._require(
            "accept_changed_files", isinstance(self.accept_changed_files, bool), "True or False"
        )
        sides = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        self._require(
            "image_size",
            len(sides) == 2 and all(_is_integer(s) and s >= _MIN_IMAGE_SIZE for s in sides),
            f"an integer or (height, width), each at least {_MIN_IMAGE_SIZE}",
        )
        self._require("resize", self.resize in RESIZE_FILTERS, f"one of {RESIZE_FILTERS}")
        self._require("mean", _are_numbers(self.mean), "a tuple of numbers on the 0..1 scale")
        self._require(
            "std",
            _are_numbers(self.std) and all(s > 0 for s in self.std),
            "a tuple of positive numbers on the 0..1 scale",
        )
        try:
            object.__setattr__(self, "window", parse_window(self.window))
        except ValueError:
            self._require("window", False, WINDOWS)
        self._require(
            "frame",
            _is_integer(self.frame) and self.frame >= ALL_FRAMES,
            f"an integer, 0 or more, or {ALL_FRAMES} for all frames",
        )
        self._require("cache", self.cache in CACHES, f"one of {CACHES}")
        self._require("augmentation", self.augmentation in AUGMENTATIONS, f"one of {AUGMENTATIONS}")
        for field in ("val_fraction", "test_fraction"):
            value = getattr(self, field)
            self._require(field, _is_number(value) and 0 < value < 1, "a number between 0 and 1")
        self._require(
            "test_fraction",
            self.val_fraction + self.test_fraction < 1,
            f"less than 1 - data.val_fraction = {1 - self.val_fraction:g}",
        )
        self._require(
            "split_seed",
            _is_integer(self.split_seed) and 0 <= self.split_seed < 2**32,
            "an integer in [0, 2**32)",
        )
        self._require("fold", not self.fold or self.fold_of is not None, 'like "2/5", or empty')
        self._require("fold", not (self.fold and self.split_file), "empty with data.split_file")
        for field in ("allow_overlap", "allow_unreadable"):
            self._require(field, isinstance(getattr(self, field), bool), "True or False")
        self._require(
            "num_workers",
            _is_integer(self.num_workers) and self.num_workers >= 0,
            "an integer, 0 or more",
        )
        self._require(
            "phantom_images",
            _is_integer(self.phantom_images) and self.phantom_images >= _MIN_PHANTOM_IMAGES,
            f"an integer, {_MIN_PHANTOM_IMAGES} or more",
        )

    @property
    def cache_folder(self) -> Path:
        """`cache_dir`, or where it is by default."""
        return Path(self.cache_dir or _CACHE_FOLDER).expanduser()

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The names in `label_column`; several make a multi-label set."""
        if isinstance(self.label_column, tuple):
            return self.label_column
        return tuple(name.strip() for name in self.label_column.split(","))

    @property
    def fold_of(self) -> tuple[int, int] | None:
        """Which fold, from 0, and how many; None if `fold` names none."""
        match = re.fullmatch(r"([0-9]+)/([0-9]+)", self.fold)
        if match is None:
            return None
        fold, folds = map(int, match.groups())
        return (fold - 1, folds) if folds >= 2 and 1 <= fold <= folds else None

    def _require_columns(self) -> None:
        self._require("path_column", self.path_column != "", "the name of a column")
        names = self.label_column
        self._require(
            "label_column",
            isinstance(names, str) or (isinstance(names, tuple) and _are_strings(names)),
            "the name of a column, or several with commas between them",
        )
        names = self.label_columns
        self._require(
            "label_column", "" not in names and len(set(names)) == len(names), "distinct names"
        )
        self._require(
            "weight_column",
            self.weight_column not in names,
            "another column than those of data.label_column, or empty for no weights",
        )
        try:
            groups = re.compile(self.group_pattern).groups
        except re.error:
            groups = 0
        self._require(
            "group_pattern",
            not self.group_pattern or groups == 1,
            "a regular expression with one group in brackets",
        )

    def _require(self, field: str, valid: bool, allowed: str) -> None:
        if not valid:
            raise ValueError(f"data.{field} must be {allowed}; got {getattr(self, field)!r}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _are_strings(values: tuple[Any, ...]) -> bool:
    return len(values) > 0 and all(isinstance(value, str) for value in values)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) > 0 and all(map(_is_number, values))
