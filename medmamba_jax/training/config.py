"""The configuration of a run: the sections `model`, `data`, `train` and `results`.

Where a field takes one of several names, the names are those of a table: `VARIANTS`, `LOSSES`,
`OPTIMIZERS`, `SCHEDULES`, `SAMPLERS`, `METRICS`, and `POLICIES` of augmentation. A row that a
script adds to a table is a valid choice.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from ml_collections import ConfigDict

from medmamba_jax.assessment.config import ResultsConfig
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.reading.order import SAMPLERS
from medmamba_jax.errors import UserError
from medmamba_jax.files import expanded
from medmamba_jax.metrics import METRICS
from medmamba_jax.models import MedMambaConfig
from medmamba_jax.models.structure import architecture_of
from medmamba_jax.sections import Section, is_integer, is_number
from medmamba_jax.training.losses import LOSSES
from medmamba_jax.training.optimizer import OPTIMIZERS, SCHEDULES

DECAYED = ("all", "weights")
WEIGHTS = ("none", "balanced")
SKIPPED = re.compile(r"stop|skip:([1-9][0-9]*)")


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """The `model` section: a variant, and the fields that differ from it.

    Attributes:
        variant: name of an architecture in `medmamba_jax.VARIANTS`.
        in_channels: channels of the images that the model reads.
        patch_size: side of a patch of the patch embedding, in pixels.
        d_state: states of the selective scan.
        drop_rate: dropout on the embedded patches.
        attn_drop_rate: dropout on the output of SS2D.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0 at the first.
        compute_dtype: "float32" or "bfloat16".
        remat: whether the backward pass computes the blocks' activations again, which saves
            memory; a bool, or one for each stage.
        scan_implementation: name of an implementation of the scan; None takes the best for the
            device.

    A field that is None has the variant's value. `MedMambaConfig` describes the fields further.

    Raises:
        UserError: a value is not allowed.
    """

    title: ClassVar[str] = "model"

    variant: str = "medmamba_t"
    in_channels: int | None = None
    patch_size: int | None = None
    d_state: int | None = None
    drop_rate: float | None = None
    attn_drop_rate: float | None = None
    drop_path_rate: float | None = None
    compute_dtype: str | None = None
    remat: bool | tuple[bool, ...] | None = None
    scan_implementation: str | None = None

    def __post_init__(self) -> None:
        self.architecture(num_classes=2)

    def architecture(self, num_classes: int) -> MedMambaConfig:
        """Returns the architecture for this number of classes."""
        fields = self.to_dict()
        del fields["variant"]
        try:
            kind = architecture_of(self.variant)
            return kind.variant(self.variant, num_classes=num_classes, **fields)
        except ValueError as error:
            raise UserError(f"model.{error}") from error


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """The `train` section: how a model is trained. Defaults are the paper's recipe.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in a step, over all devices. The first images of the next epoch fill up
            the last batch of an epoch.
        accumulate: number of parts of a batch, which a step computes one after the other to save
            memory. The gradient is that of the whole batch, except that each part has its own
            BatchNorm statistics and draws its own dropout and drop path.
        shard_state: whether the devices share the parameters, their moving average and the
            optimiser's state, which saves memory. Otherwise each device holds all of them.
        seed: seed of the parameters, the order of images, augmentation, dropout and drop path.
        init_from: a trained model to start from: a run's folder, or an official `.pth` or
            `.safetensors` file. "" starts from random parameters.
        freeze: patterns of parameter names that are not trained, with commas between them, such as
            "patch_embed.*,stages.0.*". A frozen BatchNorm keeps its statistics, too.
        lr_backbone_factor: factor of the learning rate of every parameter outside the head.
        lr: peak learning rate.
        optimizer: "adamw", or "adam" (with `torch.optim.Adam`'s meaning of weight_decay).
        weight_decay: coefficient.
        decay: which tensors decay: "all", as PyTorch does by default, or "weights", which leaves
            out norms, biases, A_log and D.
        schedule: "constant", "cosine" (to 0 at the last step) or "step".
        warmup_epochs: epochs of linear warm-up from 0 before the schedule; may be a fraction.
        step_epochs: epochs after which the "step" schedule multiplies by `step_factor`.
        step_factor: see `step_epochs`.
        clip_norm: largest global norm of the gradients; 0 means no clipping.
        ema_decay: decay of an exponential moving average of the parameters, such as 0.999. The
            average is evaluated and saved in place of the last parameters. 0 means none. In early
            steps the decay is at most (1 + step) / (10 + step).
        loss: a name in `LOSSES`: for one class an image "cross_entropy", "focal" or "ordinal" (the
            order of the classes counts); for multi-label sets "binary_cross_entropy" or "focal".
            "auto" is the cross-entropy that fits the data set.
        focal_gamma: exponent of the "focal" loss.
        label_smoothing: in [0, 1); of the cross-entropies only.
        class_weights: for one class an image: "none", or "balanced": weights inverse to the
            classes' numbers of training images.
        pos_weights: for multi-label sets: "none", or "balanced": in training, the images that show
            a class weigh as much as those that do not.
        sampler: order of the training images: "shuffle", or "balanced": every class comes equally
            often, so that images of small classes come several times an epoch.
        best_metric: validation metric that chooses the best checkpoint, a name in `METRICS`. The
            AUC, then the loss, decide a tie. "auto" is "auc", or "balanced_accuracy" where the
            largest class has more than 3 times the training images of the smallest (for
            multi-label sets always "auc").
        patience: epochs without a better checkpoint after which training stops early; 0 means
            never. A checkpoint that wins a tie is better, too.
        checkpoint_minutes: minutes between two checkpoints inside an epoch; 0 saves none there. The
            next checkpoint replaces such a checkpoint.
        nonfinite: what to do if a loss or a gradient is NaN or infinite. "stop" ends the run.
            "skip:10" skips up to 10 such steps of the run. `nonfinite.jsonl` names their images.
        keep_every: a number n. The checkpoint of every n-th epoch stays, besides the latest and the
            best. 0 keeps no others.

    Raises:
        UserError: a value is not allowed.
    """

    title: ClassVar[str] = "train"

    epochs: int = 150
    batch_size: int = 64
    accumulate: int = 1
    shard_state: bool = False
    seed: int = 0
    init_from: str = ""
    freeze: str = ""
    lr_backbone_factor: float = 1.0
    lr: float = 1e-4
    optimizer: str = "adamw"
    weight_decay: float = 1e-4
    decay: str = "all"
    schedule: str = "constant"
    warmup_epochs: float = 0.0
    step_epochs: tuple[int, ...] = (50, 75)
    step_factor: float = 0.1
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    loss: str = "auto"
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0
    class_weights: str = "none"
    pos_weights: str = "none"
    sampler: str = "shuffle"
    best_metric: str = "auto"
    patience: int = 0
    checkpoint_minutes: float = 10.0
    nonfinite: str = "stop"
    keep_every: int = 0

    def __post_init__(self) -> None:
        for field in ("epochs", "batch_size", "accumulate"):
            self._require(field, is_integer(getattr(self, field), 1), "a positive integer")
        self._require("shard_state", isinstance(self.shard_state, bool), "True or False")
        for field in ("patience", "keep_every"):
            self._require(field, is_integer(getattr(self, field), 0), "an integer, 0 or more")
        self._require(
            "seed", is_integer(self.seed, 0) and self.seed < 2**32, "an integer in [0, 2**32)"
        )
        for field in ("init_from", "freeze"):
            self._require(field, isinstance(getattr(self, field), str), "text")
        self._require(
            "step_epochs",
            isinstance(self.step_epochs, tuple) and all(is_integer(x, 1) for x in self.step_epochs),
            "a tuple of positive integers",
        )
        for field in ("lr", "step_factor", "lr_backbone_factor"):
            value = getattr(self, field)
            self._require(field, is_number(value) and value > 0, "a positive number")
        for field in (
            "weight_decay",
            "warmup_epochs",
            "clip_norm",
            "focal_gamma",
            "checkpoint_minutes",
        ):
            value = getattr(self, field)
            self._require(field, is_number(value) and value >= 0, "a number, 0 or more")
        for field in ("label_smoothing", "ema_decay"):
            value = getattr(self, field)
            self._require(field, is_number(value) and 0 <= value < 1, "a number in [0, 1)")
        self._require(
            "warmup_epochs", self.warmup_epochs <= self.epochs, f"at most epochs = {self.epochs}"
        )
        choices = {
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "decay": DECAYED,
            "loss": ("auto", *LOSSES),
            "class_weights": WEIGHTS,
            "pos_weights": WEIGHTS,
            "sampler": SAMPLERS,
            "best_metric": ("auto", *METRICS),
        }
        for field, allowed in choices.items():
            self._require(field, getattr(self, field) in allowed, f"one of {tuple(allowed)}")
        self._require(
            "nonfinite",
            isinstance(self.nonfinite, str) and SKIPPED.fullmatch(self.nonfinite) is not None,
            "'stop', or 'skip:' and the number of steps, 1 or more, that the run may skip",
        )
        self._require_options_of_the_loss()
        self._require(
            "class_weights",
            self.class_weights == "none" or self.sampler == "shuffle",
            "'none' with train.sampler = 'balanced', which evens the classes out already",
        )

    @property
    def most_skipped(self) -> int:
        """The number of steps that the run may skip because of `nonfinite`; 0 for "stop"."""
        found = SKIPPED.fullmatch(self.nonfinite)
        return int(found[1] or 0) if found else 0

    @property
    def frozen(self) -> tuple[str, ...]:
        """The patterns in `freeze`."""
        return tuple(pattern.strip() for pattern in self.freeze.split(",") if pattern.strip())

    def _require_options_of_the_loss(self) -> None:
        """Raises UserError if an option is set that the chosen loss does not read."""
        if self.loss == "auto":
            chosen = [loss for loss in LOSSES.values() if loss.automatic]
        else:
            chosen = [LOSSES[self.loss]]
        read = {option for loss in chosen for option in loss.options}
        every = {option for loss in LOSSES.values() for option in loss.options}
        for option in sorted(every - read):
            default = type(self).__dataclass_fields__[option].default
            self._require(
                option,
                getattr(self, option) == default,
                f"{default} with train.loss = {self.loss!r}, which does not read it",
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run.

    Attributes:
        model: the architecture.
        data: the images, and how they become arrays.
        train: the training.
        results: how results are computed.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    results: ResultsConfig = dataclasses.field(default_factory=ResultsConfig)

    @classmethod
    def of(cls, config: "Config | ConfigDict") -> "Config":
        """Returns a configuration as it is, or reads what a config file returned.

        Raises:
            UserError: it is neither, or as `from_dict`.
        """
        if isinstance(config, cls):
            return config
        if not isinstance(config, ConfigDict):
            raise UserError(
                "a config is a ConfigDict, such as medmamba_jax.default_config() returns; got a"
                f" {type(config).__name__}"
            )
        return cls.from_dict(config.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """Builds a configuration from nested dictionaries. Missing keys keep their defaults.

        Args:
            values: section -> key -> value, as `to_dict` returns it, also after a trip through
                JSON.

        Raises:
            UserError: a section or key is unknown, or a value is not allowed.
        """
        sections: dict[str, Any] = {
            "model": ModelConfig,
            "data": DataConfig,
            "train": TrainConfig,
            "results": ResultsConfig,
        }
        if unknown := sorted(set(values) - set(sections)):
            raise UserError(f"a config has the sections {list(sections)}, but not {unknown}")
        return cls(
            **{name: section.from_dict(values.get(name, {})) for name, section in sections.items()}
        )

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Returns nested dictionaries that JSON can hold."""
        return dataclasses.asdict(self)

    def with_absolute_paths(self) -> "Config":
        """Returns the configuration with every path absolute, so that it works in any folder."""
        source = self.train.init_from
        if source:
            source = str(expanded(source).absolute())
        train = dataclasses.replace(self.train, init_from=source)
        return dataclasses.replace(self, data=self.data.with_absolute_paths(), train=train)
