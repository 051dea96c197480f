"""The one pass over all images before a run: it reads, hashes, decodes and keeps each of them."""

import collections
import contextlib
import dataclasses
import hashlib
import io
import itertools
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from absl import logging
from tqdm import tqdm

from medmamba_jax.data.auditing.fingerprints import FACT, Facts, blank_fact, fact_of
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.cpus import usable_cpus
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.free_memory import available_memory
from medmamba_jax.data.images.augmentation import changes_when_read
from medmamba_jax.data.images.decoders import decoder_versions
from medmamba_jax.data.images.preprocessing import Preprocessing
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.reading.cache_places import CACHES, Need
from medmamba_jax.data.reading.store import OnDisk, Store, Writer
from medmamba_jax.errors import UserError
from medmamba_jax.files import write_atomically

Result = TypeVar("Result")

_VERSION = 6  # Increase it when the same image may give other facts or other pixels.
_OF_MODEL = ("mean", "std")  # settings that change no pixel on the host
_OF_SIZE = ("image_size", "resize_filter", "fit")  # settings that change no decoded pixel
_SHARE = 0.5  # of the free memory or disk space
_SAMPLED = 16  # images; their mean size is taken as the mean size of all images
_PART = 16  # images that a thread takes at once
_AHEAD = 4  # parts for each thread that are visited before they are wanted


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the first pass makes of labelled images.

    Attributes:
        images: the same images, whose pixels `store` makes.
        store: makes pixels and keeps them.
        facts: the facts of all images by place; None if they were not wanted.
        looked: what `look` has found in each image; None for one that cannot be read.
        kind: where pixels are kept, "none", "memory" or "disk".
        text: the same for the log.
    """

    images: LabelledImages
    store: Store
    facts: Facts | None
    looked: list[Any]
    kind: str
    text: str


def first_pass(
    found: LabelledImages,
    preprocessing: Preprocessing,
    config: DataConfig,
    *,
    look: Callable[[int, bytes | np.ndarray], Any] = lambda place, image: None,
) -> Prepared:
    """Reads every image once, in threads and with a progress bar.

    It hashes the content of each image. If facts are wanted, or pixels go to the disk, it decodes
    the images, too. Facts are wanted if `config.audit` or `config.allow_unreadable` is set, unless
    a program drew the images, which are then all different. The facts are saved in
    `config.cache_folder`, and the next pass decodes only images of other content.

    Args:
        found: the images.
        preprocessing: how to decode and resize them.
        config: what is wanted, and the settings of the cache.
        look: what else to find out about an image, given its place and the image as its source has
            it; `Prepared.looked` has the results. A ValueError means that the image is damaged.

    Raises:
        DataUnavailableError: a package that reads the images is missing.
        OSError: the cache cannot be written.
        UserError: `config.cache_dir` cannot be written to. Facts were not wanted, and an image
            cannot be decoded.
    """
    return _Pass(found, preprocessing, config, look).run()


def keep_evaluated(
    seen: Prepared, dataset: Dataset, config: DataConfig, *, train_on_device: bool = False
) -> str:
    """Decides how to keep the images that are not trained on, when the splits are known.

    The pass treats all images alike. If it keeps none, and the training images are augmented or go
    to the device, `data.cache="auto"` may still keep the images of the other splits.

    Args:
        seen: what the pass made.
        dataset: the splits.
        config: the settings of the cache.
        train_on_device: whether the training images will live on the device. What the pass has kept
            of them in memory is then freed when they go there.

    Returns:
        Where pixels are kept, as text.
    """
    parts = [split.places for name, split in dataset.splits.items() if name != "train"]
    places = np.concatenate(parts) if parts else np.arange(0)
    store, kind = seen.store, seen.kind
    apart = train_on_device or changes_when_read(config.augmentation)
    if kind == "memory":
        store.resize(places)
    elif kind == "none" and apart and len(places):
        store.resized[places] = True
        kind, _ = choose_place(store, places, config)
        if kind == "memory":
            store.in_memory |= dict.fromkeys(places.tolist())
        elif kind == "disk":
            write_pixels(store, places, config.cache_folder)
    if not train_on_device and kind == seen.kind:
        return seen.text
    others = place_text(kind, len(places) * store.preprocessing.image_bytes, config.cache_folder)
    if not train_on_device:
        return f"train not kept, others {others}"
    train = len(dataset.splits["train"]) * store.preprocessing.image_bytes
    return f"train {size_text(train)} on the device" + (f", others {others}" if parts else "")


@dataclasses.dataclass
class _Pass:
    found: LabelledImages
    preprocessing: Preprocessing
    config: DataConfig
    look: Callable[[int, bytes | np.ndarray], Any]

    def __post_init__(self) -> None:
        found, preprocessing, config = self.found, self.preprocessing, self.config
        self.folder = config.cache_folder
        self.wanted = (config.audit or config.allow_unreadable) and not found.synthetic
        resized = not changes_when_read(config.augmentation)
        self.store = Store(found, preprocessing, resized=resized)
        self.known = _KnownFacts(self.folder, found, preprocessing)
        self.kind, self.size = choose_place(self.store, np.arange(len(found)), config)
        # The file of the last pass over these images. The pass shows whether it still fits.
        self.last = OnDisk.find(self._path(self.known.facts))
        if config.cache != "none" and self.kind == "none" and self.last:
            self.kind = "disk"

    def _path(self, facts: np.ndarray) -> Path:
        return pixels_path(self.folder, self.store, facts["content"])

    def run(self) -> Prepared:
        count = len(self.found)
        facts, problems, looked = np.zeros(count, FACT), {}, []
        with contextlib.ExitStack() as files:
            writer = None
            if self.kind == "disk" and self.last is None:
                writer = files.enter_context(Writer(self.folder))
            for place, seen in enumerate(visited(self._visit, range(count), "reading images")):
                facts[place] = seen.fact
                looked.append(seen.looked)
                if seen.problem is not None:
                    problems[place] = seen.problem
                if writer is not None:
                    writer.append(seen.pixels)
                elif self.kind == "memory":
                    self.store.in_memory[place] = seen.pixels
            self.store.identities = facts["content"].copy()
            readable = np.array([place for place in range(count) if place not in problems], int)
            if writer is not None:
                self.store.keep_on_disk(readable, writer.finish(self._path(facts)), readable)
        if self.kind == "disk" and writer is None:
            if self.last is not None and self.last.path == self._path(facts):
                self.store.keep_on_disk(readable, self.last, readable)
            else:  # the content of some images has changed
                write_pixels(self.store, readable, self.folder)
        if self.wanted:
            self.known.save(facts)
        images = dataclasses.replace(self.found, images=self.store, places=np.arange(count))
        found_facts = Facts(facts, problems) if self.wanted else None
        text = place_text(self.kind, self.size, self.folder)
        return Prepared(images, self.store, found_facts, looked, self.kind, text)

    def _visit(self, place: int) -> "_Seen":
        content, looked = bytes(32), None  # of an image that cannot even be read
        try:
            image = self.store.read(place)
            content = self.found.identity(place, image)
            looked = self.look(place, image)
            fact = self.known.of(content) if self.wanted else blank_fact(content)
            if fact is not None and (self.kind != "disk" or self.last is not None):
                return _Seen(fact, looked)
            pixels = self.preprocessing.decode(image)
        except (OSError, ValueError) as error:
            if not self.wanted:
                raise UserError(f"{self.found.describe(place)}: {error}") from error
            return _Seen(blank_fact(content), looked, problem=str(error))
        if fact is None:
            fact = fact_of(content, pixels)
        return _Seen(fact, looked, self.store.fit(place, pixels))


@dataclasses.dataclass(frozen=True)
class _Seen:
    """An image: its entry of dtype `FACT`, what `look` found, what to keep, and its damage."""

    fact: np.ndarray
    looked: Any
    pixels: np.ndarray | None = None
    problem: str | None = None


class _KnownFacts:
    """The facts that the last pass over images of this name has saved."""

    def __init__(self, folder: Path, found: LabelledImages, preprocessing: Preprocessing):
        settings = _settings(preprocessing, *_OF_MODEL, *_OF_SIZE)
        key = hashlib.sha256(f"{settings} {found.name} {found.root}".encode()).hexdigest()
        self._path = folder / "audit" / f"{key[:32]}.npy"
        try:
            self.facts = np.load(self._path, allow_pickle=False)
            if self.facts.dtype != FACT:
                raise ValueError("another format")
        except (OSError, ValueError, EOFError):
            self.facts = np.zeros(0, FACT)
        # An image that could not be read has no size. It is tried again.
        self._rows = {
            fact["content"].tobytes(): row for row, fact in enumerate(self.facts) if fact["size"][0]
        }

    def of(self, content: bytes) -> np.ndarray | None:
        """Returns the facts of an image with this content hash."""
        row = self._rows.get(content)
        return None if row is None else self.facts[row]

    def save(self, facts: np.ndarray) -> None:
        """Saves the facts of all images, in their order."""
        if facts.tobytes() == self.facts.tobytes():
            return
        buffer = io.BytesIO()
        np.save(buffer, facts)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, buffer.getvalue())
        except OSError as error:
            logging.warning(
                "%s could not be written (%s): every run checks all images again", self._path, error
            )


def write_pixels(store: Store, places: np.ndarray, folder: Path) -> None:
    """Makes the pixels of these images, writes them into a file, and keeps them there."""
    assert store.identities is not None  # the pass is over
    path = pixels_path(folder, store, store.identities[places])
    file = OnDisk.find(path)
    if file is None:
        with Writer(folder) as writer:
            for pixels in visited(store.make, places.tolist(), "caching"):
                writer.append(pixels)
            file = writer.finish(path)
    store.keep_on_disk(places, file, np.arange(len(places)))


def pixels_path(folder: Path, store: Store, contents: np.ndarray) -> Path:
    """Returns the file for images of these contents, with all that decides their pixels."""
    unused = _OF_MODEL if store.resized.any() else _OF_MODEL + _OF_SIZE
    key = hashlib.sha256(_settings(store.preprocessing, *unused).encode())
    key.update(np.ascontiguousarray(contents).tobytes())
    return folder / f"{key.hexdigest()}.pixels"


def _settings(preprocessing: Preprocessing, *unused: str) -> str:
    settings = preprocessing.to_dict()
    for name in unused:
        del settings[name]
    return f"{_VERSION} {type(preprocessing).__name__} {decoder_versions()} {settings}"


def choose_place(store: Store, places: np.ndarray, config: DataConfig) -> tuple[str, int]:
    """Returns where the host keeps these images, by the table `CACHES`, and their bytes."""
    if config.cache == "none":
        return "none", 0
    if store.resized[places].all():
        size, augmented = len(places) * store.preprocessing.image_bytes, False
    else:
        size, augmented = _sampled_size(store, places), True
    free = {
        "device": 0.0,  # the host keeps these images
        "memory": _SHARE * available_memory(),
        "disk": _SHARE * _free_disk(config.cache_folder),
    }
    # The device keeps training images only; the other images are kept as with `auto`.
    row = "auto" if config.cache == "device" else config.cache
    return CACHES[row](Need(size, augmented, config.num_workers, free)), size


def _sampled_size(store: Store, places: np.ndarray) -> int:
    sizes = []
    for row in np.unique(np.linspace(0, len(places) - 1, _SAMPLED).astype(int)):
        with contextlib.suppress(OSError, ValueError):  # the pass names what is damaged
            sizes.append(store.make(int(places[row])).nbytes)
    return int(len(places) * np.mean(sizes or [0]))


def place_text(kind: str, size: int, folder: Path) -> str:
    """Returns where pixels are kept, for the log."""
    shown = size_text(size)
    return {"none": "not kept", "memory": f"{shown} in memory", "disk": f"{shown} in {folder}"}[
        kind
    ]


def size_text(size: int) -> str:
    """Returns a number of bytes, for the log."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def visited(visit: Callable[[int], Result], places: Sequence[int], title: str) -> Generator[Result]:
    """Calls a function for each place, in threads, and yields the results in order."""
    threads = usable_cpus()
    parts = (places[start : start + _PART] for start in range(0, len(places), _PART))
    waiting: collections.deque[Future[list[Result]]] = collections.deque()
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(places), desc=title, unit="image", leave=False, disable=None) as bar,
    ):
        try:
            for part in itertools.chain(parts, [None] * threads * _AHEAD):
                if part is not None:
                    waiting.append(pool.submit(lambda part: [visit(place) for place in part], part))
                if waiting and (part is None or len(waiting) >= threads * _AHEAD):
                    for result in waiting.popleft().result():
                        yield result
                        bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _free_disk(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(existing).free if os.access(existing, os.W_OK) else 0
