"""Eight CPU devices for every test that shards a batch."""

import os

# Before JAX starts: the number of CPU devices cannot change afterwards.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8"
)
