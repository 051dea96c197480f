"""The section `results` of a configuration."""

import dataclasses
from typing import ClassVar

from medmamba_jax.sections import Section, is_integer


@dataclasses.dataclass(frozen=True)
class ResultsConfig(Section):
    """The `results` section: how the results of the best checkpoint are computed.

    Attributes:
        resamples: resamples of the bootstrap that makes the 95 % intervals; 0 makes none. BCa
            intervals need 1,000 or more to be stable in their second digit.
        seed: seed of the bootstrap.
        report: whether `report.html`, the model card and pictures of some images are written after
            the results.

    Raises:
        UserError: a value is not allowed.
    """

    title: ClassVar[str] = "results"

    resamples: int = 2000
    seed: int = 0
    report: bool = True

    def __post_init__(self) -> None:
        self._require_types()
        self._require("resamples", is_integer(self.resamples, 0), "an integer, 0 or more")
        self._require(
            "seed", is_integer(self.seed, 0) and self.seed < 2**32, "an integer in [0, 2**32)"
        )
