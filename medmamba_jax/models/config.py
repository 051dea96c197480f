"""The architecture of a MedMamba: one frozen dataclass that checks its values, and the variants."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from medmamba_jax.errors import UserError
from medmamba_jax.models.blocks import BLOCKS
from medmamba_jax.ops.scan import IMPLEMENTATIONS

COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class MedMambaConfig:
    """The architecture, and settings of its computation. The defaults are the official ones.

    Raises:
      UserError: a value is not valid; the message names the field and the allowed values.

    Attributes:
      depths: number of blocks in each stage.
      dims: channels of each stage; each stage has twice the channels of the stage before.
      num_classes: outputs of the head; with 0 there is no head, and the model returns the pooled
        features.
      in_channels: channels of the image.
      block: `"ss_conv_ssm"` (official since April 2024) or `"conv_ssm"` (the paper's first
        version).
      patch_size: side and stride of the patch embedding, in pixels.
      d_state: states n of the scan.
      drop_rate: dropout on the embedded patches.
      attn_drop_rate: dropout on the output of SS2D (official name; there is no attention).
      drop_path_rate: stochastic depth of the last block; rises linearly from 0 at the first.
      compute_dtype: dtype of convolutions, matrix products and activations. Parameters, the
        scan's state, softplus, exp, the statistics of norms and the logits are always float32.
      remat: whether the backward pass computes the activations of a stage's blocks again, which
        saves memory: one bool for all stages, or one bool for each stage.
      scan_implementation: name for `selective_scan`, or None for the backend's default.
    """

    depths: tuple[int, ...] = (2, 2, 4, 2)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    num_classes: int = 1000
    in_channels: int = 3
    block: str = "ss_conv_ssm"
    patch_size: int = 4
    d_state: int = 16
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    compute_dtype: str = "float32"
    remat: bool | tuple[bool, ...] = False
    scan_implementation: str | None = None

    def __post_init__(self) -> None:
        for name in ("depths", "dims"):
            value = getattr(self, name)
            is_sequence = isinstance(value, (tuple, list)) and len(value) > 0
            if not is_sequence or not all(_is_count(x) for x in value):
                raise UserError(f"{name} must be a sequence of positive integers, got {value!r}")
            object.__setattr__(self, name, tuple(int(x) for x in value))
        if len(self.depths) != len(self.dims):
            raise UserError(
                f"depths and dims must have the same length, got {self.depths} and {self.dims}"
            )
        if self.dims[0] % 2:
            raise UserError(f"dims must be even to be halved in each block, got {self.dims}")
        doubled = tuple(self.dims[0] << i for i in range(len(self.dims)))
        if self.dims != doubled:
            raise UserError(
                f"dims must double from stage to stage (patch merging does that): "
                f"expected {doubled}, got {self.dims}"
            )
        for name in ("in_channels", "patch_size", "d_state"):
            if not _is_count(getattr(self, name)):
                raise UserError(f"{name} must be a positive integer, got {getattr(self, name)!r}")
        if self.num_classes != 0 and not _is_count(self.num_classes):
            raise UserError(f"num_classes must be 0 or positive, got {self.num_classes!r}")
        for name in ("drop_rate", "attn_drop_rate", "drop_path_rate"):
            rate = getattr(self, name)
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
                raise UserError(f"{name} must be in [0, 1), got {rate!r}")
        _check_choice("block", self.block, BLOCKS)
        _check_choice("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        if self.scan_implementation is not None:
            _check_choice("scan_implementation", self.scan_implementation, IMPLEMENTATIONS)
        remat = self.remat
        if isinstance(remat, bool):
            remat = (remat,) * len(self.depths)
        is_list = isinstance(remat, (tuple, list)) and all(isinstance(x, bool) for x in remat)
        if not is_list or len(remat) != len(self.depths):
            raise UserError(f"remat must be a bool or one bool per stage, got {self.remat!r}")
        object.__setattr__(self, "remat", tuple(remat))

    @property
    def min_image_size(self) -> int:
        """The smallest height and width, in pixels, for which the last stage's map has a pixel."""
        return self.patch_size * 2 ** (len(self.depths) - 1)

    def map_sizes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Returns (height, width) of each stage's map, for an image of this size in pixels."""
        strides = (self.patch_size << stage for stage in range(len(self.depths)))
        return tuple((height // stride, width // stride) for stride in strides)

    @property
    def num_features(self) -> int:
        """Channels of the last stage, which the head reads."""
        return self.dims[-1]

    def dt_rank(self, stage: int) -> int:
        """Rank r of the step size's projection: a 16th of the SSM half's channels, rounded up."""
        return math.ceil(self.dims[stage] // 2 / 16)

    def drop_path_rates(self, stage: int) -> tuple[float, ...]:
        """Stochastic depth of each block of a stage, linear over all blocks of the network."""
        total, first = sum(self.depths), sum(self.depths[:stage])
        step = self.drop_path_rate / max(total - 1, 1)
        return tuple(step * (first + i) for i in range(self.depths[stage]))

    @classmethod
    def variant(cls, name: str, **changes: Any) -> "MedMambaConfig":
        """Returns a named variant, `VARIANTS[name]`, with fields changed.

        Args:
          name: a key of `VARIANTS`.
          **changes: field -> value. A field that is None keeps the value of the variant, or its
            default if the variant does not set it.

        Raises:
          UserError: the name is unknown, or a field's value is not valid.
          TypeError: there is no such field.
        """
        _check_choice("variant", name, VARIANTS)
        changed = {field: value for field, value in changes.items() if value is not None}
        return cls(**{**VARIANTS[name], **changed})


_SMALL = (96, 192, 384, 768)
_BASE = (128, 256, 512, 1024)

# Name -> any fields of MedMambaConfig. A script may add a row.
VARIANTS: dict[str, dict[str, Any]] = {
    "medmamba_t": {"depths": (2, 2, 4, 2), "dims": _SMALL},
    "medmamba_s": {"depths": (2, 2, 8, 2), "dims": _SMALL},
    "medmamba_b": {"depths": (2, 2, 12, 2), "dims": _BASE},
    # The paper's first version, official commit ba326fe.
    "medmamba_v1": {"depths": (2, 2, 2, 2), "dims": _SMALL, "block": "conv_ssm"},
    # The paper prints 23.5M and 48.1M parameters for S and B. At 1000 classes these depths give
    # these numbers; the depths of the official code do not.
    "medmamba_s_paper": {"depths": (2, 2, 12, 2), "dims": _SMALL},
    "medmamba_b_paper": {"depths": (2, 2, 16, 2), "dims": _BASE},
    # Ours, for the quickstart on a CPU and for tests; not in the paper.
    "medmamba_nano": {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 128)},
}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
