"""The `data` section of a run's configuration, and the sections inside it.

`DataConfig` itself holds the settings that every source reads. Settings that only one source reads
are in a section of their own. That section has the name of the source in
`medmamba_jax.data.build.SOURCES`.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any, ClassVar, Self

from medmamba_jax.data.images.augmentation import POLICIES
from medmamba_jax.data.images.image_file import MAX_PIXELS
from medmamba_jax.data.images.preprocessing import ALL_FRAMES, FITS, RESIZE_FILTERS, Preprocessing
from medmamba_jax.data.images.windowing import ALLOWED as WINDOWS
from medmamba_jax.data.images.windowing import Window, parse_window
from medmamba_jax.data.reading.cache_places import CACHES
from medmamba_jax.data.split_names import PUBLIC_SPLITS
from medmamba_jax.data.texts import MISSING, composed
from medmamba_jax.errors import UserError
from medmamba_jax.files import expanded
from medmamba_jax.sections import Section, is_integer, is_number

GROUP_SIMILAR = ("near", "identical", "off")

_CACHE_FOLDER = "~/.cache/medmamba-jax"
_TFDS_FOLDER = "~/tensorflow_datasets"
_MIN_PHANTOM_IMAGES = 30


@dataclasses.dataclass(frozen=True)
class FolderConfig(Section):
    """The settings for an image folder.

    Attributes:
        group_pattern: a regular expression with one group. The program searches for it in each
            image's path below the folder. The text that the group matches names the patient. ""
            means that the patients are not known.

    Raises:
        UserError: `group_pattern` is not a regular expression with one group.
    """

    title: ClassVar[str] = "data.folder"

    group_pattern: str = ""

    def __post_init__(self) -> None:
        self._require_types()
        try:
            groups = re.compile(self.group_pattern).groups
        except re.error:
            groups = 0
        self._require(
            "group_pattern",
            not self.group_pattern or groups == 1,
            "a regular expression with one group in brackets",
        )


@dataclasses.dataclass(frozen=True)
class CsvConfig(Section):
    """The columns of a CSV table. An optional column is used if the table has its default name.

    Attributes:
        images: the folder to which the paths in the table are relative. "" means the folder of the
            table.
        absolute_paths: accept absolute paths in the table.
        path_column: the column of image files.
        label_column: the column of classes. Several names, with commas between them, make a
            multi-label set. Each of these columns is a class. It holds 1 where the image shows the
            class, 0 where it does not, and nothing, NaN or -1 where that is not known.
        split_column: the optional column with train, val or test. "" means none.
        group_column: the optional column of patients. All images of a patient stay in one split.
            "" means none.
        weight_column: the optional column of weights. A weight is a positive number: how much the
            image counts in the training loss. The loss is divided by the sum of the weights in the
            batch. The validation loss and all metrics count every image alike. "" means none.
        missing: the texts in a column of labels that mean that the label is not known. "pandas":
            what pandas takes for missing, such as NA, None, NULL, nan and an empty cell. Texts of
            your own with commas between them replace these; "" means empty cells alone, so that
            NA can be a class.

    Raises:
        UserError: a value is not allowed.
    """

    title: ClassVar[str] = "data.csv"

    images: str = ""
    absolute_paths: bool = False
    path_column: str = "path"
    label_column: str | tuple[str, ...] = "label"
    split_column: str = "split"
    group_column: str = "patient_id"
    weight_column: str = "weight"
    missing: str = "pandas"

    def __post_init__(self) -> None:
        self._require_types()
        self._require("path_column", self.path_column != "", "the name of a column")
        names = self.label_column
        self._require(
            "label_column",
            isinstance(names, str) or (_is_tuple(names) and all(isinstance(n, str) for n in names)),
            "the name of a column, or several with commas between them",
        )
        names = self.label_columns
        self._require(
            "label_column", "" not in names and len(set(names)) == len(names), "distinct names"
        )
        self._require(
            "weight_column",
            self.weight_column not in names,
            "another column than those of data.csv.label_column, or empty for no weights",
        )

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The names in `label_column`; several make a multi-label set."""
        if isinstance(self.label_column, tuple):
            return self.label_column
        return tuple(name.strip() for name in self.label_column.split(","))

    @property
    def missing_labels(self) -> frozenset[str]:
        """The texts in `missing`, and the empty text."""
        if self.missing == "pandas":
            return MISSING
        return frozenset(composed(text.strip()) for text in ("", *self.missing.split(",")))


@dataclasses.dataclass(frozen=True)
class PublicConfig(Section):
    """Where a public set, or a set that you prepared with TFDS, is stored, and how it is split.

    Attributes:
        data_dir: the TFDS data directory. "" means `~/tensorflow_datasets`.
        manual_dir: the folder that holds the archive that you downloaded yourself, or the files of
            that archive. "" means that the program downloads the archive.
        splits: how to split a public set: "paper" (the sizes reported for MedMamba, by
            `data.split_seed`), "official" (the publisher's own) or "patient" (no patient in two
            splits, by `data.split_seed`). Some sets do not support all three.
        accept_changed_files: prepare a public set from a file that differs from the published
            one. The program still checks the structure of the file.

    Raises:
        UserError: a value is not allowed.
    """

    title: ClassVar[str] = "data.public"

    data_dir: str = ""
    manual_dir: str = ""
    splits: str = "paper"
    accept_changed_files: bool = False

    def __post_init__(self) -> None:
        self._require_types()
        self._require_one_of("splits", PUBLIC_SPLITS)

    @property
    def data_folder(self) -> Path:
        """`data_dir`, or the default folder."""
        return expanded(self.data_dir or _TFDS_FOLDER)


@dataclasses.dataclass(frozen=True)
class PhantomConfig(Section):
    """The settings for the synthetic drawings.

    Attributes:
        images: how many images to draw for all splits together; 30 or more.

    Raises:
        UserError: `images` is not allowed.
    """

    title: ClassVar[str] = "data.phantom"

    images: int = 900

    def __post_init__(self) -> None:
        self._require(
            "images",
            is_integer(self.images, _MIN_PHANTOM_IMAGES),
            f"an integer, {_MIN_PHANTOM_IMAGES} or more",
        )


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Where the images come from and how they reach the model.

    A command-line flag can set every value, except for an image_size of (height, width), which
    needs a config file. Set `path` or `name` to choose the images. Images that you pass from Python
    need neither.

    Attributes:
        path: an image folder, a CSV table or an npz file. "" means unset.
        name: a public set (`medmamba list`), a set that you prepared with TFDS, or "phantom"
            (synthetic drawings). "" means unset.
        folder, csv, public, phantom: the settings that only this source reads.
        image_size: pixels, one side of a square or (height, width).
        resize: the resampling filter, a name in `preprocessing.RESIZE_FILTERS`.
        fit: how an image of another aspect ratio meets `image_size`. "stretch": it is distorted.
            "pad": it is scaled as a whole and centred on black. "crop": the largest rectangle of
            the right aspect ratio is cut out of its centre.
        mean: the value that is subtracted from pixels on the scale 0..1; one value, or one per
            channel.
        std: the value by which the difference from the mean is divided; one value, or one per
            channel.
        window: which intensities of images with more than 8 bits (16-bit files, DICOM, arrays of
            other types) become 0..255. "auto": the window in the DICOM file; without one, the range
            from the smallest to the largest value of each image, without its padding. "full": the
            whole range of the file's type. "LOW,HIGH": the same range for all images (for DICOM in
            the file's own units, such as Hounsfield). Values below LOW become 0, and values above
            HIGH become 255. 8-bit images do not change, with one exception: grey DICOM, if this
            setting or the file gives a window.
        frame: which frame to read of a file with several frames (DICOM, TIFF, GIF, WebP), counted
            from 0. With -1, each frame becomes an image with the file's label.
        max_pixels: the most pixels (height times width) of an image file. A file whose header
            announces more is refused before it is decoded, because a small file can announce an
            image that fills the memory.
        augmentation: the training policy, a name in `augmentation.POLICIES`.
        val_fraction: the fraction of all images for validation, if the data have no splits.
        test_fraction: the fraction of all images for testing, if the data have no splits.
        split_seed: the seed of those splits, and of the phantom drawings.
        fold: "2/5" takes the second of five folds of all images as the test set, and splits the
            validation set off the other folds. Splits of the data themselves are then not used. ""
            means no cross-validation.
        split_file: a CSV file with the columns path and split, such as the `split.csv` of a run.
            It names the split of each image. "" means none.
        split_strict: stop if the split file names images that are not there, instead of warning.
        exclude: a text file that names images to leave out, one path a line, as in `split.csv`. ""
            means none.
        subset: use only some images, which `split_seed` draws before the split: "500" draws 500,
            with each class in proportion; "20/class" draws 20 of each class. If there are fewer, a
            warning says so. "" means all images.
        group_tag: the DICOM tag that names the patient, such as "PatientID" or "00100020". All
            images of a patient stay in one split. Only a hash of the patient is written. "" means
            that headers do not name patients.
        audit: check before training that every image can be read, and that no patient and no
            image is in two splits.
        group_similar: which images stay in one split, where the program makes the splits and
            patients are not known. "near": images with the same or nearly the same pixels.
            "identical": images with the same pixels. "off": none; the run then only warns of
            images with the same pixels in two splits.
        allow_contradictions: warn of images with the same pixels and different labels, instead of
            stopping.
        allow_overlap: warn of a patient or an image that is in two splits, instead of stopping.
            The configs of the paper's sets set it, because they use the published splits unchanged.
        allow_unreadable: drop image files that cannot be decoded, instead of stopping. It affects
            image folders and CSV tables only.
        num_workers: the number of worker processes that read images; 0 decodes in threads of this
            process.
        cache: whether and where to keep decoded images, a name in `cache_places.CACHES`. It
            changes pixels only if images are augmented: the device augments resized images, and the
            host augments images at their own size.
        cache_dir: the folder of the disk cache and of the results of the audit. You may delete the
            folder at any time. "" means `~/.cache/medmamba-jax`.

    Raises:
        UserError: a value is not allowed.
    """

    title: ClassVar[str] = "data"

    path: str = ""
    name: str = ""
    folder: FolderConfig = FolderConfig()
    csv: CsvConfig = CsvConfig()
    public: PublicConfig = PublicConfig()
    phantom: PhantomConfig = PhantomConfig()
    image_size: int | tuple[int, int] = 224
    resize: str = "bilinear"
    fit: str = "stretch"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    window: Window = "auto"
    frame: int = 0
    max_pixels: int = MAX_PIXELS
    augmentation: str = "none"
    val_fraction: float = 0.1
    test_fraction: float = 0.3
    split_seed: int = 0
    fold: str = ""
    split_file: str = ""
    split_strict: bool = False
    exclude: str = ""
    subset: str = ""
    group_tag: str = ""
    audit: bool = True
    group_similar: str = "near"
    allow_contradictions: bool = True
    allow_overlap: bool = False
    allow_unreadable: bool = False
    num_workers: int = 0
    cache: str = "auto"
    cache_dir: str = ""

    def __post_init__(self) -> None:
        self._require_types()
        if self.path and self.name:
            raise UserError(
                f"data.path is {self.path!r} and data.name is {self.name!r}, but the images come"
                " from one place: leave one of them empty, such as data.name="
            )
        self._require_pixels()
        self._require_splits()
        self._require_one_of("group_similar", GROUP_SIMILAR)
        self._require("num_workers", is_integer(self.num_workers, 0), "an integer, 0 or more")
        self._require_one_of("cache", CACHES)

    def _require_pixels(self) -> None:
        sides = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        self._require(
            "image_size",
            len(sides) == 2 and all(is_integer(side, 1) for side in sides),
            "an integer or (height, width), each at least 1",
        )
        self._require_one_of("resize", RESIZE_FILTERS)
        self._require_one_of("fit", FITS)
        for field, allowed in (("mean", "numbers"), ("std", "positive numbers")):
            values = getattr(self, field)
            valid = _is_tuple(values) and all(
                is_number(value) and (field == "mean" or value > 0) for value in values
            )
            self._require(field, valid, f"a tuple of {allowed} on the 0..1 scale")
        try:
            object.__setattr__(self, "window", parse_window(self.window))
        except ValueError:
            self._require("window", False, WINDOWS)
        self._require(
            "frame",
            is_integer(self.frame, ALL_FRAMES),
            f"an integer, 0 or more, or {ALL_FRAMES} for all frames",
        )
        self._require("max_pixels", is_integer(self.max_pixels, 1), "an integer, 1 or more")
        self._require_one_of("augmentation", POLICIES)

    def _require_splits(self) -> None:
        for field in ("val_fraction", "test_fraction"):
            value = getattr(self, field)
            self._require(field, is_number(value) and 0 < value < 1, "a number between 0 and 1")
        self._require(
            "test_fraction",
            self.val_fraction + self.test_fraction < 1,
            f"less than 1 - data.val_fraction = {1 - self.val_fraction:g}",
        )
        self._require(
            "split_seed",
            is_integer(self.split_seed, 0) and self.split_seed < 2**32,
            "an integer in [0, 2**32)",
        )
        self._require("fold", not self.fold or self.fold_of is not None, 'like "2/5", or empty')
        self._require("fold", not (self.fold and self.split_file), "empty with data.split_file")
        self._require(
            "subset",
            not self.subset or self.subset_of is not None,
            'like "500" or "20/class", with a number of 1 or more, or empty',
        )

    @property
    def cache_folder(self) -> Path:
        """`cache_dir`, or the default folder."""
        return expanded(self.cache_dir or _CACHE_FOLDER)

    @property
    def fold_of(self) -> tuple[int, int] | None:
        """The fold, counted from 0, and the number of folds; None if `fold` does not name any."""
        match = re.fullmatch(r"([0-9]+)/([0-9]+)", self.fold)
        if match is None:
            return None
        fold, folds = map(int, match.groups())
        return (fold - 1, folds) if folds >= 2 and 1 <= fold <= folds else None

    @property
    def subset_of(self) -> tuple[int, bool] | None:
        """The number in `subset`, and whether it counts for each class; None if there is none."""
        match = re.fullmatch(r"([1-9][0-9]*)(/class)?", self.subset)
        return None if match is None else (int(match[1]), match[2] is not None)

    def preprocessing(self, channels: int) -> Preprocessing:
        """Returns the preprocessing of a run; `channels` is the model's number of channels."""
        size = self.image_size
        return Preprocessing(
            image_size=size if isinstance(size, tuple) else (size, size),
            channels=channels,
            resize_filter=self.resize,
            mean=self.mean,
            std=self.std,
            window=self.window,
            frame=self.frame,
            fit=self.fit,
            max_pixels=self.max_pixels,
        )

    def with_absolute_paths(self) -> Self:
        """Returns the configuration with absolute paths, so that it is valid in every folder.

        `~` becomes the home folder. An unset path stays unset.
        """

        def absolute(section: Any, *fields: str) -> dict[str, Any]:
            paths = {field: getattr(section, field) for field in fields}
            return {field: str(expanded(path).absolute()) for field, path in paths.items() if path}

        return dataclasses.replace(
            self,
            **absolute(self, "path", "split_file", "exclude", "cache_dir"),
            csv=dataclasses.replace(self.csv, **absolute(self.csv, "images")),
            public=dataclasses.replace(
                self.public, **absolute(self.public, "data_dir", "manual_dir")
            ),
        )


def _is_tuple(values: Any) -> bool:
    """Whether this is a tuple with one or more elements."""
    return isinstance(values, tuple) and len(values) > 0
