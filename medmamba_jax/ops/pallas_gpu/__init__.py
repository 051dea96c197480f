"""Fused selective scans for NVIDIA's Hopper GPUs: Pallas kernels on Mosaic GPU.

`mosaic.py` has what is private to jax or moves between its releases, `problem.py` a call's static
shape and how it is cut, `walk.py` the four orders, `staging.py` the step sizes; `forward.py`,
`backward.py` and `segments.py` are the kernels, `scan.py` the differentiable operation on them. The
kernels are imported when they are first used, so that a jax that lacks what they need costs no more
than the kernels.
"""

import functools
import warnings

import jax
import jax.numpy as jnp

from medmamba_jax.ops.pallas_gpu.problem import CHANNELS, SHORTEST_LINE, STATES


def scan_image(*args, **kwargs) -> jax.Array:
    """`ss2d_scan` as one kernel for each pass; see `scan.scan_image`."""
    from medmamba_jax.ops.pallas_gpu import scan

    return scan.scan_image(*args, **kwargs)


def scan_sequences(*args, **kwargs) -> jax.Array:
    """`selective_scan` as one kernel for each pass; see `scan.scan_sequences`."""
    from medmamba_jax.ops.pallas_gpu import scan

    return scan.scan_sequences(*args, **kwargs)


def refusal(case) -> str | None:
    """Returns why the kernels cannot take a `Case` here, or None.

    A jax whose Pallas has changed too much is warned about once.
    """
    if case.backend != "gpu":
        return f"it is a kernel for NVIDIA GPUs and the backend is {case.backend!r}"
    if jax.config.jax_enable_x64:
        return "its indices have 32 bits and jax_enable_x64 is on"
    return refusal_of_shape(case) or _refusal_of_gpu() or _missing()


def refusal_of_shape(case) -> str | None:
    """Returns why no GPU could take a `Case`, or None."""
    if case.dtype not in (jnp.float32, jnp.bfloat16):
        return f"its inputs are float32 or bfloat16 and u is {case.dtype}"
    if case.d % CHANNELS or case.n != STATES:
        return f"it needs d to be a multiple of {CHANNELS} and n = {STATES}, got {case.d}, {case.n}"
    lines = (case.w,) if case.h is None else (case.h, case.w)
    if min(lines) < SHORTEST_LINE:
        return f"it needs lines of at least {SHORTEST_LINE} steps, got {lines}"
    return None


def _refusal_of_gpu() -> str | None:
    capability = getattr(jax.devices()[0], "compute_capability", "none")
    try:
        # Later ones have not been seen, and some have less shared memory than is planned with.
        able = int(float(capability)) == 9
    except ValueError:  # not NVIDIA's
        able = False
    if able:
        return None
    return f"it needs a Hopper GPU (NVIDIA H100, H200; capability 9.0), got {capability!r}"


@functools.cache
def _missing() -> str | None:
    """Lowers both passes of a small scan, in a few seconds, and says what stands in the way."""
    try:
        from medmamba_jax.ops.pallas_gpu import scan

        scan.lower()
    except Exception as error:  # whatever a private part that changed raises
        reason = f"jax {jax.__version__} cannot build it ({type(error).__name__}: {error})"
        warnings.warn(f"pallas_gpu is left out: {reason}", stacklevel=2)
        return reason
    return None
