"""Training from the command line: `python main.py` and `medmamba train`, by absl flags.

python main.py                                    a first run on synthetic images
python main.py --config=configs/image_folder.py --config.data.path=my_images
python main.py --config=configs/xray.py --config.train.lr=1e-3 --workdir=runs/lr3
python main.py --config=configs/xray.py --workdir=runs/lr3 --resume=previous
python main.py --config=configs/xray.py --seeds=0,1,2
python main.py --config=configs/xray.py --folds=5
python main.py --workdir=runs/lr3 --mode=evaluate
python main.py --workdir=runs/lr3 --mode=predict --input=new_images
"""

import contextlib
import difflib
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from medmamba_jax.cli import DISK_FULL, MISTAKES, fail, log_warnings, main
from medmamba_jax.errors import NonFiniteLossError, NotSavedError, UserError

QUICKSTART = "configs/quickstart.py"
_PACKAGE = pathlib.Path(__file__).parent.parent
# The current folder; a checkout of the repository, beside main.py; the installed package.
_FOLDERS = (pathlib.Path(), _PACKAGE.parent, _PACKAGE)

# Without a default here: ml_collections would check overrides against it when this is imported,
# and a mistake in one would end in a traceback. `parse_flags` supplies the quickstart.
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    f"Python file that returns the configuration, {QUICKSTART} if none is given; :testing behind "
    "it shrinks it to a trial. Single values are set with --config.<section>.<key>=<value>.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, continued if it exists. Default: runs/<config>."
)
_RESUME = flags.DEFINE_string(
    "resume",
    "latest",
    "The checkpoint from which a run in the workdir continues: latest; previous, which is the"
    " newest sound one before the latest; or the name of a folder in its checkpoints/. The run"
    " removes all later ones.",
)
_SEEDS = flags.DEFINE_list(
    "seeds",
    [],
    "Train a run for each of these seeds, such as 0,1,2, into the workdir's seed_0 and so on. With"
    " --folds, train all folds with each seed.",
)
_FOLDS = flags.DEFINE_integer(
    "folds", 0, "Train all folds of a cross-validation, into the workdir's fold_1 and so on."
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "predict"],
    "Train; or evaluate the workdir's best checkpoint, or classify the images of --input with it.",
)
_INPUT = flags.DEFINE_multi_string(
    "input", [], "With --mode=predict: an image, a folder, a pattern or a CSV table; repeatable."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "With --mode=predict: a file, .csv or .jsonl. With --mode=evaluate: a new folder, which gets"
    " the results in place of the workdir.",
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "With --mode=predict: replace the output file.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    None,
    "Join the processes of a run on several hosts, which JAX finds (docs/distributed.md). By"
    " default they are joined if Slurm, Open MPI or a TPU pod on Kubernetes started several.",
)


def run(argv: Sequence[str]) -> int:
    """Runs the program; `argv` begins with its name. Returns the exit code."""
    if {"--help", "-h"} & set(argv):
        print(f"{__doc__}\n{flags.FLAGS.module_help(sys.modules[__name__])}")
        return 0
    log_warnings()
    try:
        app.run(_main, argv=list(argv), flags_parser=parse_flags)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else fail(end.code) if end.code else 0
    return 0


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(fail(f"unexpected argument {argv[1]!r}; flags start with --"))
    from medmamba_jax.hosts import joined_hosts

    with contextlib.ExitStack() as hosts:
        try:
            hosts.enter_context(joined_hosts(_DISTRIBUTED.value))
        except UserError as error:
            sys.exit(fail(error))
        _compute()


def _compute() -> None:
    from medmamba_jax.training import fit, start_run

    workdir = pathlib.Path(_WORKDIR.value or default_workdir())
    if _SEEDS.value or _FOLDS.value:
        _train_series(workdir)
        return
    try:
        if _MODE.value != "predict" and _INPUT.value:
            raise UserError("--input is for --mode=predict, which is not given")
        if _MODE.value == "train" and _OUTPUT.value:
            raise UserError("--output is for --mode=predict and --mode=evaluate: give one of them")
        if _MODE.value != "train" and _RESUME.value != "latest":
            raise UserError(f"--resume is for training, and --mode is {_MODE.value}")
        if _MODE.value == "evaluate":
            sys.exit(_evaluate(workdir))
        if _MODE.value == "predict":
            sys.exit(_predict(workdir))
        run = start_run(_CONFIG.value, workdir, resume=_RESUME.value)
    except MISTAKES as error:
        sys.exit(fail(error))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted before the first step") from None
    try:
        with run:
            fit(run)
    except UserError as error:
        sys.exit(fail(error))
    except (NonFiniteLossError, NotSavedError) as error:
        sys.exit(fail(error, code=1))
    except OSError as error:
        if error.errno not in DISK_FULL:  # it is a fault, and keeps its traceback
            raise
        sys.exit(fail(error, code=1))
    except KeyboardInterrupt:
        line = f"interrupted; the same command continues the run in {workdir}"
        raise KeyboardInterrupt(line) from None


def _train_series(workdir: pathlib.Path) -> None:
    from medmamba_jax.training.series import train_series

    try:
        if _MODE.value != "train":
            raise UserError(f"--seeds and --folds are for training, and --mode is {_MODE.value}")
        if _RESUME.value != "latest":
            raise UserError(
                "--resume is for a single run: give its --workdir, and leave --seeds and --folds"
                " out"
            )
        typed = config_flags.get_override_values(flags.FLAGS["config"])
        if _SEEDS.value and "train.seed" in typed:
            raise UserError("--seeds sets train.seed of each run: leave --config.train.seed out")
        if not all(re.fullmatch(r"\s*\d+\s*", seed) for seed in _SEEDS.value):
            raise UserError(f"--seeds must be numbers such as 0,1,2; got {','.join(_SEEDS.value)}")
        seeds = [int(seed) for seed in _SEEDS.value]
        train_series(_CONFIG.value, workdir, seeds=seeds, folds=_FOLDS.value)
    except MISTAKES as error:
        sys.exit(fail(error))
    except (NonFiniteLossError, NotSavedError) as error:
        sys.exit(fail(error, code=1))
    except KeyboardInterrupt:
        line = f"interrupted; the same command continues the series in {workdir}"
        raise KeyboardInterrupt(line) from None


def _evaluate(workdir: pathlib.Path) -> int:
    from medmamba_jax.report import report_after
    from medmamba_jax.runs import load_run
    from medmamba_jax.training import Config

    typed = dict(config_flags.get_override_values(flags.FLAGS["config"]))
    batch_size = typed.pop("train.batch_size", None)
    trained = load_run(workdir, batch_size=batch_size)
    trained.evaluate(changes=typed, output=_OUTPUT.value)
    if not _OUTPUT.value:
        report_after(trained.workdir, Config().to_dict(), wanted=trained.settings.report)
    return 0


def _predict(workdir: pathlib.Path) -> int:
    if not _INPUT.value:
        raise UserError("--mode=predict needs --input: an image, a folder or a CSV table")
    output = [f"--output={_OUTPUT.value}"] if _OUTPUT.value else []
    output += ["--overwrite"] if _OVERWRITE.value else []
    return main(["predict", str(workdir), *_INPUT.value, *output])


def default_workdir() -> str:
    """Returns `runs/` and the config file's name, with its size where one was given."""
    path, _, size = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return f"runs/{pathlib.Path(path).stem}" + (f"_{size}" if size else "")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; a mistake ends the program with one line and exit code 2."""
    arguments = list(argv)
    try:
        arguments = with_config_file(argv)
        rest = flags.FLAGS(arguments)
        config = _CONFIG.value  # a file that cannot be read is noticed only here
        if not isinstance(config, ConfigDict):
            getattr(config, "lock", None)  # raises the OSError that ml_collections put off
            raise UserError(
                f"get_config() of the config file returned a {type(config).__name__}: return"
                " medmamba_jax.default_config(), with your changes"
            )
        return rest
    except UserError as error:
        problem: object = error
    except flags.UnrecognizedFlagError as error:
        problem = f"{error}{_where_it_is(error.flagname)}"
    except Exception as error:
        # ml_collections puts whole tracebacks into messages; the cause is their last line.
        lines = [line for line in str(error).splitlines() if line.strip()]
        wrapped = "Traceback" in str(error)
        if place := _line_of_config_file(arguments, error):
            cause = lines[-1] if wrapped else f"{type(error).__name__}: {error}"
            problem = f"{place}: {cause}"
        elif isinstance(error, AttributeError):
            # ml_collections wraps a KeyError, which is wordier when printed.
            inner = error.args[0] if error.args else error
            name = str(inner.args[0] if isinstance(inner, KeyError) else inner)
            hint = _where_it_is(name.strip("'"))
            problem = f"no such setting: {name}{hint}"
        elif isinstance(error, (flags.Error, KeyError, TypeError, ValueError, OSError)):
            problem = re.sub(r"^[\w.]+Error: ", "", lines[-1]) if wrapped else error
        else:
            raise
    sys.exit(fail(problem))


def _line_of_config_file(arguments: Sequence[str], error: Exception) -> str | None:
    """Returns `file:line` of the config file where its code raised the error; else None."""
    path = next((a.partition("=")[2] for a in arguments if a.startswith("--config=")), "")
    path = path.partition(":")[0]
    raised = "".join(traceback.format_exception(error))
    lines = re.findall(rf'File "[^"\n]*{re.escape(path)}", line (\d+)', raised)
    return f"{path}:{lines[-1]}" if path and lines else None


def with_config_file(argv: Sequence[str]) -> list[str]:
    """Returns the arguments with the path of an existing config file; see `_FOLDERS`.

    Raises:
        UserError: there is no such file.
    """
    arguments = list(argv)
    for i, argument in enumerate(arguments):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL):
            if match[1] is None and i + 1 == len(arguments):
                raise UserError("--config needs a value: a config file")
            typed = arguments.pop(i + 1) if match[1] is None else match[1]
            arguments[i] = f"--config={_found(typed)}"
            return arguments
    return [arguments[0], f"--config={_found(QUICKSTART)}", *arguments[1:]]


def _found(typed: str) -> str:
    """Returns the path of a config file, with the size that may stand behind it."""
    path, colon, size = typed.partition(":")
    for folder in _FOLDERS:
        if (folder / path).is_file():
            return f"{folder / path}{colon}{size}"
    known = sorted(
        {file.stem for folder in _FOLDERS for file in (folder / "configs").glob("[!_]*.py")}
    )
    similar = difflib.get_close_matches(pathlib.Path(path).stem, known, n=1)
    meant = f" (did you mean configs/{similar[0]}.py?)" if similar else ""
    raise UserError(f"there is no config file {path}{meant}; configs/ has {', '.join(known)}")


def _where_it_is(flag: str) -> str:
    """Returns a hint if a flag is the last part of a setting's name, such as `lr`."""
    from medmamba_jax.runs.workdir import flat
    from medmamba_jax.training import default_config

    settings = flat(default_config().to_dict())
    named = [f"--config.{name}" for name in settings if name.rpartition(".")[2] == flag]
    return f": did you mean {' or '.join(named)}?" if named else ""
