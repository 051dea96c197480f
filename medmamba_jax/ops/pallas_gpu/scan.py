"""The kernels as one differentiable operation that can be jitted, vmapped and sharded by batch."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from medmamba_jax.ops.pallas_gpu.backward import make_backward
from medmamba_jax.ops.pallas_gpu.by_image import by_image
from medmamba_jax.ops.pallas_gpu.forward import make_forward
from medmamba_jax.ops.pallas_gpu.lowered import lowered
from medmamba_jax.ops.pallas_gpu.problem import (
    IMAGES,
    LARGEST_PROJECTED_RANK,
    SHORTEST_LINE,
    STATES,
    Chunks,
    KernelConfig,
    Problem,
    choose_chunks,
    choose_config,
    packed_width,
)
from medmamba_jax.ops.pallas_gpu.segments import make_segment_ends

LOG2_E = 1.4426950408889634


@dataclasses.dataclass(frozen=True)
class Mode:
    """The choices that a call makes once, when it is traced, for all its passes and devices.

    Attributes:
      four_orders, rank, softplus: as in `Problem`.
      cut: the chunks. A `KernelConfig` also fixes the segments and warpgroups, which `_problem`
        otherwise chooses for the images that a device has.
      keep_states: whether the forward pass keeps the boundary states for the backward pass. If not,
        the backward pass begins by writing them again.
      interpret: whether the kernels run in the interpreter, on any backend.
      keep_lowered: whether kernels are lowered by themselves and kept, see `lowered`.
    """

    four_orders: bool
    rank: int
    softplus: bool
    cut: Chunks
    keep_states: bool
    interpret: bool
    keep_lowered: bool = True


def scan_image(
    u: jax.Array,
    dt: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    dt_weight: jax.Array,
    dt_bias: jax.Array,
    A: jax.Array,
    D: jax.Array,
    keep_states: bool = True,
    config: KernelConfig | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Runs `ss2d_scan` in the kernels.

    Args:
      u, dt, B, C, dt_weight, dt_bias, A, D: as for `ss2d_scan`, in a case that `refusal` takes.
      keep_states, interpret: as in `Mode`.
      config: how to cut the scan up, or None for the choice of `choose_chunks` and
        `choose_config`.

    Returns:
      (b, h, w, d) in u's dtype.
    """
    rank = _kernel_rank(dt.shape[-1])
    cut = config or choose_chunks(*u.shape[1:3], four_orders=True)
    packed = _float32(_row(dt, B, C, rank, cut))
    step = _pad(_float32(dt_weight), 1, rank) if rank else _step_sizes(dt, dt_weight)
    mode = Mode(True, rank, True, cut, keep_states, interpret)
    return _scan(mode, u, packed, step, _float32(dt_bias), _scaled(A), _float32(D))


def project_and_scan_image(
    u: jax.Array,
    projection: jax.Array,
    *,
    dt_weight: jax.Array,
    dt_bias: jax.Array,
    A: jax.Array,
    D: jax.Array,
    keep_states: bool = True,
    interpret: bool = False,
) -> jax.Array:
    """Runs `project_and_scan` in the kernels.

    The columns of the projection are arranged and padded like the kernels' packed rows. So its
    product writes these rows, and no pass over the image packs them.

    Args:
      u, projection, dt_weight, dt_bias, A, D: as for `project_and_scan`.
      keep_states, interpret: as in `Mode`.

    Returns:
      (b, h, w, d) in u's dtype.
    """
    r = dt_weight.shape[1]
    rank = _kernel_rank(r)
    cut = choose_chunks(*u.shape[1:3], four_orders=True)
    low_rank, B, C = jnp.split(projection, (r, r + STATES), -1)
    packed = _project(u, _row(low_rank, B, C, rank, cut))
    if rank:
        step = _pad(_float32(dt_weight), 1, rank)
    else:
        step = _step_sizes(jnp.einsum("bhwd,dkr->bhwkr", u, low_rank), dt_weight)
    mode = Mode(True, rank, True, cut, keep_states, interpret)
    return _scan(mode, u, packed, step, _float32(dt_bias), _scaled(A), _float32(D))


def _kernel_rank(rank: int) -> int:
    """Returns the padded rank of the step size; 0 if the kernel does not project from it."""
    return 0 if rank > LARGEST_PROJECTED_RANK else math.ceil(rank / 4) * 4


def _row(low_rank, B, C, rank: int, cut: Chunks):
    """Arranges (..., r), (..., n) and (..., n) as the kernels' packed rows, (..., p)."""
    parts = [_pad(low_rank, -1, rank), B, C] if rank else [B, C]
    return _pad(jnp.concatenate(parts, -1), -1, packed_width(rank, cut.chunk))


def _step_sizes(dt, dt_weight):
    """Projects (b, h, w, k, r) to step sizes (b, h, w, k, d).

    They are accumulated and kept in float32. The product itself has JAX's default precision, as all
    projections have.
    """
    return jnp.einsum("bhwkr,krd->bhwkd", dt, dt_weight, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _project(u, weight):
    """Projects u (b, h, w, d) by weight (d, k, p) to float32 rows (b, h, w, k, p)."""
    return jnp.einsum("bhwd,dkp->bhwkp", u, weight, preferred_element_type=jnp.float32)


def _project_forward(u, weight):
    return _project(u, weight), (u, weight)


def _project_backward(kept, drows):
    u, weight = kept
    # With float32 rows, the products would not run on the bfloat16 tensor cores.
    drows = drows.astype(u.dtype)
    du = jnp.einsum("bhwkp,dkp->bhwd", drows, weight)
    return du, jnp.einsum("bhwd,bhwkp->dkp", u, drows)


_project.defvjp(_project_forward, _project_backward)


def scan_sequences(
    u: jax.Array,
    delta: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array,
    *,
    delta_bias: jax.Array | None,
    delta_softplus: bool,
    keep_states: bool = True,
    interpret: bool = False,
) -> jax.Array:
    """Runs `selective_scan` in the kernels.

    Args:
      u, delta, A, B, C, D, delta_bias, delta_softplus: as for `selective_scan`, in a case that
        `refusal` takes.
      keep_states, interpret: as in `Mode`.

    Returns:
      (b, l, k, d) in u's dtype.
    """
    delta = delta if delta.dtype in (jnp.float32, jnp.bfloat16) else _float32(delta)
    bias = jnp.zeros(D.shape, jnp.float32) if delta_bias is None else _float32(delta_bias)
    packed = jnp.concatenate([_float32(B), _float32(C)], -1)
    one_row = (u[:, None], packed[:, None], delta[:, None])
    cut = choose_chunks(1, u.shape[1], four_orders=False)
    mode = Mode(False, 0, delta_softplus, cut, keep_states, interpret)
    return _scan(mode, *one_row, bias, _scaled(A), _float32(D))[:, 0]


def lower() -> None:
    """Lowers the forward and backward kernels of a small scan for CUDA, without a device.

    Raises:
      Exception: any error of a part of jax that is missing or has changed.
    """
    f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    # Short lines give short chunks, and each step of an unrolled chunk takes time to lower.
    maps = (4, SHORTEST_LINE, SHORTEST_LINE)
    arrays = (f32((*maps, 32)), f32((*maps, 4, 3)), *2 * [f32((*maps, 4, STATES))])
    shapes = {"dt_weight": (4, 3, 32), "dt_bias": (4, 32), "A": (4, 32, STATES), "D": (4, 32)}

    def loss(arrays, parameters):
        return scan_image(*arrays, **parameters).sum()

    parameters = {name: f32(shape) for name, shape in shapes.items()}
    jax.jit(jax.grad(loss)).trace(arrays, parameters).lower(lowering_platforms=("cuda",))


def _float32(x):
    return x.astype(jnp.float32)


def _scaled(A):
    """Turns A (k, d, n) to (k, n, d), times log2(e), because the kernels raise 2 to it."""
    return _float32(A).swapaxes(-1, -2) * LOG2_E


def _pad(x, axis, size):
    if x.shape[axis] == size:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(mode, u, packed, step, bias, A, D):
    """Takes u (b, h, w[, k], d), packed (b, h, w, k, p) and the rest as in `make_forward`.

    Returns y like u: with four orders the sum of the directions, otherwise each by itself.
    """
    mode = dataclasses.replace(mode, keep_states=False)
    return _split(_forward, mode)(u, packed, step, bias, A, D)[0]


def _scan_forward(mode, *arrays):
    y, *kept = _split(_forward, mode)(*arrays)
    return y, (arrays, kept)


def _scan_backward(mode, residuals, dy):
    arrays, kept = residuals
    du, dpacked, *others = _split(_backward, mode)(*arrays, dy, *kept)
    if not mode.rank:
        step = arrays[2]
        return du, dpacked, others[0].astype(step.dtype), *(x.sum(0) for x in others[1:])
    return du, dpacked, *(x.sum(0) for x in others)


_scan.defvjp(_scan_forward, _scan_backward)


def _split(function, mode: Mode):
    """Lets XLA split a pass by image. Several devices keep no kernel for the whole batch."""
    whole = dataclasses.replace(mode, keep_lowered=jax.device_count() == 1)
    return by_image(function, mode, whole)


def _problem(mode: Mode, u, packed, step) -> Problem:
    """Returns the problem of the images at hand: the whole batch, or one device's share of it."""
    b, h, w, k, _ = packed.shape
    d, config = u.shape[-1], mode.cut
    if not isinstance(config, KernelConfig):
        config = choose_config(config, b, h, w, k, d, rank=mode.rank, dtype=np.dtype(u.dtype))
    return Problem(
        b=math.ceil(b / IMAGES) * IMAGES,
        h=h,
        w=w,
        k=k,
        d=d,
        four_orders=mode.four_orders,
        rank=mode.rank,
        softplus=mode.softplus,
        dtype=np.dtype(u.dtype),
        step_dtype=np.dtype(step.dtype),
        config=config,
    )


def _kernel(mode: Mode, make, p: Problem, **options):
    """Builds a kernel, or takes it lowered from an earlier call or an earlier process."""
    if mode.interpret or not mode.keep_lowered:
        return make(p, **options, interpret=mode.interpret)
    return lowered(make, p, **options)


def _to_tiles(p: Problem, x):
    """Pads a (b, h, w, ...) array to whole tiles and chunks."""
    h, w = p.padded
    return _pad(_pad(_pad(x, 0, p.b), 1, h), 2, w)


def _prepare(p: Problem, u, packed, step):
    return _to_tiles(p, u), _to_tiles(p, packed), step if p.rank else _to_tiles(p, step)


def _forward(mode: Mode, u, packed, step, bias, A, D):
    """Returns y, and the arrays that the backward pass needs besides the inputs."""
    p = _problem(mode, u, packed, step)
    b = u.shape[0]
    arrays = (*_prepare(p, u, packed, step), bias, A, D)
    forward = _kernel(mode, make_forward, p, outputs=True, states=mode.keep_states)
    y, *states = forward(*arrays, *_forward_ends(p, mode, *arrays))
    y = y[:b, : p.h, : p.w]
    if p.four_orders:
        y = y.astype(jnp.float32)
        y = y[..., 0, :] + y[..., 2, :] + y[..., 1, :] + y[..., 3, :]  # the official order
        # Without the barrier, XLA would read the four directions again wherever the sum is used.
        y = lax.optimization_barrier(y.astype(u.dtype))
    return y, *(x[:b] for x in states)


def _forward_ends(p: Problem, mode: Mode, u, packed, step, bias, A, D):
    """Returns the forward kernel's last arguments; a single segment needs none."""
    if p.config.forward_segments == 1:
        return ()
    ends = _kernel(mode, make_segment_ends, p, adjoint=False)
    return ends(u, packed, step, bias, A)


def _backward(mode: Mode, u, packed, step, bias, A, D, dy, *states):
    """Returns the gradients of u, packed, step, bias, A, D; for parameters, one for each image."""
    p = _problem(mode, u, packed, step)
    b, h, w, k = packed.shape[:4]
    arrays = (*_prepare(p, u, packed, step), bias, A, D)
    if states:
        states = (_pad(states[0], 0, p.b),)
    else:
        rewrite = _kernel(mode, make_forward, p, outputs=False, states=True)
        states = rewrite(*arrays, *_forward_ends(p, mode, *arrays))
    dy = _to_tiles(p, dy)
    ends = ()
    if p.config.backward_segments > 1:
        ends = _kernel(mode, make_segment_ends, p, adjoint=True)(dy, *arrays[1:5])
    backward = _kernel(mode, make_backward, p)
    du, dstep, dBC, dA, dD, dbias = backward(dy, *arrays, *states, *ends)

    du, dstep, dBC = (x[:b, :h, :w] for x in (du, dstep, dBC))
    dA, dD, dbias = (x[:b].sum(2) for x in (dA, dD, dbias))
    dA /= LOG2_E  # A is already scaled
    if p.four_orders:
        du = du.astype(jnp.float32).sum(3).astype(u.dtype)
    dpacked = _float32(dBC).reshape(b, h, w, k, p.tiles, 2 * STATES).sum(4)
    if p.rank:
        dlow, dstep = _project_back(dstep, packed[..., : p.rank], step)
        dpacked = _pad(jnp.concatenate([dlow, dpacked], -1), -1, p.packed)
    return du, dpacked, dstep, dbias, dA, dD


def _project_back(dstep, low_rank, weight):
    """Returns the gradients of low_rank (b, h, w, k, r) and, for each image, of weight (k, r, d).

    One product computes all directions; its matrices are block-diagonal in k. With k as a batch
    axis, XLA would first write dstep (b, h, w, k, d), the largest array here, in another order.
    """
    b, h, w, k, d = dstep.shape
    r = weight.shape[1]
    dstep = dstep.reshape(b, h * w, k * d)
    weight, low_rank = weight.astype(dstep.dtype), low_rank.astype(dstep.dtype)
    blocks = jnp.einsum("krd,kj->kdjr", weight, jnp.eye(k, dtype=dstep.dtype)).reshape(k * d, k * r)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dlow = product("bld,dr->blr", dstep, blocks).reshape(low_rank.shape)
    low_rank = low_rank.reshape(b, h * w, k * r)
    dweight = product("blr,bld->brd", low_rank, dstep).reshape(b, k, r, k, d)
    return dlow, jnp.stack([dweight[:, i, :, i] for i in range(k)], 1)
