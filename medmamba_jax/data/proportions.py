"""Divides groups of images into parts of given sizes, with each class in proportion."""

import numpy as np

_PASSES = 50  # at most; the improvement usually ends after about five
_MOST_GROUPS_TO_SWAP = 1000  # a swap compares every pair; more groups fit well without swaps
_MOST_AT_ONCE = 256  # groups whose moves are computed together
_ROUNDING = 1e-12


def deal_groups(
    counts: np.ndarray, sizes: np.ndarray, fractions: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Divides whole groups so that each part gets its fraction of the images of every class.

    scikit-learn's `StratifiedGroupKFold` makes only parts of equal size, and takes only one class
    for each image. Here each group, the largest first, goes to the part that it brings nearest to
    its fractions. Then the function moves a group to another part, or swaps two groups, as long as
    this brings the parts nearer to their fractions. A part that lacks a class counts as far from
    its fractions. So a part lacks a class only if too few groups show it.

    Args:
        counts: number of images in each group that show each class (g, K); an image may show
            several classes, or none.
        sizes: number of images in each group (g,).
        fractions: the fraction of each part (p,); they sum to 1.
        rng: decides the order of groups with equal shares.

    Returns:
        The part of each group, integers (g,).
    """
    shown = counts[:, counts.any(0)]
    # Shares of all images: a column for each class, and one for the sizes. All classes together
    # weigh as much as the sizes.
    shares = np.column_stack(
        [shown / shown.sum(0) / np.sqrt(max(1, shown.shape[1])), sizes / sizes.sum()]
    )
    shuffled = rng.permutation(len(shares))
    order = shuffled[np.argsort(-(shares[shuffled] ** 2).sum(1), kind="stable")]
    shares = shares[order]
    wanted = fractions[:, None] * shares.sum(0)  # shares of each part (p, K + 1)
    lacking = wanted.copy()
    dealt, parts = np.empty((2, len(shares)), np.int64)
    for group, share in enumerate(shares):
        dealt[group] = ((lacking - share) ** 2 - lacking**2).sum(1).argmin()
        lacking[dealt[group]] -= share
    parts[order] = _improve(dealt, shares, wanted)
    return parts


def _improve(parts: np.ndarray, shares: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Moves and swaps groups as `deal_groups` says; changes `parts` and returns it."""
    have = np.zeros_like(wanted)
    np.add.at(have, parts, shares)
    nothing = shares.min(0, where=shares > 0, initial=1) / 2
    every_part = np.arange(len(wanted))

    def cost(have: np.ndarray, part: np.ndarray) -> np.ndarray:
        return ((have - wanted[part]) ** 2).sum(-1) + (have < nothing).sum(-1)

    def gains(groups: slice) -> tuple[np.ndarray, np.ndarray]:
        """Returns what moving each group to each part costs, and swapping it with each group."""
        share, here = shares[groups], parts[groups]
        without = have[here] - share
        costs = cost(have, every_part)
        moves = cost(have + share[:, None], every_part) - costs
        moves += (cost(without, here) - costs[here])[:, None]
        moves[np.arange(len(share)), here] = 0
        if len(shares) > _MOST_GROUPS_TO_SWAP:
            return moves, np.zeros((len(share), 1))
        swaps = cost(without[:, None] + shares, here[:, None]) - costs[here][:, None]
        swaps += cost(have[parts] + share[:, None] - shares, parts) - costs[parts]
        swaps[parts == here[:, None]] = 0
        return moves, swaps

    for _ in range(_PASSES):
        before = parts.copy()
        start, length = 0, 1
        while start < len(shares):
            moves, swaps = gains(slice(start, start + length))
            better = np.minimum(moves.min(1), swaps.min(1)) <= -_ROUNDING
            if not better.any():  # look at more groups at once, as long as none improves
                start, length = start + length, min(2 * length, _MOST_AT_ONCE)
                continue
            first = better.argmax()
            group = start + first
            share, here = shares[group], parts[group]
            if moves[first].min() <= swaps[first].min():
                there = moves[first].argmin()
            else:
                other = swaps[first].argmin()
                there, parts[other] = parts[other], here
                have[there] -= shares[other]
                have[here] += shares[other]
            parts[group] = there
            have[here] -= share
            have[there] += share
            start, length = group + 1, 1
        if (parts == before).all():
            break
    return parts
