"""The table of the scan's implementations, their requirements, and the choice among them."""

import dataclasses
import functools
import os
from collections.abc import Callable

import jax
import numpy as np
from absl import logging

from medmamba_jax.ops import pallas_gpu
from medmamba_jax.ops.scan.associative import scan_associative
from medmamba_jax.ops.scan.chunked import scan_chunked
from medmamba_jax.ops.scan.recurrence import step_sizes
from medmamba_jax.ops.scan.sequential import scan_sequential
from medmamba_jax.ops.scan.stepwise import scan_stepwise
from medmamba_jax.ops.scan.stepwise_image import project_and_scan_stepwise
from medmamba_jax.ops.scan.unrolled import scan_unrolled

# Nobody has run the TPU kernel on a TPU yet. So `None` chooses it only if this variable is 1.
TPU_SWITCH = "MEDMAMBA_JAX_PALLAS_TPU"


@dataclasses.dataclass(frozen=True)
class Case:
    """The facts that the choice of an implementation depends on.

    Attributes:
      backend: the platform where the scan will run, see `default_backend`.
      dtype: the dtype of u.
      h, w: the sides of the map in pixels; a sequence has h = None and w = l.
      d: channels.
      n: states of a channel.
    """

    backend: str
    dtype: np.dtype
    h: int | None
    w: int
    d: int
    n: int


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to run the scan.

    Attributes:
      scan: takes the arguments of `selective_scan`, already checked, and returns y.
      image: takes the arguments of `ss2d_scan`, already checked, and returns y. None means that
        `ss2d_scan` makes four sequences of the image and gives them to `scan`.
      projected_image: the same for `project_and_scan`. None means that `project_and_scan` projects
        the image and then does what `ss2d_scan` does.
      refusal: returns the reason why it cannot take a case, or None if it can.
      automatic: returns whether `implementation=None` may choose it for a case.
    """

    scan: Callable[..., jax.Array]
    image: Callable[..., jax.Array] | None = None
    projected_image: Callable[..., jax.Array] | None = None
    refusal: Callable[[Case], str | None] = lambda case: None
    automatic: Callable[[Case], bool] = lambda case: True


def on_step_sizes(run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Makes an `Implementation.scan` of a scan that takes step sizes.

    Args:
      run: takes (u, dt, A, B, C, D); dt has its bias and softplus and is float32 or wider.
    """

    def scan(
        u: jax.Array,
        delta: jax.Array,
        A: jax.Array,
        B: jax.Array,
        C: jax.Array,
        D: jax.Array,
        *,
        delta_bias: jax.Array | None,
        delta_softplus: bool,
    ) -> jax.Array:
        return run(u, step_sizes(u, delta, delta_bias, delta_softplus), A, B, C, D)

    return scan


# The TPU kernel is imported when it is used. If Pallas has changed in this jax, only the kernel
# fails.
def _scan_on_tpu(*arrays: jax.Array) -> jax.Array:
    from medmamba_jax.ops.scan.pallas_tpu import scan_pallas_tpu

    return scan_pallas_tpu(*arrays)


def _refuse_on_tpu(case: Case) -> str | None:
    if case.backend != "tpu":
        return f"it is a TPU kernel and the backend is {case.backend!r}"
    from medmamba_jax.ops.scan.pallas_tpu import refusal

    return refusal(dtype=case.dtype, n=case.n)


# To add an implementation, write one file beside this one and add one row here. `None` chooses the
# first row that is automatic and takes the case.
IMPLEMENTATIONS: dict[str, Implementation] = {
    "pallas_gpu": Implementation(
        pallas_gpu.scan_sequences,
        pallas_gpu.scan_image,
        pallas_gpu.project_and_scan_image,
        pallas_gpu.refusal,
    ),
    "pallas_gpu_recompute": Implementation(
        functools.partial(pallas_gpu.scan_sequences, keep_states=False),
        functools.partial(pallas_gpu.scan_image, keep_states=False),
        functools.partial(pallas_gpu.project_and_scan_image, keep_states=False),
        pallas_gpu.refusal,
        automatic=lambda case: False,  # a little slower; for users who need the memory
    ),
    "pallas_tpu": Implementation(
        on_step_sizes(_scan_on_tpu),
        refusal=_refuse_on_tpu,
        # A Mosaic TPU kernel under jit cannot be split over devices.
        automatic=lambda case: os.environ.get(TPU_SWITCH) == "1" and jax.device_count() == 1,
    ),
    "stepwise": Implementation(
        on_step_sizes(scan_stepwise),
        projected_image=project_and_scan_stepwise,
        automatic=lambda case: case.backend == "cpu",  # elsewhere each step is a launch
    ),
    "chunked": Implementation(on_step_sizes(scan_chunked)),
    "unrolled": Implementation(on_step_sizes(scan_unrolled)),
    "associative": Implementation(on_step_sizes(scan_associative)),
    "sequential": Implementation(on_step_sizes(scan_sequential)),
}


def choose(implementation: str | None, case: Case) -> str:
    """Returns the name of the implementation that runs a case.

    Args:
      implementation: a name in `IMPLEMENTATIONS`, or None for the first row that takes the case.
      case: the case.

    Raises:
      ValueError: the name is unknown.
      NotImplementedError: the named implementation cannot take the case. The message gives the
        reason and the implementations that can.
    """
    if implementation is None:
        for name, row in IMPLEMENTATIONS.items():
            if row.automatic(case) and row.refusal(case) is None:
                return name
        raise NotImplementedError(f"no implementation of the selective scan takes {case}")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation={implementation!r} is unknown; choose one of {sorted(IMPLEMENTATIONS)}"
        )
    reason = IMPLEMENTATIONS[implementation].refusal(case)
    if reason is not None:
        able = [name for name, row in IMPLEMENTATIONS.items() if row.refusal(case) is None]
        raise NotImplementedError(
            f"implementation={implementation!r} cannot run here: {reason}; {able} can"
        )
    return implementation


def implementation_of(operation: str, implementation: str | None, case: Case) -> Implementation:
    """Chooses the implementation that runs a case, and logs the choice once for each case.

    Args:
      operation: the public function's name, for the log.
      implementation, case: as for `choose`.

    Raises:
      ValueError, NotImplementedError: as `choose`.
    """
    name = choose(implementation, case)
    log_choice(operation, name, case)
    return IMPLEMENTATIONS[name]


@functools.cache
def log_choice(operation: str, name: str, case: Case) -> None:
    """Logs, once for each case, which implementation an operation runs."""
    logging.info("%s runs %r for %s", operation, name, case)
