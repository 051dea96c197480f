"""Trains or evaluates a MedMamba.

python main.py                                    a first run on synthetic images
python main.py --config=configs/image_folder.py --config.data.root=my_images
python main.py --config=configs/xray.py --config.train.lr=1e-3 --workdir=runs/lr3
python main.py --workdir=runs/lr3 --mode=evaluate
"""

import difflib
import pathlib
import re
import sys
from logging import Formatter

from absl import app, flags, logging
from ml_collections import config_flags

QUICKSTART = "configs/quickstart.py"

# Without a default here: ml_collections would check overrides against it when this is imported,
# and a mistake in one would end in a traceback. `parse_flags` supplies the quickstart.
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    f"Python file that returns the experiment, {QUICKSTART} if none is given; :testing behind it "
    "shrinks it to a trial. Single values are set with --config.<section>.<key>=<value>.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, continued if it exists. Default: runs/<config>."
)
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate"], "Train, or evaluate the workdir's best checkpoint."
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}; flags start with --")
    from medmamba_jax import Experiment
    from medmamba_jax.errors import DataUnavailableError
    from medmamba_jax.training import (
        NonFiniteLossError,
        evaluate_best,
        fit,
        prepare_evaluation,
        prepare_training,
    )

    workdir = pathlib.Path(_WORKDIR.value or default_workdir())
    try:
        experiment = Experiment.from_config_dict(_CONFIG.value)
        if _MODE.value == "train":
            run, setup = fit, prepare_training(experiment, workdir)
        else:
            typed = config_flags.get_override_values(flags.FLAGS["config"])
            run, setup = evaluate_best, prepare_evaluation(workdir, changes=typed)
    except (ValueError, OSError, NotImplementedError, DataUnavailableError) as error:
        fail(error)
    try:
        run(setup)  # outside of the above: such an error in here is not the user's
    except NonFiniteLossError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"interrupted; the same line continues the run in {workdir}", file=sys.stderr)
        sys.exit(130)


def default_workdir() -> str:
    """`runs/` and the config file's name, with its size where one was given."""
    path, _, size = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return f"runs/{pathlib.Path(path).stem}" + (f"_{size}" if size else "")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; a mistake ends the program with one line and exit code 2."""
    if not any(re.match(r"--?config(=|$)", argument) for argument in argv):
        argv = [argv[0], f"--config={pathlib.Path(__file__).parent / QUICKSTART}", *argv[1:]]
    require_config_file(argv)
    try:
        rest = flags.FLAGS(argv)
        _CONFIG.value.to_dict()  # a file that cannot be read shows only when it is looked into
        return rest
    except AttributeError as error:
        (cause,) = error.args  # ml_collections wraps a KeyError, which is wordier when printed
        fail(f"no such setting: {cause.args[0] if isinstance(cause, KeyError) else cause}")
    except (flags.Error, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections puts whole tracebacks into messages; the cause is their last line.
        lines = [line for line in str(error).splitlines() if line.strip()]
        cause = re.sub(r"^\w+Error: ", "", lines[-1]) if "Traceback" in str(error) else error
        fail(cause)


def require_config_file(argv: list[str]) -> None:
    """Ends the program with one line if --config names no file."""
    for argument in argv:
        if match := re.match(r"--?config=([^:]+)", argument):
            path = pathlib.Path(match[1])
            if not path.is_file():
                known = sorted(
                    p.stem for p in (pathlib.Path(__file__).parent / "configs").glob("*.py")
                )
                similar = difflib.get_close_matches(path.stem, known, n=1)
                meant = f" (did you mean configs/{similar[0]}.py?)" if similar else ""
                fail(f"there is no config file {path}{meant}; configs/ has {', '.join(known)}")


def fail(error: object) -> None:
    """Prints one line naming cause and remedy, and exits with code 2."""
    if isinstance(error, OSError) and error.errno is not None:  # not one of ours, which say more
        error = f"{error.strerror}: {error.filename}; check the path, and who may read and write it"
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(Formatter("warning: %(message)s"))
    app.run(main, flags_parser=parse_flags)
