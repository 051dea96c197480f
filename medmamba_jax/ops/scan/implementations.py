"""The table of implementations: what each needs, and which of them `None` means."""

import dataclasses
import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp

from medmamba_jax.ops import pallas_gpu
from medmamba_jax.ops.scan import pallas_tpu
from medmamba_jax.ops.scan.associative import scan_associative
from medmamba_jax.ops.scan.chunked import scan_chunked
from medmamba_jax.ops.scan.recurrence import step_sizes
from medmamba_jax.ops.scan.sequential import scan_sequential

# Until somebody has seen the TPU kernel on a TPU, `None` means it only where this is set to 1.
TPU_SWITCH = "MEDMAMBA_JAX_PALLAS_TPU"


@dataclasses.dataclass(frozen=True)
class Case:
    """What the choice of an implementation depends on.

    Attributes:
      backend: where the scan will run, see `default_backend`.
      dtype: of u.
      h, w: sides of the map; a sequence has no h, and w = l.
      d, n: channels and states.
    """

    backend: str
    dtype: jnp.dtype
    h: int | None
    w: int
    d: int
    n: int


def default_backend() -> str:
    """The platform of `jax.default_device`, if one is set, or JAX's default backend.

    Arrays that were put elsewhere are not seen while tracing: name an implementation for those.
    """
    device = jax.config.jax_default_device
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to run the scan.

    Attributes:
      scan: takes the arguments of `selective_scan`, checked, and returns y.
      image: takes those of `ss2d_scan`; None where the four orders go through `scan`.
      refusal: returns why it cannot take a case, or None.
      automatic: whether `None` may mean it, where it can take the case.
    """

    scan: Callable[..., jax.Array]
    image: Callable[..., jax.Array] | None = None
    refusal: Callable[[Case], str | None] = lambda case: None
    automatic: Callable[[], bool] = lambda: True


def on_step_sizes(run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Makes a `scan` of `run(u, dt, A, B, C, D)`, whose dt is ready: float32 or wider, positive."""

    def scan(u, delta, A, B, C, D, *, delta_bias, delta_softplus):
        return run(u, step_sizes(u, delta, delta_bias, delta_softplus), A, B, C, D)

    return scan


def _refuse_on_tpu(case: Case) -> str | None:
    if case.backend != "tpu":
        return f"it is a TPU kernel and the backend is {case.backend!r}"
    return pallas_tpu.refusal(dtype=case.dtype, n=case.n)


# A new implementation is one file beside this one and one row here. `None` means the first row that
# takes the case and is automatic.
IMPLEMENTATIONS = {
    "pallas_gpu": Implementation(
        pallas_gpu.scan_sequences, pallas_gpu.scan_image, pallas_gpu.refusal
    ),
    "pallas_gpu_recompute": Implementation(
        functools.partial(pallas_gpu.scan_sequences, keep_states=False),
        functools.partial(pallas_gpu.scan_image, keep_states=False),
        pallas_gpu.refusal,
        automatic=lambda: False,  # a little slower; for who needs the memory
    ),
    "pallas_tpu": Implementation(
        on_step_sizes(pallas_tpu.scan_pallas_tpu),
        refusal=_refuse_on_tpu,
        # A Mosaic TPU kernel under jit cannot be split over devices.
        automatic=lambda: os.environ.get(TPU_SWITCH) == "1" and jax.device_count() == 1,
    ),
    "chunked": Implementation(on_step_sizes(scan_chunked)),
    "associative": Implementation(on_step_sizes(scan_associative)),
    "sequential": Implementation(on_step_sizes(scan_sequential)),
}


def choose(implementation: str | None, case: Case) -> str:
    """Returns the name of the implementation that runs a case.

    Args:
      implementation: a name in `IMPLEMENTATIONS`, or None for the best that can.
      case: the case.

    Raises:
      ValueError: the name is unknown.
      NotImplementedError: the implementation asked for cannot take the case, and why.
    """
    if implementation is None:
        for name, row in IMPLEMENTATIONS.items():
            if row.automatic() and row.refusal(case) is None:
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
