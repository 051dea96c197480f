"""Where the decoded images of a split are kept: in memory, on disk, or nowhere.

| data.cache | worker processes | fits into memory | else |
| --- | --- | --- | --- |
| none | any | not kept | not kept |
| memory | none | memory | memory |
| memory | some | disk | disk |
| disk | any | disk | disk |
| auto | none | memory | disk; not kept if too large for it, or if augmented |
| auto | some | disk, as on the right | disk, as on the right |

Worker processes share no memory. "Fits" means that all kept splits together take at most half of
the memory, or half of the room on the disk, that is free when the run begins.
"""

import dataclasses
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True)
class Need:
    """What decides where a split is kept.

    Attributes:
        size: bytes that the split's images take.
        augmented: whether they are augmented, so that each is kept at its own size.
        num_workers: worker processes.
        free: "memory" and "disk" -> bytes that may be taken.
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
