"""Several hosts, as real JAX processes on this machine's CPU."""

import csv
import json
import os
import socket
import subprocess
import sys

import pytest

from medmamba_jax.locking import hold

# Trains on discs and writes down which images every batch held; see `run`.
PROGRAM = """
import hashlib, json, sys
import jax, numpy as np

index, hosts, address, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if hosts > 1:
    jax.distributed.initialize(address, hosts, index)
import medmamba_jax as mm
import plain_block  # adds the model `tiny`
from medmamba_jax.parallel import DataParallel

class Discs:
    class_names = ("small", "large")

    def __len__(self):
        return 53  # 32 of them for training, which fill four batches

    def __getitem__(self, i):
        x, y = np.mgrid[-1:1:32j, -1:1:32j] + np.random.default_rng(i).normal(0, 0.2, (2, 32, 32))
        return {"image": np.uint8(255 * (np.hypot(x, y) < 0.3 + 0.3 * (i % 2))), "label": i % 2}

put_batch, seen = DataParallel.put_batch, []

def recorded(self, batch):
    seen.append([hashlib.sha256(image.tobytes()).hexdigest() for image in batch["image"]])
    return put_batch(self, batch)

if "device" not in sys.argv:  # a host has only a part of a batch that is on the devices
    DataParallel.put_batch = recorded
config = mm.default_config()
config.model.variant, config.data.image_size = "tiny", 32
config.train.batch_size, config.train.epochs = 8, 2
config.data.cache_dir = f"{folder}/cache"
config.data.cache = "device" if "device" in sys.argv else "memory"
if "alone" in sys.argv:  # only the second host finds results, and only the first draws pictures
    from medmamba_jax.runs import gallery
    from medmamba_jax.training import loop

    def fail(*_):
        raise MemoryError("no memory for pictures")

    gallery.write_gallery, loop.has_results = fail, lambda *_: index == 1
results = mm.train(config, f"{folder}/run", data=Discs())
with open(f"{folder}/host{index}.json", "w") as file:
    json.dump({"seen": seen, "results": results}, file)
"""


def run(folder, hosts, devices, *more):
    """Trains on so many hosts of so many devices each; returns what each wrote and printed."""
    codes, printed = ended(folder, hosts, devices, *more)
    assert codes == [0] * hosts, "\n".join(printed)
    return [json.loads((folder / f"host{i}.json").read_text()) for i in range(hosts)], printed


def ended(folder, hosts, devices, *more):
    """Runs the program on so many hosts; returns each one's exit code and what it printed."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    path = os.pathsep.join(sys.path)  # it has the tests' own modules
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": path}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(index), str(hosts), address, str(folder), *more],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(hosts)
    ]
    printed = [process.communicate(timeout=300)[0] for process in started]
    return [process.returncode for process in started], printed


def read_predictions(folder):
    with (folder / "run/results/test_predictions.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.nightly
def test_two_hosts_train_as_one_with_two_devices(tmp_path):
    (alone,), _ = run(tmp_path / "one", hosts=1, devices=2)
    hosts, printed = run(tmp_path / "two", hosts=2, devices=1)

    together = len(hosts[1]["seen"])
    for one, other, both in zip(hosts[0]["seen"], hosts[1]["seen"], alone["seen"], strict=False):
        assert len(one) == len(other) == 4
        assert one + other == both
    # The first host reads the images of the gallery alone.
    assert hosts[0]["seen"][together:] == alone["seen"][together:] != []
    first_epoch = alone["seen"][:4]
    assert len({image for batch in first_epoch for image in batch}) == 4 * 8  # none is read twice

    # Each device computes the same as before, and a sum over two devices has one order.
    assert hosts[0]["results"] == hosts[1]["results"] == alone["results"]
    one, two = (read_predictions(tmp_path / name) for name in ("one", "two"))
    assert one == two
    assert "epoch 2/2" in printed[0] and "epoch" not in printed[1]
    assert len((tmp_path / "two/run/metrics.jsonl").read_text().splitlines()) == 2
    assert "data:image/jpeg" in (tmp_path / "two/run/report.html").read_text()

    # Each host puts its part of the training images on its device.
    hosts, printed = run(tmp_path / "device", 2, 1, "device")
    assert "on the device, others" in printed[0]
    assert hosts[0]["results"] == hosts[1]["results"] == alone["results"]

    # The run is finished. Now the hosts disagree whether it has results.
    codes, printed = ended(tmp_path / "two", 2, 1, "alone")
    assert codes == [0, 0], "\n".join(printed)
    assert "nothing left to train" in printed[0] and "no memory for pictures" in printed[0]
    assert "no memory" not in printed[1]
    gallery = json.loads((tmp_path / "two/run/results/test_gallery/gallery.json").read_text())
    assert gallery["entries"] == []


@pytest.mark.nightly
def test_every_host_stops_where_the_first_cannot_lock_the_workdir(tmp_path):
    (tmp_path / "run").mkdir()
    lock = hold(tmp_path / "run" / "lock")
    codes, printed = ended(tmp_path, hosts=2, devices=1)
    lock.close()
    assert codes == [1, 1]
    assert "another process is training in" in printed[0]
    assert "the first host failed; its message says why" in printed[1]
