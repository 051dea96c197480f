"""Joins the processes of a run on several hosts, and ends all of them if one ends.

A host is a JAX process. Without this module, the other hosts would wait for a lost one in the next
collective operation, and JAX would abort them after 100 seconds with a stack trace. Here each host
keeps a connection to the first one. If a process dies, its machine closes its connections, and the
others end at once. If a machine dies or its network breaks, they end after `SILENCE` seconds.
"""

import atexit
import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from medmamba_jax.data.texts import for_terminal
from medmamba_jax.errors import UserError

LOST = 75  # exit code of a host that ends because another is lost; it may be started again
SILENCE = 20.0  # seconds without a sign of life after which a host is lost
_BEAT = 4.0  # seconds between signs of life
_GRACE = 4.0  # seconds in which a host may end by itself, after another has ended with an error
_LAST = 8.0  # seconds for which the first host waits for the others to end before it does
_SOON = 1.0  # seconds after which this host has heard that another has ended
_CONNECT = 10.0  # seconds in which the hosts connect to each other

# Launcher -> the variables that it sets for each process, and that which counts the processes.
_LAUNCHERS = {
    "Slurm": (("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"), "SLURM_NTASKS"),
    "Open MPI": (("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_RANK"), "OMPI_COMM_WORLD_SIZE"),
}
_TPU_HOSTS = "TPU_WORKER_HOSTNAMES"  # of a TPU pod on Kubernetes, with commas between them

_watch: "_Watch | None" = None


def launcher() -> str | None:
    """Returns the name of the launcher that started several processes of this run, or None."""
    for name, (variables, count) in _LAUNCHERS.items():
        number = os.environ.get(count, "")
        if number.isdigit() and int(number) > 1 and all(v in os.environ for v in variables):
            return name
    return "TPU pod" if "," in os.environ.get(_TPU_HOSTS, "") else None


@contextlib.contextmanager
def joined_hosts(distributed: bool | None) -> Iterator[None]:
    """Joins the hosts of a run, which must happen before anything computes; a context manager.

    On one host it does nothing. On several hosts an exception that leaves it ends the other hosts,
    too; see `tell_others`.

    Args:
        distributed: True joins the hosts that JAX finds, and False none. None joins them if
            `launcher` names one.

    Raises:
        UserError: JAX finds no cluster, or the hosts do not find each other.
    """
    global _watch
    if distributed is False or (distributed is None and launcher() is None):
        yield
        return
    try:
        # JAX's own check is slower, and aborts with a stack trace. It remains for the case that the
        # hosts cannot connect to each other.
        jax.distributed.initialize(heartbeat_timeout_seconds=int(SILENCE) + 5)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the hosts cannot be joined ({reason}): JAX finds the processes of Slurm, Open MPI,"
            " TPU pods and Kubernetes (docs/distributed.md); --nodistributed trains on this host"
            " alone"
        ) from error
    if jax.process_count() == 1:
        yield
        return
    _watch = _Watch(_connected())
    try:
        yield
    except BaseException as error:
        code = _exit_code(error)
        if code == 0:
            _watch.finish()
            raise
        if isinstance(error, Exception):
            _watch.give_way()
        _watch.tell(f"{type(error).__name__}: {error}", code)
        if isinstance(error, KeyboardInterrupt):  # the caller ends the process at once
            _watch.wait()
        # JAX would wait for the other hosts at the end of the process.
        atexit.register(_watch.end, code)
        raise
    else:
        _watch.finish()


def _exit_code(error: BaseException) -> int:
    """Returns the exit code of a process that this exception ends."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def tell_others(line: str, code: int) -> None:
    """Tells the other hosts the last line of this one, which is about to end with an error.

    They print it and end with the same code, unless they end by themselves. On one host this does
    nothing.
    """
    if _watch is not None:
        _watch.tell(line, code)


class _Watch:
    """The connections of this host: of the first host to all others, of another to the first."""

    def __init__(self, peers: dict[int, socket.socket]) -> None:
        self._peers = peers
        self._open = set(peers)
        self._finished: set[int] = set()
        self._told = self._heard = False
        self._lock = threading.RLock()
        for host in peers:
            threading.Thread(target=self._listen, args=(host,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def tell(self, line: str, code: int) -> None:
        """Tells the other hosts that this one ends with an error. Only the first call counts."""
        with self._lock:
            if not self._told:
                self._told = True
                self._send({"host": jax.process_index(), "line": line, "code": code})
                # It may wait for the other hosts before it ends, such as for a checkpoint.
                late = threading.Timer(SILENCE, self.end, (code,))
                late.daemon = True
                late.start()

    def give_way(self) -> None:
        """Waits, if an error of this host may come from the end of another.

        Then the other's message says why, and the thread that has heard it ends this process.
        """
        time.sleep(_SOON)
        if self._heard:
            time.sleep(_GRACE + _LAST)

    def finish(self) -> None:
        """Tells the other hosts that this one has done its work."""
        self._send({"done": True})

    def end(self, code: int, line: str = "") -> None:
        """Ends this process at once; the first host does so after the others."""
        with self._lock:
            self._told = True
            if line:
                sys.stdout.flush()
                os.write(2, f"error: {for_terminal(' '.join(line.split()))}\n".encode())
            self.wait()
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def wait(self) -> None:
        """Lets the first host wait until the others have ended, for some seconds.

        JAX's service runs in the first host. If it ends early, JAX aborts the others.
        """
        until = time.monotonic() + _LAST
        while jax.process_index() == 0 and self._open and time.monotonic() < until:
            time.sleep(0.05)

    def _send(self, message: dict[str, Any], without: int | None = None) -> None:
        for host, peer in self._peers.items():
            if host != without:
                with contextlib.suppress(OSError):
                    peer.sendall(json.dumps(message).encode() + b"\n")

    def _beat(self) -> None:
        while True:
            time.sleep(_BEAT)
            for peer in self._peers.values():
                with contextlib.suppress(OSError):
                    peer.sendall(b"\n")

    def _listen(self, host: int) -> None:
        peer = self._peers[host]
        peer.settimeout(SILENCE)
        with contextlib.suppress(OSError), peer.makefile("rb") as lines:
            for line in lines:
                if line.strip():
                    self._hear(host, json.loads(line))
        self._open.discard(host)
        if host not in self._finished and not self._told:
            gone = f"host {host} is gone: start the same command again on every host to continue"
            self._send({"host": host, "line": gone, "code": LOST}, without=host)
            self.end(LOST, gone)

    def _hear(self, host: int, message: dict[str, Any]) -> None:
        if "done" in message:
            self._finished.add(host)
            return
        self._heard = True
        self._send(message, without=host)
        if message["code"] != LOST:
            # This host may be about to end for the same reason, and to say so itself.
            self._finished.add(host)
            time.sleep(_GRACE)
        if not self._told:
            said_by = "" if message["code"] == LOST else f"host {message['host']} stopped: "
            self.end(message["code"], said_by + message["line"])


def _connected() -> dict[int, socket.socket]:
    """Connects the first host to every other; returns host -> connection, of this host."""
    server = socket.create_server(("", 0), backlog=jax.process_count())
    token = secrets.token_hex(16)
    offer = {"addresses": _addresses(), "port": server.getsockname()[1], "token": token}
    found = json.loads(text_of_first_host(json.dumps(offer)))
    peers: dict[int, socket.socket] = {}
    if jax.process_index() == 0:
        server.settimeout(_CONNECT)
        with contextlib.suppress(OSError):
            while len(peers) < jax.process_count() - 1:
                peer, _ = server.accept()
                if (host := _greeted(peer, token)) is None:
                    peer.close()
                else:
                    peers[host] = peer
    else:
        for address in found["addresses"]:
            with contextlib.suppress(OSError):
                peer = socket.create_connection((address, found["port"]), timeout=_CONNECT / 3)
                peer.sendall(f"{found['token']} {jax.process_index()}".encode())
                peers[0] = peer
                break
    server.close()
    if not peers or (jax.process_index() == 0 and len(peers) < jax.process_count() - 1):
        logging.warning(
            "the hosts cannot connect to each other, so only JAX notices a lost host, after %d"
            " seconds; check the firewall between them (docs/distributed.md)",
            int(SILENCE) + 5,
        )
    return peers


def _greeted(peer: socket.socket, token: str) -> int | None:
    """Returns the index of the host that connects; None for other programs, which know no token."""
    try:
        peer.settimeout(_CONNECT / 3)
        found, index = peer.recv(256).split()
        return int(index) if secrets.compare_digest(found, token.encode()) else None
    except (OSError, ValueError):
        return None


def _addresses() -> list[str]:
    """Returns the addresses under which other hosts may reach this one."""
    found = []
    with contextlib.suppress(OSError):
        found.append(socket.gethostbyname(socket.gethostname()))
    return [*found, socket.getfqdn(), "127.0.0.1"]


def text_of_first_host(text: str, length: int = 1024) -> str:
    """Returns the text of the first host, on every host. What is longer is cut.

    Args:
        text: of this host; only that of the first host matters.
        length: the largest number of bytes.
    """
    if jax.process_count() == 1:
        return text
    padded = np.frombuffer(text.encode()[:length].ljust(length, b"\0"), np.uint8)
    with jax.transfer_guard("allow"):
        sent = np.asarray(multihost_utils.broadcast_one_to_all(padded))
    return sent.tobytes().rstrip(b"\0").decode(errors="ignore")
