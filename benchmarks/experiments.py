"""The experiments behind the tables of accuracy: sets of images, models, recipes, seeds and folds.

`GROUPS` is the table of experiments; `flags_of` makes the flags of `main.py` of one run.
`benchmarks.accuracy` trains the runs.
"""

import dataclasses
import shlex
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Images, and what depends on them.

    Attributes:
        flags: flags of `main.py`; `{data}` stands for the folder of `--data`.
        paper: flags that make the paper's recipe of the configuration in `flags`.
        epochs: number of epochs in the project's own recipes.
        mirrored: whether a mirror image is as likely as the image, so that a policy of augmentation
            may mirror.
    """

    flags: str
    paper: str
    epochs: int
    mirrored: bool


# configs/image_folder.py has our own recipe. The configurations of MedMNIST have the paper's.
_PAPER = (
    "--config.data.augmentation=none --config.train.lr=1e-4 --config.train.schedule=constant"
    " --config.train.warmup_epochs=0.0 --config.train.weight_decay=1e-4 --config.train.decay=all"
    " --config.train.ema_decay=0.0 --config.train.label_smoothing=0.0"
)

SETS = {
    "breastmnist": DataSet(
        "--config=configs/breastmnist.py --config.data.name="
        " --config.data.path={data}/medmnist/breastmnist.npz",
        paper="",
        epochs=100,
        mirrored=True,
    ),
    "pneumoniamnist": DataSet(
        "--config=configs/pneumoniamnist.py --config.data.name="
        " --config.data.path={data}/medmnist/pneumoniamnist.npz",
        paper="",
        epochs=30,
        mirrored=False,
    ),
    "cxr": DataSet(
        "--config=configs/image_folder.py --config.data.path={data}/cxr_kermany_224/split.csv"
        " --config.data.allow_overlap=True",
        paper=f"{_PAPER} --config.train.epochs=25",
        epochs=40,
        mirrored=False,
    ),
    "ham10000": DataSet(
        "--config=configs/image_folder.py --config.data.path={data}/ham10000_128/ham10000.csv",
        paper=f"{_PAPER} --config.train.epochs=20",
        epochs=60,
        mirrored=True,
    ),
}

MODELS = {
    "t": "medmamba_t",
    "s": "medmamba_s",
    "v1": "medmamba_v1",
    "nano": "medmamba_nano",
    "resnet18": "resnet18",
    "resnet50": "resnet50",
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One of the project's own recipes; the defaults are what most candidates share.

    Attributes:
        augmentation: a policy, without the ending `_flip`, which `DataSet.mirrored` adds.
        lr: peak learning rate, after a warm-up of 5 % of the epochs and before the cosine.
        ema: decay of the moving average of the parameters; 0 means none.
        smoothing: label smoothing.
        class_weights: as `train.class_weights`.
        weight_decay: weight decay of the weights; norms and biases do not decay.
        length: factor of the number of epochs, see `DataSet.epochs`.
        batch_size: images in a step.
        flags: further flags.
    """

    augmentation: str = "light"
    lr: float = 5e-4
    ema: float = 0.99
    smoothing: float = 0.1
    class_weights: str = "none"
    weight_decay: float = 0.05
    length: float = 1.0
    batch_size: int = 64
    flags: str = ""


# Name -> recipe. `flags_of` holds the paper's recipe.
OWN = {
    "light": Recipe(),
    "none": Recipe(augmentation="none"),
    "strong": Recipe(augmentation="strong"),
    "strong_lr3e-4": Recipe(augmentation="strong", lr=3e-4),
    "strong_lr1e-3": Recipe(augmentation="strong", lr=1e-3),
    "strong_ema999": Recipe(augmentation="strong", ema=0.999),
    "strong_unsmoothed": Recipe(augmentation="strong", smoothing=0.0),
    "strong_weighted": Recipe(augmentation="strong", class_weights="balanced"),
    "strong_long": Recipe(augmentation="strong", length=2.0),
    "light_lr3e-4": Recipe(lr=3e-4),
    "light_lr1e-3": Recipe(lr=1e-3),
    "light_ema999": Recipe(ema=0.999),
    "light_no_ema": Recipe(ema=0.0),
    "light_unsmoothed": Recipe(smoothing=0.0),
    "light_weighted": Recipe(class_weights="balanced"),
    "light_long": Recipe(length=2.0),
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Runs that differ only in their seed or their fold.

    Attributes:
        data: a key of `SETS`.
        model: a key of `MODELS`.
        recipe: a key of `OWN`; or "paper" or "paper_bfloat16"; or "default", which is that of
            configs/image_folder.py.
        seeds: values of `train.seed`. With folds there is one seed.
        folds: number of folds of a cross-validation; 0 means none.
    """

    data: str
    model: str
    recipe: str
    seeds: tuple[int, ...] = (0,)
    folds: int = 0

    @property
    def name(self) -> str:
        """The folder of its runs below the root; `medmamba summarize` takes it."""
        return f"{self.data}/{self.model}/{self.recipe}"


@dataclasses.dataclass(frozen=True)
class Job:
    """One run."""

    experiment: Experiment
    seed: int
    fold: int = 0

    @property
    def name(self) -> str:
        which = f"fold_{self.fold}" if self.fold else f"seed_{self.seed}"
        return f"{self.experiment.name}/{which}"


def _seeds(count: int) -> tuple[int, ...]:
    return tuple(range(count))


def _on_every_set(model: str, recipe: str, seeds: int) -> list[Experiment]:
    return [
        Experiment(data, model, recipe, folds=5)
        if data == "ham10000"
        else Experiment(data, model, recipe, _seeds(seeds))
        for data in SETS
    ]


# The recipe of the comparisons. docs/results.md says how it was chosen.
CHOSEN = "strong"

GROUPS: dict[str, list[Experiment]] = {
    # These runs repeat the recipe of the official code.
    "paper": [
        Experiment(data, model, "paper", _seeds(10 if data == "breastmnist" else 5))
        for data in ("breastmnist", "pneumoniamnist", "cxr")
        for model in ("t", "v1")
    ],
    # These candidates are to be compared on the validation sets.
    "tune": [experiment for recipe in OWN for experiment in _on_every_set("t", recipe, 3)],
    # These runs show what the project's own recipe adds to the paper's.
    "own": [
        *_on_every_set("t", CHOSEN, 5),
        *_on_every_set("s", CHOSEN, 3),
        *_on_every_set("v1", CHOSEN, 3),
        Experiment("ham10000", "t", "paper", folds=5),
    ],
    # A reader would otherwise use one of these models.
    "resnet": [
        experiment
        for model in ("resnet18", "resnet50")
        for experiment in _on_every_set(model, CHOSEN, 5)
    ],
    # This is what a user gets with configs/image_folder.py, without any flag.
    "default": [Experiment("cxr", "t", "default", _seeds(3))],
    "dtype": [Experiment("cxr", "t", recipe, _seeds(3)) for recipe in ("paper", "paper_bfloat16")],
}


def flags_of(job: Job, data: str) -> list[str]:
    """Returns the flags of `main.py` for a run, without its folder."""
    experiment = job.experiment
    images = SETS[experiment.data]
    flags = shlex.split(images.flags.replace("{data}", shlex.quote(data)))
    flags += [f"--config.model.variant={MODELS[experiment.model]}"]
    flags += ["--config.results.report=False", f"--config.train.seed={job.seed}"]
    if experiment.folds:
        flags += [f"--config.data.fold={job.fold}/{experiment.folds}"]
    if experiment.recipe == "default":
        return flags
    if experiment.recipe.startswith("paper"):
        flags += shlex.split(images.paper)
        if experiment.recipe == "paper_bfloat16":
            flags += ["--config.model.compute_dtype=bfloat16"]
        return flags
    recipe = OWN[experiment.recipe]
    epochs = round(recipe.length * images.epochs)
    mirrored = images.mirrored and recipe.augmentation != "none"
    settings = {
        "model.compute_dtype": "bfloat16",
        "data.augmentation": recipe.augmentation + "_flip" * mirrored,
        "train.epochs": epochs,
        "train.batch_size": recipe.batch_size,
        "train.lr": recipe.lr,
        "train.schedule": "cosine",
        "train.warmup_epochs": 0.05 * epochs,
        "train.weight_decay": recipe.weight_decay,
        "train.decay": "weights",
        "train.ema_decay": recipe.ema,
        "train.label_smoothing": recipe.smoothing,
        "train.class_weights": recipe.class_weights,
        "train.patience": 0,
    }
    flags += [f"--config.{name}={value}" for name, value in settings.items()]
    return flags + shlex.split(recipe.flags)


def jobs_of(experiments: Sequence[Experiment]) -> list[Job]:
    """Returns every run once, in the order of the experiments."""
    found = {}
    for experiment in experiments:
        folds = range(1, experiment.folds + 1) if experiment.folds else (0,)
        for seed in experiment.seeds:
            for fold in folds:
                job = Job(experiment, seed, fold)
                found.setdefault(job.name, job)
    return list(found.values())
