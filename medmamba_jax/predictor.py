"""A trained model that turns images into probabilities."""

import dataclasses
import functools
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageOps
from absl import logging
from flax import nnx

from medmamba_jax.assessment.calibration import Calibration
from medmamba_jax.data.images.preprocessing import Preprocessing
from medmamba_jax.data.images.windowing import Window
from medmamba_jax.data.labelled_images import TASKS, LabelledImages
from medmamba_jax.data.reading.loading import eval_batches
from medmamba_jax.errors import NonFiniteLossError, UserError
from medmamba_jax.interop import load_model, read_weights
from medmamba_jax.metrics import Outputs, probabilities
from medmamba_jax.models import MedMamba, MedMambaConfig, evaluation_graphdef
from medmamba_jax.parallel import DataParallel

Image = str | pathlib.Path | bytes | np.ndarray | PIL.Image.Image
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # of Pillow, more than 8 bits
BATCH_SIZE = 64  # images in a batch, unless the caller says otherwise


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A trained model: everything that is needed to classify an image, and nothing else.

    Attributes:
        model: the architecture.
        params: parameters, nested dictionaries of float32 arrays.
        statistics: running statistics of the BatchNorms, likewise.
        preprocessing: how image files become arrays.
        class_names: what each output stands for, in order.
        task: "multiclass": the probabilities of an image add up to 1. "multilabel": each
            probability stands for itself.
        batch_size: the most images in a batch. If the device cannot hold so many, batches are
            halved until it can, unless the devices belong to several hosts.
        parallel: the devices. A batch is split over them.
        calibration: what was fitted on validation images: the temperature, thresholds and
            prediction sets. None if there is none.

    Raises:
        UserError: the parts do not fit together.
    """

    model: MedMambaConfig
    params: Any
    statistics: Any
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    task: str = "multiclass"
    batch_size: int = BATCH_SIZE
    parallel: DataParallel = dataclasses.field(default_factory=DataParallel.over_all_devices)
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"a predictor's task must be one of {TASKS}; got {self.task!r}")
        if isinstance(self.class_names, str):
            raise UserError(f"class_names must be a tuple of texts; got {self.class_names!r}")
        if self.batch_size < 1:
            raise UserError(f"a predictor's batch_size must be 1 or more; got {self.batch_size}")
        if len(self.class_names) != self.model.num_classes:
            raise UserError(
                f"the model has {self.model.num_classes} outputs, but class_names has"
                f" {len(self.class_names)} names: {self.class_names}"
            )
        check_image_size(self.model, self.preprocessing)

    @classmethod
    def from_torch(
        cls,
        path: str | pathlib.Path,
        *,
        class_names: Sequence[str],
        preprocessing: Preprocessing,
        task: str = "multiclass",
        **changes: Any,
    ) -> "Predictor":
        """Reads official weights. The caller gives the facts about images and classes.

        Args:
            path: a `.safetensors`, `.pth` or `.pt` file. The latter two need the extra `torch`.
            class_names: what each output stands for, in order.
            preprocessing: how the images of the training set became arrays.
            task: "multiclass" or "multilabel".
            **changes: fields of `MedMambaConfig` that weights do not show, such as
                `compute_dtype`.

        Raises:
            FileNotFoundError: there is no such file.
            ImportError: a `.pth` or `.pt` file, and PyTorch is not installed.
            UserError: the file holds no MedMamba, or the number of classes or of channels differs.
        """
        model, params, statistics = read_weights(path, **changes)
        parallel = DataParallel.over_all_devices()
        weights = (params, statistics)
        params, statistics = jax.device_put(weights, parallel.of_state(weights))
        return cls(
            model, params, statistics, preprocessing, tuple(class_names), task, parallel=parallel
        )

    def predict(
        self, images: Image | Sequence[Image] | LabelledImages, *, calibrated: bool = False
    ) -> dict[str, float] | np.ndarray:
        """Classifies one image, or several.

        Args:
            images: one image: the path of a file, the bytes of a file, an array (h, w) or
                (h, w, c), or a Pillow image; or a sequence of these, an array (n, h, w, c), or a
                split of a data set. Arrays hold uint8, or other integers, of which the run's
                window makes 8 bits. Floating values need a run with `data.window=LOW,HIGH`.
            calibrated: whether to divide the logits by the temperature of `calibration`.

        Returns:
            Of one image {class name: probability}, in the order of `class_names`; of several
            probabilities, float64 (n, classes), with the classes in that order.

        Raises:
            DataUnavailableError: the package that reads such a file is not installed.
            NonFiniteLossError: an output of the model is NaN or infinite.
            UserError: an image cannot be read; the message names it. Or there is no calibration.
        """
        temperature = self.temperature(calibrated)
        logits = self.finite_logits(self.split_of(images))
        table = probabilities(logits / temperature, self.task)
        one = _is_one(images)
        return dict(zip(self.class_names, table[0].tolist(), strict=True)) if one else table

    def split_of(self, images: Image | Sequence[Image] | LabelledImages) -> LabelledImages:
        """Returns what `predict` takes as a split, whose labels mean nothing.

        Raises:
            UserError: there is no image, or one is of a kind that `predict` does not take.
        """
        if isinstance(images, LabelledImages):
            return images
        several: Any = [images] if _is_one(images) else images
        return _unlabelled(several, self.preprocessing.window)

    def finite_logits(self, split: LabelledImages) -> np.ndarray:
        """Returns what `logits` does.

        Raises:
            NonFiniteLossError: an output of the model is NaN or infinite; the message names the
                image.
        """
        logits = self.logits(split)
        if not np.isfinite(logits).all():
            row = int(np.isfinite(logits).all(1).argmin())
            raise NonFiniteLossError(
                f"the model's outputs for {split.describe(row)} are not finite"
            )
        return logits

    def temperature(self, calibrated: bool) -> float:
        """Returns the temperature of `calibration`, or 1 if it is not asked for.

        Raises:
            UserError: it is asked for, and there is no calibration.
        """
        if not calibrated:
            return 1.0
        if self.calibration is None:
            raise UserError(
                "the model has no calibration: `medmamba evaluate RUN` fits it on the validation"
                " images of the run"
            )
        return self.calibration.temperature

    def module(self) -> MedMamba:
        """Returns the network itself, in evaluation mode, for code that calls it on arrays."""
        return nnx.merge(evaluation_graphdef(self.model), self.params, self.statistics)

    def on_this_host(self) -> "Predictor":
        """Returns the model on the devices of this host alone, so that it needs no other host."""
        parallel = self.parallel.of_this_host
        if parallel == self.parallel:
            return self
        weights = jax.device_get((self.params, self.statistics))
        params, statistics = jax.device_put(weights, parallel.of_state(weights))
        return dataclasses.replace(self, params=params, statistics=statistics, parallel=parallel)

    def outputs(self, images: LabelledImages, *, num_workers: int = 0) -> Outputs:
        """Returns labels and logits of every image of a split, in its order, for the metrics."""
        logits = self.logits(images, num_workers=num_workers)
        return Outputs(self.task, self.class_names, images.labels, logits)

    def logits(self, images: LabelledImages, *, num_workers: int = 0) -> np.ndarray:
        """Returns the model's outputs before softmax or sigmoid, float32 (n, classes)."""
        return self._run("logits", images, num_workers)

    def features(self, images: LabelledImages, *, num_workers: int = 0) -> np.ndarray:
        """Returns the pooled features that the head reads, float32 (n, model.num_features)."""
        return self._run("features", images, num_workers)

    def compile_for(self, images: LabelledImages) -> None:
        """Compiles the program that `logits` runs on a split, by a run on blank images.

        The next call of `logits` on this split then starts without delay.
        """
        compute = _compiled("logits", self.model, self.preprocessing, self.parallel)
        pixels = (*self.preprocessing.image_size, self.preprocessing.channels)
        shape = (self.batch_size_for(len(images)), *pixels)
        blank = jnp.zeros(shape, jnp.uint8, device=self.parallel.batch)
        jax.block_until_ready(compute(self.params, self.statistics, blank))

    def _run(self, what: str, images: LabelledImages, num_workers: int) -> np.ndarray:
        """Runs the model on every image. A batch that the device cannot hold is halved.

        On several hosts it is not halved. A host that fails alone would go on with smaller batches
        than the others, and all hosts would wait for each other forever.
        """
        size, devices = self.batch_size_for(len(images)), len(self.parallel.devices)
        while True:
            try:
                return self._run_batches(what, images, num_workers, size)
            except jax.errors.JaxRuntimeError as error:
                smaller = size // 2 // devices * devices
                exhausted = "RESOURCE_EXHAUSTED" in str(error)
                if not (exhausted and smaller and self.parallel.hosts == 1):
                    raise
                logging.warning(
                    "the memory of the device does not hold a batch of %d images: the batches have"
                    " %d now, which changes the last digits of results",
                    size,
                    smaller,
                )
                size = smaller

    def _run_batches(
        self, what: str, images: LabelledImages, num_workers: int, batch_size: int
    ) -> np.ndarray:
        """Runs the model in batches of one shape; the last one is filled up."""
        compute = _compiled(what, self.model, self.preprocessing, self.parallel)
        batches = eval_batches(
            images,
            self.preprocessing,
            batch_size=batch_size,
            num_workers=num_workers,
            process_index=self.parallel.host,
            process_count=self.parallel.hosts,
        )
        with batches:
            found = [
                compute(self.params, self.statistics, self.parallel.put_batch(batch)["image"])
                for batch in batches
            ]
        return np.concatenate(jax.device_get(found))[: len(images)]

    def batch_size_for(self, num_images: int) -> int:
        """Returns the images in a batch.

        It is a power of two for few images, so that few shapes are compiled, else `batch_size`.
        """
        size = min(self.batch_size, 1 << max(num_images - 1, 0).bit_length())
        devices = len(self.parallel.devices)
        return -(-size // devices) * devices


@overload
def load_torch(
    path: str | pathlib.Path,
    *,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    task: str = "multiclass",
    **changes: Any,
) -> Predictor: ...
@overload
def load_torch(path: str | pathlib.Path, **changes: Any) -> tuple[MedMambaConfig, MedMamba]: ...
def load_torch(
    path: str | pathlib.Path,
    *,
    class_names: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    task: str = "multiclass",
    **changes: Any,
) -> Predictor | tuple[MedMambaConfig, MedMamba]:
    """Reads a file of official weights.

    Args:
        path, task, **changes: as for `Predictor.from_torch`.
        class_names, preprocessing: as for `Predictor.from_torch`. Both are given, or none.

    Returns:
        With class names and preprocessing a predictor. Without them the architecture and the
        network, in evaluation mode.

    Raises:
        FileNotFoundError, ImportError: as `Predictor.from_torch`.
        UserError: as `Predictor.from_torch`; or only one of the two is given.
    """
    if class_names is None and preprocessing is None:
        return load_model(path, **changes)
    if class_names is None or preprocessing is None:
        raise UserError(
            "a predictor needs both class_names and preprocessing; without them load_torch returns"
            " the architecture and the network"
        )
    return Predictor.from_torch(
        path, class_names=class_names, preprocessing=preprocessing, task=task, **changes
    )


def check_image_size(model: MedMambaConfig, preprocessing: Preprocessing) -> None:
    """Raises UserError if the model's last stage would have no pixel."""
    if min(preprocessing.image_size) < model.min_image_size:
        height, width = preprocessing.image_size
        raise UserError(
            f"data.image_size is {height}x{width} px and must be at least {model.min_image_size}"
            f" with model.patch_size = {model.patch_size}"
        )
    if preprocessing.channels != model.in_channels:
        raise UserError(
            f"the model reads {model.in_channels} channels, but the preprocessing gives"
            f" {preprocessing.channels}"
        )


def normalize(images: jax.Array, preprocessing: Preprocessing) -> jax.Array:
    """Computes `(images / 255 - mean) / std`; written for use inside a jitted function.

    Args:
        images: uint8 (b, h, w, c).
        preprocessing: `mean` and `std`.

    Returns:
        float32 (b, h, w, c).
    """
    shape = (1, 1, 1, preprocessing.channels)
    mean = jnp.asarray(np.broadcast_to(preprocessing.mean, shape), jnp.float32)
    std = jnp.asarray(np.broadcast_to(preprocessing.std, shape), jnp.float32)
    return (images.astype(jnp.float32) / 255 - mean) / std


def forward(
    params: Any,
    statistics: Any,
    images: jax.Array,
    *,
    what: str,
    graphdef: nnx.GraphDef,
    preprocessing: Preprocessing,
) -> jax.Array:
    """Returns the model's logits, or its pooled features, of uint8 images (b, h, w, c)."""
    model = nnx.merge(graphdef, params, statistics)
    images = normalize(images, preprocessing)
    return model(images) if what == "logits" else model.pooled(images)


@functools.lru_cache(maxsize=8)
def _compiled(
    what: str, model: MedMambaConfig, preprocessing: Preprocessing, parallel: DataParallel
) -> Callable[..., jax.Array]:
    """Returns `forward`, jitted. Predictors of one architecture share it, whatever the weights."""
    call = functools.partial(
        forward, what=what, graphdef=evaluation_graphdef(model), preprocessing=preprocessing
    )
    return jax.jit(call, out_shardings=parallel.replicated)


def _is_one(images: object) -> bool:
    """Whether this is one image, and not several."""
    return isinstance(images, (str, pathlib.Path, bytes, PIL.Image.Image)) or (
        isinstance(images, np.ndarray) and images.ndim < 4
    )


def _unlabelled(images: Sequence[Image] | np.ndarray, window: Window) -> LabelledImages:
    """Returns images as a split; its labels mean nothing."""
    if not isinstance(images, (Sequence, np.ndarray)):
        raise UserError(
            f"predict takes paths, bytes of files, arrays, Pillow images, or a sequence of these;"
            f" got a {type(images).__name__}"
        )
    if len(images) == 0:
        raise UserError("there is no image to classify")
    names = [
        str(image) if isinstance(image, (str, pathlib.Path)) else f"image {row}"
        for row, image in enumerate(images)
    ]
    # `Preprocessing.decode` reads paths, too, which `LabelledImages` does not promise.
    found: Any = [_readable(image, name, window) for image, name in zip(images, names, strict=True)]
    return LabelledImages(found, np.zeros(len(names), np.int32), names=tuple(names))


def _readable(image: object, name: str, window: Window) -> str | pathlib.Path | bytes | np.ndarray:
    """Returns what `Preprocessing.decode` takes for one image."""
    if isinstance(image, PIL.Image.Image):
        upright = PIL.ImageOps.exif_transpose(image)
        if upright.mode in _DEEP_MODES:
            image = np.asarray(upright)
            if image.dtype == np.int32 and 0 <= image.min() and image.max() < 2**16:
                image = image.astype(np.uint16)  # Pillow holds some files of 16 bits in 32
        else:
            file = io.BytesIO()
            (upright if upright.mode in _PNG_MODES else upright.convert("RGB")).save(
                file, "PNG", compress_level=0
            )
            return file.getvalue()
    if isinstance(image, np.ndarray) and image.dtype.kind == "f" and isinstance(window, str):
        raise UserError(
            f"{name} holds {image.dtype} values, whose range for black and white is not known: give"
            " uint8 values from 0 to 255, or use a run with data.window=LOW,HIGH"
        )
    if not isinstance(image, (str, pathlib.Path, bytes, np.ndarray)):
        raise UserError(
            f"{name} is a {type(image).__name__}; give a path, bytes, a NumPy array or a Pillow"
            " image"
        )
    return image
