"""One compiled training pass of a model, as the tests look at it."""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import medmamba_jax as mm


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(graphdef, params, rest, images, labels):
    """Returns ((loss, (logits, rest after the pass)), gradients) of mean cross-entropy."""

    def loss(params):
        # Without the copy the statistics inside would be the ones outside of the gradient.
        model = nnx.merge(graphdef, params, rest, copy=True)
        logits = model(images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (logits, nnx.state(model, nnx.Not(nnx.Param)))

    return jax.value_and_grad(loss, has_aux=True)(params)


class TrainingPass:
    """A training forward and backward pass of `model`, which stays as it was.

    Attributes:
      loss: of the batch.
      logits: (b, num_classes).
      tensors: gradients, and BatchNorm's buffers after the pass, under official names.
    """

    def __init__(self, model: mm.MedMamba, images, labels):
        model.train()
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        labels = jnp.asarray(labels, jnp.int32)
        (self.loss, (self.logits, rest)), gradients = loss_and_gradients(
            graphdef, params, rest, images, labels
        )
        self.tensors = mm.to_torch_state_dict(nnx.merge(graphdef, gradients, rest))

    def gradients(self) -> dict:
        return {name: x for name, x in self.tensors.items() if not is_buffer(name)}


@functools.partial(jax.jit, static_argnums=0)
def _forward(graphdef, state, images):
    return nnx.merge(graphdef, state)(images)


def evaluate(model: mm.MedMamba, images):
    """Returns the model's logits in evaluation mode, compiled."""
    model.eval()
    return _forward(*nnx.split(model), images)


def is_buffer(official_name: str) -> bool:
    """Whether the tensor belongs to BatchNorm's statistics."""
    return official_name.endswith((".running_mean", ".running_var", ".num_batches_tracked"))


def biases_before_batch_norm(official_names) -> set[str]:
    """Names the biases that batch statistics cancel, so that their true gradient is 0.

    They are the biases of modules in a torch.nn.Sequential whose next module holds BatchNorm's
    buffers, and are not BatchNorm themselves.
    """
    names, found = set(official_names), set()
    for name in names:
        module, _, leaf = name.rpartition(".")
        sequential, _, index = module.rpartition(".")
        if leaf == "bias" and index.isdigit() and f"{module}.running_mean" not in names:
            if f"{sequential}.{int(index) + 1}.running_mean" in names:
                found.add(name)
    return found
