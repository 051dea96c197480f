"""A series of runs with one line: seeds, the folds of a cross-validation, or both."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from medmamba_jax.data import Dataset, OwnData
from medmamba_jax.errors import UserError
from medmamba_jax.files import expanded
from medmamba_jax.parallel import as_on_first_host, on_first_host, say
from medmamba_jax.report import summary_report_after
from medmamba_jax.runs import Checkpoints
from medmamba_jax.runs.description import FILE, RunDescription
from medmamba_jax.runs.run import has_results
from medmamba_jax.runs.summaries import require_one_model, summarize, summary_text
from medmamba_jax.runs.workdir import CHECKPOINTS, check_same_settings
from medmamba_jax.training.config import Config
from medmamba_jax.training.loop import fit
from medmamba_jax.training.selection import is_finished
from medmamba_jax.training.start import start_run


def train_series(
    config: Config | ConfigDict,
    workdir: str | pathlib.Path,
    data: OwnData | None = None,
    *,
    seeds: Sequence[int] = (),
    folds: int = 0,
) -> dict[str, Any]:
    """Trains a run for each seed, for each fold, or for each fold with each seed; summarises them.

    The runs are in `seed_0` and so on, in `fold_1` and so on, or in `seed_0/fold_1` and so on. A
    series that stopped goes on: finished runs stay as they are, and the one that was interrupted
    goes on from its last checkpoint. The summary is in `summary.json` and `summary.csv`.

    Args:
        config: the configuration that all runs share.
        workdir: the folder of the series; it is made.
        data: as in `start_run`.
        seeds: values of `train.seed`.
        folds: the number of folds of the cross-validation, 2 or more; 0 means none.

    Returns:
        As `runs.summaries.summarize`.

    Raises:
        UserError: `config` sets `data.fold` beside `folds`, or `data` is split already; a seed
            comes twice; a folder holds a run with other settings; or the images, or where they are
            augmented, changed between two runs.
        Otherwise as `train`, with the first run that fails. Earlier runs are intact.
    """
    config = Config.of(config).with_absolute_paths()
    workdir = expanded(workdir).resolve()
    if folds and isinstance(data, Dataset):
        raise UserError("a Dataset is split already: pass labelled images for a cross-validation")
    if (workdir / FILE).exists():
        raise UserError(f"{workdir} holds a single run: give the series another --workdir")
    runs = {workdir / name: member for name, member in series(config, seeds, folds).items()}
    earlier: dict[pathlib.Path, RunDescription] = {}

    def look() -> None:
        for folder, member in runs.items():
            if _is_finished(folder, member):
                earlier[folder] = RunDescription.read(folder)

    on_first_host(look)
    finished = as_on_first_host([folder in earlier for folder in runs])
    for i, (folder, member) in enumerate(runs.items()):
        name = folder.relative_to(workdir)
        if finished[i]:
            say(f"run {i + 1} of {len(runs)}, {name}: finished before")
            continue
        say(f"\nrun {i + 1} of {len(runs)}, {name}:")
        with start_run(member, folder, data) as run:
            earlier[folder] = run.description
            on_first_host(functools.partial(require_one_model, earlier))
            fit(run)
    summary: dict[str, Any] = {}

    def write() -> None:
        require_one_model(earlier)
        summary.update(summarize(list(runs), workdir, settings=config.results))

    on_first_host(write)
    say(f"\n{summary_text(summary)}\n\n{workdir / 'summary.json'}" if summary else "")
    summary_report_after(workdir, wanted=config.results.report)
    return summary


def series(config: Config, seeds: Sequence[int], folds: int) -> dict[str, Config]:
    """Returns the folder, below that of the series, and the configuration of each run.

    Raises:
        UserError: as `train_series`, or a seed or the number of folds is not allowed.
    """
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds names a seed twice: {', '.join(map(str, seeds))}")
    if folds and config.data.fold:
        raise UserError(
            f"--folds={folds} trains every fold, and data.fold is {config.data.fold!r}: leave one"
            " of them out"
        )
    if folds == 1 or folds < 0:
        raise UserError(f"--folds must be 2 or more; got {folds}")
    if not seeds and not folds:
        raise UserError("a series needs --seeds or --folds")
    runs = {"": config}
    if seeds:
        runs = {
            f"seed_{seed}": dataclasses.replace(
                config, train=dataclasses.replace(config.train, seed=seed)
            )
            for seed in seeds
        }
    if not folds:
        return runs
    return {
        f"{name}/fold_{fold}".lstrip("/"): dataclasses.replace(
            of_seed, data=dataclasses.replace(of_seed.data, fold=f"{fold}/{folds}")
        )
        for name, of_seed in runs.items()
        for fold in range(1, folds + 1)
    }


def _is_finished(folder: pathlib.Path, config: Config) -> bool:
    """Whether a run is trained to its end and has its results. Reads no image.

    Only the first host asks: on another one the files may appear later.
    """
    if not (folder / FILE).is_file() or not (folder / CHECKPOINTS).is_dir():
        return False
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    latest = checkpoints.latest()
    if latest is None:
        return False
    progress = checkpoints.progress(latest)
    description = check_same_settings(folder, config.to_dict(), defaults=Config().to_dict())
    at_end = is_finished(progress, config.train.epochs, config.train.patience)
    return at_end and has_results(folder, description, progress.best_epoch, config.results)
