"""The optimiser, its learning rate, and which parameters it trains."""

import fnmatch
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax
import optax

from medmamba_jax.errors import UserError
from medmamba_jax.models.structure import name_of

if TYPE_CHECKING:  # `TrainConfig` reads the tables below
    from medmamba_jax.training.config import TrainConfig

# Matrices and convolution kernels. The rest (scale, bias, dt_bias, A_log, D) shapes norms and
# the scan's dynamics, which decay would pull towards 0 for no reason.
WEIGHT_NAMES = ("kernel", "x_proj", "dt_weight")


def _adamw(
    schedule: optax.Schedule, weight_decay: float, mask: Any
) -> optax.GradientTransformation:
    """Decays decoupled from the moments (Loshchilov and Hutter, arXiv 1711.05101)."""
    return optax.adamw(schedule, weight_decay=weight_decay, mask=mask)


def _adam(schedule: optax.Schedule, weight_decay: float, mask: Any) -> optax.GradientTransformation:
    """Adds the decay to the gradient before the moments, as `torch.optim.Adam` does."""
    return optax.chain(optax.add_decayed_weights(weight_decay, mask), optax.adam(schedule))


# `train.optimizer` -> (schedule, weight decay, mask of what decays) -> optimiser. Moments, epsilon
# and decay are those of PyTorch's optimisers.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adam": _adam,
}


def _constant(config: "TrainConfig", steps_per_epoch: int, warmup: int) -> optax.Schedule:
    return optax.constant_schedule(config.lr)


def _cosine(config: "TrainConfig", steps_per_epoch: int, warmup: int) -> optax.Schedule:
    total = config.epochs * steps_per_epoch
    return optax.cosine_decay_schedule(config.lr, max(total - warmup, 1))


def _step(config: "TrainConfig", steps_per_epoch: int, warmup: int) -> optax.Schedule:
    drops = {epoch * steps_per_epoch - warmup: config.step_factor for epoch in config.step_epochs}
    return optax.piecewise_constant_schedule(config.lr, drops)


# `train.schedule` -> (config, steps in an epoch, warm-up steps) -> step after warm-up -> rate.
SCHEDULES: dict[str, Callable[["TrainConfig", int, int], optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "step": _step,
}


def learning_rate(config: "TrainConfig", steps_per_epoch: int) -> optax.Schedule:
    """Returns step -> learning rate; a warm-up, where there is one, comes first."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    schedule = SCHEDULES[config.schedule](config, steps_per_epoch, warmup)
    if not warmup:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, config.lr, warmup), schedule], [warmup])


def make_optimizer(
    config: "TrainConfig", steps_per_epoch: int, params: Any
) -> optax.GradientTransformation:
    """Returns the optimiser of a run.

    Args:
        config: the optimiser, its schedule, decay and clipping; `freeze` and `lr_backbone_factor`.
        steps_per_epoch: training steps in an epoch.
        params: the parameters, or their shapes.

    Raises:
        UserError: a pattern of `freeze` matches no parameter, or nothing is left to train.
    """
    mask = decay_mask if config.decay == "weights" else None
    optimizer = OPTIMIZERS[config.optimizer](
        learning_rate(config, steps_per_epoch), config.weight_decay, mask
    )
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    if config.lr_backbone_factor != 1:
        # Scales the whole step, the decoupled decay included, as a smaller rate would.
        scale = optax.masked(optax.scale(config.lr_backbone_factor), backbone_mask)
        optimizer = optax.chain(optimizer, scale)
    if config.frozen:
        frozen = frozen_mask(params, config.frozen)
        labels = jax.tree.map(lambda is_frozen: "frozen" if is_frozen else "trained", frozen)
        optimizer = optax.multi_transform(
            {"trained": optimizer, "frozen": optax.set_to_zero()}, labels
        )
    return optimizer


def decay_mask(params: Any) -> Any:
    """Returns a tree of bools: True for the tensors named in `WEIGHT_NAMES`.

    By name, not by rank: a stage's tensors are stacked along depth, so that its biases are
    matrices, too.
    """
    return _mask(params, lambda name: name.rpartition(".")[2] in WEIGHT_NAMES)


def backbone_mask(params: Any) -> Any:
    """Returns a tree of bools: True for every parameter outside the head."""
    return _mask(params, lambda name: not name.startswith("head."))


def is_frozen(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern such as "stages.0.*" matches a dotted parameter name, as file names."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def frozen_mask(params: Any, patterns: Iterable[str]) -> Any:
    """Returns a tree of bools: True for the parameters that the patterns freeze.

    Raises:
        UserError: a pattern matches no parameter, or the patterns match all of them.
    """
    names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not any(is_frozen(name, [pattern]) for name in names):
            parts = sorted({".".join(name.split(".")[:2]) for name in names})
            raise UserError(
                f"train.freeze: {pattern!r} matches no parameter; names begin with"
                f" {', '.join(parts)}, and * stands for any text"
            )
    mask = _mask(params, lambda name: is_frozen(name, patterns))
    if all(jax.tree.leaves(mask)):
        raise UserError("train.freeze matches every parameter, so that nothing is left to train")
    return mask


def _mask(params: Any, test: Callable[[str], bool]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: test(name_of(path)), params)
