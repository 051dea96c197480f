"""The process that tests run in: eight CPU devices, and compilation that does not dawdle."""

import os

# Both must be set before JAX starts. Tests compile far more than they compute, and LLVM's
# optimisations are most of compiling; main.py runs in processes of its own, fully optimised.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
