"""Decides where to cache the decoded images of a split: in memory, on disk, or nowhere.

| data.cache | worker processes | fits into memory | does not fit into memory |
| --- | --- | --- | --- |
| none | any | no cache | no cache |
| memory | none | memory | memory |
| memory | some | disk | disk |
| disk | any | disk | disk |
| auto | none | memory | disk; no cache if it does not fit on the disk, or is augmented |
| auto | some | as on the right | disk; no cache if it does not fit on the disk, or is augmented |

Worker processes do not share memory. Splits fit if all cached splits together take at most half of
the memory, or half of the disk space, that is free when the run begins.
"""

import dataclasses
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True)
class Need:
    """The facts that decide where to cache a split.

    Attributes:
        size: bytes of the split's decoded images.
        augmented: whether the images are augmented, so that the cache holds them at their own size.
        num_workers: number of worker processes.
        free: "memory" and "disk" -> bytes that the cache may use.
    """

    size: int
    augmented: bool
    num_workers: int
    free: Mapping[str, float]


def _memory(need: Need) -> str:
    return "disk" if need.num_workers else "memory"


def _auto(need: Need) -> str:
    if not need.num_workers and need.size <= need.free["memory"]:
        return "memory"
    return "disk" if not need.augmented and need.size <= need.free["disk"] else "none"


# A value of `data.cache` -> function that returns "none", "memory" or "disk".
CACHES: dict[str, Callable[[Need], str]] = {
    "auto": _auto,
    "none": lambda need: "none",
    "memory": _memory,
    "disk": lambda need: "disk",
}
