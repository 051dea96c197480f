"""Runs are trained on one device, unless a test wants more."""

import jax
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def only_one_device(one_device):
    """Runs every test here on the first device; `monkeypatch.undo()` gives the others back."""


@pytest.fixture(scope="session")
def leaves():
    """Returns a function (workdir, epoch) -> every array of a checkpoint, as written."""

    def leaves(workdir, epoch):
        import orbax.checkpoint as ocp

        found = {}
        for part in ("params", "statistics", "training", "average"):
            path = workdir / "checkpoints" / str(epoch) / part
            if not path.exists():
                continue
            with ocp.StandardCheckpointer() as reader:
                tree = reader.restore(path.resolve())
            for key, x in jax.tree_util.tree_leaves_with_path(tree):
                if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
                    x = jax.random.key_data(x)
                found[part + jax.tree_util.keystr(key)] = np.asarray(x)
        return found

    return leaves
