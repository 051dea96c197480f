"""`medmamba demo RUN`: a page in the browser of this computer, to drop an image on."""

import argparse
import pathlib
from typing import Any

from absl import logging

from medmamba_jax.data.texts import printable
from medmamba_jax.demo.answers import Answers
from medmamba_jax.demo.server import HOST, PORT, Server, is_loopback
from medmamba_jax.parallel import say
from medmamba_jax.runs import SOURCES_OF_MODELS, load_trained


def add_demo(subcommands: Any) -> None:
    """Adds `demo` to the subcommands of a parser."""
    parser = subcommands.add_parser(
        "demo", help="open a page on this computer, to drop an image on; for research only"
    )
    parser.add_argument("source", metavar="RUN", help=SOURCES_OF_MODELS)
    parser.add_argument("--port", type=int, default=PORT, help=f"by default {PORT}")
    parser.add_argument(
        "--host",
        default=HOST,
        metavar="ADDRESS",
        help="another address than 127.0.0.1 lets other computers use the page, without a password",
    )
    parser.set_defaults(run=demo)


def demo(options: argparse.Namespace) -> None:
    """Serves the page until it is interrupted.

    Raises:
        FileNotFoundError: there is no such run.
        UserError: the port is taken, or the address is none of this computer.
    """
    trained = load_trained(options.source)
    synthetic = trained.training is not None and trained.training.synthetic
    title = printable(pathlib.Path(options.source).resolve().name)
    answers = Answers(trained.predictor, title, synthetic=synthetic)
    with Server(answers, options.host, options.port) as server:
        if not is_loopback(options.host):
            logging.warning(
                "every computer that reaches %s can use this page, without a password and without"
                " encryption; images of patients may be seen on the way",
                options.host,
            )
        say("compiling the model, up to a minute on a CPU ...")
        answers.warm()
        say(f"{server.url}  (for research only; no medical device; Ctrl-C ends)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("")
