"""Spreads batches and states over devices and hosts, and determines which host writes files.

A host is a JAX process. In a run on several hosts all compute the same; the first one prints and
writes the files of the run's folder, and all write checkpoints together.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medmamba_jax.data.texts import for_terminal
from medmamba_jax.errors import UserError
from medmamba_jax.hosts import text_of_first_host

# Arrays of fewer elements are on every device, also where a state is sharded: they take little
# memory, and to gather them would take longer than to read them. Every statistic of a BatchNorm
# has fewer.
SMALLEST_SHARDED = 2**14


@dataclasses.dataclass(frozen=True)
class DataParallel:
    """Data parallelism: a batch is split over the devices.

    A state is whole on each device, or its large arrays are split, too (`of_state`).

    Attributes:
        devices: all of them, along one mesh axis `data`.
    """

    devices: tuple[jax.Device, ...]

    @classmethod
    def over_all_devices(cls) -> "DataParallel":
        """Takes every device of every host, or `jax.default_device` alone where it is set."""
        default = jax.config.jax_default_device  # type: ignore[attr-defined]
        if default is not None:
            return cls((jax.devices(default)[0] if isinstance(default, str) else default,))
        # Sorted by host, because the images that a host reads lie together in the batch.
        by_host = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        return cls(tuple(by_host))

    @property
    def host(self) -> int:
        """The index of this host among the hosts of the devices, and of its part of each batch."""
        return sum(index < jax.process_index() for index in self._indices)

    @property
    def hosts(self) -> int:
        """The number of hosts that the devices belong to."""
        return len(self._indices)

    @property
    def _indices(self) -> set[int]:
        return {device.process_index for device in self.devices}

    @property
    def of_this_host(self) -> "DataParallel":
        """The devices of this host alone. A program on them does not wait for other hosts."""
        here = jax.process_index()
        return DataParallel(tuple(d for d in self.devices if d.process_index == here))

    @functools.cached_property
    def replicated(self) -> NamedSharding:
        """The sharding of an array that is whole on every device."""
        return NamedSharding(self._mesh, PartitionSpec())

    @functools.cached_property
    def batch(self) -> NamedSharding:
        """The sharding of an array whose first axis is the batch."""
        return NamedSharding(self._mesh, PartitionSpec("data"))

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), ("data",))

    def of_state(self, abstract_state: Any, *, sharded: bool = False) -> Any:
        """Returns the sharding of every array of a state; the one place that decides it.

        Args:
            abstract_state: a tree of arrays or of `jax.ShapeDtypeStruct`.
            sharded: whether the devices share the large arrays (fully sharded data parallelism, as
                in Rajbhandari et al., arXiv 1910.02054). Otherwise every array is on every device.
                An array with fewer than `SMALLEST_SHARDED` elements, or without an axis that the
                number of devices divides, is on every device in any case.

        Returns:
            A tree of shardings of the same structure. The sharding of an array depends on its shape
            alone, so that a parameter, its moving average and its moments in the optimiser have the
            same.
        """
        of = self._of_array if sharded else lambda _: self.replicated
        return jax.tree.map(lambda x: of(x.shape), abstract_state)

    def _of_array(self, shape: tuple[int, ...]) -> NamedSharding:
        """Returns the sharding that splits the longest axis that can be split."""
        count = len(self.devices)
        axes = [axis for axis, length in enumerate(shape) if length % count == 0]
        if count == 1 or not axes or math.prod(shape) < SMALLEST_SHARDED:
            return self.replicated
        axis = max(axes, key=lambda axis: shape[axis])
        return NamedSharding(self._mesh, PartitionSpec(*[None] * axis, "data"))

    def gathered(self, tree: Any) -> Any:
        """Returns arrays of a state, whole on every device; for use outside a jitted function."""
        return self._gather(tree)

    @functools.cached_property
    def _gather(self) -> Callable[[Any], Any]:
        return jax.jit(lambda tree: tree, out_shardings=self.replicated)

    def whole(self, tree: Any) -> Any:
        """Returns arrays of a state, whole on every device; for use inside a jitted function.

        Their gradients come back sharded as `of_state` says: each device keeps the sum over the
        devices of its own part only. Without this function XLA could split each operation that
        reads a sharded parameter, and would send activations instead of parameters.
        """
        return jax.tree.map(lambda x: _whole(self, x), tree)

    def put_batch(self, batch: Mapping[str, np.ndarray | jax.Array]) -> dict[str, jax.Array]:
        """Puts this host's part of a batch on its devices and returns the global batch.

        Arrays that are on devices already are returned as they are.
        """
        # JAX takes this for an implicit transfer where there are several hosts.
        with jax.transfer_guard("allow"):
            return {
                name: x
                if isinstance(x, jax.Array)
                else jax.make_array_from_process_local_data(self.batch, x)
                for name, x in batch.items()
            }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _whole(parallel: DataParallel, x: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, parallel.replicated)


def _whole_backward(parallel: DataParallel, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    sharding = parallel.of_state(gradient, sharded=True)
    return (jax.lax.with_sharding_constraint(gradient, sharding),)


_whole.defvjp(lambda parallel, x: (_whole(parallel, x), None), _whole_backward)


def is_first_host() -> bool:
    """Whether this host prints and writes the files of the run's folder."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line at once, on the first host only."""
    if is_first_host():
        print(for_terminal(text), flush=True)


def as_on_first_host(decisions: Sequence[bool]) -> list[bool]:
    """Returns on every host what the first host has decided, so that all hosts do the same.

    Hosts can disagree, for example because a file appears later on one of them.
    """
    if jax.process_count() == 1:
        return list(decisions)
    with jax.transfer_guard("allow"):
        return multihost_utils.broadcast_one_to_all(np.array(decisions, bool)).tolist()


def on_first_host(action: Callable[[], object]) -> None:
    """Runs a function on the first host. If it fails, every host stops.

    Otherwise the other hosts would continue and wait for the first one forever.

    Raises:
        Exception: what `action` raised, on the first host.
        UserError: on every other host, if `action` failed; with the same message.
    """
    error: Exception | None = None
    if is_first_host():
        try:
            action()
        except Exception as caught:  # raised again below, after the other hosts know of it
            error = caught
    reason = text_of_first_host("" if error is None else str(error) or type(error).__name__)
    if reason and error is None:
        raise UserError(f"the first host stopped: {reason}")
    if error is not None:
        raise error
