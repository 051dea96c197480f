"""The process that tests run in: eight CPU devices, and compilation that does not dawdle."""

import atexit
import os
import shutil
import tempfile

# All of these must be set before JAX starts. Tests compile far more than they compute, and LLVM's
# optimisations are most of compiling; the processes that tests start do without them too.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# What one worker, or a process that a test starts, has compiled the others read. The workers
# inherit the folder from the process that makes and removes it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
