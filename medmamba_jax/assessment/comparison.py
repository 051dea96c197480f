"""Compares two models on the same images: DeLong's test for AUCs, McNemar's test for accuracies.

Both take several images of one patient into account. For the other metrics, see the paired
bootstrap.
"""

import dataclasses

import numpy as np
from scipy import stats

LEVEL = 0.95  # of intervals


@dataclasses.dataclass(frozen=True)
class AucDifference:
    """The AUCs of two models on the same images.

    Attributes:
        first: AUC of the first model.
        second: AUC of the second model.
        low: lower end of the interval for the difference, first minus second.
        high: its upper end.
        p: two-sided p-value of the hypothesis that the true AUCs are equal. None where both AUCs
            have no variance and differ, such as 1 and 0: the normal approximation fails there.
    """

    first: float
    second: float
    low: float
    high: float
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
    difference = float(aucs[0] - aucs[1])
    error = float(np.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0)))
    if error < 1e-12:  # rounding; one image among 10^5 changes an AUC by more
        p, error = (1.0 if abs(difference) < 1e-12 else None), 0.0
    else:
        p = float(2 * stats.norm.sf(abs(difference) / error))
    reach = float(stats.norm.ppf((1 + level) / 2)) * error
    return AucDifference(float(aucs[0]), float(aucs[1]), difference - reach, difference + reach, p)


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
