"""Checkpoints of real Orbax: their digests, damage, which ones stay, and saving that fails."""

import hashlib
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import medmamba_jax as mm
from medmamba_jax.errors import NotSavedError
from medmamba_jax.runs.digests import FILE
from medmamba_jax.runs.store import Checkpoints, CheckpointStore, Position, Progress

PARTS = {"params": {"w": np.arange(48, dtype=np.float32).reshape(8, 6), "b": np.ones(3, np.int32)}}


def on_devices(parts=PARTS):
    return jax.tree.map(jax.numpy.asarray, parts)


def like(parts=PARTS):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), on_devices(parts))


def save(folder, *progresses, **options):
    with CheckpointStore(folder, **options) as store:
        for progress in progresses:
            store.save(progress, on_devices())


def names(folder):
    return {path.name for path in folder.iterdir()} - {"LATEST"}


def files(checkpoint):
    """Every file of a checkpoint that something is read from."""
    inside = (p for p in checkpoint.rglob("*") if p.is_file() and p.parent != checkpoint)
    return [*sorted(inside), checkpoint / FILE]


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Checkpoints 1, the best, and 2; to be copied."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    save(folder, Progress(1, 1), Progress(2, 1))
    return folder


def test_positions_are_in_the_order_of_training_and_have_names():
    order = ["1", "2", "2-3", "2-10", "3", "10"]
    positions = [Position.of_name(name) for name in order]
    assert sorted(positions) == positions and [str(p) for p in positions] == order
    for name in ("", "a", "1-", "-1", "1.orbax-checkpoint-tmp", "1_0", "1-2-3", "٣"):
        assert Position.of_name(name) is None


def test_the_digests_are_those_of_sha256sum(two):
    text = (two / "2" / FILE).read_text()
    for line in text.splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((two / "2" / name).read_bytes()).hexdigest() == digest
    named = {two / "2" / line.split("  ")[1] for line in text.splitlines()}
    assert named == set(files(two / "2")[:-1])
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", FILE], cwd=two / "2", check=True)


@pytest.mark.parametrize("seed", range(12))
def test_a_changed_bit_of_any_file_is_noticed(two, tmp_path, seed):
    refuse_changed_bits(two, tmp_path, np.random.default_rng(seed), 1)


@pytest.mark.slow
def test_seventy_changed_bits_of_each_kind_of_file_are_noticed(two, tmp_path):
    refuse_changed_bits(two, tmp_path, np.random.default_rng(100), 70)


def refuse_changed_bits(two, folder, rng, count):
    for number in range(count):
        copy = shutil.copytree(two, folder / str(number))
        path = files(copy / "2")[int(rng.integers(len(files(copy / "2"))))]
        flip(path, int(rng.integers(8 * path.stat().st_size)))
        found = Checkpoints(copy)
        assert found.damage(Position(2))
        with pytest.raises(mm.UserError, match=r"checkpoint 2 in .* is damaged .* checkpoint 1 is"):
            found.progress(Position(2))
            found.restore(Position(2), like())
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda c: next((c / "params" / "d").iterdir()).unlink(), r"params/d/\w+ is missing"),
        (lambda c: os.truncate(c / "params" / "_METADATA", 20), "has changed"),
        (lambda c: (c / "params" / "_METADATA").unlink(), "params/_METADATA is missing"),
        (lambda c: (c / "params" / "more").write_text("x"), "does not name params/more"),
        (lambda c: (c / "progress" / "metadata").write_text("{"), "progress/metadata has changed"),
        (lambda c: (c / FILE).unlink(), f"{FILE}: No such file"),
        (lambda c: (c / FILE).write_bytes(b""), f"{FILE} does not name"),
        (lambda c: shutil.rmtree(c / "params"), "is missing"),
    ],
)
def test_damage_is_named_with_the_sound_checkpoint(two, tmp_path, harm, told):
    copy = shutil.copytree(two, tmp_path / "checkpoints")
    harm(copy / "2")
    with pytest.raises(mm.UserError, match=told) as error:
        Checkpoints(copy).progress(Position(2))
        Checkpoints(copy).restore(Position(2), like())
    assert "checkpoint 1 is sound, and training with --resume=previous" in str(error.value)
    assert "\n" not in str(error.value)
    restored = Checkpoints(copy).restore(Position(1), like())
    np.testing.assert_array_equal(restored["params"]["w"], PARTS["params"]["w"])


@pytest.mark.parametrize("lines", [0, 1])
def test_a_list_of_digests_that_is_cut_off_is_damage_of_the_whole(two, tmp_path, lines):
    """So `--resume=previous` does not choose this checkpoint, before any part of it is read."""
    copy = shutil.copytree(two, tmp_path / "checkpoints")
    kept = (copy / "1" / FILE).read_text().splitlines(keepends=True)[:lines]
    (copy / "1" / FILE).write_text("".join(kept))
    assert f"{FILE} does not name" in Checkpoints(copy).damage(Position(1))
    with pytest.raises(mm.UserError, match="no sound checkpoint before the latest"):
        Checkpoints(copy).named("previous")


def test_digests_that_lack_a_part_are_damage_of_the_whole(two, tmp_path):
    copy = shutil.copytree(two, tmp_path / "checkpoints")
    lines = (copy / "1" / FILE).read_text().splitlines(keepends=True)
    (copy / "1" / FILE).write_text("".join(line for line in lines if "  params/" not in line))
    assert Checkpoints(copy).damage(Position(1)).startswith(f"{FILE} does not name params/")
    (copy / "1" / FILE).write_bytes(b"")
    with pytest.raises(mm.UserError, match="no sound checkpoint before the latest"):
        Checkpoints(copy).named("previous")


def test_damage_of_the_best_names_the_latest_and_of_both_none(two, tmp_path):
    copy = shutil.copytree(two, tmp_path / "checkpoints")
    (copy / "1" / "params" / "_METADATA").unlink()
    with pytest.raises(mm.UserError, match="checkpoint 2 is sound, and training continues from"):
        Checkpoints(copy).restore(Position(1), like())
    (copy / "2" / "params" / "_METADATA").unlink()
    with pytest.raises(mm.UserError, match="no other checkpoint there is sound"):
        Checkpoints(copy).restore(Position(1), like())
    with pytest.raises(mm.UserError, match="before the latest one, 2: restore one from a copy"):
        Checkpoints(copy).named("previous")


@pytest.mark.parametrize("name", ["previous", "3"])
def test_a_name_where_no_run_is_says_how_to_start_one(tmp_path, name):
    with pytest.raises(mm.UserError, match=r"has no checkpoint, .*leave out --resume to start"):
        Checkpoints(tmp_path / "checkpoints").named(name)


def test_previous_of_a_single_checkpoint_says_how_to_go_on(two, tmp_path):
    copy = shutil.copytree(two, tmp_path / "checkpoints")
    shutil.rmtree(copy / "1")
    with pytest.raises(mm.UserError, match="latest one, 2: leave out --resume to continue from"):
        Checkpoints(copy).named("previous")


def test_a_renamed_checkpoint_is_not_another_one(two, tmp_path):
    copy = shutil.copytree(two, tmp_path / "checkpoints")
    (copy / "2").rename(copy / "7")
    with pytest.raises(mm.UserError, match=r"checkpoint 7 .*\(it was saved as 2"):
        Checkpoints(copy).best()


def test_the_best_that_is_gone(two, tmp_path):
    copy = shutil.copytree(two, tmp_path / "checkpoints")
    assert Checkpoints(copy).best() == Position(1)
    shutil.rmtree(copy / "1")
    with pytest.raises(mm.UserError, match="the best checkpoint, of epoch 1, is gone from"):
        Checkpoints(copy).best()


def test_a_checkpoint_of_an_earlier_version_is_read_with_a_warning(two, tmp_path, caplog):
    copy = shutil.copytree(two, tmp_path / "checkpoints")
    (copy / "2" / FILE).unlink()
    (copy / "2" / "progress" / "metadata").write_text('{"epoch": 2, "best_epoch": 1}')
    assert Checkpoints(copy).progress(Position(2)) == Progress(2, 1)
    Checkpoints(copy).restore(Position(2), like())
    assert "checkpoint 2 in" in caplog.text and "has no digests" in caplog.text
    (copy / "2" / "params" / "_METADATA").write_bytes(b"x")
    with pytest.raises(mm.UserError, match=r"checkpoint 2 in .* is damaged"):
        Checkpoints(copy).restore(Position(2), like())


def test_names_that_mean_a_checkpoint(two):
    found = Checkpoints(two)
    assert [found.named(n) for n in ("latest", "previous", "1")] == [*map(Position, (2, 1, 1))]
    for name in ("3", "first", ""):
        with pytest.raises(mm.UserError, match=r"no checkpoint .* which has 1, 2"):
            found.named(name)
    nothing = Checkpoints(two / "nothing")
    assert nothing.named("latest") is None is nothing.best() is nothing.latest()
    with pytest.raises(mm.UserError, match="has no checkpoint, and so no"):
        nothing.named("1")


def test_which_checkpoints_stay(tmp_path):
    """The latest, the best, the best before it, what is kept, and every fifth."""
    best, before, seen = 0, 0, []
    with CheckpointStore(tmp_path, keep_every=5) as store:
        for epoch in range(1, 9):
            if epoch in (1, 3, 6):
                best, before = epoch, best
            progress = Progress(epoch, best, best_before=before, kept=(2,) if epoch > 1 else ())
            store.save(progress, on_devices())
            store.wait()
            seen.append(sorted(map(int, names(tmp_path))))
    early = [[1], [1, 2], [1, 2, 3], [2, 3, 4]]
    assert seen == [*early, [2, 3, 5], [2, 3, 5, 6], [2, 5, 6, 7], [2, 5, 6, 8]]


def test_a_checkpoint_inside_an_epoch(tmp_path):
    outputs = {"logits": np.ones((4, 2), np.float32)}
    with CheckpointStore(tmp_path) as store:
        for progress in (Progress(1, 1), Progress(1, 1, steps=2), Progress(1, 1, steps=7)):
            parts = on_devices() | ({"outputs": outputs} if progress.steps else {})
            store.save(progress, parts)
        store.wait()
        assert names(tmp_path) == {"1", "1-7"}
        assert (store.latest(), store.best()) == (Position(1, 7), Position(1))
        assert store.progress(Position(1, 7)) == Progress(1, 1, steps=7)
        found = store.restore(Position(1, 7), {**like(), "outputs": outputs})["outputs"]
        assert type(found["logits"]) is np.ndarray
        np.testing.assert_array_equal(found["logits"], outputs["logits"])
        store.save(Progress(2, 1), on_devices())
    assert names(tmp_path) == {"1", "2"}


def test_later_checkpoints_are_removed_and_leftovers_too(two, tmp_path):
    copy = shutil.copytree(two, tmp_path / "checkpoints")
    (copy / "3.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    (copy / ".removed-1-abc").mkdir()
    with CheckpointStore(copy) as store:
        assert names(copy) == {"1", "2"}
        store.remove_after(Position(1))
        store.save(Progress(2, 2, best_before=1), on_devices())
    assert names(copy) == {"1", "2"}


def test_digests_do_not_depend_on_devices(tmp_path, monkeypatch):
    """Saved on eight devices, each of which has a part, and read on one; and the reverse."""
    monkeypatch.undo()
    spread = NamedSharding(Mesh(np.array(jax.devices()), "d"), PartitionSpec("d"))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    w = PARTS["params"]["w"]
    for name, before, after in (("a", spread, one), ("b", one, spread)):
        with CheckpointStore(tmp_path / name) as store:
            store.save(Progress(1, 1), {"params": {"w": jax.device_put(w, before)}})
        shape = jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=after)
        found = Checkpoints(tmp_path / name).restore(Position(1), {"params": {"w": shape}})
        assert found["params"]["w"].sharding == after
        np.testing.assert_array_equal(found["params"]["w"], w)


def test_a_disk_without_room_is_told_before_anything_is_written(two, tmp_path, monkeypatch):
    copy = shutil.copytree(two, tmp_path / "checkpoints")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 1000))
    with CheckpointStore(copy) as store:
        with pytest.raises(NotSavedError, match=r"needs up to 1,048,780 bytes.* has 1,000 free"):
            store.save(Progress(3, 3), on_devices())
    assert names(copy) == {"1", "2"}


@pytest.mark.parametrize("noticed_by", ["check", "wait", "save", "close"])
def test_a_save_that_fails_later_is_one_error_and_leaves_nothing(
    two, tmp_path, monkeypatch, capfd, noticed_by
):
    copy = shutil.copytree(two, tmp_path / "checkpoints")

    def full(folder):
        raise OSError(28, "No space left on device")

    store = CheckpointStore(copy)
    monkeypatch.setattr("medmamba_jax.runs.store.write_digests", full)
    store.save(Progress(3, 3), on_devices())
    with pytest.raises(NotSavedError, match=r"checkpoint 3 was not saved in .* No space left"):
        while noticed_by == "check":
            store.check()
        {"wait": store.wait, "close": store.close}.get(
            noticed_by, lambda: store.save(Progress(4, 4), on_devices())
        )()
    assert names(copy) == {"1", "2"} and Checkpoints(copy).best() == Position(1)
    assert "Traceback" not in capfd.readouterr().err
    monkeypatch.undo()
    if noticed_by != "close":
        store.save(Progress(3, 3, best_before=1), on_devices())  # once there is room again
        store.close()
        assert names(copy) == {"1", "3"}


def test_the_latest_that_is_gone(two, tmp_path):
    """Checkpoint 2 was the best and is gone. Checkpoint 1 still names itself as the best."""
    save(tmp_path, Progress(1, 1), Progress(2, 2, best_before=1))
    shutil.rmtree(tmp_path / "2")
    with pytest.raises(mm.UserError, match=r"the latest checkpoint, 2, .* is gone from"):
        Checkpoints(tmp_path).best()
    with CheckpointStore(tmp_path) as store:
        store.remove_after(Position(1))
    assert Checkpoints(tmp_path).best() == Position(1)


def test_all_checkpoints_are_gone(two, tmp_path):
    copy = shutil.copytree(two, tmp_path / "checkpoints")
    for name in names(copy):
        shutil.rmtree(copy / name)
    with pytest.raises(mm.UserError, match=r"checkpoint, 2, .* is gone .* training begins anew"):
        Checkpoints(copy).best()


@pytest.mark.slow
def test_a_disk_that_is_full(tmp_path):
    """A real one, of 1 MB, whose free space the store is not told."""
    script = f"""
mount -t tmpfs -o size=1m none {tmp_path} || exit 77
exec {sys.executable} - <<'PROGRAM'
import pathlib, sys
sys.path[:] = {sys.path!r}
import jax, numpy as np
from medmamba_jax.errors import NotSavedError
from medmamba_jax.runs.store import CheckpointStore, Progress
CheckpointStore._require_room = lambda *_: None
folder = pathlib.Path({str(tmp_path)!r}) / "checkpoints"
noise = np.random.default_rng(0).normal(size=(300, 500)).astype(np.float32)
with CheckpointStore(folder) as store:
    store.save(Progress(1, 1), {{"params": {{"w": jax.numpy.asarray(noise)}}}})
    store.wait()
    try:
        store.save(Progress(2, 2), {{"params": {{"w": jax.numpy.asarray(noise)}}}})
        store.wait()
    except NotSavedError as error:
        print(error)
print(sorted(path.name for path in folder.iterdir()))
PROGRAM
"""
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare, which makes a small disk")
    command = ["unshare", "--map-root-user", "--mount", "bash", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    told, left = done.stdout.splitlines()
    assert (
        told.startswith(f"checkpoint 2 was not saved in {tmp_path}") and left == "['1', 'LATEST']"
    )
    assert "Traceback" not in done.stderr
