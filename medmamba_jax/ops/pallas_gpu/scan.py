"""The kernels as one differentiable operation that can be jitted, vmapped and sharded by batch."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from medmamba_jax.ops.pallas_gpu.backward import make_backward
from medmamba_jax.ops.pallas_gpu.by_image import by_image
from medmamba_jax.ops.pallas_gpu.forward import make_forward
from medmamba_jax.ops.pallas_gpu.lowered import lowered
from medmamba_jax.ops.pallas_gpu.problem import (
    IMAGES,
    LARGEST_PROJECTED_RANK,
    SHORTEST_LINE,
    STATES,
    KernelConfig,
    Problem,
    choose_config,
    packed_width,
)
from medmamba_jax.ops.pallas_gpu.segments import make_segment_ends

LOG2_E = 1.4426950408889634


@dataclasses.dataclass(frozen=True)
class Mode:
    """What is fixed when a scan is traced, besides its shapes.

    Attributes:
      four_orders, rank, softplus: as in `Problem`.
      keep_states: whether the forward pass keeps the boundary states for the backward pass, which
        otherwise writes them again when it begins.
      config: how to cut the scan up, or None for `choose_config`.
      interpret: whether the kernels run in the interpreter, on any backend.
      keep_lowered: whether kernels are lowered by themselves and kept, see `lowered`.
    """

    four_orders: bool
    rank: int
    softplus: bool
    keep_states: bool = True
    config: KernelConfig | None = None
    interpret: bool = False
    keep_lowered: bool = True


def scan_image(u, dt, B, C, *, dt_weight, dt_bias, A, D, **mode) -> jax.Array:
    """`ss2d_scan` in the kernels: arguments and result as there; `mode` as in `Mode`."""
    rank = dt.shape[-1]
    projected = rank <= LARGEST_PROJECTED_RANK
    if projected:
        rank = 4 if rank <= 4 else 8
        step = _pad(_float32(dt_weight), 1, rank)
        low_rank = [_pad(dt, -1, rank)]
    else:
        rank = 0
        # Accumulated and kept in float32; the product itself has JAX's default precision, as all
        # projections have.
        step = jnp.einsum("bhwkr,krd->bhwkd", dt, dt_weight, preferred_element_type=jnp.float32)
        low_rank = []
    mode = Mode(four_orders=True, rank=rank, softplus=True, **mode)
    packed = _float32(jnp.concatenate([*low_rank, B, C], -1))
    packed = _pad(packed, -1, packed_width(rank, _config(mode, u, packed).chunk))
    return _scan(mode, u, packed, step, _float32(dt_bias), _scaled(A), _float32(D))


def scan_sequences(u, delta, A, B, C, D, *, delta_bias, delta_softplus, **mode) -> jax.Array:
    """`selective_scan` in the kernels: arguments and result as there; `mode` as in `Mode`."""
    delta = delta if delta.dtype in (jnp.float32, jnp.bfloat16) else _float32(delta)
    bias = jnp.zeros(D.shape, jnp.float32) if delta_bias is None else _float32(delta_bias)
    packed = jnp.concatenate([_float32(B), _float32(C)], -1)
    mode = Mode(four_orders=False, rank=0, softplus=delta_softplus, **mode)
    one_row = (u[:, None], packed[:, None], delta[:, None])
    return _scan(mode, *one_row, bias, _scaled(A), _float32(D))[:, 0]


def lower() -> None:
    """Lowers forward and backward kernels of a small scan; raises whatever this jax cannot do."""
    f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    # The shortest chunks, because each step of an unrolled one takes time to lower.
    maps = (4, SHORTEST_LINE, SHORTEST_LINE)
    arrays = (f32((*maps, 32)), f32((*maps, 4, 3)), *2 * [f32((*maps, 4, STATES))])
    parameters = {"dt_weight": (4, 3, 32), "dt_bias": (4, 32), "A": (4, 32, STATES), "D": (4, 32)}

    def loss(arrays, parameters):
        return scan_image(*arrays, **parameters).sum()

    parameters = {name: f32(shape) for name, shape in parameters.items()}
    jax.jit(jax.grad(loss)).trace(arrays, parameters).lower(lowering_platforms=("cuda",))


def _float32(x):
    return x.astype(jnp.float32)


def _scaled(A):
    """(k, d, n) -> (k, n, d), times log2(e): the kernels raise 2 to it."""
    return _float32(A).swapaxes(-1, -2) * LOG2_E


def _pad(x, axis, size):
    if x.shape[axis] == size:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(mode, u, packed, step, bias, A, D):
    """u (b, h, w[, k], d), packed (b, h, w, k, p), step, bias, A, D as in `make_forward`.

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
    """`by_image`; lowering kernels for the whole batch would be in vain where devices share it."""
    whole = dataclasses.replace(mode, keep_lowered=jax.device_count() == 1)
    return by_image(function, mode, whole)


def _config(mode: Mode, u, packed) -> KernelConfig:
    return mode.config or choose_config(
        *packed.shape[:4], u.shape[-1], rank=mode.rank, four_orders=mode.four_orders, dtype=u.dtype
    )


def _problem(mode: Mode, u, packed, step) -> Problem:
    b, h, w, k, _ = packed.shape
    return Problem(
        b=math.ceil(b / IMAGES) * IMAGES,
        h=h,
        w=w,
        k=k,
        d=u.shape[-1],
        four_orders=mode.four_orders,
        rank=mode.rank,
        softplus=mode.softplus,
        dtype=np.dtype(u.dtype),
        step_dtype=np.dtype(step.dtype),
        config=_config(mode, u, packed),
    )


def _kernel(mode: Mode, make, p: Problem, **options):
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
    """Returns y and what the backward pass needs besides the inputs."""
    p = _problem(mode, u, packed, step)
    b = u.shape[0]
    arrays = (*_prepare(p, u, packed, step), bias, A, D)
    forward = _kernel(mode, make_forward, p, outputs=True, states=mode.keep_states)
    y, *states = forward(*arrays, *_forward_ends(p, mode, *arrays))
    y = y[:b, : p.h, : p.w]
    if p.four_orders:
        y = y.astype(jnp.float32)
        y = y[..., 0, :] + y[..., 2, :] + y[..., 1, :] + y[..., 3, :]  # in official order
    return y.astype(u.dtype), *(x[:b] for x in states)


def _forward_ends(p: Problem, mode: Mode, u, packed, step, bias, A, D):
    """The forward kernel's last arguments: none for a single segment."""
    if p.config.forward_segments == 1:
        return ()
    ends = _kernel(mode, make_segment_ends, p, adjoint=False)
    return ends(u, packed, step, bias, A)


def _backward(mode: Mode, u, packed, step, bias, A, D, dy, *states):
    """Returns the gradients of u, packed, step, bias, A and D; of parameters one for each image."""
    p = _problem(mode, u, packed, step)
    b, h, w, k = packed.shape[:4]
    arrays = (*_prepare(p, u, packed, step), bias, A, D)
    if states:
        states = [_pad(states[0], 0, p.b)]
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
    dA /= LOG2_E  # A came scaled
    if p.four_orders:
        du = du.astype(jnp.float32).sum(3).astype(u.dtype)
    dpacked = dBC.reshape(b, h, w, k, p.tiles, 2 * STATES).sum(4)
    if p.rank:
        dlow, dstep = _project_back(dstep, packed[..., : p.rank], step)
        dpacked = _pad(jnp.concatenate([dlow, dpacked], -1), -1, p.packed)
    return du, dpacked, dstep, dbias, dA, dD


def _project_back(dstep, low_rank, weight):
    """Gradients of low_rank (b, h, w, k, r) and, for each image, of weight (k, r, d).

    All directions in one product whose matrices are (block) diagonal in k: with k as a batch axis
    XLA would first write dstep (b, h, w, k, d), the largest array here, in another order.
    """
    b, h, w, k, d = dstep.shape
    r = weight.shape[1]
    dstep = dstep.reshape(b, h * w, k * d)
    blocks = jnp.einsum("krd,kj->kdjr", weight, jnp.eye(k)).reshape(k * d, k * r)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dlow = product("bld,dr->blr", dstep, blocks).reshape(low_rank.shape)
    low_rank = low_rank.reshape(b, h * w, k * r)
    dweight = product("blr,bld->brd", low_rank, dstep).reshape(b, k, r, k, d)
    return dlow, jnp.stack([dweight[:, i, :, i] for i in range(k)], 1)
