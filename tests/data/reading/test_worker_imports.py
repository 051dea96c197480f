"""What a process that reads images has to import."""

import dataclasses
import pickle
import subprocess
import sys

import pytest

from medmamba_jax.data import DataConfig, build_dataset
from medmamba_jax.data.build import find, prepare
from medmamba_jax.data.config import PhantomConfig
from medmamba_jax.data.sources.frames import all_frames

# Python runs this file at the start of every process that finds it, worker processes too. Grain
# itself imports JAX and Orbax where they are installed, which docs/performance.md explains. It does
# without them where they are not.
SITECUSTOMIZE = """
import sys

HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "sklearn", "tensorflow_datasets")


class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ImportError(f"{name} is not to be imported")


sys.meta_path.insert(0, Refused())
"""
PROGRAM = """
import pickle
import sys

from medmamba_jax.data import eval_batches, train_batches

if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        split, preprocessing = pickle.load(file)
    options = {"batch_size": 4, "num_workers": 1}
    with train_batches(split, preprocessing, "light", seed=0, **options) as batches:
        assert next(batches)["image"].shape == (4, 32, 32, 1)
    with eval_batches(split, preprocessing, **options) as batches:
        assert next(batches)["image"].shape == (4, 32, 32, 1)
    for name in ("jax", "flax", "orbax", "sklearn", "tensorflow_datasets"):
        assert name not in sys.modules
"""


@pytest.mark.parametrize(
    "kind",
    [
        "frames",
        "kept on disk",
        *(pytest.param(x, marks=pytest.mark.nightly) for x in ("files", "arrays")),
    ],
)
def test_reading_imports_neither_jax_nor_what_splits_images(tmp_path, noise_png, kind):
    for i in range(40):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise_png(i))
    config = DataConfig(path=str(tmp_path / "images"), image_size=32)
    if kind == "arrays":
        config = DataConfig(name="phantom", phantom=PhantomConfig(images=30), image_size=32)
    preprocessing = config.preprocessing(1)
    split = build_dataset(config).splits["train"]
    if kind == "frames":
        split = all_frames(split)
    elif kind == "kept on disk":
        config = dataclasses.replace(config, cache="disk", cache_dir=str(tmp_path / "cache"))
        split = prepare(find(config), config, preprocessing).dataset.splits["train"]
    (tmp_path / "sent.pickle").write_bytes(pickle.dumps((split, preprocessing)))
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    (tmp_path / "program.py").write_text(PROGRAM)
    subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "sent.pickle")],
        check=True,
        env={"PYTHONPATH": ":".join([str(tmp_path), *sys.path])},
    )
