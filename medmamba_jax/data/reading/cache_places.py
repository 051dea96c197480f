"""Decides where to keep decoded images: on the device, in memory, on disk, or nowhere.

| data.cache | worker processes | fits into memory | does not fit into memory |
| --- | --- | --- | --- |
| none | any | no cache | no cache |
| memory | none | memory | memory |
| memory | some | disk | disk |
| disk | any | disk | disk |
| auto | none | memory | disk; no cache if it does not fit on the disk, or is augmented |
| auto | some | as on the right | disk; no cache if it does not fit on the disk, or is augmented |
| device | any | the device, for training images; `auto` for the others | likewise |

Worker processes do not share memory. Splits fit if all cached splits together take at most half of
the memory, or half of the disk space, that is free when the run begins.

The device is the GPU or TPU that trains. It keeps resized training images and no others. If a run
has several devices, each of them keeps an equal part. The device is the first choice of `auto`, if
these images take at most a quarter of the memory that JAX may use on all devices together. Before a
set is split, all its images count as training images. Images on the device are also augmented
there. So `auto` does not choose the device for a policy that only the host has. It never chooses
the device if a CPU trains.
"""

import dataclasses
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True)
class Need:
    """The facts that decide where to keep images.

    Attributes:
        size: bytes of the decoded images, in the form in which they would be kept.
        augmented: whether the host augments the images, so that the cache holds them at their own
            size.
        num_workers: number of worker processes.
        free: "device", "memory" and "disk" -> bytes that the cache may use. No bytes of the device
            are free for images that cannot go there.
    """

    size: int
    augmented: bool
    num_workers: int
    free: Mapping[str, float]


def _memory(need: Need) -> str:
    return "disk" if need.num_workers else "memory"


def _auto(need: Need) -> str:
    if 0 < need.size <= need.free["device"]:
        return "device"
    if not need.num_workers and need.size <= need.free["memory"]:
        return "memory"
    return "disk" if not need.augmented and need.size <= need.free["disk"] else "none"


# A value of `data.cache` -> function that returns "none", "memory", "disk" or "device".
CACHES: dict[str, Callable[[Need], str]] = {
    "auto": _auto,
    "none": lambda need: "none",
    "memory": _memory,
    "disk": lambda need: "disk",
    "device": lambda need: "device",
}
