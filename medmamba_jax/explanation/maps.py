"""Explains what a predictor says of images, with the maps of `METHODS`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from medmamba_jax.data.images.preprocessing import Preprocessing
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.reading.loading import eval_batches
from medmamba_jax.errors import UserError
from medmamba_jax.explanation.methods import METHODS, Network
from medmamba_jax.metrics import probabilities
from medmamba_jax.models import MedMamba, MedMambaConfig, evaluation_graphdef
from medmamba_jax.parallel import DataParallel
from medmamba_jax.predictor import Image, Predictor, normalize


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """Heat maps of images, and what the model says of these.

    Attributes:
        method: name in `METHODS`.
        names: the name of each image (n).
        class_names: K names.
        probabilities: float64 (n, K), as `Predictor.predict` returns them.
        classes: indices into `class_names` (n,): which class each map explains.
        maps: float32 (n, h, w), at the model's `image_size`. `METHODS` says what the numbers are.
    """

    method: str
    names: tuple[str, ...]
    class_names: tuple[str, ...]
    probabilities: np.ndarray
    classes: np.ndarray
    maps: np.ndarray

    @property
    def explained(self) -> tuple[str, ...]:
        """The name of the class that each map explains (n)."""
        return tuple(self.class_names[k] for k in self.classes)


def explain(
    predictor: Predictor,
    images: Image | Sequence[Image] | LabelledImages,
    *,
    method: str = "grad_cam",
    class_name: str | None = None,
    stage: int = -1,
) -> Explanation:
    """Returns a heat map for each image.

    docs/explain.md says what each map is, and what such maps are not.

    Args:
        predictor: the trained model.
        images: one image or several, as `Predictor.predict` takes them.
        method: name in `METHODS`.
        class_name: the class that the maps explain; None means the likeliest class of each image.
        stage: for the methods that look at a stage, its index from 0; -1 is the last one.

    Raises:
        NonFiniteLossError: an output of the model is NaN or infinite.
        UserError: there is no such method, class or stage, or an image cannot be read.
    """
    _, chosen = check_request(predictor, method, class_name, stage)
    split = predictor.split_of(images)
    table = probabilities(predictor.finite_logits(split), predictor.task)
    classes = table.argmax(1) if chosen is None else np.full(len(table), chosen)
    return Explanation(
        method,
        split.names,
        predictor.class_names,
        table,
        classes,
        maps_of_classes(predictor, split, classes, method=method, stage=stage),
    )


def maps_of_classes(
    predictor: Predictor,
    images: LabelledImages,
    classes: np.ndarray,
    *,
    method: str,
    stage: int = -1,
) -> np.ndarray:
    """Returns a heat map for each image and its class, without a prediction.

    Args:
        predictor: the trained model.
        images: the images (n).
        classes: indices into the model's class names (n,).
        method, stage: as for `explain`.

    Returns:
        float32 (n, h, w), as `Explanation.maps`.

    Raises:
        UserError: as `explain`.
    """
    stage, _ = check_request(predictor, method, None, stage)
    compute = _compiled(
        METHODS[method].compute,
        stage,
        predictor.model,
        predictor.preprocessing,
        predictor.parallel,
    )
    # As labels, the classes come in the batches of their images.
    labelled = dataclasses.replace(images, labels=classes.astype(np.int32), class_names=())
    batches = eval_batches(
        labelled,
        predictor.preprocessing,
        batch_size=predictor.batch_size_for(len(images)),
        process_index=predictor.parallel.host,
        process_count=predictor.parallel.hosts,
    )
    with batches:
        found = []
        for batch in batches:
            given = predictor.parallel.put_batch(batch)
            found.append(
                compute(predictor.params, predictor.statistics, given["image"], given["label"])
            )
    return np.concatenate(jax.device_get(found))[: len(images)]


def check_request(
    predictor: Predictor, method: str, class_name: str | None, stage: int
) -> tuple[int, int | None]:
    """Returns the index of the stage from 0, and that of the class, if one is named.

    Raises:
        UserError: see `explain`.
    """
    if method not in METHODS:
        raise UserError(f"the method must be one of {', '.join(METHODS)}; got {method!r}")
    row, stages = METHODS[method], len(predictor.model.depths)
    if not -stages <= stage < stages:
        raise UserError(
            f"the model has {stages} stages, 0 to {stages - 1}, or -1 for the last; got {stage}"
        )
    if stage != -1 and not row.by_stage:
        able = ", ".join(name for name, other in METHODS.items() if other.by_stage)
        raise UserError(f"{method} looks at no stage; a stage is for {able}")
    if class_name is None:
        return stage % stages, None
    if not row.of_class:
        raise UserError(f"{method} explains no class; name none")
    if class_name not in predictor.class_names:
        raise UserError(
            f"the model has no class {class_name!r}; its classes are"
            f" {', '.join(predictor.class_names)}"
        )
    return stage % stages, predictor.class_names.index(class_name)


def network_of(model: MedMamba, preprocessing: Preprocessing) -> Network:
    """Returns a model in evaluation mode as the functions that maps are computed with."""
    black = jnp.zeros((1, 1, 1, preprocessing.channels), jnp.uint8)
    config = model.config
    return Network(
        features=lambda images, stage: model(images, features_only=True)[stage],
        classify=model.continued,
        strides=tuple(config.patch_size * 2**stage for stage in range(len(config.depths))),
        black=normalize(black, preprocessing)[0, 0, 0],
    )


@functools.lru_cache(maxsize=8)
def _compiled(
    compute: Callable[..., jax.Array],
    stage: int,
    model: MedMambaConfig,
    preprocessing: Preprocessing,
    parallel: DataParallel,
) -> Callable[..., jax.Array]:
    """Returns a jitted function (params, statistics, uint8 images, classes) -> maps."""
    graphdef = evaluation_graphdef(model)

    def maps(params: Any, statistics: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
        network = network_of(nnx.merge(graphdef, params, statistics), preprocessing)
        return compute(network, normalize(images, preprocessing), classes, stage)

    return jax.jit(maps, out_shardings=parallel.replicated)
