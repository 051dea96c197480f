"""The number of CPUs for reading threads."""

import os


def usable_cpus() -> int:
    """Returns the number of CPUs that this process may run on.

    A cluster may give a process some of the CPUs of a machine. On macOS it is always all of them.
    """
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
