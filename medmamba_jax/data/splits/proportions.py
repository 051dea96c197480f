"""Dividing groups of images among parts of given sizes, every class in proportion."""

import numpy as np

_PASSES = 50  # of the improvement at most; about five are usual
_MOST_GROUPS_TO_SWAP = 1000  # A pass compares every pair; more groups fit without it.
_ROUNDING = 1e-12


def deal_groups(
    counts: np.ndarray, sizes: np.ndarray, fractions: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Divides whole groups so that each part gets its fraction of the images of every class.

    scikit-learn's `StratifiedGroupKFold` makes only parts of one size, and takes only one class an
    image. Here each group, the largest first, goes to the part that it brings nearest to its
    fractions. Then single groups move to another part, or two groups swap parts, as long as that
    brings all parts nearer. A part that lacks a class counts as far from its fractions, so that
    this happens only if too few groups show the class.

    Args:
        counts: images of each group that show each class (g, K); an image may show several
            classes, or none.
        sizes: images of each group (g,).
        fractions: of each part (p,); they sum to 1.
        rng: decides between groups that are alike.

    Returns:
        The part of each group, integers (g,).
    """
    shown = counts[:, counts.any(0)]
    # As shares of the whole: a column for each class, weighing together as much as the sizes do.
    shares = np.column_stack(
        [shown / shown.sum(0) / np.sqrt(max(1, shown.shape[1])), sizes / sizes.sum()]
    )
    shuffled = rng.permutation(len(shares))
    order = shuffled[np.argsort(-(shares[shuffled] ** 2).sum(1), kind="stable")]
    parts = np.empty(len(shares), np.int64)
    parts[order] = _improve(*_deal(shares[order], fractions))
    return parts


def _deal(shares: np.ndarray, fractions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the part of each group, the shares and what each part wants of them (p, K + 1)."""
    wanted = fractions[:, None] * shares.sum(0)
    lacking = wanted.copy()
    parts = np.empty(len(shares), np.int64)
    for group, share in enumerate(shares):
        part = ((lacking - share) ** 2 - lacking**2).sum(1).argmin()
        lacking[part] -= share
        parts[group] = part
    return parts, shares, wanted


def _improve(parts: np.ndarray, shares: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    have = np.zeros_like(wanted)
    np.add.at(have, parts, shares)
    nothing = shares.min(0, where=shares > 0, initial=1) / 2
    every_part = np.arange(len(wanted))

    def cost(have: np.ndarray, part: np.ndarray) -> np.ndarray:
        return ((have - wanted[part]) ** 2).sum(-1) + (have < nothing).sum(-1)

    for _ in range(_PASSES):
        before = parts.copy()
        for group, share in enumerate(shares):
            here, costs = parts[group], cost(have, every_part)
            without = have[here] - share
            moves = cost(have + share, every_part) + cost(without, here) - costs - costs[here]
            moves[here] = 0
            swaps = np.zeros(1)
            if len(shares) <= _MOST_GROUPS_TO_SWAP:
                swaps = cost(without + shares, here) - costs[here]
                swaps += cost(have[parts] + share - shares, parts) - costs[parts]
                swaps[parts == here] = 0
            if min(moves.min(), swaps.min()) > -_ROUNDING:
                continue
            if moves.min() <= swaps.min():
                there = moves.argmin()
            else:
                other = swaps.argmin()
                there, parts[other] = parts[other], here
                have[there] -= shares[other]
                have[here] += shares[other]
            parts[group] = there
            have[here] -= share
            have[there] += share
        if (parts == before).all():
            break
    return parts
