"""The shapes of the scan in MedMamba. The benchmark and the tests use the same shapes."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ScanShape:
    """The axes of one call: batch b, length l, directions k, channels d, states n."""

    b: int
    l: int
    k: int
    d: int
    n: int


def stage_shapes(batch: int, *, name: str = "S", d: int = 96) -> dict[str, ScanShape]:
    """The four stages of MedMamba-T at 224 px; d = 128 gives those of MedMamba-B."""
    return {
        f"{name}{stage + 1}": ScanShape(b=batch, l=(56 >> stage) ** 2, k=4, d=d << stage, n=16)
        for stage in range(4)
    }


def all_shapes(batch: int) -> dict[str, ScanShape]:
    """S1 to S4 of MedMamba-T, B1 to B4 of MedMamba-B, and L, the first map of a 512 px image."""
    return {
        **stage_shapes(batch),
        **stage_shapes(batch, name="B", d=128),
        "L": ScanShape(b=batch, l=128 * 128, k=4, d=96, n=16),
    }
