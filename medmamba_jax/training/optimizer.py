"""The optimiser and its learning-rate schedule, from a `TrainConfig`."""

from typing import Any

import jax
import optax

from medmamba_jax.training.config import TrainConfig

# Matrices and convolution kernels; the rest (scale, bias, dt_bias, A_log, D) shapes norms and
# the scan's dynamics, which decay would pull towards 0 for no reason.
WEIGHT_NAMES = ("kernel", "x_proj", "dt_weight")


def learning_rate(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """Returns step -> learning rate; warm-up, where there is one, comes first."""
    total = config.epochs * steps_per_epoch
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "constant":
        schedule = optax.constant_schedule(config.lr)
    elif config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(config.lr, max(total - warmup, 1))
    else:
        drops = {
            epoch * steps_per_epoch - warmup: config.step_factor for epoch in config.step_epochs
        }
        schedule = optax.piecewise_constant_schedule(config.lr, drops)
    if not warmup:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, config.lr, warmup), schedule], [warmup])


def make_optimizer(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """Returns the optimiser; moments, epsilon and decay are those of PyTorch's optimisers.

    "adamw" decays decoupled from the moments (Loshchilov and Hutter, arXiv 1711.05101); "adam"
    adds the decay to the gradient before them, as `torch.optim.Adam` does.
    """
    schedule = learning_rate(config, steps_per_epoch)
    mask = decay_mask if config.decay == "weights" else None
    if config.optimizer == "adamw":
        optimizer = optax.adamw(schedule, weight_decay=config.weight_decay, mask=mask)
    else:
        optimizer = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask), optax.adam(schedule)
        )
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer


def decay_mask(params: Any) -> Any:
    """Returns a tree of bools: True for the tensors named in `WEIGHT_NAMES`.

    By name, not by rank: a stage's tensors are stacked along depth, so that its biases are
    matrices, too.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) in WEIGHT_NAMES, params
    )
