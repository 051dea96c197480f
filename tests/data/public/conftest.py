"""Archives of the published layouts, served over HTTP by a server that can fail on purpose."""

import contextlib
import dataclasses
import hashlib
import http.server
import io
import threading
import zipfile

import pytest

from medmamba_jax.data import DataConfig, build_dataset
from medmamba_jax.data.config import PublicConfig
from medmamba_jax.data.public.catalogue import CATALOGUE
from medmamba_jax.data.public.facts import Archive


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`.

    Attributes:
        files: name -> content.
        break_after: bytes after which a connection is closed; None for never.
        go_on: without it, an answer stops half-way.
        sends_parts: whether Range is understood.
        names_versions: whether an answer carries an ETag.
        asked_for: the Range header of every request.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.break_after = None
        self.go_on = threading.Event()
        self.go_on.set()
        self.sends_parts = True
        self.names_versions = True
        self.asked_for = []

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked_for.append(wanted)
        content = server.files.get(self.path.lstrip("/"))
        if content is None:
            self.send_error(404)
            return
        version = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        if wanted and server.sends_parts and self.headers.get("If-Range") == version:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if server.names_versions:
            self.send_header("ETag", version)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        answer = content[start:][: server.break_after]
        with contextlib.suppress(ConnectionError):  # the client may have ended
            self.wfile.write(answer[: len(answer) // 2])
            server.go_on.wait()
            self.wfile.write(answer[len(answer) // 2 :])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def publish(server, monkeypatch):
    """Returns a function (name, content, **checksums) that makes this the published archive."""

    def publish(name, content, **checksums):
        published = CATALOGUE[name]
        server.files[published.archive.name] = content
        archive = Archive(server.url(published.archive.name), **checksums)
        monkeypatch.setitem(CATALOGUE, name, dataclasses.replace(published, archive=archive))

    return publish


@pytest.fixture
def build(tmp_path):
    """Returns a function (name, **data settings) -> the data set, prepared in `tmp_path`."""

    def build(name, root="tfds", **fields):
        keys = {field.name for field in dataclasses.fields(PublicConfig)} & fields.keys()
        public = PublicConfig(
            data_dir=str(tmp_path / root), **{key: fields.pop(key) for key in keys}
        )
        return build_dataset(DataConfig(name=name, public=public, **fields))

    return build


def zipped(files, compression=zipfile.ZIP_STORED):
    """Bytes of a zip; a name that ends in "/" is a folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.mkdir(name) if name.endswith("/") else archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(name="zipped")
def zipped_fixture():
    return zipped


def contents(dataset):
    """split -> {image bytes: class name}."""
    return {
        name: {split.read(i): split.label_name(i) for i in range(len(split))}
        for name, split in dataset.splits.items()
    }


@pytest.fixture(name="contents")
def contents_fixture():
    return contents
