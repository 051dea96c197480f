"""What the catalogue says about a public set: only facts, no code that reads a set."""

import dataclasses
from collections.abc import Mapping
from pathlib import PurePosixPath
from urllib.parse import urlsplit


@dataclasses.dataclass(frozen=True)
class Archive:
    """The published file. None means that a fact is not known.

    Attributes:
        url: the address of the download.
        about: the approximate size, as text.
        size: the size in bytes.
        md5, sha256: hexadecimal.
    """

    url: str
    about: str | None = None
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def identified(self) -> bool:
        """Whether a checksum of the published file is known."""
        return self.md5 is not None or self.sha256 is not None


@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """The layout of an archive with a folder of images for each class."""


@dataclasses.dataclass(frozen=True)
class Table:
    """The layout of an archive with a CSV file that describes the images.

    Attributes:
        file: the name of the CSV file.
        delimiter: the character between cells.
        image: the column of the images' names.
        suffix: the ending that these names lack.
        label, patient: the columns of classes and patients.
        split: the column of the publisher's split; "" if there is none.
        split_names: a cell of this column -> "train" or "test".
    """

    file: str
    delimiter: str
    image: str
    label: str
    patient: str
    suffix: str = ""
    split: str = ""
    split_names: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Npz:
    """The layout of MedMNIST: `train_images`, `train_labels`, and the same for val and test.

    Attributes:
        shape: the shape of an image, which is uint8: (h, w) or (h, w, 3).
    """

    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Test results in the README of the authors' repository: percent, and the AUC in 0..1.

    The README does not name the variant; other sources attribute the results to MedMamba-T.
    """

    precision: float
    sensitivity: float
    specificity: float
    f1: float
    accuracy: float
    auc: float


@dataclasses.dataclass(frozen=True)
class PublicSet:
    """A data set of the paper. None means that a fact is not known.

    Attributes:
        name: the value of `data.name` for this set.
        title: one line that describes the images.
        page: the publisher's page, from which a user can download the archive.
        archive: the published file.
        layout: how the files in the archive say what they are.
        licence: the name of the licence, or its terms in a few words.
        citation: the publication to cite.
        class_counts: class name -> number of images; the order of the classes gives the labels.
        split_sizes: "train", "val", "test" -> number of images, as reported for MedMamba.
        scores: the results that the authors report.
        splits: the values of `data.public.splits` that this set supports.
        paper_is_official: whether the authors used the publisher's split.
        mistaken: number of images -> why files with so many images are not those of this set,
            although they have its layout.
    """

    name: str
    title: str
    page: str
    archive: Archive
    layout: ClassFolders | Table | Npz
    licence: str | None
    citation: str
    class_counts: Mapping[str, int | None]
    split_sizes: Mapping[str, int]
    scores: Scores
    splits: tuple[str, ...]
    paper_is_official: bool = False
    mistaken: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.class_counts)

    @property
    def num_images(self) -> int:
        return sum(self.split_sizes.values())

    def notice(self) -> str:
        """Returns licence, citation and page in one line, which every user should read."""
        return (
            f"{self.name}: {self.title}. Licence: {self.licence or 'not known'}."
            f" Cite: {self.citation} Page: {self.page}"
        )
