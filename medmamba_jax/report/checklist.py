"""What was done, item by item, as reporting guidelines for prediction models ask.

The items and their numbers are those of TRIPOD+AI (Collins et al. 2024, BMJ 385, e078378; the text
is free at Europe PMC, PMC11019967). CLAIM (Tejani et al. 2024, Radiology: Artificial Intelligence
6, e240300) asks for the same topics. The words are our own.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from medmamba_jax.assessment.calibration import doubt_about
from medmamba_jax.data.images.augmentation import POLICIES
from medmamba_jax.metrics import METRICS
from medmamba_jax.report.facts import Evaluation, RunFacts
from medmamba_jax.report.wording import heading, interval, number, shared_text, where_from
from medmamba_jax.runs.description import DEVICE, HOST

AUTHORS = "to be filled in by the authors"


@dataclasses.dataclass(frozen=True)
class Item:
    """A row of the table.

    Attributes:
        number: of TRIPOD+AI.
        topic: what the item asks for.
        answer: facts of the run -> what the run says; None where a run cannot know.
    """

    number: str
    topic: str
    answer: Callable[[RunFacts], str] | None = None


def checklist(run: RunFacts) -> list[tuple[str, str, str, bool]]:
    """Returns number, topic, answer, and whether the run knows the answer, of each item."""
    return [
        (item.number, item.topic, item.answer(run) if item.answer else AUTHORS, bool(item.answer))
        for item in ITEMS
    ]


def counts_text(run: RunFacts) -> str:
    """Returns the number of images and patients of each split as a sentence."""
    parts = []
    for split, total in run.totals.items():
        patients = f" of {run.patients[split]} patients" if split in run.patients else ""
        parts.append(f"{total} {split}{patients}")
    return f"{', '.join(parts) or 'not known'}."


def split_text(run: RunFacts) -> str:
    """Says how the images were split, and whether a patient can be in two splits."""
    settings = run.settings
    if settings.get("data.split_file"):
        how = "By a table that the authors gave (data.split_file)."
    elif fold := settings.get("data.fold"):
        how = f"Fold {fold} of a cross-validation."
    else:
        split = run.description.split or "as given with the images, or drawn by a seed"
        how = f"{split[0].upper()}{split[1:]}."
    if run.patients:
        return f"{how} {shared_text(run) or 'No patient is in two splits.'}"
    return f"{how} Patients are not known, so that one may be in several splits."


def _source(run: RunFacts) -> str:
    synthetic = "SYNTHETIC images, which a program drew. " if run.description.synthetic else ""
    return f"{synthetic}The set is called {run.description.dataset}. Origin and dates: {AUTHORS}."


def exclusions_text(run: RunFacts) -> str:
    """Says which images the run leaves out by its settings."""
    given = {
        name: run.settings[name]
        for name in ("data.exclude", "data.subset", "data.allow_unreadable")
        if run.settings.get(name)
    }
    if not given:
        return "The run leaves out no image."
    return f"The run leaves out images by {', '.join(f'{k} = {v}' for k, v in given.items())}."


def duplicates_text(run: RunFacts) -> str:
    """Says how many similar images were found."""
    if run.duplicates is None:
        return "The run did not look for equal or nearly equal images."
    found = "1 pair" if run.duplicates == 1 else f"{run.duplicates} pairs"
    were = "was" if run.duplicates == 1 else "were"
    return f"{found} of equal or nearly equal images {were} found (duplicates.csv)."


def _exclusions(run: RunFacts) -> str:
    return f"{duplicates_text(run)} {exclusions_text(run)} Exclusions before it: {AUTHORS}."


def _preparation(run: RunFacts) -> str:
    p = run.description.preprocessing
    height, width = p.image_size
    return (
        f"Resized to {height} x {width} px ({p.fit}, {p.resize_filter}), {p.channels} channel(s),"
        f" normalised by mean {_few(p.mean)} and s.d. {_few(p.std)}, window {p.window}."
        f" {augmentation_text(run)}"
    )


def augmentation_text(run: RunFacts) -> str:
    """Says how and where the training images were augmented."""
    policy = run.settings.get("data.augmentation", "none")
    if policy == "none":
        return "The training images were not augmented."
    where = {
        HOST: "at their own size, before they were resized",
        DEVICE: "after they were resized, in the training step",
    }[run.description.augmented_on]
    return f"Training images were augmented {where}. {_policy(policy)}"


def _policy(name: str) -> str:
    """Returns what a policy does, and what the policy does that it extends."""
    described = POLICIES.get(name)  # a script may have added the policy
    text = " ".join((inspect.getdoc(described) or "").partition("\n\n")[0].split())
    if not text:
        return f"Policy {name}."
    extended = re.match(r"`(\w+)`", text)
    more = f" {_policy(extended[1])}" if extended else ""
    return f"Policy {name}: {text[0].lower()}{text[1:]}{more}".replace("`", "")


def _outcome(run: RunFacts) -> str:
    kind = "any number of" if run.description.task == "multilabel" else "exactly one of"
    return f"An image shows {kind}: {', '.join(run.description.class_names)}."


def _model(run: RunFacts) -> str:
    model = run.description.model
    return (
        f"MedMamba (Yue and Li 2024, arXiv 2403.03849), variant"
        f" {run.settings.get('model.variant')}: depths {_few(model.depths)}, widths"
        f" {_few(model.dims)}."
    )


def _training(run: RunFacts) -> str:
    get = run.settings.get
    start = f"the weights of {get('train.init_from')}" if get("train.init_from") else "random"
    return (
        f"At most {get('train.epochs')} epochs, batch {get('train.batch_size')}, optimiser"
        f" {get('train.optimizer')}, learning rate {get('train.lr')}, schedule"
        f" {get('train.schedule')}, loss {get('train.loss')}, seed {get('train.seed')}. Start:"
        f" {start}. {len(run.log)} epochs were trained; epoch {run.main.epoch} was chosen by val"
        f" {run.description.best_metric}."
    )


def _imbalance(run: RunFacts) -> str:
    get = run.settings.get
    weights, sampler = get("train.class_weights"), get("train.sampler")
    shifted = (weights, sampler) != ("none", "shuffle")
    return (
        f"Class weights {weights}, sampler {sampler}."
        + " Therefore the probabilities do not reflect how common each class is in the training"
        " images." * shifted
    )


def _measures(run: RunFacts) -> str:
    intervals = run.main.results.get("intervals", {})
    how = (
        f"95 % intervals by {intervals['resamples']} bootstrap resamples of"
        f" {intervals['resampled']} ({intervals['method']}, seed {intervals['seed']})."
        if intervals
        else "No intervals."
    )
    return f"Discrimination, calibration and net benefit; see the tables. {how}"


def _thresholds(run: RunFacts) -> str:
    if run.calibration is None:
        return "No temperature and no threshold was fitted."
    return (
        f"Temperature {run.calibration.temperature:.3f}, thresholds and prediction sets were"
        f" fitted on {run.calibration.images} val images, and only applied to others. Without them"
        " an image gets the likeliest class, in a multi-label set each class above 0.5."
        f" {doubt_about(run.calibration.temperature)}"
    ).strip()


def _events(run: RunFacts) -> str:
    return " ".join(
        f"{split}: {', '.join(f'{name} {n}' for name, n in counts.items())}."
        for split, counts in run.splits.items()
    )


def _performance(run: RunFacts) -> str:
    main = run.main
    return f"On {main.name}: {headline_metrics(main)}."


def headline_metrics(evaluation: Evaluation) -> str:
    """Returns the headline metrics with their intervals, in one line."""
    results: Mapping[str, Any] = evaluation.results
    intervals = results.get("intervals", {}).get("metrics", {})
    return ", ".join(
        f"{heading(name)} {number(results[name], name)} ({interval(intervals.get(name), name)})"
        for name, metric in METRICS.items()
        if metric.in_headline and name in results
    )


def _elsewhere(run: RunFacts) -> str:
    found = [e for e in run.others(run.main, same_checkpoint=True) if e.elsewhere]
    if not found:
        return "The model was evaluated on no images but those of its own splits."
    return " ".join(f"On {where_from(e)}: {headline_metrics(e)}." for e in found)


def _code(run: RunFacts) -> str:
    return (
        f"medmamba-jax, with {', '.join(f'{k} {v}' for k, v in run.versions.items())}. run.json"
        " holds every setting."
    )


def _few(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)


ITEMS: tuple[Item, ...] = (
    Item("3a\u2013b", "Medical context, intended use, intended users"),
    Item("3c, 14", "Known inequalities between groups of people; fairness"),
    Item("4", "Objectives"),
    Item("5a\u2013b", "Source and dates of the data", _source),
    Item("6a\u2013b", "Setting, centres, eligibility of patients"),
    Item("7, 11, 20a", "Duplicates, exclusions", _exclusions),
    Item("7, 12b", "Preparation of the images", _preparation),
    Item("8a", "Outcome: the classes", _outcome),
    Item("8a\u2013c", "Who labelled the images, how, and what they knew (reference standard)"),
    Item("10", "Reasons for the number of images"),
    Item("11", "Missing data, and how they were handled"),
    Item("12a", "Partition of the data", split_text),
    Item("21", "Images and patients", counts_text),
    Item("21", "Images of each class", _events),
    Item("12c, 22", "Model", _model),
    Item("12c", "Training", _training),
    Item("12e", "Measures of performance", _measures),
    Item("12g, 15", "Outputs and thresholds", _thresholds),
    Item("13", "Class imbalance", _imbalance),
    Item("12d, 23", "Performance by sex, age, device, centre"),
    Item("17", "Ethical approval, consent"),
    Item("18a\u2013d", "Funding, conflicts of interest, protocol, registration"),
    Item("18e", "Availability of the data"),
    Item("18f", "Code and versions", _code),
    Item("19", "Involvement of patients and the public"),
    Item("20b\u2013c", "Characteristics of the patients, compared with those of the training data"),
    Item("23a", "Performance", _performance),
    Item("16, 23a", "Validation elsewhere", _elsewhere),
    Item("25\u201327", "Interpretation, limitations, use in practice"),
)
