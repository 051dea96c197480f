"""Several hosts, as real JAX processes on this machine's CPU."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from medmamba_jax import hosts as hosts_module
from medmamba_jax.hosts import LOST
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
    assert "the first host stopped: another process is training in" in printed[1]


# Trains from the command line, on phantoms. The model is `tiny`.
COMMAND = """
import sys
import time
import plain_block
from medmamba_jax.cli.train import run
sys.exit(run(["main.py", *sys.argv[1:]]))
"""


class Hosts:
    """Processes of `COMMAND` that believe that Slurm has started them on this machine."""

    def __init__(self, folder, hosts, devices, own=((), ())):
        path = os.pathsep.join(sys.path)
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": path}
        with socket.socket() as free:
            free.bind(("localhost", 0))
            environment["JAX_COORDINATOR_PORT"] = str(free.getsockname()[1])
        settings = {
            "model.variant": "tiny",
            "data.phantom.images": 60,
            "data.image_size": 32,
            "data.cache_dir": f"{folder}/cache",
            "train.batch_size": 8,
            "train.epochs": 4,
            "results.report": False,
            "results.resamples": 100,
        }
        slurm = {"JOB_ID": "1", "STEP_NODELIST": "localhost", "NTASKS": str(hosts)}
        self.processes = []
        for index in range(hosts):
            slurm |= {"PROCID": str(index), "LOCALID": str(index)}
            self.processes.append(
                subprocess.Popen(
                    [
                        *(sys.executable, "-c", COMMAND, f"--workdir={folder}/run"),
                        *(f"--config.{key}={value}" for key, value in settings.items()),
                        *own[index],
                    ],
                    env=environment | {f"SLURM_{key}": value for key, value in slurm.items()},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def wait_for(self, text):
        """Waits until the first host prints a line with this text."""
        for line in self.processes[0].stdout:
            if text in line:
                return
        pytest.fail(f"no {text!r}: {self.processes[0].stderr.read()}")

    def ended(self):
        """Returns the exit code of each host, and the lines of its standard error."""
        errors = [process.communicate(timeout=300)[1] for process in self.processes]
        return [process.returncode for process in self.processes], [
            # Gloo, which connects processors, prints a line when it has done so.
            [line for line in error.splitlines() if not line.startswith("[Gloo]")]
            for error in errors
        ]


def results_of(folder):
    """Returns the rows of the log without times, and the table of predictions."""
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    timings = ("images_per_second", "data_wait_share", "first_step_seconds", "peak_memory_bytes")
    kept = [{k: v for k, v in row.items() if k not in timings} for row in rows]
    return kept, read_predictions(folder)


@pytest.mark.nightly
@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_ends_with_one_line_when_the_other_is_killed(tmp_path, victim):
    hosts = Hosts(tmp_path / "killed", 2, 2)
    hosts.wait_for("epoch 2/4")
    hosts.processes[victim].kill()
    killed = time.monotonic()
    codes, errors = hosts.ended()
    assert time.monotonic() - killed < 30
    assert codes[1 - victim] == LOST
    (line,) = errors[1 - victim]
    assert line.startswith(f"error: host {victim} is gone: start the same command again")

    hosts = Hosts(tmp_path / "killed", 2, 2)
    codes, errors = hosts.ended()
    assert codes == [0, 0], errors
    undisturbed = Hosts(tmp_path / "undisturbed", 2, 2)
    assert undisturbed.ended()[0] == [0, 0]
    assert results_of(tmp_path / "killed") == results_of(tmp_path / "undisturbed")


@pytest.mark.nightly
@pytest.mark.parametrize("culprit", [0, 1])
def test_all_hosts_end_with_the_message_of_the_one_that_refuses(tmp_path, culprit):
    wrong = "--config.data.image_size=2"
    hosts = Hosts(tmp_path, 2, 1, own=[[wrong] if i == culprit else [] for i in range(2)])
    codes, errors = hosts.ended()
    assert codes == [2, 2]
    message = "data.image_size is 2x2 px and must be at least"
    assert len(errors[culprit]) == 1 and message in errors[culprit][0]
    (line,) = errors[1 - culprit]
    assert line.startswith(f"error: host {culprit} stopped: ") and message in line


@pytest.mark.nightly
def test_all_hosts_stop_after_the_same_step_if_one_of_them_gets_a_signal(tmp_path):
    many = [["--config.train.epochs=30"]] * 2
    hosts = Hosts(tmp_path / "stopped", 2, 1, own=many)
    hosts.wait_for(" 2/30")
    hosts.processes[1].send_signal(signal.SIGTERM)
    codes, errors = hosts.ended()
    assert codes == [143, 143], errors
    (line,) = errors[0]
    assert line.startswith("stopped by SIGTERM after step ") and errors[1] == []
    (inside,) = (tmp_path / "stopped/run/checkpoints").glob("*-*")
    assert inside.name.split("-")[1] == line.split("after step ")[1].split()[0]

    assert Hosts(tmp_path / "stopped", 2, 1, own=many).ended()[0] == [0, 0]
    assert Hosts(tmp_path / "undisturbed", 2, 1, own=many).ended()[0] == [0, 0]
    assert results_of(tmp_path / "stopped") == results_of(tmp_path / "undisturbed")


def test_other_programs_do_not_keep_the_hosts_apart(monkeypatch):
    """One says nothing, and one does not know the token."""
    sockets = []

    def connect(offer):
        offer = json.loads(offer)
        for greeting in (b"", b"token 1", f"{offer['token']} 1".encode()):
            sockets.append(socket.create_connection(("127.0.0.1", offer["port"])))
            if greeting:
                sockets[-1].sendall(greeting)
        return json.dumps(offer)

    monkeypatch.setattr(hosts_module, "text_of_first_host", connect)
    monkeypatch.setattr(hosts_module, "_CONNECT", 0.6)
    monkeypatch.setattr(hosts_module.jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts_module.jax, "process_index", lambda: 0)
    try:
        peers = hosts_module._connected()
        assert peers.keys() == {1}
        assert peers[1].getpeername() == sockets[-1].getsockname()
        peers[1].close()
    finally:
        for connection in sockets:
            connection.close()
