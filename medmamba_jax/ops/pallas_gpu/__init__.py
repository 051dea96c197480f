"""Fused selective scans for NVIDIA's Hopper GPUs: Pallas kernels on Mosaic GPU.

Start at `scan.py`, the differentiable operation. `forward.py`, `backward.py` and `segments.py` are
the kernels. `problem.py` holds a call's static shape and decides how to cut it. `walk.py` has the
four orders, `staging.py` the step sizes, and `streams.py` the copies to and from shared memory.
`mosaic.py` has every part of JAX that is private or experimental. The kernels are imported at their
first use, so that a jax without the parts that they need can still run everything else.
"""

import functools
import warnings
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from medmamba_jax.ops.pallas_gpu.problem import CHANNELS, SHORTEST_LINE, STATES

if TYPE_CHECKING:  # the table imports this package
    from medmamba_jax.ops.scan.implementations import Case


# Errors which mean that this jax lacks or has changed a part that the kernels use: a module or a
# name is gone (ImportError, AttributeError), a function takes other arguments (TypeError), or
# Pallas no longer lowers a primitive or lays out a tile differently (NotImplementedError). Other
# errors are faults of this package or of the machine. They are raised: a warning would hide them.
_ANOTHER_JAX = (ImportError, AttributeError, TypeError, NotImplementedError)

# The versions of jax with which the tests of the kernels have passed; see mosaic.py.
_TESTED = ("0.10.2", "0.11.2", "0.12.0.1")


def scan_image(*args: jax.Array, **kwargs: Any) -> jax.Array:
    """Runs `ss2d_scan` as one kernel for each pass; see `scan.scan_image`."""
    from medmamba_jax.ops.pallas_gpu import scan

    return scan.scan_image(*args, **kwargs)


def project_and_scan_image(*args: jax.Array, **kwargs: Any) -> jax.Array:
    """Runs `project_and_scan` as one kernel for each pass; see `scan.project_and_scan_image`."""
    from medmamba_jax.ops.pallas_gpu import scan

    return scan.project_and_scan_image(*args, **kwargs)


def scan_sequences(*args: jax.Array, **kwargs: Any) -> jax.Array:
    """Runs `selective_scan` as one kernel for each pass; see `scan.scan_sequences`."""
    from medmamba_jax.ops.pallas_gpu import scan

    return scan.scan_sequences(*args, **kwargs)


def refusal(case: "Case") -> str | None:
    """Returns why the kernels cannot take a case on this machine, or None if they can.

    If this jax cannot build the kernels, the first call warns about it.
    """
    if case.backend != "gpu":
        return f"it is a kernel for NVIDIA GPUs and the backend is {case.backend!r}"
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        return "its indices have 32 bits and jax_enable_x64 is on"
    return refusal_of_shape(case) or _refusal_of_gpu() or _missing()


def refusal_of_shape(case: "Case") -> str | None:
    """Returns why the kernels cannot take a case on any GPU, or None if they can."""
    if case.dtype not in (jnp.float32, jnp.bfloat16):
        return f"its inputs are float32 or bfloat16 and u is {case.dtype}"
    if case.d % CHANNELS or case.n != STATES:
        return f"it needs d to be a multiple of {CHANNELS} and n = {STATES}, got {case.d}, {case.n}"
    lines = (case.w,) if case.h is None else (case.h, case.w)
    if min(lines) < SHORTEST_LINE:
        return f"it needs lines of at least {SHORTEST_LINE} steps, got {lines}"
    return None


def _refusal_of_gpu() -> str | None:
    capability = getattr(jax.devices("gpu")[0], "compute_capability", "none")
    try:
        # Nobody has run the kernels on later GPUs, and some of these have too little shared memory.
        able = int(float(capability)) == 9
    except ValueError:  # a GPU that NVIDIA did not make
        able = False
    if able:
        return None
    return f"it needs a Hopper GPU (NVIDIA H100, H200; capability 9.0), got {capability!r}"


@functools.cache
def _missing() -> str | None:
    """Returns why this jax cannot build the kernels, or None.

    With a jax that the tests have not seen, it lowers both passes of a small scan, which takes
    seconds.
    """
    if jax.__version__ in _TESTED:
        return None
    try:
        from medmamba_jax.ops.pallas_gpu import scan

        scan.lower()
    except Exception as error:
        if not _says_another_jax(error):
            raise
        reason = f"jax {jax.__version__} cannot build it ({type(error).__name__}: {error})"
        warnings.warn(f"pallas_gpu is left out: {reason}", stacklevel=2)
        return reason
    return None


def _says_another_jax(error: BaseException | None) -> bool:
    """Whether the error, or one of its causes, is one of `_ANOTHER_JAX`."""
    while error is not None and not isinstance(error, _ANOTHER_JAX):
        error = error.__cause__  # with jax_pallas_verbose_errors Pallas wraps the error in its own
    return error is not None
