"""The facts about a public set and about each of its images."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit


@dataclasses.dataclass(frozen=True)
class PublicImage:
    """One image on its way from the published archive to TFDS.

    Attributes:
        filename: a unique name of the image. It does not depend on how the user got the archive.
        image: the bytes of an image file.
        label: index into the set's class names.
        patient: the publisher's id of the patient; "" if the set has none.
        split: the publisher's own split, "train", "val" or "test"; "" if the set has none.
    """

    filename: str
    image: bytes
    label: int
    patient: str = ""
    split: str = ""


@dataclasses.dataclass(frozen=True)
class Archive:
    """The published file. None means that a fact is not known.

    Attributes:
        url: the address of the download.
        about: the approximate size, as text.
        size: the size in bytes.
        md5: hexadecimal.
        sha256: hexadecimal.
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
        licence: the name of the licence, or its terms in a few words.
        citation: the publication to cite.
        class_counts: class name -> number of images; the order of the classes gives the labels.
        split_sizes: "train", "val", "test" -> number of images, as reported for MedMamba.
        scores: the results that the authors report.
        splits: the values of `data.public.splits` that this set supports.
        read: function that reads the images from the archive, or from the folder that the user
            gave. It raises UserError if the files are not those of this set.
        paper_is_official: whether the authors used the publisher's split.
        mistaken: function for sets without a checksum. It takes the archive, or the folder that the
            user gave. It returns why the files are not those of this set although they have its
            layout, or None if they may be those of this set.
    """

    name: str
    title: str
    page: str
    archive: Archive
    licence: str | None
    citation: str
    class_counts: Mapping[str, int | None]
    split_sizes: Mapping[str, int]
    scores: Scores
    splits: tuple[str, ...]
    read: Callable[[Path], Iterator[PublicImage]]
    paper_is_official: bool = False
    mistaken: Callable[[Path], str | None] | None = None

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
