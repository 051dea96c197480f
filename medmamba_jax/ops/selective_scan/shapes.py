"""The scan's shapes in MedMamba: what the benchmark times is what the tests run."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ScanShape:
    """The axes of one call: batch b, length l, directions k, channels d, states n."""

    b: int
    l: int
    k: int
    d: int
    n: int


def stage_shapes(batch: int) -> dict[str, ScanShape]:
    """The four stages of MedMamba-T (dims 96..768) at 224 px."""
    return {
        f"S{stage + 1}": ScanShape(b=batch, l=(56 >> stage) ** 2, k=4, d=96 << stage, n=16)
        for stage in range(4)
    }
