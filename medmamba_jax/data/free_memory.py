"""The memory that this process may still take."""

from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Returns the free bytes of memory, within the limit of this process's control group."""
    available = psutil.virtual_memory().available
    try:
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # there is no control group, or it has no limit
        return available
    return max(min(available, limit - used), 0)
