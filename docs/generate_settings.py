"""Writes docs/settings.md from the dataclasses and tables that define the settings.

    python docs/generate_settings.py

A test fails if the page differs from the output of this script.
"""

import dataclasses
import inspect
import json
import math
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from medmamba_jax.assessment.config import ResultsConfig
from medmamba_jax.data import SOURCES, LabelledImages
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.images.augmentation import ON_DEVICE, POLICIES
from medmamba_jax.data.images.preprocessing import RESIZE_FILTERS
from medmamba_jax.data.reading import cache_places
from medmamba_jax.data.reading.order import SAMPLERS
from medmamba_jax.data.split_names import PUBLIC_SPLITS
from medmamba_jax.metrics import METRICS
from medmamba_jax.models import VARIANTS, MedMambaConfig, abstract_weights
from medmamba_jax.ops.scan import IMPLEMENTATIONS
from medmamba_jax.runs.workdir import MAY_CHANGE
from medmamba_jax.sections import Section
from medmamba_jax.training.config import DECAYED, WEIGHTS, ModelConfig, TrainConfig
from medmamba_jax.training.losses import LOSSES
from medmamba_jax.training.optimizer import OPTIMIZERS, SCHEDULES

PAGE = pathlib.Path(__file__).with_name("settings.md")

_INTRODUCTION = """\
# Settings

<!-- Written by docs/generate_settings.py; change the docstrings it reads, and run it again. -->

A setting is a flag, `--config.<section>.<key>=<value>`, or a line of a config file,
`config.<section>.<key> = <value>`. Values with several numbers are written with commas, such as
`--config.data.mean=0.485,0.456,0.406`. `configs/` has examples, and `main.py --help` the other
flags."""


def page() -> str:
    """Returns the whole page."""
    parts = [_INTRODUCTION]
    for section in (ModelConfig, DataConfig, TrainConfig, ResultsConfig):
        parts += _section(section)
    parts += [_may_change(), *_choices()]
    return "\n\n".join(parts) + "\n"


def attributes(cls: type) -> dict[str, str]:
    """Returns name -> text, as the part "Attributes:" of a class's docstring has them."""
    lines = inspect.cleandoc(cls.__doc__ or "").splitlines()
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines[lines.index("Attributes:") + 1 :]:
        if line and not line.startswith(" "):
            break
        if entry := re.match(r" {2,4}(\w+(?:, \w+)*): (.*)", line):
            names, text = entry[1].split(", "), entry[2]
        else:
            text = line.strip()
        for name in names:
            found[name] = f"{found.get(name, '')} {text}".strip()
    return found


def _section(section: type[Section]) -> list[str]:
    """Returns the parts for a section of the configuration and the sections inside it."""
    described, rows, inner = attributes(section), [], []
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        if isinstance(field.type, type) and issubclass(field.type, Section):
            inner.append(field.type)
        else:
            rows.append((f"`{field.name}`", _default(section, field), described[field.name]))
    parts = [
        f"## `{section.title}`",
        _first_paragraph(section),
        _table(("key", "default", "meaning"), rows),
    ]
    return parts + [part for nested in inner for part in _section(nested)]


def _default(section: type[Section], field: dataclasses.Field[Any]) -> str:
    if section is ModelConfig and field.default is None:
        value = MedMambaConfig.__dataclass_fields__[field.name].default
        return f"the variant's, or `{value}`"
    return f"`{json.dumps(field.default) if isinstance(field.default, str) else field.default}`"


def _may_change() -> str:
    keys = ", ".join(f"`{key}`" for key in MAY_CHANGE)
    return (
        "## What may change when a run is continued\n\n"
        f"{keys}. `train.epochs` may not change with `train.schedule=cosine`, because that"
        " schedule ends with the last epoch. `medmamba evaluate` takes those that begin with"
        " `data.` or `results.` as flags, such as `--data.path`.\n\n"
        "If you start a finished run again with another `results.resamples` or `results.seed`, the"
        " program evaluates it again, and replaces its results. It does the same if"
        " `results.report` is on and the pictures of the report are missing. `run.json` keeps the"
        " settings of the training."
    )


def _choices() -> list[str]:
    """Returns the parts for the tables that settings take their names from."""
    return [
        "## Choices",
        "A script may add rows to most of these tables; see [architecture.md](architecture.md).",
        "### Variants (`model.variant`)",
        _table(
            ("name", "block", "depths", "dims", "parameters with 1000 classes"),
            [_variant(name) for name in VARIANTS],
        ),
        "T, S, B and v1 are those of the official code. The paper prints 23.5M and 48.1M"
        " parameters for S and B; the depths of the variants with `_paper` give these sizes."
        " `medmamba_nano` is not in the paper: it is for CPUs and for tests.",
        "### Scans (`model.scan_implementation`)",
        f"{_names(IMPLEMENTATIONS)}; [scan.md](scan.md) describes them.",
        "### Tasks",
        f"The images decide the task: {inspect.getdoc(LabelledImages.task)}",
        "### Losses (`train.loss`)",
        _table(
            ("name", "task", "meaning", "other settings that it reads", "`auto`"),
            [
                (
                    f"`{name}`",
                    task,
                    _first_paragraph(function),
                    ", ".join(f"`{option}`" for option in loss.options),
                    "yes" if task in loss.automatic else "",
                )
                for name, loss in LOSSES.items()
                for task, function in loss.of_task.items()
            ],
        ),
        "### Samplers (`train.sampler`)",
        _table(
            ("name", "tasks", "meaning"),
            [
                (f"`{name}`", ", ".join(sampler.tasks), _first_paragraph(sampler.order))
                for name, sampler in SAMPLERS.items()
            ],
        ),
        "### Metrics (`train.best_metric`)",
        _table(
            ("name", "heading", "tasks", "better", "of each class", "in the line of an epoch"),
            [
                (
                    f"`{name}`",
                    metric.heading,
                    ", ".join(metric.tasks),
                    "higher" if metric.higher_is_better else "lower",
                    "yes" if metric.of_class else "",
                    "yes" if metric.in_headline else "",
                )
                for name, metric in METRICS.items()
            ],
        ),
        "### Augmentation (`data.augmentation`)",
        _described(POLICIES),
        f"Only the training step can apply {' and '.join(f'`{name}`' for name in ON_DEVICE)};"
        " see [data.md](data.md#augmentation).",
        "### Sources (`data.path`, `data.name`)",
        _table(
            ("source", "what `data.path` or `data.name` points at", "its own section"),
            [
                (name, source.points_at, f"`data.{name}`" if _has_section(name) else "")
                for name, source in reversed(SOURCES.items())
            ],
        ),
        "### Splits of public sets (`data.public.splits`)",
        _table(("name", "meaning"), [(f"`{k}`", v) for k, v in PUBLIC_SPLITS.items()]),
        "### Caches (`data.cache`)",
        inspect.cleandoc(cache_places.__doc__ or ""),
        "### Optimizers (`train.optimizer`)",
        _described(OPTIMIZERS),
        "### Others",
        _table(
            ("setting", "choices"),
            [
                ("`train.schedule`", _names(SCHEDULES)),
                ("`train.decay`", _names(DECAYED)),
                ("`train.class_weights`, `train.pos_weights`", _names(WEIGHTS)),
                ("`data.resize`", _names(RESIZE_FILTERS)),
            ],
        ),
    ]


def _variant(name: str) -> tuple[str, ...]:
    config = MedMambaConfig.variant(name)
    params, _ = abstract_weights(config)
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    depths, dims = (", ".join(map(str, values)) for values in (config.depths, config.dims))
    return (f"`{name}`", config.block, depths, dims, f"{parameters:,}")


def _has_section(name: str) -> bool:
    return name in DataConfig.__dataclass_fields__


def _described(table: dict[str, Any]) -> str:
    """Returns the names of a table with the first paragraphs of what they stand for."""
    return _table(("name", "meaning"), [(f"`{k}`", _first_paragraph(v)) for k, v in table.items()])


def _first_paragraph(documented: Any) -> str:
    paragraph = inspect.cleandoc(documented.__doc__ or "").split("\n\n")[0]
    return " ".join(paragraph.split())


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in x)} |" for x in lines)


if __name__ == "__main__":
    PAGE.write_text(page())
