"""Finds out how finished runs are related: which are one model, and which images they share."""

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from medmamba_jax.data.naming import listed
from medmamba_jax.errors import UserError
from medmamba_jax.metrics import Outputs
from medmamba_jax.runs.description import DEVICE, HOST, RunDescription
from medmamba_jax.runs.outputs import StoredOutputs
from medmamba_jax.runs.summaries.finished import FOLD, SEED, Finished
from medmamba_jax.runs.workdir import MAY_CHANGE, flat

# Settings that may differ between runs of one model. Those of training are no such settings.
NOT_OF_MODEL = {name for name in MAY_CHANGE if not name.startswith("train.")} | {SEED, FOLD}

_GROUPS = ("patient", "file")  # what puts images together


@dataclasses.dataclass(frozen=True)
class Model:
    """Runs that differ only in their seed and their fold, and augment images at the same place.

    Attributes:
        results: the runs, by seed and fold.
        stored: outputs for the same images, in the same order: of each run, which is a seed or a
            fold; or of each seed, where the folds' test images are put together.
        pooled: whether folds are put together.
        name: a short name of the runs' folders.
    """

    results: tuple[Finished, ...]
    stored: tuple[StoredOutputs, ...]
    pooled: bool
    name: str = ""

    @property
    def kind(self) -> str:
        if len(self.results) == 1:
            return "run"
        if not self.results[0].fold:
            return "seeds"
        if not self.pooled:
            return "folds"
        return "folds" if len(self.stored) == 1 else "folds of several seeds"

    @property
    def outputs(self) -> list[Outputs]:
        return [stored.outputs for stored in self.stored]

    @property
    def training_images(self) -> str:
        """The start of the digest of the training images; of each fold, where there are folds."""
        of = {run.fold_number: run.training_images[:12] for run in self.results}
        return ", ".join(of[fold] for fold in sorted(of))

    @property
    def augmented_on(self) -> str:
        """Where all runs augment the training images."""
        return self.results[0].description.augmented_on


def require_one_model(descriptions: Mapping[pathlib.Path, RunDescription]) -> None:
    """Checks that runs with the same settings were trained in the same way.

    Raises:
        UserError: two runs, of the same fold if there are folds, have other training images, or
            two runs augment images at different places.
    """
    first: dict[str, tuple[pathlib.Path, RunDescription]] = {}
    for place, run in descriptions.items():
        fold = flat(run.config).get(FOLD, "")
        other, expected = first.setdefault(fold, (place, run))
        if run.images_sha256.get("train") != expected.images_sha256.get("train"):
            raise UserError(
                f"{other} and {place} were trained on different images"
                f"{f' of the same fold {fold}' if fold else ''}, so they are no seeds of one model:"
                " train one of them again, in a new folder, on the images of the other"
            )
    (one, start), *others = descriptions.items()
    for place, run in others:
        if run.augmented_on != start.augmented_on:
            cache = {HOST: "memory", DEVICE: "device"}[start.augmented_on]
            raise UserError(
                f"{one} augments the training images on the {start.augmented_on}, and {place} on"
                f" the {run.augmented_on}, so they are no runs of one model: train"
                f" {place.name} from the beginning with data.cache={cache}"
            )


def models_of(found: Sequence[Finished], *, pooled: bool) -> list[Model]:
    """Puts the runs of each model together; all models have outputs for the same images.

    Args:
        found: the runs.
        pooled: whether the folds of a cross-validation are put together.

    Raises:
        UserError: two runs are the same, or the runs do not have the same images, see `summarize`.
    """
    groups: dict[str, list[Finished]] = {}
    for result in found:
        groups.setdefault(_model_of(result), []).append(result)
    models = []
    for group in groups.values():
        require_one_model({result.folder: result.description for result in group})
        results = tuple(sorted(group, key=lambda result: (result.seed, result.fold_number)))
        for one, other in itertools.pairwise(results):
            if (one.seed, one.fold) == (other.seed, other.fold):
                fold = f" and the same fold {one.fold}" if one.fold else ""
                raise UserError(
                    f"{one.folder} and {other.folder} have the same settings, the same seed"
                    f" {one.seed}{fold}: leave one of them out"
                )
        if pooled and results[0].fold:
            by_seed = [
                tuple(of) for _, of in itertools.groupby(results, lambda result: result.seed)
            ]
            models.append(Model(results, tuple(_pooled(folds) for folds in by_seed), True))
        else:
            models.append(Model(results, tuple(result.stored for result in results), False))
    return _aligned(_named(models))


def _model_of(run: Finished) -> str:
    """Returns a text that all runs of one model share.

    It holds the digest of the training images, which differs from fold to fold and is then left
    out; see `require_one_model`.
    """
    kept = {k: v for k, v in run.settings.items() if k not in NOT_OF_MODEL}
    kept[FOLD] = run.fold.partition("/")[2]
    images = "" if run.fold else run.training_images
    return json.dumps([kept, run.description.augmented_on, images], sort_keys=True)


def _pooled(folds: Sequence[Finished]) -> StoredOutputs:
    """Returns the outputs for the test images of all folds of one seed."""
    count = int(folds[0].fold.partition("/")[2])
    there = {result.fold_number for result in folds}
    missing = [f"{fold}/{count}" for fold in range(1, count + 1) if fold not in there]
    if missing:
        place = folds[0].description.augmented_on
        raise UserError(
            f"of the {count} folds with seed {folds[0].seed}"
            f"{f' and images augmented on the {place}' if place else ''},"
            f" {', '.join(missing)} is missing:"
            f" train it with --config.data.fold={missing[0]}, or give its folder, too (only"
            f" {', '.join(result.folder.name for result in folds)} given)"
        )
    whole = StoredOutputs.joined([result.stored for result in folds])
    if len(set(whole.names)) < len(whole.names):
        of: dict[str, pathlib.Path] = {}
        for result in folds:
            for name in result.stored.names:
                if name in of:
                    raise UserError(
                        f"{name} is a test image of two folds, {of[name]} and {result.folder}: the"
                        " folds were made of other images; train them again on the same ones"
                    )
                of[name] = result.folder
    return whole


def _aligned(models: Sequence[Model]) -> list[Model]:
    """Brings all outputs into the order of the first ones; facts of one become facts of all.

    Raises:
        UserError: the images or their labels differ.
    """
    first, reference = models[0].name, models[0].stored[0]
    facts: dict[str, np.ndarray] = {}
    aligned = []
    for model in models:
        stored = [_in_order(each, model.name, reference, first) for each in model.stored]
        for each in stored:
            for fact in _GROUPS:
                if fact in facts and fact in each.facts:
                    _require_same_groups(fact, facts[fact], each, model.name, first)
            if "content" not in facts:
                source = model.name
            elif "content" in each.facts:
                wrong = np.flatnonzero(facts["content"] != each.facts["content"])
                if len(wrong):
                    raise UserError(
                        f"{len(wrong)} images of {model.name} have the path of an image of"
                        f" {source}, but other content:"
                        f" {listed([reference.names[row] for row in wrong])}. Evaluate both again"
                        " on the same images"
                    )
            facts = {**each.facts, **facts}
        aligned.append(dataclasses.replace(model, stored=tuple(stored)))
    return [
        dataclasses.replace(
            model, stored=tuple(dataclasses.replace(each, facts=facts) for each in model.stored)
        )
        for model in aligned
    ]


def _require_same_groups(
    fact: str, groups: np.ndarray, stored: StoredOutputs, name: str, first: str
) -> None:
    """Raises UserError if two tables put images together in different ways, by any names."""

    def first_of_group(values: np.ndarray) -> np.ndarray:
        _, firsts, group_of = np.unique(values, return_index=True, return_inverse=True)
        return firsts[group_of]

    differs = first_of_group(groups) != first_of_group(stored.facts[fact])
    if differs.any():
        raise UserError(
            f"{name} and {first} disagree on the {fact} of the same images, such as"
            f" {stored.names[int(differs.argmax())]}: evaluate both again with the same {fact}s"
        )


def _in_order(
    stored: StoredOutputs, name: str, reference: StoredOutputs, first: str
) -> StoredOutputs:
    """Returns outputs of the model `name` in the order of the `reference`, of the model `first`."""
    here, there = set(reference.names), set(stored.names)
    if here != there:
        only = [*sorted(here - there), *sorted(there - here)]
        raise UserError(
            f"{first} and {name} were not evaluated on the same images: {len(here - there)} are"
            f" only in the first, {len(there - here)} only in the second, such as {only[0]}. Give"
            " both the same data.split_file, or evaluate both elsewhere (medmamba evaluate RUN"
            " --data=...) and use --evaluation"
        )
    row_of = {image: row for row, image in enumerate(stored.names)}
    moved = stored.take(np.array([row_of[image] for image in reference.names]))
    labels, expected = moved.outputs.labels, reference.outputs.labels
    same = (labels == expected) | ((labels != labels) & (expected != expected))  # both are NaN
    wrong = np.flatnonzero(~same.reshape(len(same), -1).all(1))
    if len(wrong):
        raise UserError(
            f"{len(wrong)} images have other labels in {name} than in {first}:"
            f" {listed([reference.names[row] for row in wrong])}. Evaluate both again with the"
            " same labels"
        )
    return moved


def _named(models: Sequence[Model]) -> list[Model]:
    """Gives each model the shortest end of its folder's path that no other model has."""
    paths = [_common_path(model) for model in models]
    for i, path in enumerate(paths):
        if paths.count(path) > 1:  # their folders do not tell them apart
            paths[i] = models[i].results[0].folder
    parts = [path.parts for path in paths]
    names = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return [
        dataclasses.replace(model, name=name) for model, name in zip(models, names, strict=True)
    ]


def _common_path(model: Model) -> pathlib.Path:
    """Returns what the paths of a model's runs begin with, such as runs/x of runs/x/seed_0."""
    folders = [str(result.folder) for result in model.results]
    if len(folders) == 1:
        return pathlib.Path(folders[0])
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*folders, strict=False))
    start = "".join(column[0] for column in columns)
    start = re.sub(r"(seed|fold|run)?[-_]?\d*$", "", start).rstrip("/\\_-. ")
    return pathlib.Path(start) if pathlib.Path(start).name else model.results[0].folder
