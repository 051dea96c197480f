"""Confidence intervals by the bootstrap of SciPy, with patients drawn where patients are known."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from medmamba_jax.assessment.config import ResultsConfig
from medmamba_jax.assessment.resampling import keys, resampled
from medmamba_jax.metrics import Outputs

LEVEL = 0.95
# With more units the corrections of BCa are small, and its time grows with the square.
MOST_FOR_BCA = 10_000
_CELLS = 2_000_000  # weights computed at a time


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Attributes:
        groups: the patient, or another group, of each image (n,); None draws single images. All
            images of a group are drawn together. A resample holds as many groups as the sample.
        resamples: how many resamples are drawn.
        seed: the seed of the draws. Equal seeds give equal draws for equally many units.
        unit: what a group is, for `describe`.
    """

    groups: np.ndarray | None
    resamples: int = 2000
    seed: int = 0
    unit: str = "patients"

    @classmethod
    def over(
        cls, patients: np.ndarray | None, files: np.ndarray | None, settings: ResultsConfig
    ) -> "Bootstrap":
        """Draws patients where they are known; else files, if files hold several images.

        Frames of one file depend on each other. Without patients and files, single images are
        drawn.

        Args:
            patients: the patient of each image (n,), or None.
            files: the file of each image (n,), or None.
            settings: number and seed of the resamples.
        """
        groups, unit = (files, "files") if patients is None else (patients, "patients")
        return cls(groups, settings.resamples, settings.seed, unit)

    def intervals(
        self, statistic: Callable[[np.ndarray], np.ndarray], images: int
    ) -> list[tuple[float, float] | None]:
        """Returns the 95 % interval of each of several statistics.

        The interval is the bias-corrected and accelerated one (BCa, Efron 1987). Where that is not
        defined, or with more than `MOST_FOR_BCA` units, it is that of the percentiles of the
        resamples in which the statistic is defined.

        Args:
            statistic: weights of the images, (b, n) -> values (m, b); NaN is not defined.
            images: n.

        Returns:
            The intervals. None where the statistic is not defined, or where it has the same value
            in all resamples, such as the sensitivity where every image is recognised, or where the
            interval does not hold the value: then resampling says nothing about its uncertainty.
        """
        unit_of, units = self._units(images)
        if units < 2 or self.resamples < 1:
            count = len(statistic(np.ones((1, images))))
            return [None] * count

        def of_draws(draws: np.ndarray, axis: int = -1) -> np.ndarray:
            flat = draws.reshape(-1, draws.shape[-1])
            step = max(1, _CELLS // images)
            parts = [
                statistic(_counts(flat[start : start + step], units)[:, unit_of])
                for start in range(0, len(flat), step)
            ]
            return np.concatenate(parts, axis=1).reshape(-1, *draws.shape[:-1])

        bca = units <= MOST_FOR_BCA
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # handled below
            found = stats.bootstrap(
                (np.arange(units),),
                of_draws,
                n_resamples=self.resamples,
                batch=max(1, _CELLS // units),
                vectorized=True,
                axis=-1,
                confidence_level=LEVEL,
                method="BCa" if bca else "percentile",
                rng=np.random.default_rng(self.seed),
            )
        values = of_draws(np.arange(units)[None])[:, 0]
        tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        intervals: list[tuple[float, float] | None] = []
        for value, low, high, draws in zip(
            values,
            *found.confidence_interval,
            found.bootstrap_distribution,
            strict=True,
        ):
            draws = draws[~np.isnan(draws)]
            if np.isnan(value) or len(draws) == 0 or np.ptp(draws) == 0:
                intervals.append(None)
                continue
            if np.isnan(low) or np.isnan(high):
                low, high = np.quantile(draws, tails)
            # The bootstrap of a strongly biased statistic, such as the ECE of few images, can miss
            # the value itself. Then it says nothing, either.
            holds = low - 1e-9 <= value <= high + 1e-9
            intervals.append((float(low), float(high)) if holds else None)
        return intervals

    def describe(self, images: int) -> dict[str, Any]:
        """Returns how the intervals were made, as JSON can hold it."""
        _, units = self._units(images)
        return {
            "level": LEVEL,
            "method": "BCa" if units <= MOST_FOR_BCA else "percentile",
            "resampled": "images" if self.groups is None else self.unit,
            "units": units,
            "resamples": self.resamples,
            "seed": self.seed,
        }

    def _units(self, images: int) -> tuple[np.ndarray, int]:
        """Returns the unit of each image, and the number of units."""
        if self.groups is None:
            return np.arange(images), images
        names, unit_of = np.unique(self.groups, return_inverse=True)
        return unit_of, len(names)


def _counts(draws: np.ndarray, units: int) -> np.ndarray:
    """Returns how often each unit is drawn, (b, units), of draws (b, d)."""
    shifted = draws + np.arange(len(draws))[:, None] * units
    return np.bincount(shifted.ravel(), minlength=len(draws) * units).reshape(-1, units)


def metric_intervals(outputs: Outputs, bootstrap: Bootstrap) -> dict[str, Any]:
    """Returns the interval of every metric, over all images and by class, as JSON can hold it.

    Returns:
        What `Bootstrap.describe` says, and `metrics`: name -> [low, high] or None; and
        `per_class`: class -> name -> the same.
    """
    images = len(outputs.labels)
    found = bootstrap.intervals(lambda weights: resampled(outputs, weights), images)
    metrics: dict[str, Any] = {}
    per_class: dict[str, dict[str, Any]] = {name: {} for name in outputs.class_names}
    for (class_name, name), interval in zip(keys(outputs), found, strict=True):
        place = metrics if class_name is None else per_class[class_name]
        place[name] = None if interval is None else list(interval)
    return bootstrap.describe(images) | {"metrics": metrics, "per_class": per_class}
