"""Compares two models on the same images: DeLong's test for AUCs, McNemar's test for accuracies.

Both take several images of one patient into account. For every other metric,
`difference_intervals` resamples both models' outputs for the same images.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

from medmamba_jax.assessment.intervals import LEVEL, Bootstrap
from medmamba_jax.assessment.resampling import Key, keys, resampled
from medmamba_jax.metrics import Outputs


@dataclasses.dataclass(frozen=True)
class AucDifference:
    """The AUCs of two models on the same images.

    Attributes:
        first: AUC of the first model.
        second: AUC of the second model.
        low: lower end of the interval for the difference, first minus second. None where the
            estimated variance of the difference is 0, such as for two AUCs of 1: these images say
            nothing about its uncertainty.
        high: its upper end, or None likewise.
        p: two-sided p-value of the hypothesis that the true AUCs are equal, or None likewise.
    """

    first: float
    second: float
    low: float | None
    high: float | None
    p: float | None

    @property
    def difference(self) -> float:
        """The first AUC minus the second one."""
        return self.first - self.second


@dataclasses.dataclass(frozen=True)
class AnswersDifference:
    """How two models answer the same questions.

    Attributes:
        only_first: number of answers that only the first model has right.
        only_second: number of answers that only the second model has right.
        p: two-sided p-value of the hypothesis that both are right equally often.
    """

    only_first: int
    only_second: int
    p: float


def compare_aucs(
    actual: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    patients: np.ndarray | None = None,
    level: float = LEVEL,
) -> AucDifference | None:
    """Tests whether two models have the same AUC, by DeLong's test (DeLong et al. 1988).

    Both the interval and the p-value rest on the normal approximation.

    Args:
        actual: whether an image shows the class, bool (n,).
        first: scores of the first model, which grow with the probability of the class, (n,).
        second: scores of the second model (n,).
        patients: the patient of each image (n,), any values. Images of one patient may then be
            correlated (Obuchowski 1997). None takes all images as independent.
        level: of the interval, in (0, 1).

    Returns:
        The comparison; None unless two patients (without patients two images) show the class and
        two do not.
    """
    found = auc_covariance(actual, np.stack([first, second]), patients)
    if found is None:
        return None
    aucs, covariance = found
    first_auc, second_auc = aucs.tolist()
    difference = first_auc - second_auc
    error = float(np.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0)))
    if error < 1e-12:  # rounding; one image among 10^5 changes an AUC by more
        return AucDifference(first_auc, second_auc, None, None, None)
    p = float(2 * stats.norm.sf(abs(difference) / error))
    reach = float(stats.norm.ppf((1 + level) / 2)) * error
    return AucDifference(first_auc, second_auc, difference - reach, difference + reach, p)


def auc_covariance(
    actual: np.ndarray, scores: np.ndarray, patients: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Computes AUCs of models on the same images, and their covariance (DeLong et al. 1988).

    Sun and Xu 2014 replace the comparison of all pairs of images by ranks, which takes
    O(n log n). Obuchowski 1997 (equations for clustered data) sums over the images of a patient;
    with one image a patient this is DeLong's estimate.

    Args:
        actual: whether an image shows the class, bool (n,).
        scores: a row for each model (k, n).
        patients: the patient of each image (n,), or None.

    Returns:
        AUCs, float64 (k,), and their covariance, float64 (k, k). None unless two patients show the
        class and two do not.
    """
    actual = np.asarray(actual, bool)
    scores = np.asarray(scores, np.float64)
    names = np.arange(len(actual)) if patients is None else np.asarray(patients)
    _, of = np.unique(names, return_inverse=True)
    count = int(of.max(initial=-1)) + 1
    shows, others = len(np.unique(of[actual])), len(np.unique(of[~actual]))
    if min(shows, others) < 2:
        return None
    m, n = int(actual.sum()), int((~actual).sum())
    ranks = stats.rankdata(scores, axis=1)  # ties share the mean of their ranks
    among_shows = stats.rankdata(scores[:, actual], axis=1)
    among_others = stats.rankdata(scores[:, ~actual], axis=1)
    # For each image the share of images of the other side that are ordered rightly.
    of_shows = (ranks[:, actual] - among_shows) / n
    of_others = 1 - (ranks[:, ~actual] - among_others) / m
    aucs = of_shows.mean(1)

    def by_patient(parts: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(of[rows], part, count) for part in parts - aucs[:, None]])

    a, b = by_patient(of_shows, actual), by_patient(of_others, ~actual)
    both = count / (count - 1) * a @ b.T / (m * n)
    covariance = (
        shows / (shows - 1) * a @ a.T / m**2
        + others / (others - 1) * b @ b.T / n**2
        + both
        + both.T
    )
    return aucs, covariance


def compare_answers(
    first: np.ndarray, second: np.ndarray, patients: np.ndarray | None = None
) -> AnswersDifference:
    """Tests whether two models are right equally often, by McNemar's test (McNemar 1947).

    The test is always exact, also for many images. If both models were equally good, either could
    have given each pair of answers. So the p-value is the share of all ways to exchange the models
    patient by patient, all answers of a patient together, that make them differ as much as they
    do. With one answer a patient this is the two-sided binomial test of `only_first` out of
    `only_first + only_second` with probability 1/2.

    Args:
        first: whether the first model is right, bool (n,).
        second: whether the second model is right, bool (n,).
        patients: what answers belong together (n,): the patient, or of a multi-label set the
            image. None takes all answers as independent.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    names = np.arange(len(first)) if patients is None else np.asarray(patients)
    _, of = np.unique(names, return_inverse=True)
    balance = np.bincount(of, first.astype(float) - second).round().astype(int)
    sizes, counts = np.unique(np.abs(balance[balance != 0]), return_counts=True)
    # The distribution of the sum of all balances with random signs, on -total, -total + 1, ...
    chances = np.ones(1)
    for size, number in zip(sizes.tolist(), counts.tolist(), strict=True):
        steps = np.zeros(2 * size * number + 1)
        steps[:: 2 * size] = stats.binom.pmf(np.arange(number + 1), number, 0.5)
        chances = np.convolve(chances, steps)
    total = len(chances) // 2
    distance = np.abs(np.arange(-total, total + 1))
    p = chances[distance >= abs(int(balance.sum()))].sum()
    return AnswersDifference(only_first, only_second, float(min(p, 1.0)))


def difference_intervals(
    first: Sequence[Outputs], second: Sequence[Outputs], bootstrap: Bootstrap
) -> dict[Key, tuple[float, float] | None]:
    """Computes intervals for the differences of all metrics, by the paired bootstrap.

    A resample holds the same images for both models. It says how the difference varies from one
    set of patients to another, for these trained models.

    Args:
        first: the outputs of the first model for n images. With several seeds, the outputs of
            each: their metrics are averaged.
        second: those of the second model, for the same images in the same order.
        bootstrap: how to resample.

    Returns:
        As in `resampling.keys`, the metric and perhaps the class -> the interval of the first
        value minus the second one; None as in `Bootstrap.intervals`.
    """

    def mean(models: Sequence[Outputs], weights: np.ndarray) -> np.ndarray:
        return np.mean([resampled(outputs, weights) for outputs in models], axis=0)

    found = bootstrap.intervals(
        lambda weights: mean(first, weights) - mean(second, weights), len(first[0].labels)
    )
    return dict(zip(keys(first[0]), found, strict=True))


def compare_models(
    first: Sequence[Outputs],
    second: Sequence[Outputs],
    bootstrap: Bootstrap,
    *,
    folds: bool = False,
) -> dict[Key, dict[str, object]]:
    """Compares two models by all metrics, on the same images.

    Each model has one row of outputs for each seed. With one seed each, a class's AUC is compared
    by DeLong's test, and the accuracy (of a multi-label set the label accuracy) by McNemar's test.
    With several seeds, only the means over seeds are compared: the outputs of several seeds for one
    image are not independent, so that no test of images fits.

    Args:
        first, second, bootstrap: as in `difference_intervals`.
        folds: whether the rows of outputs of a model are of folds in place of seeds. The models of
            folds share training images, so that no interval rests on how they differ.

    Returns:
        The metric and perhaps the class -> `first` and `second`, means over seeds; `difference`;
        `low` and `high`, the interval of the difference for other patients like these; `p`, and
        `method`, how interval and p-value were computed. With two seeds or more of both, no folds,
        `seeds_low` and `seeds_high` are the interval of the difference of means for other seeds
        and the same images (Welch 1947). What is not defined is None.
    """
    intervals = difference_intervals(first, second, bootstrap)
    means, spreads = zip(*(_over_seeds(model) for model in (first, second)), strict=True)
    found: dict[Key, dict[str, object]] = {}
    for row, key in enumerate(intervals):
        a, b = means[0][row], means[1][row]
        low, high = intervals[key] or (None, None)
        entry: dict[str, object] = {
            "first": number(a),
            "second": number(b),
            "difference": number(a - b),
            "low": low,
            "high": high,
            "p": None,
            "method": "paired bootstrap" if intervals[key] else "no interval",
        }
        if min(len(first), len(second)) > 1 and not folds:
            ends = _welch([len(first), len(second)], a - b, [s[row] for s in spreads])
            entry |= dict(zip(("seeds_low", "seeds_high"), ends, strict=True))
        found[key] = entry
    if len(first) == len(second) == 1:
        _add_tests(found, first[0], second[0], bootstrap.groups)
    return found


def number(value: float) -> float | None:
    """Returns a number as JSON can hold it: None for NaN."""
    return None if np.isnan(value) else float(value)


def _add_tests(
    found: dict[Key, dict[str, object]], first: Outputs, second: Outputs, groups: np.ndarray | None
) -> None:
    for name, one in first.by_class.items():
        known = first.known(name)
        other = second.by_class[name]
        patients = None if groups is None else groups[known]
        aucs = compare_aucs(one.actual, one.score, other.score, patients)
        if aucs is None or aucs.low is None:
            continue  # DeLong's test is not defined, so the bootstrap's entry stays.
        entry = {"low": aucs.low, "high": aucs.high, "p": aucs.p, "method": "DeLong"}
        found[name, "auc"] |= entry
        if first.task == "multiclass" and len(first.class_names) == 2:
            found[None, "auc"] |= entry  # both classes have the same AUC
    labels = first.labels
    units = np.arange(len(labels)) if groups is None else groups
    if first.task == "multiclass":
        name, right = "accuracy", [outputs.predicted == labels for outputs in (first, second)]
    else:
        name, known = "label_accuracy", ~np.isnan(labels)
        right = [((labels == 1) == outputs.predicted)[known] for outputs in (first, second)]
        units = np.broadcast_to(units[:, None], labels.shape)[known]
    test = compare_answers(right[0], right[1], units)
    found[None, name] |= {
        "p": test.p,
        "only_first": test.only_first,
        "only_second": test.only_second,
        "method": f"{found[None, name]['method']}, p by McNemar",
    }


def _over_seeds(model: Sequence[Outputs]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of each of `keys`, (m,)."""
    table = np.stack([point_values(outputs) for outputs in model])
    spread = table.std(0, ddof=1) if len(table) > 1 else np.full(table.shape[1], np.nan)
    return table.mean(0), spread


def point_values(outputs: Outputs) -> np.ndarray:
    """Returns the value of each of `resampling.keys`, float64 (m,); NaN where not defined."""
    return resampled(outputs, np.ones((1, len(outputs.labels))))[:, 0]


def _welch(
    counts: Sequence[int], difference: float, spreads: Sequence[float]
) -> tuple[float | None, float | None]:
    """Returns the interval of a difference of two means of independent values."""
    squares = np.square(spreads) / counts
    if np.isnan(difference) or not squares.sum() > 0:
        return None, None
    freedom = squares.sum() ** 2 / (squares**2 / (np.array(counts) - 1)).sum()
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(squares.sum()))
    return difference - reach, difference + reach
