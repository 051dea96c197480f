"""Checkpoints inside an epoch, and signals that ask a run to stop."""

import json
import os
import random
import signal
import threading
import time

import numpy as np
import pytest

import medmamba_jax as mm
from medmamba_jax.runs import store
from medmamba_jax.training import loop, stopping
from medmamba_jax.training.stopping import SAVE, Agreement, Signals, Stopped, Watch

pytestmark = pytest.mark.filterwarnings("ignore:.*[Ss]harding.*")

TIMES = {"images_per_second", "data_wait_share", "first_step_seconds"}


def follow(monkeypatch, script):
    """Lets runs do what a script says: steps taken -> what to do then."""

    class Scripted(Watch):
        def after(self, step):
            return script.get(step, "")

    monkeypatch.setattr(loop, "Watch", Scripted)


def rows(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return [{name: x for name, x in row.items() if name not in TIMES} for row in found]


def names(workdir):
    return {path.name for path in (workdir / "checkpoints").iterdir()} - {"LATEST"}


def assert_same(leaves, one, other, epoch):
    assert rows(one) == rows(other) and len(rows(one)) == epoch
    expected, actual = leaves(one, epoch), leaves(other, epoch)
    assert expected.keys() == actual.keys() and len(expected) > 40
    for name, x in expected.items():
        np.testing.assert_array_equal(actual[name], x, err_msg=name)


def test_a_run_stopped_inside_an_epoch_ends_as_if_never_stopped(
    config, images, trained, leaves, tmp_path, monkeypatch, capsys
):
    follow(monkeypatch, {2: SAVE, 5: "SIGTERM"})  # of three steps in an epoch
    with pytest.raises(Stopped) as stopped:
        mm.train(config(), tmp_path, images)
    assert stopped.value.code == 143
    assert names(tmp_path) == {"1", "1-2"}
    line = (
        "stopped by SIGTERM after step 2 of epoch 2; the same command continues the run in"
        f" {tmp_path}"
    )
    assert capsys.readouterr().err.splitlines() == [line]
    follow(monkeypatch, {})
    mm.train(config(), tmp_path, images)
    assert "resuming    in epoch 2, after 2 of 3 steps, best so far" in capsys.readouterr().out
    assert_same(leaves, trained[0], tmp_path, 2)
    assert names(tmp_path) == names(trained[0])


def test_a_run_without_a_finished_epoch_cannot_be_used(config, images, tmp_path, monkeypatch):
    follow(monkeypatch, {1: "SIGUSR1"})
    with pytest.raises(Stopped) as stopped:
        mm.train(config(), tmp_path, images)
    assert stopped.value.code == 128 + signal.SIGUSR1 and names(tmp_path) == {"0-1"}
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .* one epoch"):
        mm.load_run(tmp_path).evaluate(images)


@pytest.mark.nightly
def test_it_holds_for_images_on_the_device_that_are_mixed(
    config, images, leaves, tmp_path, monkeypatch
):
    base = mm.Config.of(config(ema_decay=0.9, epochs=2)).to_dict()
    base["data"] |= {"cache": "device", "augmentation": "strong"}
    changed = mm.Config.from_dict(base)
    mm.train(changed, tmp_path / "straight", images)
    # The last step of an epoch: only the validation is left.
    for script in ({1: SAVE, 3: "SIGHUP"}, {4: "SIGINT"}, {}):
        follow(monkeypatch, script)
        for name in script.values():
            if name != SAVE:
                with pytest.raises(Stopped):
                    mm.train(changed, tmp_path / "stopped", images)
    mm.train(changed, tmp_path / "stopped", images)
    assert_same(leaves, tmp_path / "straight", tmp_path / "stopped", 2)


def test_a_checkpoint_is_due_after_some_minutes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    watch, never = Watch(Signals(), 10), Watch(Signals(), 0)
    assert watch.after(1) == ""
    now[0] += 599
    assert watch.after(2) == ""
    now[0] += 1
    assert (watch.after(3), never.after(3)) == (SAVE, "")
    watch.saved()
    assert watch.after(4) == ""


def test_signals_are_noted_and_handlers_given_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        with Signals() as signals:
            watch = Watch(signals, 0)
            assert watch.after(1) == ""
            os.kill(os.getpid(), signal.SIGHUP)
            assert watch.after(2) == ""
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            assert watch.after(3) == watch.asked == "SIGTERM"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            raise Stopped(signals.asked)
    except Stopped as stopped:
        assert stopped.code == 143
    finally:
        signal.signal(signal.SIGHUP, ignored)
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_signal_that_stopped_nothing_acts_at_the_end():
    """As one that comes in the last validation of a run on several hosts."""
    with pytest.raises(KeyboardInterrupt), Signals():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_may_come_while_the_handlers_are_given_back(monkeypatch):
    before, plain = signal.getsignal(signal.SIGTERM), signal.signal

    def interrupted(number, handler):
        if number == signal.SIGTERM and handler == before:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(number, handler)

    monkeypatch.setattr(signal, "signal", interrupted)
    with pytest.raises(KeyboardInterrupt), Signals():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_a_signal_does_not_lose_the_last_checkpoint(config, images, monkeypatch, run_of_two_epochs):
    """When signals act as before again, the checkpoint is complete."""
    written, saved = store.write_digests, []

    def slowly(folder):
        time.sleep(0.3)
        written(folder)

    class Looking(Signals):
        def __exit__(self, *exception):
            super().__exit__(*exception)
            saved.append(names(run_of_two_epochs))

    monkeypatch.setattr(store, "write_digests", slowly)
    monkeypatch.setattr(loop, "Signals", Looking)
    mm.train(config(epochs=3), run_of_two_epochs, images)
    assert "3" in saved[0]


def test_outside_the_main_thread_nothing_is_noted():
    found = []

    def look():
        with Signals() as signals:
            found.append(signals.asked)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [""]


class Service:
    """The part of JAX's coordination service that is used, in this process."""

    def __init__(self):
        self.found = {}

    def key_value_set(self, key, value):
        if key in self.found:
            import jax

            raise jax.errors.JaxRuntimeError("ALREADY_EXISTS: key")
        self.found[key] = value

    def key_value_dir_get(self, folder):
        return [item for item in self.found.items() if item[0].startswith(folder)]


@pytest.mark.parametrize("seed", range(20))
def test_hosts_agree_in_any_order_that_training_allows(seed, monkeypatch):
    """A host begins step n + 1 only when all have begun step n - 1 (and it knows the result)."""
    rng, service, hosts, last = random.Random(seed), Service(), 3, 40
    agreements = []
    for _ in range(hosts):
        monkeypatch.setattr(stopping, "_rounds", iter([0]))
        agreements.append(Agreement(service))
    wanted = {
        (rng.randrange(hosts), rng.randrange(1, 30)): what for what in (SAVE, "SIGTERM", SAVE)
    }
    pending, done, taken = [""] * hosts, [[] for _ in range(hosts)], [0] * hosts
    while min(taken) < last:
        # A host that looks after step n knows the result of step n - 1, which all have begun.
        ready = [h for h in range(hosts) if taken[h] < last and min(taken) >= taken[h] - 1]
        host = rng.choice(ready)
        taken[host] += 1
        pending[host] = wanted.get((host, taken[host]), pending[host])
        if found := agreements[host].after(taken[host], pending[host]):
            done[host].append((taken[host], found))
            if found == pending[host]:
                pending[host] = ""
    assert done[0] == done[1] == done[2] and done[0]
    assert {what for _, what in done[0]} == set(wanted.values())
