"""The facts about a public set, and one image of it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit


@dataclasses.dataclass(frozen=True)
class PublicImage:
    """One image on its way from the published archive to TFDS.

    Attributes:
        filename: names the image the same way however the archive reached the user; unique.
        image: the bytes of an image file.
        label: index into the set's class names.
        patient: the publisher's id; "" where the set has none.
        split: the publisher's own split, "train", "val" or "test"; "" where the set has none.
    """

    filename: str
    image: bytes
    label: int
    patient: str = ""
    split: str = ""


@dataclasses.dataclass(frozen=True)
class Archive:
    """The published file. None stands for what is not known.

    Attributes:
        url: where it is downloaded from.
        about: its size in words, where only that is known.
        size: bytes.
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
    """A data set of the paper. None stands for what is not known.

    Attributes:
        name: what `data.name` calls it.
        title: one line saying what the images are.
        page: the publisher's page, where the archive can be had by hand.
        archive: the published file.
        licence: its name, or the terms in a few words.
        citation: what to cite.
        class_counts: class name -> images; the order gives the labels.
        split_sizes: "train", "val", "test" -> images, as reported for MedMamba.
        scores: what the authors report.
        splits: values of `data.public.splits` that this set has.
        read: from the archive, or the folder that the user gave, to the images. Raises UserError
            if what is there is not this set.
        paper_is_official: whether the authors used the publisher's split.
        mistaken: from the archive, or the folder that the user gave, to why it is not this set,
            though it has its layout; None if it may be. For sets without a checksum.
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
        """Licence, citation and page, in one line, for the user to read before using the images."""
        return (
            f"{self.name}: {self.title}. Licence: {self.licence or 'not known'}."
            f" Cite: {self.citation} Page: {self.page}"
        )
