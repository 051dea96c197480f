"""One training step and one evaluation step: pure functions, jitted once by the loop."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx

from medmamba_jax.models import MedMamba, MedMambaConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes from step to step; trees are nested dictionaries of arrays.

    Attributes:
        step: int32 scalar, steps taken.
        params: trained tensors, float32.
        variables: the rest of the model: BatchNorm statistics and the dropout stream.
        opt_state: the optimiser's state.
    """

    step: jax.Array
    params: Any
    variables: Any
    opt_state: Any

    def to_parts(self) -> dict[str, Any]:
        """Returns the parts of a checkpoint; using a model takes the first two only."""
        training = {"step": self.step, "opt_state": self.opt_state}
        return {"params": self.params, "variables": self.variables, "training": training}

    @classmethod
    def from_parts(cls, parts: dict[str, Any]) -> "TrainState":
        """Undoes `to_parts`."""
        return cls(params=parts["params"], variables=parts["variables"], **parts["training"])


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What a step needs besides arrays.

    Attributes:
        graphdef: the model's structure in training mode.
        eval_graphdef: the same in evaluation mode.
        optimizer: Optax transformation.
        normalize: uint8 images -> the model's float32 input.
        loss: (logits, labels, image_weights=None) -> scalar.
    """

    graphdef: nnx.GraphDef
    eval_graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    normalize: Callable[[jax.Array], jax.Array]
    loss: Callable[..., jax.Array]


def train_step(
    state: TrainState, batch: dict[str, jax.Array], *, spec: StepSpec
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one step.

    Args:
        state: donated by the loop.
        batch: "image" uint8 (b, h, w, c) and "label" int32 (b,), or float32 (b, classes) with 1, 0
            and NaN; where images are weighted also "weight" float32 (b,).
        spec: static.

    Returns:
        The next state, and "loss", "grad_norm" (before clipping), "logits" (b, classes), "label".
    """

    def loss_fn(params):
        model = nnx.merge(spec.graphdef, params, state.variables)
        logits = model(spec.normalize(batch["image"]))
        _, _, variables = nnx.split(model, nnx.Param, ...)
        loss = spec.loss(logits, batch["label"], image_weights=batch.get("weight"))
        return loss, (logits, nnx.to_pure_dict(variables))

    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (logits, variables)), grads = gradient(state.params)
    updates, opt_state = spec.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    outputs = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "logits": logits,
        "label": batch["label"],
    }
    return TrainState(state.step + 1, params, variables, opt_state), outputs


def eval_step(
    params: Any, variables: Any, batch: dict[str, jax.Array], *, spec: StepSpec
) -> dict[str, jax.Array]:
    """Returns "logits" (b, classes), and the batch's "label" and "mask" beside them."""
    model = nnx.merge(spec.eval_graphdef, params, variables)
    logits = model(spec.normalize(batch["image"]))
    return {"logits": logits, "label": batch["label"], "mask": batch["mask"]}


def init_state(
    config: MedMambaConfig, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Returns the state before the first step."""
    model = MedMamba(config, rngs=nnx.Rngs(seed))
    _, params, variables = nnx.split(model, nnx.Param, ...)
    params, variables = nnx.to_pure_dict(params), nnx.to_pure_dict(variables)
    return TrainState(jax.numpy.zeros((), "int32"), params, variables, optimizer.init(params))


def graphdefs(config: MedMambaConfig) -> tuple[nnx.GraphDef, nnx.GraphDef]:
    """Returns the model's structure in training and in evaluation mode, without any array."""
    model = nnx.eval_shape(lambda: MedMamba(config, rngs=nnx.Rngs(0)))
    model.train()
    training = nnx.graphdef(model)
    model.eval()
    return training, nnx.graphdef(model)
