"""A run's folder: whose it is, and what is written into it before training."""

import json
import pathlib

from medmamba_jax.locking import Lock, hold
from medmamba_jax.runs import RunDescription
from medmamba_jax.runs.description import CHECKPOINTS
from medmamba_jax.training.hosts import is_first
from medmamba_jax.training.reporting import versions

SPLIT_TABLE = "split.csv"

# Settings that may change between one start of a run and the next.
RESUMABLE = {
    "train": ("epochs", "patience"),
    # Images that a changed one of these brings, and their splits, show in `images_sha256`.
    "data": (
        *("root", "table", "split_file", "manual_dir", "num_workers", "allow_overlap"),
        *("cache", "cache_dir"),
    ),
}


def checkpoint_dir(workdir: pathlib.Path) -> pathlib.Path:
    """Where the run's checkpoints lie."""
    return workdir / CHECKPOINTS


def hold_workdir(workdir: pathlib.Path) -> Lock | None:
    """Keeps other processes from training in the workdir, until what is returned is closed.

    Of several hosts the first holds it, for all; the others get None.

    Raises:
        OSError: if the workdir cannot be made or written to.
        ValueError: if another process is training there.
    """
    if not is_first():
        return None
    workdir.mkdir(parents=True, exist_ok=True)
    held = hold(workdir / "lock")
    if held is None:
        raise ValueError(
            f"another process is training in {workdir}: wait until it ends, or give another"
            " --workdir"
        )
    return held


def claim(workdir: pathlib.Path, description: RunDescription, *, started: bool) -> None:
    """Makes the workdir this run's: writes what describes it, or checks what is there.

    Args:
        workdir: of the run.
        description: of the run that is to start or go on.
        started: whether the workdir has a checkpoint. Without one there is nothing to protect.

    Raises:
        ValueError: if the run there differs in more than `RESUMABLE` settings, or in its images.
    """
    config = json.dumps(description.experiment, indent=2)
    if started:
        old = RunDescription.read(workdir)
        differences = _differences(old.experiment, json.loads(config)) + differing_images(
            old, description
        )
        if differences:
            raise ValueError(
                f"{workdir} holds another run: {'; '.join(differences)}. Give another --workdir, "
                "or the settings that run was started with"
            )
    if not is_first():
        return
    description.write(workdir)
    (workdir / "config.json").write_text(config + "\n")
    (workdir / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n")


def differing_images(old: RunDescription, new: RunDescription) -> list[str]:
    """Returns how the images of two descriptions differ, one phrase a difference."""
    if old.task != new.task:
        return [f"the labels were {old.task}, are {new.task}"]
    if old.class_names != new.class_names:
        return [f"classes were {old.class_names}, are {new.class_names}"]
    before, now = old.images_sha256, new.images_sha256
    return [
        *(f"there was no split {name!r}" for name in now if name not in before),
        *(f"the split {name!r} is missing" for name in before if name not in now),
        *(
            f"the images of split {name!r} changed"
            for name in before
            if name in now and now[name] != before[name]
        ),
    ]


def _differences(old, new):
    fixed = [
        (section, key)
        for section, values in new.items()
        for key in values
        if key not in RESUMABLE.get(section, ())
    ]
    if new["train"]["schedule"] == "cosine":
        fixed.append(("train", "epochs"))  # the schedule ends with the last epoch
    return [
        f"{section}.{key} was {old[section].get(key)!r}, is {new[section][key]!r}"
        for section, key in fixed
        if new[section][key] != old[section].get(key)
    ]
