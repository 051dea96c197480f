"""The table that relates official PyTorch names and shapes to ours, with one row for each tensor.

A row is (official name, our path, layout). The layouts differ in three ways only: PyTorch orders
the axes of kernels differently, it flattens a few axes, and we stack the blocks of a stage along a
leading axis.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from medmamba_jax.errors import UserError
from medmamba_jax.models.config import MedMambaConfig
from medmamba_jax.ops.ss2d_scan import NUM_DIRECTIONS


@dataclasses.dataclass(frozen=True)
class Layout:
    """The conversion between both layouts of a tensor. The functions are exact inverses."""

    from_torch: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


Names = tuple[str, str, Layout]  # official name, our path, layout

PATCHES = "patch_embed.proj.weight"  # the name by which a MedMamba is known
COUNTERS_OF_TOOLS = {  # last part of a name -> who adds such tensors to every model
    "total_ops": "the profiler thop",
    "total_params": "the profiler thop",
    "n_averaged": "torch.optim.swa_utils",
}


def _axes(from_torch: tuple[int, ...]) -> Layout:
    back = tuple(int(i) for i in np.argsort(from_torch))
    return Layout(lambda x: x.transpose(from_torch), lambda x: x.transpose(back))


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = _axes((1, 0))  # (out, in) -> (in, out)
CONV = _axes((2, 3, 1, 0))  # (out, in / groups, h, w) -> (h, w, in / groups, out)
X_PROJ = _axes((2, 0, 1))  # (k, r + 2n, d) -> (d, k, r + 2n)
DT_WEIGHT = _axes((0, 2, 1))  # (k, d, r) -> (k, r, d)
DIRECTIONS = Layout(  # (k * d, ...) -> (k, d, ...)
    lambda x: x.reshape(NUM_DIRECTIONS, -1, *x.shape[1:]),
    lambda x: x.reshape(-1, *x.shape[2:]),
)
COUNTER = Layout(lambda x: _to_int32(x), lambda x: x.astype(np.int64))


def _to_int32(x: np.ndarray) -> np.ndarray:
    if x.size and x.max() > np.iinfo(np.int32).max:
        raise UserError(f"num_batches_tracked = {x.max()} does not fit the int32 counter")
    return x.astype(np.int32)


def _norm(torch_name: str, path: str) -> list[Names]:
    return [
        (f"{torch_name}.weight", f"{path}.scale", SAME),
        (f"{torch_name}.bias", f"{path}.bias", SAME),
    ]


def _conv(torch_name: str, path: str) -> list[Names]:
    return [
        (f"{torch_name}.weight", f"{path}.kernel", CONV),
        (f"{torch_name}.bias", f"{path}.bias", SAME),
    ]


def _batch_norm(torch_name: str, path: str) -> list[Names]:
    return [
        *_norm(torch_name, path),
        (f"{torch_name}.running_mean", f"{path}.mean", SAME),
        (f"{torch_name}.running_var", f"{path}.var", SAME),
        (f"{torch_name}.num_batches_tracked", f"{path}.num_batches_tracked", COUNTER),
    ]


SS2D = [
    ("self_attention.x_proj_weight", "ss2d.x_proj", X_PROJ),
    ("self_attention.dt_projs_weight", "ss2d.dt_weight", DT_WEIGHT),
    ("self_attention.dt_projs_bias", "ss2d.dt_bias", SAME),
    ("self_attention.A_logs", "ss2d.A_log", DIRECTIONS),
    ("self_attention.Ds", "ss2d.D", DIRECTIONS),
    ("self_attention.in_proj.weight", "ss2d.in_proj.kernel", LINEAR),
    *_conv("self_attention.conv2d", "ss2d.conv"),
    *_norm("self_attention.out_norm", "ss2d.out_norm"),
    ("self_attention.out_proj.weight", "ss2d.out_proj.kernel", LINEAR),
]

BLOCKS = {
    "ss_conv_ssm": [
        *_norm("ln_1", "norm"),
        *SS2D,
        *_batch_norm("conv33conv33conv11.0", "norm0"),
        *_conv("conv33conv33conv11.1", "conv1"),
        *_batch_norm("conv33conv33conv11.2", "norm1"),
        *_conv("conv33conv33conv11.4", "conv2"),
        *_batch_norm("conv33conv33conv11.5", "norm2"),
        *_conv("conv33conv33conv11.7", "conv3"),
    ],
    "conv_ssm": [
        *_norm("ln_1", "norm"),
        *SS2D,
        *_conv("conv33conv33conv11.0", "conv1"),
        *_batch_norm("conv33conv33conv11.1", "norm1"),
        *_conv("conv33conv33conv11.3", "conv2"),
        *_batch_norm("conv33conv33conv11.4", "norm2"),
        *_conv("conv33conv33conv11.6", "conv3"),
        *_conv("finalconv11", "final_conv"),
    ],
}

PATCH_EMBED = [
    *_conv("patch_embed.proj", "patch_embed.proj"),
    *_norm("patch_embed.norm", "patch_embed.norm"),
]

MERGE = [
    ("downsample.reduction.weight", "reduction.kernel", LINEAR),
    *_norm("downsample.norm", "norm"),
]

HEAD = [("head.weight", "head.kernel", LINEAR), ("head.bias", "head.bias", SAME)]


@dataclasses.dataclass(frozen=True)
class Row:
    """One official tensor, and the place of its values in our model.

    Attributes:
      torch_name: key in the official state_dict.
      path: our tensor's path in `nnx.state(model)`, joined by dots.
      block: index along the leading axis of the stacked tensor; None if it is not stacked.
      layout: the conversion of the axes.
    """

    torch_name: str
    path: str
    block: int | None
    layout: Layout


def rows(config: MedMambaConfig) -> Iterator[Row]:
    """Yields a row for every tensor of a model of this config, in official order."""
    for torch_name, path, layout in PATCH_EMBED:
        yield Row(torch_name, path, None, layout)
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            for torch_name, path, layout in BLOCKS[config.block]:
                yield Row(
                    f"layers.{stage}.blocks.{block}.{torch_name}",
                    f"stages.{stage}.blocks.{path}",
                    block,
                    layout,
                )
        if stage < len(config.depths) - 1:
            for torch_name, path, layout in MERGE:
                yield Row(f"layers.{stage}.{torch_name}", f"merges.{stage}.{path}", None, layout)
    if config.num_classes:
        for torch_name, path, layout in HEAD:
            yield Row(torch_name, path, None, layout)


def without_counters_of_tools(state_dict: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns a state_dict without `COUNTERS_OF_TOOLS`; a warning says how many it had.

    Args:
      state_dict: name -> tensor.
      source: where it comes from, for the warning.
    """
    kept = {k: x for k, x in state_dict.items() if k.rpartition(".")[2] not in COUNTERS_OF_TOOLS}
    ignored = [name.rpartition(".")[2] for name in state_dict if name not in kept]
    for name, count in collections.Counter(ignored).items():
        logging.warning("%s: ignores %d %s of %s", source, count, name, COUNTERS_OF_TOOLS[name])
    return kept


def config_from_state_dict(state_dict: Mapping[str, Any], **changes: Any) -> MedMambaConfig:
    """Reads the architecture from the names and shapes of an official state_dict.

    They determine block, depths, dims, classes, channels, patch size and d_state. They do not
    determine the other fields, such as drop rates and the compute dtype: these come from `changes`,
    or keep their defaults.

    Args:
      state_dict: official name -> array, or anything else that has a shape.
      **changes: field of `MedMambaConfig` -> value.

    Raises:
      UserError: the names are not those of an official MedMamba, or a change is not valid.
    """
    shapes = {name: tuple(array.shape) for name, array in state_dict.items()}
    decays = "layers.0.blocks.0.self_attention.A_logs"
    for name, rank in ((PATCHES, 4), (decays, 2)):
        if len(shapes.get(name, ())) != rank:
            raise UserError(
                f"not an official MedMamba state_dict: no {name} with {rank} axes among its "
                f"{len(shapes)} names, such as {sorted(shapes)[:3]}"
            )
    dim, in_channels, patch_size, _ = shapes[PATCHES]
    _, d_state = shapes[decays]
    names_of_block = collections.defaultdict(set)
    for name in shapes:
        if found := re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\.(.+)", name):
            names_of_block[int(found[1]), int(found[2])].add(found[3])
    depths = collections.Counter(stage for stage, _ in names_of_block)
    num_stages = 1 + max(depths)
    fields = {
        "depths": tuple(depths[stage] for stage in range(num_stages)),
        "dims": tuple(dim << stage for stage in range(num_stages)),
        "num_classes": shapes["head.weight"][0] if "head.weight" in shapes else 0,
        "in_channels": in_channels,
        "block": _nearest_block(names_of_block[0, 0]),
        "patch_size": patch_size,
        "d_state": d_state,
    }
    return MedMambaConfig(**{**fields, **changes})


def _nearest_block(names: set[str]) -> str:
    """Returns the kind of block that differs in the fewest names; the loader lists these names."""
    expected = {block: {name for name, _, _ in table} for block, table in BLOCKS.items()}
    return min(expected, key=lambda block: len(expected[block] ^ names))
