"""Decides between two steps whether a checkpoint is due, or a signal asks the run to stop."""

import itertools
import signal
import threading
import time
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

SAVE = "save"

# Slurm sends SIGUSR1 (--signal) before a job's time ends, and SIGTERM at its end; so do others who
# take a machine away. SIGHUP comes when a terminal is closed, and SIGINT is Ctrl-C.
_SIGNALS = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT")
_PREEMPTED = "SIGTERM"  # a notice of the cluster counts as this signal

_rounds = itertools.count()  # all hosts of a run count alike


class Stopped(SystemExit):
    """A signal has stopped the training. When it starts again, it continues from a checkpoint.

    If nobody catches it, the process ends without a traceback.

    Attributes:
        code: the exit code, 128 + the signal's number.
    """

    def __init__(self, name: str):
        super().__init__(128 + signal.Signals[name])


class Signals:
    """Notes the signals that ask a run to stop, while it is open; a context manager.

    A second Ctrl-C interrupts at once, as it would outside. Signals that the process ignores, as
    under `nohup`, stay ignored. Outside the main thread, where Python forbids it, nothing is noted.
    If a signal has come and nothing has stopped the run, it acts when this is closed.

    Attributes:
        asked: the name of the first signal that came, or "".
    """

    def __init__(self) -> None:
        self.asked = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for name in _SIGNALS:
                number = getattr(signal, name, None)  # Windows lacks some
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        noted = bool(self._before)
        for number in list(self._before):
            self._give_back(number)
        if self.asked and noted and kind is None:
            signal.raise_signal(signal.Signals[self.asked])

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = signal.Signals(number).name
        if number == signal.SIGINT:
            self._give_back(number)

    def _give_back(self, number: int) -> None:
        if number not in self._before:  # Ctrl-C came while the handlers were given back
            return
        before = self._before.pop(number)
        # None: a handler that Python did not install, and cannot install again.
        signal.signal(number, signal.SIG_DFL if before is None else before)


class Watch:
    """Says after each step what all hosts are to do before the next one.

    It never waits for a device.

    Args:
        signals: the signals that this host has got.
        minutes: the time between two checkpoints; 0 asks for none.
    """

    def __init__(self, signals: Signals, minutes: float):
        self._signals = signals
        self._seconds = 60 * minutes
        self._agreement = Agreement() if jax.process_count() > 1 else None
        self._since = time.monotonic()

    def saved(self) -> None:
        """Starts the clock again, because a checkpoint holds everything so far."""
        self._since = time.monotonic()

    def after(self, step: int) -> str:
        """Returns "" for nothing, `SAVE`, or the name of a signal that asks the run to stop.

        Args:
            step: steps taken since the run began. Each host calls this once after each step, when
                it knows the result of the step before.
        """
        wanted = self._signals.asked
        if not wanted and self._seconds and time.monotonic() - self._since >= self._seconds:
            wanted = SAVE
        if self._agreement is None:
            return wanted
        if _has_notice(step):
            return _PREEMPTED
        return self._agreement.after(step, wanted)

    @property
    def asked(self) -> str:
        """The name of a signal that asks the run to stop; "" on several hosts, which must agree."""
        return "" if self._agreement else self._signals.asked


class Agreement:
    """Lets all hosts do the same after the same step, by messages that need no device.

    A host that wants something writes it to the coordination service of JAX, with the number of a
    step that lies ahead. Every host looks there after each step. A step needs all hosts, and a host
    looks after step n when it knows the result of step n - 1. So when one host looks after step
    n + 2, every other host has begun step n + 1. It has then written what it wanted after step n.

    Args:
        service: the client of the service; by default that of this process.
    """

    def __init__(self, service: Any = None):
        if service is None:
            # JAX has no public way to its service. Orbax takes this one, too.
            from jax._src import distributed

            service = distributed.global_state.client
        self._service = service
        self._round = next(_rounds)
        self._done = 0

    def after(self, step: int, wanted: str) -> str:
        """Returns what all hosts do now; "" for nothing. See `Watch.after`."""
        found = self._message()
        if wanted and found is None:
            try:
                self._service.key_value_set(f"{self._folder}message", f"{step + 2} {wanted}")
            except jax.errors.JaxRuntimeError as error:  # another host was faster
                if "ALREADY_EXISTS" not in str(error):
                    raise
        if found is None or step < found[0]:
            return ""
        self._done += 1
        return found[1]

    def _message(self) -> tuple[int, str] | None:
        """Returns the message that has not been obeyed yet."""
        for _, message in self._service.key_value_dir_get(self._folder):
            step, _, wanted = message.partition(" ")
            return int(step), wanted
        return None

    @property
    def _folder(self) -> str:
        """The folder of the next message, so that no host reads those of earlier steps again."""
        return f"medmamba_jax/{self._round}/{self._done}/"


def _has_notice(step: int) -> bool:
    """Whether the cluster takes a machine away, and all hosts have agreed to stop after this step.

    JAX requires a call of its function after each step.
    """
    return bool(jax.config.jax_enable_preemption_service) and (  # type: ignore[attr-defined]
        multihost_utils.reached_preemption_sync_point(step)
    )
