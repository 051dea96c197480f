"""Serves the page: a small HTTP server that only pages of its own may ask."""

import errno
import http.server
import ipaddress
import logging
import secrets
import socket
import sys
import threading
import urllib.parse
from http import HTTPStatus
from typing import Any

from absl import logging as absl_logging

from medmamba_jax.demo.answers import Answers
from medmamba_jax.errors import DataUnavailableError, NonFiniteLossError, UserError

LIMIT = 64 * 2**20  # bytes of an image file
HOST = "127.0.0.1"
PORT = 8642
_PATIENCE = 30.0  # seconds without a byte, after which a connection is given up
_IMAGE_TYPE = "application/octet-stream"


class Server(http.server.ThreadingHTTPServer):
    """Answers requests for the page and for images.

    Args:
        answers: makes the page.
        host: the address to listen at.
        port: 0 takes any that is free.

    Raises:
        UserError: the port is taken, or the address is none of this computer.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, answers: Answers, host: str = HOST, port: int = PORT):
        self.answers = answers
        self.name = host
        self.one_at_a_time = threading.Lock()
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            taken = getattr(error, "errno", None) == errno.EADDRINUSE
            remedy = "give another --port" if taken else "check --host and --port"
            raise UserError(f"cannot listen at {host}, port {port} ({error}): {remedy}") from error

    @property
    def is_local(self) -> bool:
        """Whether only this computer can open the page."""
        return is_loopback(self.name)

    @property
    def url(self) -> str:
        """The address to type into a browser."""
        host = f"[{self.name}]" if ":" in self.name else self.name
        return f"http://{host}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing if the browser has closed the connection, because that is no fault."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def allows(self, host: str) -> bool:
        """Whether a request names this server by an address that another site cannot take.

        A site could let its own name lead to this computer (DNS rebinding). Its pages could then
        read the answers. So only addresses of digits, localhost, and the name given are allowed.
        """
        try:
            parts = urllib.parse.urlsplit(f"//{host}")
            name, port = parts.hostname or "", parts.port
        except ValueError:
            return False
        if (80 if port is None else port) != self.server_address[1]:
            return False
        return name in ("localhost", self.name.lower()) or _is_address(name)


def is_loopback(host: str) -> bool:
    """Whether an address leads to this computer only."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    timeout = _PATIENCE
    server_version, sys_version = "medmamba", ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self._is_allowed():
            return
        if self.path != "/":
            self._fail(HTTPStatus.NOT_FOUND, "there is no such page")
            return
        nonce = secrets.token_urlsafe(16)
        page = self.server.answers.page(nonce, LIMIT, local=self.server.is_local)
        self._send(HTTPStatus.OK, page, "text/html", nonce)

    def do_POST(self) -> None:
        if not self._is_allowed():
            return
        if self.path != "/answer":
            self._fail(HTTPStatus.NOT_FOUND, "there is no such page")
            return
        # A page of another site may not send this type without asking first, and is then refused.
        if self.headers.get_content_type() != _IMAGE_TYPE:
            self._fail(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"send a file as {_IMAGE_TYPE}")
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._fail(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is")
            return
        if int(length) > LIMIT:
            text = f"the file is larger than {LIMIT // 2**20} MiB"
            self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
            return
        content = self.rfile.read(int(length))  # before the lock, because a sender may be slow
        if not self.server.one_at_a_time.acquire(blocking=False):
            text = "another image is being looked at: try again"
            self._fail(HTTPStatus.SERVICE_UNAVAILABLE, text)
            return
        try:
            status, text = self._answer(content)
        finally:
            self.server.one_at_a_time.release()  # before a slow receiver has taken the answer
        if status is HTTPStatus.OK:
            self._send(status, text, "text/html")
        else:
            self._fail(status, text)

    def _answer(self, content: bytes) -> tuple[HTTPStatus, str]:
        try:
            if not content:
                raise UserError("the file is empty")
            return HTTPStatus.OK, self.server.answers.answer(content)
        except (UserError, DataUnavailableError, OSError, NonFiniteLossError) as error:
            return HTTPStatus.UNPROCESSABLE_ENTITY, " ".join(str(error).split())
        except Exception:
            absl_logging.exception("an image could not be looked at")
            return HTTPStatus.INTERNAL_SERVER_ERROR, "the program failed; its terminal says more"

    def _is_allowed(self) -> bool:
        """Refuses what another site asks for, by its name or from its pages."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        foreign = origin is not None and origin != f"http://{host}"
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            foreign = foreign or self.command == "POST"
        if self.server.allows(host) and not foreign:
            return True
        self._fail(HTTPStatus.FORBIDDEN, "another site may not ask this page")
        return False

    def _fail(self, status: HTTPStatus, text: str) -> None:
        self.close_connection = True  # the rest of the request is not read
        self._send(status, text, "text/plain")

    def _send(self, status: HTTPStatus, text: str, kind: str, nonce: str = "") -> None:
        content = text.encode("utf-8", "backslashreplace")
        own = f"'nonce-{nonce}'" if nonce else "'none'"
        policy = (
            f"default-src 'none'; style-src {own}; script-src {own}; img-src data:;"
            " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self.send_response(status)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *values: object) -> None:
        """Keeps requests out of the terminal."""
        logging.getLogger(__name__).debug(format, *values)
