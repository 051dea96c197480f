"""Checks of the images before training. They find errors that make a medical result wrong."""

import hashlib
import json
from collections.abc import Callable, Mapping

import numpy as np
from absl import logging

from medmamba_jax.data.auditing.findings import VERSION, Findings
from medmamba_jax.data.auditing.overlaps import (
    identical_images,
    image_sizes,
    near_images,
    shared_groups,
    unreadable_images,
)
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.dataset import Dataset
from medmamba_jax.data.images.decoders import decoder_versions
from medmamba_jax.data.images.preprocessing import Preprocessing
from medmamba_jax.data.labelled_images import LabelledImages
from medmamba_jax.data.naming import listed
from medmamba_jax.errors import UserError

_ALLOW = "or set data.allow_overlap=True to go on with a warning"


def audit(
    dataset: Dataset,
    preprocessing: Preprocessing,
    config: DataConfig,
    *,
    digests: Mapping[str, str],
    say: Callable[[str], None],
) -> None:
    """Checks that splits are disjoint and that every image can be read.

    The audit compares the groups of the splits, and decodes every image once, in threads. It does
    not read synthetic images, because they are all different. If `config.audit` is False, the audit
    neither compares groups nor reads images, and reports this in a line.

    It saves its findings in `config.cache_folder`, so that the next run with the same images does
    not decode them again. The versions of the audit and of the decoders, the preprocessing, and the
    content of the images determine the name of the file. The audit does not save findings with
    unreadable images.

    The audit raises an error for an empty split, an image that cannot be decoded, and a training
    set of one class. It also raises an error for a group in two splits, and for images in two
    splits with the same pixels; with `config.allow_overlap` it only warns of these two.

    It warns of nearly equal images in two splits, equal images in one split, a class without images
    in a split, a missing test split, and a multi-label set whose images show one class each. If
    `data.window` is "auto", it also warns of a set in which only some DICOM images have a window.

    Args:
        dataset: the images.
        preprocessing: how to decode them.
        config: which checks to make, whether overlap is allowed, and where to save findings.
        digests: split name -> digest of the split.
        say: function that prints or logs a line that is neither an error nor a warning.

    Raises:
        DataUnavailableError: a package that reads the images is missing.
        UserError: one of the errors above; the message names the files and groups.
    """
    _check_splits(dataset)
    if not config.audit:
        say(
            "data.audit is False: nothing was checked for damaged images, and for patients or"
            " images in two splits"
        )
        return
    _check_groups(dataset, config.allow_overlap)
    if not dataset.synthetic:
        findings = _findings(dataset, preprocessing, config, digests, say)
        _check_images(dataset, findings, config.allow_overlap)
        if preprocessing.window == "auto" and all(findings.windows):
            logging.warning(
                "%d DICOM images name no window and %d name one, so that their contrasts differ:"
                " set data.window to LOW,HIGH for all",
                *findings.windows,
            )
        say(f"all {_total(dataset):,} images can be read, {image_sizes(findings)}")


def _check_splits(dataset: Dataset) -> None:
    if "test" not in dataset.splits:
        logging.warning(
            "no test images: the run reports the metrics of the validation images. They are too"
            " good, because the validation images also choose the best epoch"
        )
    for name, split in dataset.splits.items():
        if not len(split):
            raise UserError(f"no images are in {name}: add some, or change the split")
    counts = {name: np.array(list(row.values())) for name, row in dataset.counts().items()}
    if dataset.task == "multiclass" and (counts["train"] > 0).sum() < 2:
        raise UserError(
            f"train has images of one class only: {dataset.counts()['train']}; add images of the"
            " others"
        )
    if dataset.task == "multilabel" and all(_one_hot(split) for split in dataset.splits.values()):
        logging.warning(
            "every image shows exactly one class: if that is always so, give each image one label"
            " instead of %d, and the set becomes a multi-class set",
            len(dataset.class_names),
        )
    for name, row in counts.items():
        lacking = [repr(dataset.class_names[label]) for label in np.flatnonzero(row == 0)]
        if lacking:
            logging.warning("no image of %s shows %s", name, listed(lacking))


def _one_hot(split: LabelledImages) -> bool:
    return split.labels.shape[1] > 1 and bool((split.labels.sum(1) == 1).all())


def _check_groups(dataset: Dataset, allowed: bool) -> None:
    shared = shared_groups(dataset)
    if shared:
        _refuse(
            f"{len(shared)} of the patients (groups) are in more than one split: {listed(shared)}",
            "Put all images of each patient into one split, let the program make the splits"
            " (data.fold, or for a table data.csv.split_column='')",
            allowed,
        )


def _check_images(dataset: Dataset, findings: Findings, allowed: bool) -> None:
    problems = unreadable_images(dataset, findings)
    if problems:
        raise UserError(
            f"{len(problems)} of {_total(dataset)} images cannot be read: {listed(problems)}."
            " Replace or remove them, or let data.allow_unreadable drop damaged files"
        )
    across, within = identical_images(dataset, findings)
    if across:
        _refuse(
            f"the same pixels are in more than one split, {_times(len(across))}: {listed(across)}",
            "Keep one of these files, or, if the program makes the splits, give all of them the"
            " same patient",
            allowed,
        )
    if within:
        logging.warning(
            "the same pixels are in one split again, %s: %s", _times(len(within)), listed(within)
        )
    if findings.near:
        logging.warning(
            "nearly the same pixels are in two splits, %s: %s. Are they of one patient?",
            _times(findings.num_near),
            listed(near_images(dataset, findings), findings.num_near),
        )


def _refuse(problem: str, remedy: str, allowed: bool) -> None:
    if not allowed:
        raise UserError(f"{problem}. {remedy}, {_ALLOW}")
    logging.warning("%s. Results on such a split are too good", problem)


def _findings(
    dataset: Dataset,
    preprocessing: Preprocessing,
    config: DataConfig,
    digests: Mapping[str, str],
    say: Callable[[str], None],
) -> Findings:
    splits = dataset.splits
    state = [VERSION, decoder_versions(), preprocessing.to_dict(), digests]
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    path = config.cache_folder / "audit" / f"{key[:32]}.json"
    findings = Findings.read(path, key)
    if findings is None:
        say(f"checking {_total(dataset):,} images for damage and overlap ...")
        findings = Findings.of(splits, preprocessing.decode, preprocessing.frame)
        if not findings.unreadable:
            try:
                findings.write(path, key)
            except OSError as error:
                logging.warning(
                    "%s could not be written (%s): every run checks all images again", path, error
                )
    return findings


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _total(dataset: Dataset) -> int:
    return sum(map(len, dataset.splits.values()))
