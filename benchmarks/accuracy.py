"""Trains the runs behind the tables of accuracy, several at a time, and sums them up.

    python -m benchmarks.accuracy --data ../data --groups paper --gpus 4 --per-gpu 2 --minutes 9
    python -m benchmarks.accuracy --data ../data --list

`benchmarks/experiments.py` holds the table of experiments: a data set, a model, a recipe, and seeds
or folds. Each run is one command line of `main.py` (or `benchmarks.train_resnet`), in a folder of
its own below `--root`. A run that is finished is not trained again. A run that was interrupted goes
on from its last epoch. The first run of an experiment compiles its programs. The others start after
its first epoch and read the programs from JAX's compilation cache, which all runs share.

After `--minutes` no further run starts, and running ones are interrupted. `--out` gets
`summary.md`, `summary.json` with every run, and copies of `results/*.json` and of the metrics of
each epoch. `--earlier` names `summary.json` files of earlier calls, on this or on other machines.
Their runs count as finished. A run is known by its name, so give a changed recipe a new name.

Choose recipes by the columns of the validation set. Look at the columns of the test set only after
the choice.
"""

import argparse
import collections
import datetime
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.experiments import GROUPS, MODELS, Job, flags_of, jobs_of
from benchmarks.row_files import chosen, figure, markdown

_FINISHED = "finished.json"  # the driver writes it into a run's folder at the end
_SIGNAL_SECONDS = 20  # the time that a run has to end after an interrupt
_POLL_SECONDS = 1.0
_MEMORY = 0.92  # share of a GPU's memory that its runs take together


class Driver:
    """Trains runs on the GPUs of this machine; see the module.

    Args:
        args: the arguments of the command line.
        jobs: the runs.
        done: the rows of earlier calls, by the names of their runs.
    """

    def __init__(self, args: argparse.Namespace, jobs: Sequence[Job], done: Mapping[str, Any]):
        self.args = args
        self.root = pathlib.Path(args.root).resolve()
        self.waiting = [job for job in jobs if job.name not in done and not self._is_finished(job)]
        self.running: dict[Job, tuple[subprocess.Popen[bytes], int, float]] = {}
        self.failed: list[Job] = []
        self.free = [gpu for _ in range(args.per_gpu) for gpu in range(args.gpus)]
        self.end = time.monotonic() + 60 * args.minutes

    def run(self) -> None:
        """Trains until all is done or the time is over."""
        say(f"{len(self.waiting)} runs to train")
        try:
            while (self.waiting or self.running) and time.monotonic() < self.end:
                self._collect()
                while self.free and (job := self._next()) is not None:
                    self._start(job)
                time.sleep(_POLL_SECONDS)
        finally:
            self._interrupt()
            self._collect()

    def _next(self) -> Job | None:
        """Returns the next run that may start, or None.

        The first run of an experiment may start at once. While it runs, the others wait until it
        has compiled its programs.
        """
        first = {}
        for job in (*self.running, *self.waiting):
            first.setdefault(job.experiment.name, job)
        for job in self.waiting:
            leader = first[job.experiment.name]
            if leader is job or leader not in self.running or self._has_compiled(leader):
                self.waiting.remove(job)
                return job
        return None

    def _has_compiled(self, job: Job) -> bool:
        return (self.root / job.name / "metrics.jsonl").is_file()

    def _command(self, job: Job) -> list[str]:
        resnet = MODELS[job.experiment.model].startswith("resnet")
        program = ["-m", "benchmarks.train_resnet"] if resnet else ["main.py"]
        flags = flags_of(job, self.args.data)
        if resnet:
            flags.remove("--config.results.report=False")  # it adds this itself
        return [*program, *flags, *self.args.extra, f"--workdir={self.root / job.name}"]

    def _is_finished(self, job: Job) -> bool:
        """Whether the same command has trained the run to its end."""
        try:
            found = json.loads((self.root / job.name / _FINISHED).read_text())
        except FileNotFoundError:
            return False
        return found["command"] == self._command(job)

    def _start(self, job: Job) -> None:
        gpu = self.free.pop(0)
        log = self.root / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        # All runs share a folder of compiled programs. Where JAX has one already, it stays.
        shared = {"JAX_COMPILATION_CACHE_DIR": str(self.root / "compiled")}
        environment = shared | dict(os.environ)
        environment |= {
            "CUDA_VISIBLE_DEVICES": str(gpu),
            "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{_MEMORY / self.args.per_gpu:.3f}",
        }
        with log.open("a") as out:
            process = subprocess.Popen(
                [sys.executable, *self._command(job)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self.running[job] = (process, gpu, time.monotonic())
        say(f"GPU {gpu} starts {job.name}")

    def _collect(self) -> None:
        """Takes note of the runs that have ended."""
        for job, (process, gpu, begun) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[job]
            self.free.append(gpu)
            seconds = time.monotonic() - begun
            if process.returncode:
                self.failed.append(job)
                log = self.root / f"{job.name}.log"
                lines = log.read_text(errors="replace").strip().splitlines() or [""]
                say(f"{job.name} FAILED after {seconds:.0f} s: {lines[-1]}")
                continue
            content = {
                "command": self._command(job),
                "seconds": seconds,
                "date": datetime.date.today().isoformat(),
            }
            (self.root / job.name / _FINISHED).write_text(json.dumps(content, indent=2) + "\n")
            say(f"{job.name} took {seconds:.0f} s")

    def _interrupt(self) -> None:
        """Ends what still runs: first as Ctrl-C does, then by force."""
        self._collect()
        for process, _, _ in self.running.values():
            os.killpg(process.pid, signal.SIGINT)
        patience = time.monotonic() + _SIGNAL_SECONDS
        for job, (process, _, _) in list(self.running.items()):
            try:
                process.wait(max(patience - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.returncode:  # otherwise it has just finished
                del self.running[job]
                say(f"{job.name} was interrupted; the next call goes on with it")


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def row_of(root: pathlib.Path, job: Job) -> dict[str, Any] | None:
    """Returns the row of a finished run in `summary.json`; None if the run is not finished."""
    folder = root / job.name
    if not (folder / _FINISHED).is_file():
        return None
    results = {
        split: json.loads((folder / "results" / f"{split}.json").read_text())
        for split in ("val", "test")
    }
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [row["images_per_second"] for row in epochs if row["images_per_second"]]
    peak = max((row["peak_memory_bytes"] or 0 for row in epochs), default=0)
    config = json.loads((folder / "run.json").read_text())["config"]
    experiment = job.experiment
    return {
        "experiment": experiment.name,
        "data": experiment.data,
        "recipe": experiment.recipe,
        "folds": experiment.folds,
        "seed": job.seed,
        "fold": job.fold,
        "variant": config["model"]["variant"],
        "epochs": len(epochs),
        "best_epoch": results["val"]["epoch"],
        **{
            f"{split}_{metric}": results[split][metric]
            for split in results
            for metric in ("auc", "accuracy", "balanced_accuracy", "f1", "loss")
            if metric in results[split]
        },
        "images_per_second": statistics.median(rates) if rates else None,
        "peak_memory_gib": peak / 2**30 or None,
        "versions": json.loads((folder / "versions.json").read_text()),
        **json.loads((folder / _FINISHED).read_text()),
    }


def bring_home(root: pathlib.Path, out: pathlib.Path, job: Job) -> None:
    """Copies the small files of a run into the folder of the summary."""
    folder = root / job.name
    kept = [*folder.glob("results/*.json"), folder / "metrics.jsonl", folder / "run.json"]
    for path in kept:
        target = out / job.name / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table: a line for each experiment, with means and standard deviations."""
    header = ["set", "model", "recipe", "runs", "val AUC", "val balanced accuracy, %"]
    header += [
        "test AUC",
        "test accuracy, %",
        "test balanced accuracy, %",
        "best epochs",
        "img/s",
        "peak, GiB",
        "s a run",
    ]
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row["experiment"]].append(row)
    lines = []
    for same in groups.values():
        one = same[0]
        which = "folds" if one["folds"] else "seeds"
        best = [row["best_epoch"] for row in same]
        lines.append(
            [
                one["data"],
                one["variant"],
                one["recipe"],
                f"{len(same)} {which}",
                spread(same, "val_auc", 1, 3),
                spread(same, "val_balanced_accuracy", 100, 1),
                spread(same, "test_auc", 1, 3),
                spread(same, "test_accuracy", 100, 1),
                spread(same, "test_balanced_accuracy", 100, 1),
                f"{min(best)} to {max(best)} of {one['epochs']}",
                figure(_median(same, "images_per_second")),
                figure(_median(same, "peak_memory_gib"), 1),
                figure(_median(same, "seconds")),
            ]
        )
    devices = sorted({row["versions"]["device"] for row in rows})
    libraries = sorted({f"jax {r['versions']['jax']}, flax {r['versions']['flax']}" for r in rows})
    dates = sorted({row["date"] for row in rows})
    about = "; ".join([*devices, *libraries, *dates])
    text = "Means and standard deviations (n - 1) over the runs; img/s, memory and time: medians."
    return f"{markdown(header, lines)}\n\n{text}\n{about}\n"


def spread(rows: Sequence[Mapping[str, Any]], key: str, factor: float, digits: int) -> str:
    """Returns mean and standard deviation (n - 1) as text; "" if no row has a value."""
    values = [factor * row[key] for row in rows if row.get(key) is not None]
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _median(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.median(values) if values else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the data sets")
    parser.add_argument("--groups", nargs="+", default=["paper"], choices=tuple(GROUPS))
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of runs, see --list")
    parser.add_argument("--list", action="store_true", help="print the runs, and train none")
    parser.add_argument("--root", default="runs/accuracy", help="folder of the runs")
    parser.add_argument("--out", help="folder for the summary; the root by default")
    parser.add_argument("--earlier", nargs="+", default=[], help="summary.json of earlier calls")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--per-gpu", type=int, default=1, help="runs at a time on each GPU")
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument(
        "--extra", action="append", default=[], help="a further flag for every run; repeatable"
    )
    args = parser.parse_args()
    args.data = str(pathlib.Path(args.data).resolve())

    found = jobs_of([experiment for group in args.groups for experiment in GROUPS[group]])
    names = chosen([job.name for job in found], args.only)
    jobs = [job for job in found if job.name in names]
    if args.list:
        for job in jobs:
            print(job.name, *flags_of(job, args.data))
        return
    earlier = {
        row["name"]: row
        for path in args.earlier
        for row in json.loads(pathlib.Path(path).read_text())
    }
    driver = Driver(args, jobs, earlier)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that `finally` ends the runs
    out = pathlib.Path(args.out or args.root)
    try:
        driver.run()
    finally:
        rows = dict(earlier)
        for job in jobs:
            if job.name not in earlier and (row := row_of(driver.root, job)) is not None:
                rows[job.name] = {"name": job.name, **row}
                if args.out:
                    bring_home(driver.root, out, job)
        out.mkdir(parents=True, exist_ok=True)
        (out / "summary.json").write_text(json.dumps(list(rows.values()), indent=1) + "\n")
        if rows:
            (out / "summary.md").write_text(summary(list(rows.values())))
            print(summary(list(rows.values())))
    if driver.failed:
        sys.exit(f"error: {len(driver.failed)} runs failed; their output is in {driver.root}")


if __name__ == "__main__":
    main()
