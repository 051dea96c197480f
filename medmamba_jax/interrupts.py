"""Ctrl-C on the command line: the program ends with one line and exit code 130.

Python alone would print a traceback. This module imports nothing that takes long, so that a program
can call it before it imports anything else.
"""

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

CODE = 128 + signal.SIGINT
_LINE = "interrupted"
_SOON = 0.02  # seconds

_Handler = Callable[[int, FrameType | None], object]


def run_program(module: str, function: str, *arguments: object) -> int:
    """Imports a function and calls it; if Ctrl-C interrupts this, ends with one line.

    While Python imports, the first Ctrl-C ends the process at once: there is nothing to tidy up,
    and some packages swallow the exception when they are imported. Later, the first Ctrl-C raises
    KeyboardInterrupt, so that temporary files are removed and locks are freed, and a second one
    ends the process at once.

    Args:
        module: the module of the function.
        function: its name. It returns an exit code. If it raises KeyboardInterrupt with a text,
            that text is the line.
        *arguments: what it is called with.

    Returns:
        The exit code.
    """
    _on_interrupt(_end_with_a_line)
    program = getattr(importlib.import_module(module), function)
    _on_interrupt(_raise_once)
    sys.unraisablehook = _raise_again
    try:
        return program(*arguments)
    except KeyboardInterrupt as interrupt:
        _on_interrupt(_end)
        print(str(interrupt) or _LINE, file=sys.stderr)
        sys.stdout.flush()
        # All has been tidied up. Python would wait for threads, such as one that compiles.
        os._exit(CODE)


def _on_interrupt(handler: _Handler) -> None:
    # A shell that starts a program in the background may let it ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def _raise_once(number: int, frame: FrameType | None) -> None:
    _on_interrupt(_end_with_a_line)
    raise KeyboardInterrupt


def _raise_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Interrupts again, soon, where Python had to ignore the exception.

    It ignores what is raised inside a finaliser or a callback of the garbage collector. JAX has
    such a callback, which often runs while a function is traced.
    """
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    _on_interrupt(_raise_once)
    threading.Timer(_SOON, os.kill, (os.getpid(), signal.SIGINT)).start()


def _end_with_a_line(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{_LINE}\n".encode())  # `print` may be what was interrupted
    os._exit(CODE)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(CODE)
