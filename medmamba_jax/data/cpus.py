"""The number of CPUs for reading threads."""

import os


def usable_cpus() -> int:
    """Returns the number of CPUs that this process may run on.

    A cluster may give a process only some of the CPUs of a machine. macOS always gives all of them.
    """
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
