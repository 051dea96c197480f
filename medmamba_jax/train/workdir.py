"""A run's folder: whose it is, and what is written into it before training."""

import json
import pathlib

from medmamba_jax.checkpoints import RunDescription
from medmamba_jax.checkpoints.description import CHECKPOINTS
from medmamba_jax.train.reporting import versions

# Settings that may change between one start of a run and the next.
RESUMABLE = {
    "train": ("epochs", "patience"),
    "data": ("root", "manual_dir", "num_workers", "allow_unreadable"),
}


def checkpoint_dir(workdir: pathlib.Path) -> pathlib.Path:
    """Where the run's checkpoints lie."""
    return workdir / CHECKPOINTS


def claim(workdir: pathlib.Path, description: RunDescription) -> None:
    """Makes the workdir this run's: writes what describes it, or checks what is there.

    Raises:
        ValueError: if the workdir holds a run that differs in more than `RESUMABLE` settings.
    """
    config = json.dumps(description.experiment, indent=2)
    try:
        old = RunDescription.read(workdir)
    except FileNotFoundError:
        workdir.mkdir(parents=True, exist_ok=True)
    else:
        differences = _differences(old.experiment, json.loads(config))
        if old.class_names != description.class_names:
            differences.append(f"classes were {old.class_names}, are {description.class_names}")
        if differences:
            raise ValueError(
                f"{workdir} holds another run: {'; '.join(differences)}. Give another --workdir, "
                "or the settings that run was started with"
            )
    description.write(workdir)
    (workdir / "config.json").write_text(config + "\n")
    (workdir / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n")


def _differences(old, new):
    return [
        f"{section}.{key} was {old[section].get(key)!r}, is {value!r}"
        for section, values in new.items()
        for key, value in values.items()
        if key not in RESUMABLE.get(section, ()) and value != old[section].get(key)
    ]
