"""One training step: a pure function of a state and a batch, which `start.py` jits."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from medmamba_jax.models import MedMambaConfig, split_model
from medmamba_jax.models.structure import new_model, with_tensors
from medmamba_jax.training.augmentation import Augment, partners
from medmamba_jax.training.losses import MeanLoss


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state that each step changes. Trees are nested dictionaries of arrays.

    Attributes:
        step: int32 scalar, steps taken.
        params: trained tensors, float32.
        statistics: running statistics of the BatchNorms.
        random: the random stream of dropout and drop path.
        opt_state: the optimiser's state.
        average: moving averages of `params` and `statistics`, as {"params": ..., "statistics":
            ...}; None without `train.ema_decay`.
        seed: uint32 scalar, `train.seed`, from which the step makes the keys of augmentation. It
            never changes. It is not in `StepSpec`, so that runs with other seeds share one
            compiled step.
    """

    step: jax.Array
    params: Any
    statistics: Any
    random: Any
    opt_state: Any
    seed: jax.Array
    average: Any = None

    def to_parts(self) -> dict[str, Any]:
        """Returns the parts of a checkpoint, which does not hold the seed.

        To use a model, `eval_params` is enough.
        """
        training = {"step": self.step, "random": self.random, "opt_state": self.opt_state}
        parts = {"params": self.params, "statistics": self.statistics, "training": training}
        return parts if self.average is None else parts | {"average": self.average}

    @classmethod
    def from_parts(cls, parts: dict[str, Any], seed: jax.Array) -> "TrainState":
        """Undoes `to_parts`."""
        return cls(
            params=parts["params"],
            statistics=parts["statistics"],
            average=parts.get("average"),
            seed=seed,
            **parts["training"],
        )


def eval_params(state: TrainState) -> tuple[Any, Any]:
    """Returns the parameters and statistics that are evaluated: the averages, if there are any."""
    if state.average is None:
        return state.params, state.statistics
    return state.average["params"], state.average["statistics"]


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """The static arguments of a step.

    Attributes:
        graphdef: the model's structure in training mode.
        optimizer: Optax transformation.
        normalize: uint8 images -> the model's float32 input.
        loss: (logits, labels, image weights or None) -> scalar.
        frozen: a tree of bools, True for the parameters that are not trained.
        ema_decay: `TrainConfig.ema_decay`.
        augment: (key, uint8 images (b, h, w, c)) -> `Augmented`, see `DEVICE_POLICIES`. None leaves
            the images as they are; the host may have augmented them before.
        whole: the parameters as the state holds them -> as the model reads them. It gathers
            parameters that devices share (`DataParallel.whole`).
        accumulate: `TrainConfig.accumulate`.
        skip_nonfinite: whether a step whose loss or gradient is not finite leaves everything as it
            was, except the step's number and the random stream.
    """

    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    normalize: Callable[[jax.Array], jax.Array]
    loss: MeanLoss
    frozen: Any
    ema_decay: float = 0.0
    augment: Augment | None = None
    whole: Callable[[Any], Any] = lambda params: params
    accumulate: int = 1
    skip_nonfinite: bool = False


def train_step(
    state: TrainState, batch: dict[str, jax.Array], *, spec: StepSpec
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one step.

    Args:
        state: the state before; the loop donates its arrays.
        batch: "image" uint8 (b, h, w, c) and "label" int32 (b,), or float32 (b, classes) with 1, 0
            and NaN; where images are weighted also "weight" float32 (b,).
        spec: static.

    Returns:
        The next state, and "loss", "grad_norm" (of the trained parameters, before clipping),
        "grad_norms" (of each parameter, in the order of the tree's leaves), "logits" (b, classes)
        and "label". If images are mixed, the logits belong to the mixed images, and the label is
        that of the image itself, not of its partner.
    """
    images, own_share = batch["image"], None
    if spec.augment is not None:
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        images, own_share = spec.augment(key, images)
    labels = [(batch["label"], batch.get("weight"))]
    if own_share is not None:  # the weight of an image goes with its label
        labels.append(jax.tree.map(partners, labels[0]))
    divisors = [spec.loss.divisor(*pair) for pair in labels]

    def loss_fn(
        params: Any, statistics: Any, random: Any, images: jax.Array, labels: list[Any]
    ) -> tuple[jax.Array, Any]:
        # XLA then leaves out the gradients of frozen parameters.
        params = jax.tree.map(
            lambda x, is_frozen: jax.lax.stop_gradient(x) if is_frozen else x,
            spec.whole(params),
            spec.frozen,
        )
        model = nnx.merge(spec.graphdef, params, statistics, random)
        logits = model(spec.normalize(images))
        _, statistics, random = split_model(model)
        losses = [
            spec.loss(logits, label, weight, divisor)
            for (label, weight), divisor in zip(labels, divisors, strict=True)
        ]
        return _mixed(losses, own_share), (logits, statistics, random)

    (loss, (logits, statistics, random)), grads = _accumulated(
        jax.value_and_grad(loss_fn, has_aux=True), state, (images, labels), spec.accumulate
    )
    updates, opt_state = spec.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
        average = _averaged(average, params, statistics, state.step, spec.ema_decay)
    outputs = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        # The sums are those of `grad_norm`, so this costs nothing.
        "grad_norms": jnp.sqrt(jnp.stack([jnp.square(x).sum() for x in jax.tree.leaves(grads)])),
        "logits": logits,
        "label": batch["label"],
    }
    changed = (params, statistics, opt_state, average)
    if spec.skip_nonfinite:
        finite = jnp.isfinite(loss) & jnp.isfinite(outputs["grad_norm"])
        unchanged = (state.params, state.statistics, state.opt_state, state.average)
        changed = jax.tree.map(functools.partial(jnp.where, finite), changed, unchanged)
    params, statistics, opt_state, average = changed
    state = TrainState(state.step + 1, params, statistics, random, opt_state, state.seed, average)
    return state, outputs


def _mixed(losses: list[jax.Array], own_share: jax.Array | None) -> jax.Array:
    """Returns own share * loss of the labels + (1 - own share) * loss of the partners' labels.

    A term leaves out the labels that are not known. Without mixing there is one term, and no share.
    """
    if own_share is None:
        return losses[0]
    return own_share * losses[0] + (1 - own_share) * losses[1]


def _accumulated(gradient: Callable[..., Any], state: TrainState, rows: Any, parts: int) -> Any:
    """Returns what `gradient` returns for a batch, from one part of it after the other.

    Statistics and random stream pass from part to part: each part normalises by its own mean and
    variance, updates the running ones, and draws random numbers of its own.

    Args:
        gradient: (params, statistics, random, *rows) -> ((loss, (logits, statistics, random)),
            grads).
        state: the state before the step.
        rows: trees of arrays whose first axis is the batch.
        parts: the number of parts.
    """
    first = (state.statistics, state.random)
    if parts == 1:
        return gradient(state.params, *first, *rows)

    def split(x: jax.Array) -> jax.Array:
        # Part i holds the rows i, i + parts, ... So each device has its share of each part already.
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(so_far: Any, part: Any) -> tuple[Any, jax.Array]:
        total, model = so_far
        (loss, (logits, *model)), grads = gradient(state.params, *model, *part)
        return (jax.tree.map(jnp.add, total, (loss, grads)), tuple(model)), logits

    nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
    ((loss, grads), model), logits = jax.lax.scan(add, (nothing, first), jax.tree.map(split, rows))
    logits = logits.swapaxes(0, 1).reshape(-1, logits.shape[-1])
    return (loss, (logits, *model)), grads


def _averaged(average: Any, params: Any, statistics: Any, step: jax.Array, decay: float) -> Any:
    """Moves the averages towards the new values.

    Early steps use a smaller decay, so that the random start does not stay in the average.
    """
    so_far = jnp.minimum(decay, (1.0 + step) / (10.0 + step))

    def moved(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):  # BatchNorm's counter of batches
            return new
        return old + (1 - so_far) * (new - old)

    return jax.tree.map(moved, average, {"params": params, "statistics": statistics})


def init_state(
    config: MedMambaConfig,
    optimizer: optax.GradientTransformation,
    seed: int | jax.Array,
    loaded: Mapping[str, Any] | None = None,
    *,
    average: bool,
) -> TrainState:
    """Returns the state before the first step.

    Args:
        config: the architecture.
        optimizer: Optax transformation.
        seed: the seed of parameters, dropout, drop path and augmentation; below 2**32.
        loaded: dotted name -> parameter or statistic that takes the place of a random one.
        average: whether the state keeps moving averages.
    """
    seed = jnp.asarray(seed, "uint32")
    rngs = nnx.Rngs(jax.random.key(seed))
    params, statistics, random = split_model(new_model(config, rngs))
    params, statistics = (with_tensors(tree, loaded or {}) for tree in (params, statistics))
    step, opt_state = jnp.zeros((), "int32"), optimizer.init(params)
    state = TrainState(step, params, statistics, random, opt_state, seed)
    if not average:
        return state
    # Arrays of their own: the loop donates the state, and no array may be donated twice.
    copies = jax.tree.map(jnp.copy, {"params": params, "statistics": statistics})
    return dataclasses.replace(state, average=copies)
