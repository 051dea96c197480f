"""A run's folder as a trained model that can be used and evaluated."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from medmamba_jax.assessment.calibration import FILE as CALIBRATION
from medmamba_jax.assessment.calibration import (
    Calibration,
    calibrate,
    doubt_about,
    read_calibration,
    write_calibration,
)
from medmamba_jax.assessment.config import ResultsConfig
from medmamba_jax.data import (
    DataConfig,
    Dataset,
    LabelledImages,
    OwnData,
    Preprocessing,
    build_dataset,
)
from medmamba_jax.data.build import as_given
from medmamba_jax.errors import MissingFileError, UserError
from medmamba_jax.evaluation import labelled_outputs, table
from medmamba_jax.exports import KEY, read_exported
from medmamba_jax.files import expanded, require_writable
from medmamba_jax.interop import read_metadata, read_weights
from medmamba_jax.metrics import Outputs
from medmamba_jax.models import MedMambaConfig, abstract_model, split_model
from medmamba_jax.parallel import DataParallel, is_first_host, on_first_host, say
from medmamba_jax.predictor import Predictor
from medmamba_jax.runs.description import RunDescription
from medmamba_jax.runs.results import assess, write_results
from medmamba_jax.runs.store import Checkpoints, Position, restored_like
from medmamba_jax.runs.workdir import (
    CHECKPOINTS,
    MAY_CHANGE,
    differing_images,
    warn_of_trained_images,
)

EVALUATED = ("val", "test")  # the latter where there is one
RESULTS = "results"
GALLERY = "gallery"  # the end of the name of its folder


class Run:
    """What a run has left in its folder, from the first checkpoint on.

    Attributes:
        workdir: the folder.
        description: what `run.json` says.
        batch_size: the most images in a batch of `predictor` and `evaluate`; by default the run's
            `train.batch_size`.
        settings: how results are computed; the section `results` of the run.
    """

    def __init__(
        self, workdir: pathlib.Path, description: RunDescription, batch_size: int | None = None
    ):
        self.workdir = workdir
        self.description = description
        # The size changes how sums are rounded. With the run's own, evaluation repeats the figures
        # that training printed.
        own = description.config["train"]["batch_size"]
        self.batch_size = own if batch_size is None else batch_size
        results = description.config.get("results", {})  # early runs have none
        self.settings = ResultsConfig.from_dict(results, ignored=[])

    @property
    def predictor(self) -> Predictor:
        """The model of the best checkpoint; it is read when it is first used.

        Raises:
            FileNotFoundError: the folder has no checkpoint yet.
        """
        return dataclasses.replace(self._best[1], calibration=self.calibration)

    @functools.cached_property
    def epoch(self) -> int:
        """The epoch of the best checkpoint."""
        return self._best[0]

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """What was fitted on the validation split with the best checkpoint; None if it is missing.

        A damaged `calibration.json` is named in a warning; predictions without it go on.
        """
        try:
            found = read_calibration(self.workdir)
        except UserError as error:
            logging.warning("%s: %s", self.workdir / CALIBRATION, error)
            return None
        if found is not None and found.epoch != self.epoch:
            logging.warning(
                "%s was fitted with the checkpoint of epoch %d, and the best one is of epoch %d"
                " now: it is not used; `medmamba evaluate %s` fits it again",
                self.workdir / CALIBRATION,
                found.epoch,
                self.epoch,
                self.workdir,
            )
            return None
        return found

    @functools.cached_property
    def _best(self) -> tuple[int, Predictor]:
        description, parallel = self.description, DataParallel.over_all_devices()
        epoch, weights = _read_best(self.workdir, description, parallel)
        return epoch, description.predictor(*weights, self.batch_size, parallel)

    def evaluate(
        self,
        data: OwnData | None = None,
        changes: Mapping[str, Any] | None = None,
        output: str | pathlib.Path | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Evaluates the best checkpoint on "val" and "test", or on other labelled images.

        Prints a table for each split. Results on the run's own images are also written into its
        folder: `results/<split>.json`, and tables beside it, `results/<split>_predictions.csv`
        with the probabilities of every image, and the points of the curves. Temperature,
        thresholds and prediction sets are fitted on "val", written to `calibration.json`, and
        applied to "test".

        Args:
            data: images in place of the run's own, with the run's classes: a `Dataset`; an object
                of your own, all of whose images are the split "test"; or such objects under the
                names "val" and "test". `medmamba_jax.data.own_data.labelled` describes the objects.
            changes: settings in place of the run's, by their names in `MAY_CHANGE`.
            output: a new folder for the results, in place of the run's folder. It takes the results
                of any images. It also gets `calibration.json`, and no pictures for a report.

        Returns:
            Split -> what `results.assess` returns, and what the numbers are of.

        Raises:
            DataUnavailableError, FileNotFoundError: there are no images, or no checkpoint yet.
            NonFiniteLossError: an output of the model is NaN or infinite.
            UserError: a setting may not change, the images are not the run's, or results cannot be
                written where they belong.
        """
        config = self._changed(changes or {})
        channels = self.description.preprocessing.channels
        if data is None:
            dataset = build_dataset(config, channels=channels)
        else:
            dataset = as_given(data)
        own_images = self._check(dataset, any_images=data is not None)
        if not own_images:
            warn_of_trained_images(self.workdir, _evaluated(dataset))
        folder = expanded(output) if output is not None else None
        write = own_images or folder is not None
        if write:  # This comes before the model runs, so that no work is lost.
            folders = [self.workdir, self.workdir / RESULTS] if folder is None else [folder]
            check = functools.partial(require_room_for_results, *folders, new=folder is not None)
            on_first_host(check)
        return self.report(dataset, config.num_workers, write=write, output=folder)

    def report(
        self,
        dataset: Dataset,
        num_workers: int,
        *,
        write: bool,
        output: pathlib.Path | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Evaluates images that have been checked; see `evaluate`.

        Args:
            dataset: the images.
            num_workers: processes that read images; 0 reads in threads of this process.
            write: whether to write results.
            output: the folder that they are written into; None means the run's.
        """
        place = self.workdir / RESULTS if output is None else output
        results, fitted = {}, None
        splits = _evaluated(dataset)
        for name, split in splits.items():
            outputs = labelled_outputs(self.predictor, split, num_workers=num_workers)
            calibration = fitted or self.calibration
            if name == "val":
                fitted, calibration = calibrate(outputs, self.epoch), None
                if doubt := doubt_about(fitted.temperature):
                    logging.warning("%s", doubt)
                if write:
                    folder = output or self.workdir
                    on_first_host(functools.partial(write_calibration, folder, fitted))
                    self.calibration = fitted
            results[name] = self.assessed(
                split,
                outputs,
                {"split": name, "dataset": dataset.name},
                calibration,
                (place, f"{name}_") if write else None,
                # of the split that the report is about
                pictures=output is None and name == list(splits)[-1],
            )
        return results

    def _changed(self, changes: Mapping[str, Any]) -> DataConfig:
        """Takes changed settings; returns the section `data`."""
        sections = ("data", "results")
        values = json.loads(json.dumps(self.description.config))
        values.setdefault("results", {})
        for name, value in changes.items():
            if name not in MAY_CHANGE or not name.startswith(sections):
                allowed = ", ".join(key for key in MAY_CHANGE if key.startswith(sections))
                raise UserError(f"evaluation takes {name} from the run; it can be given {allowed}")
            *place, key = name.split(".")
            section = functools.reduce(dict.__getitem__, place, values)
            section[key] = value
        ignored: list[str] = []
        self.settings = ResultsConfig.from_dict(values["results"], ignored=ignored)
        config = DataConfig.from_dict(values["data"], ignored=ignored)
        if ignored:
            logging.warning(
                "the run has settings that this version ignores: %s", ", ".join(ignored)
            )
        return config

    def _check(self, dataset: Dataset, *, any_images: bool) -> bool:
        """Returns whether the images are the run's; refuses what cannot be evaluated."""
        run, splits = self.description, _evaluated(dataset)
        now = RunDescription(
            **{**vars(run), "task": dataset.task, "class_names": dataset.class_names}
            | {"images_sha256": {name: split.digest() for name, split in splits.items()}}
        )
        evaluated = {k: v for k, v in run.images_sha256.items() if k in EVALUATED}
        differences = differing_images(
            self.workdir,
            RunDescription(**{**vars(run), "images_sha256": evaluated}),
            now,
            splits,
        )
        same_classes = (dataset.task, dataset.class_names) == (run.task, run.class_names)
        if differences and not (any_images and same_classes):
            raise UserError(f"cannot evaluate {self.workdir}: {'; '.join(differences)}")
        if not splits:
            raise UserError(f"{dataset.name!r} has no split val or test to evaluate")
        return not differences

    def assessed(
        self,
        images: LabelledImages,
        outputs: Outputs,
        facts: Mapping[str, Any],
        calibration: Calibration | None,
        place: tuple[pathlib.Path, str] | None,
        *,
        pictures: bool = True,
    ) -> dict[str, Any]:
        """Computes the results for some images, prints their table, and writes them.

        Args:
            images: the images.
            outputs: their labels and logits.
            facts: what the images are, for the results. The first value is their name.
            calibration: what was fitted on other images, if there is one.
            place: folder and prefix for `write_results`. None writes nothing.
            pictures: whether to write pictures of some images, too (`gallery.write_gallery`).

        Returns:
            The facts, and what `assess` returns.
        """
        run = self.description
        results = {
            **facts,
            "epoch": self.epoch,
            "best_metric": run.best_metric,
            "synthetic": images.synthetic,
            **assess(outputs, images, self.settings, calibration),
        }
        synthetic = "SYNTHETIC " if images.synthetic else ""
        title = (
            f"{next(iter(facts.values()))} ({len(images)} {synthetic}images, best checkpoint by val"
            f" {run.best_metric}: epoch {self.epoch})"
        )
        say(f"\n{table(results, title)}")
        if place is None:
            return results
        folder, prefix = place
        gallery = folder / f"{prefix}{GALLERY}"
        if is_first_host():
            # Its pictures may be of other images. New results never stand beside them, even if this
            # process is killed.
            shutil.rmtree(gallery, ignore_errors=True)
        on_first_host(lambda: say(str(write_results(*place, results, images, outputs))))
        if is_first_host() and pictures and self.settings.report:
            self._write_gallery(gallery, images, outputs)
        return results

    def _write_gallery(
        self, folder: pathlib.Path, images: LabelledImages, outputs: Outputs
    ) -> None:
        # Imported here, because it draws with matplotlib.
        from medmamba_jax.runs.gallery import write_empty_gallery, write_gallery

        try:
            # This host works alone: the other hosts would wait for it if it failed.
            predictor = self.predictor.on_this_host()
            write_gallery(folder, predictor, images, outputs, self.epoch)
        except Exception as error:  # the results are there; pictures may fail, as memory may end
            logging.warning(
                "the pictures in %s could not be made (%s: %s); the results are complete, and"
                " `medmamba evaluate` tries again",
                folder,
                type(error).__name__,
                error,
            )
            # Otherwise a run that starts again would evaluate each time, only to fail here.
            with contextlib.suppress(OSError):
                write_empty_gallery(folder, self.epoch)


def require_room_for_results(*folders: pathlib.Path, new: bool) -> None:
    """Checks that results can be written.

    Args:
        folders: where they will be written.
        new: whether the folders must be new or empty. They are made if they do not exist.

    Raises:
        UserError: results cannot be written there.
    """
    for folder in folders:
        if new and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(f"{folder} exists and is not an empty folder: give another --output")
        try:
            require_writable(folder)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written to ({error.strerror}): name another folder for the"
                " results (--output)"
            ) from error
        if new:
            folder.mkdir(parents=True, exist_ok=True)


def _evaluated(dataset: Dataset) -> dict[str, LabelledImages]:
    return {name: dataset.splits[name] for name in EVALUATED if name in dataset.splits}


def has_results(
    workdir: pathlib.Path, description: RunDescription, epoch: int, settings: ResultsConfig
) -> bool:
    """Whether a run's folder already has what `Run.report` would write.

    Args:
        workdir: the run's folder.
        description: the run there.
        epoch: the epoch of its best checkpoint.
        settings: how results are to be computed. If a report is wanted, pictures must be there, or
            the sign that they could not be made.
    """
    try:
        calibration = read_calibration(workdir)
    except (OSError, UserError):  # it cannot be read, or is damaged
        return False
    if "val" in description.images_sha256 and (calibration is None or calibration.epoch != epoch):
        return False
    wanted = epoch, settings.resamples, settings.seed
    gallery = None
    for name in EVALUATED:
        if name not in description.images_sha256:
            continue
        try:
            found = json.loads((workdir / RESULTS / f"{name}.json").read_text(encoding="utf-8"))
            intervals = found["intervals"]
            if (found["epoch"], intervals["resamples"], intervals["seed"]) != wanted:
                return False
        except (OSError, ValueError, KeyError, TypeError):  # missing, damaged, or without intervals
            return False
        gallery = workdir / RESULTS / f"{name}_{GALLERY}"
    if gallery is None or not settings.report:
        return True
    # Imported here, because it draws with matplotlib.
    from medmamba_jax.runs.gallery import has_gallery

    return has_gallery(gallery, epoch)


def load_run(workdir: str | pathlib.Path, *, batch_size: int | None = None) -> Run:
    """Opens a run's folder; the run may have been trained on any number of devices.

    Args:
        workdir: the folder. A run may be training there.
        batch_size: the most images in a batch; None means the run's `train.batch_size`. The size
            changes the last digits of results.

    Raises:
        FileNotFoundError: the folder holds no run.
        UserError: `run.json` is damaged, or a later version wrote it.
    """
    workdir = expanded(workdir).resolve()
    return Run(workdir, RunDescription.read(workdir), batch_size)


@dataclasses.dataclass(frozen=True)
class TrainedWeights:
    """The weights of a trained model, with its classes and preprocessing where these are known.

    Attributes:
        model: the architecture.
        params: parameters, nested dictionaries of arrays.
        statistics: running statistics of the BatchNorms, likewise.
        outputs: the task and the class names; None where the source does not say them.
        preprocessing: how its images became arrays; None where the source does not say it.
    """

    model: MedMambaConfig
    params: Any
    statistics: Any
    outputs: tuple[str, tuple[str, ...]] | None = None
    preprocessing: Preprocessing | None = None


def read_trained_weights(source: str | pathlib.Path) -> TrainedWeights:
    """Reads the best checkpoint of a run, or a file of weights.

    Args:
        source: a run's folder, or a file of weights that `interop.read_weights` reads. One that
            `medmamba export` wrote names its classes and its preprocessing.

    Raises:
        FileNotFoundError: there is no such run or file.
        ImportError: the file needs PyTorch, which is not installed.
        UserError: the file holds no MedMamba.
    """
    source = expanded(source)
    if not source.exists():
        raise MissingFileError(f"there is no {source}: give a run's folder or a file of weights")
    if source.is_dir():
        predictor = load_run(source).predictor
    elif KEY in read_metadata(source):
        predictor, _ = read_exported(source)
    else:
        return TrainedWeights(*read_weights(source))
    params, statistics = jax.device_get((predictor.params, predictor.statistics))
    return TrainedWeights(
        predictor.model,
        params,
        statistics,
        outputs=(predictor.task, predictor.class_names),
        preprocessing=predictor.preprocessing,
    )


def _read_best(
    workdir: pathlib.Path, description: RunDescription, parallel: DataParallel
) -> tuple[int, tuple[Any, Any]]:
    """Reads parameters and statistics of the best checkpoint, and nothing more.

    A run that is training may remove the checkpoint meanwhile, because it has saved another one;
    then the new best one is read.
    """
    checkpoints = Checkpoints(workdir / CHECKPOINTS)
    while True:
        before = checkpoints.positions()
        try:
            best = checkpoints.best()
            if best is None:
                raise _no_checkpoint(workdir)
            return best.epoch, _read(checkpoints, best, description, parallel)
        except UserError:
            if checkpoints.positions() == before:
                raise


def _read(
    checkpoints: Checkpoints, best: Position, description: RunDescription, parallel: DataParallel
) -> tuple[Any, Any]:
    params, statistics, random = split_model(abstract_model(description.model))

    def placed(tree: Any) -> Any:
        return restored_like(tree, parallel.of_state(tree))

    if description.format == 1:  # statistics and the random stream were one part
        like = {"params": placed(params), "variables": placed(_merged(statistics, random))}
        parts = checkpoints.restore(best, like)
        return parts["params"], _selected(parts["variables"], statistics)
    if description.averaged:
        tree = {"params": params, "statistics": statistics}
        average = checkpoints.restore(best, {"average": placed(tree)})["average"]
        return average["params"], average["statistics"]
    parts = checkpoints.restore(best, {"params": placed(params), "statistics": placed(statistics)})
    return parts["params"], parts["statistics"]


def _merged(one: Any, other: Any) -> Any:
    """Returns two nested dictionaries as one."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return other
    return {**one, **{k: _merged(one[k], v) if k in one else v for k, v in other.items()}}


def _selected(tree: Any, like: Any) -> Any:
    """Returns the part of nested dictionaries that has the structure of `like`."""
    if not isinstance(like, Mapping):
        return tree
    return {key: _selected(tree[key], value) for key, value in like.items()}


def _no_checkpoint(workdir: pathlib.Path) -> FileNotFoundError:
    return MissingFileError(
        f"{workdir} has no checkpoint yet after a whole epoch; train for one epoch first"
    )
