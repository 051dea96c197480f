"""Data parallelism: the batch is split over all devices, everything else is on each of them."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class DataParallel:
    """A mesh of all devices along one axis, `data`.

    Args:
        batch_size: images in a global batch.

    Raises:
        ValueError: if the devices cannot share a batch evenly.
    """

    def __init__(self, batch_size: int):
        # By host: what a host puts lies together, in the order of hosts.
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        if batch_size % len(devices):
            raise ValueError(
                f"train.batch_size = {batch_size} must be a multiple of the {len(devices)} devices"
            )
        mesh = Mesh(np.array(devices), ("data",))
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.batch = NamedSharding(mesh, PartitionSpec("data"))

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts this host's part of a batch on its devices; the result is the global batch."""
        with jax.transfer_guard("allow"):  # of several hosts JAX takes it for an implicit transfer
            return {
                name: jax.make_array_from_process_local_data(self.batch, x)
                for name, x in batch.items()
            }
