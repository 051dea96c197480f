"""What the steps of an epoch have returned, which checkpoints inside the epoch hold."""

import dataclasses
from typing import Any

import jax
import numpy as np

from medmamba_jax.errors import NonFiniteLossError
from medmamba_jax.metrics import Outputs, values
from medmamba_jax.models.structure import by_name
from medmamba_jax.training.health import groups, ratios_row, with_kept
from medmamba_jax.training.nonfinite import REMEDY, images_of_step, is_finite, note_step
from medmamba_jax.training.start import TrainingRun

_PART = "outputs"  # the name of the part of a checkpoint
_NAMES = ("loss", "grad_norm", "logits", "label")  # of what a step returns
_RATIOS = "update_ratios"


class EpochOutputs:
    """The outputs of an epoch's steps so far, in order.

    A checkpoint inside an epoch holds it, so that the metrics of the epoch are those of a run that
    was never stopped.

    Args:
        run: the run, at its first step of the epoch or inside it.

    Attributes:
        ratios: what `update_ratios` returned for the last step; zeros before.
    """

    def __init__(self, run: TrainingRun):
        self._run = run
        self.ratios = np.zeros(1 + len(groups(run.state.params)), np.float32)
        self._steps: list[dict[str, Any]] = []
        if run.progress.steps:
            self._read()
        self._fetched = len(self._steps)

    @property
    def count(self) -> int:
        """The number of steps."""
        return len(self._steps)

    def add(self, output: dict[str, jax.Array]) -> None:
        """Adds the outputs of a step, which the device may still compute."""
        self._steps.append(output)

    def is_ready(self) -> bool:
        """Whether the device has finished the last step."""
        return self._fetched == len(self._steps) or self._steps[-1]["loss"].is_ready()

    def fetch(self, count: int) -> None:
        """Copies the outputs of the first `count` steps to the host.

        Raises:
            NonFiniteLossError: one of them is not finite, and the run may not skip it.
        """
        for i in range(self._fetched, count):
            output = jax.device_get(self._steps[i])
            norms = output.pop("grad_norms")
            self._steps[i] = output
            self._fetched = i + 1
            if not is_finite(output):
                run, train = self._run, self._run.config.train
                step = run.progress.epoch * run.steps + i + 1
                gradients = dict(zip(by_name(run.state.params), norms.tolist(), strict=True))
                images = images_of_step(run.dataset.splits["train"], train, step)
                note_step(run.workdir, step, output, gradients, images, train.most_skipped)

    def save(self) -> None:
        """Saves a checkpoint inside the epoch; `fetch` must have fetched all outputs."""
        run = self._run
        # The checkpoint before this epoch stays until the epoch ends, because its loss may then be
        # a spike.
        progress = dataclasses.replace(
            with_kept(run.progress, run.progress.epoch), steps=self.count
        )
        arrays = {name: np.stack([output[name] for output in self._steps]) for name in _NAMES}
        run.store.save(progress, run.state.to_parts() | {_PART: arrays | {_RATIOS: self.ratios}})

    def _read(self) -> None:
        """Reads the outputs in the checkpoint from which the run continues."""
        run, count = self._run, self._run.progress.steps
        assert run.step is not None  # steps are left, or the validation of this epoch
        _, returned = run.step.out_info
        like = {
            name: np.empty((count, *returned[name].shape), returned[name].dtype) for name in _NAMES
        }
        restored = run.store.restore(run.progress.position, {_PART: like | {_RATIOS: self.ratios}})
        arrays = restored[_PART]
        self.ratios = arrays.pop(_RATIOS)
        self._steps = [{name: arrays[name][i] for name in _NAMES} for i in range(count)]

    def measured(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns metrics, and other numbers for the log. Steps that were skipped do not count."""
        run = self._run
        taken = [output for output in self._steps if is_finite(output)]
        if not taken:
            raise NonFiniteLossError(
                f"no step of epoch {run.progress.epoch + 1} had a finite loss and gradient;"
                f" {REMEDY}"
            )
        logits, labels = (
            np.concatenate([output[name] for output in taken]) for name in ("logits", "label")
        )
        found = values(Outputs(run.dataset.task, run.dataset.class_names, labels, logits))
        found["loss"] = float(np.mean([output["loss"] for output in taken]))
        others: dict[str, Any] = {
            "grad_norm": float(np.mean([output["grad_norm"] for output in taken]))
        }
        if run.config.train.most_skipped:
            others["skipped_steps"] = self.count - len(taken)
        return found, others | ratios_row(run.state.params, self.ratios)
