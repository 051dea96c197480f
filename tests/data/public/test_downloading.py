"""Downloads that end early, go on, find the file changed, and meet each other."""

import errno
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from medmamba_jax import locking
from medmamba_jax.data.public.downloading import download

NAME = "file.bin"


@pytest.fixture
def content():
    return np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "folder" / NAME


def broken_off(server, target, content, after):
    server.files[NAME] = content
    server.break_after = after
    with pytest.raises(ConnectionError, match=rf"broke off after {after} of {len(content)} bytes"):
        download(server.url(NAME), target)
    server.break_after = None
    assert not target.exists()


def complete(target, content):
    """The file is there, and nothing but the lock is left beside it."""
    names = {path.name for path in target.parent.iterdir()}
    return target.read_bytes() == content and names == {NAME, f"{NAME}.lock"}


def test_in_one_go(server, target, content):
    server.files[NAME] = content
    download(server.url(NAME), target)
    assert complete(target, content) and server.asked_for == [None]


def test_goes_on_where_it_broke_off(server, target, content):
    broken_off(server, target, content, 1_000_001)
    download(server.url(NAME), target)
    assert complete(target, content) and server.asked_for == [None, "bytes=1000001-"]


def test_breaks_off_twice(server, target, content):
    broken_off(server, target, content, 700_000)
    server.break_after = 600_000
    with pytest.raises(ConnectionError, match="broke off after 1300000 of 3000000"):
        download(server.url(NAME), target)
    server.break_after = None
    download(server.url(NAME), target)
    assert complete(target, content)
    assert server.asked_for == [None, "bytes=700000-", "bytes=1300000-"]


def test_a_file_that_changed_meanwhile_is_not_pieced_together(server, target, content):
    broken_off(server, target, content, 1_000_000)
    server.files[NAME] = changed = content[::-1]
    download(server.url(NAME), target)
    assert complete(target, changed)


def test_a_file_that_became_shorter_than_what_is_there(server, target, content):
    broken_off(server, target, content, 1_000_000)
    server.files[NAME] = content[:10]
    download(server.url(NAME), target)
    assert complete(target, content[:10])


def test_what_is_there_is_more_than_the_server_has(server, target, content):
    broken_off(server, target, content, 1_000_000)
    with target.with_name(f"{NAME}.part").open("ab") as part:
        part.write(content)
    download(server.url(NAME), target)
    assert complete(target, content)


@pytest.mark.parametrize("lacking", ["sends_parts", "names_versions"])
def test_a_server_that_cannot_go_on_starts_again(server, target, content, lacking):
    setattr(server, lacking, False)
    broken_off(server, target, content, 1_000_000)
    download(server.url(NAME), target)
    assert complete(target, content)


def test_errors_are_os_errors(server, target):
    with pytest.raises(OSError, match="404"):
        download(server.url(NAME), target)
    with pytest.raises(OSError, match="refused"):
        download("http://127.0.0.1:9/file", target)
    assert not target.exists()


PROGRAM = """
import pathlib, sys
from medmamba_jax.data.public.downloading import download
download(sys.argv[1], pathlib.Path(sys.argv[2]))
"""


def until(happened):
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def two_processes(server, target, content, tmp_path):
    """The first is half-way with the download and the second waits for it."""
    server.files[NAME] = content
    server.go_on.clear()
    log = tmp_path / "log"
    command = [sys.executable, "-c", PROGRAM, server.url(NAME), str(target)]
    with log.open("wb") as stderr:
        first = subprocess.Popen(command)
        until(lambda: server.asked_for)
        part = target.with_name(f"{NAME}.part")
        until(lambda: part.exists() and part.stat().st_size)
        second = subprocess.Popen(command, stderr=stderr)
    try:
        until(lambda: log.stat().st_size or len(server.asked_for) > 1)
        assert f"another process is downloading {target}: waiting for it" in log.read_text()
        yield first, second
    finally:
        for process in (first, second):
            process.kill()
            process.wait()


def test_a_second_process_waits_for_the_first(two_processes, server, target, content):
    server.go_on.set()
    assert [process.wait(60) for process in two_processes] == [0, 0]
    assert complete(target, content) and server.asked_for == [None]


def test_a_second_process_goes_on_where_the_first_was_killed(
    two_processes, server, target, content
):
    first, second = two_processes
    first.kill()
    server.go_on.set()
    assert second.wait(60) == 0
    start = server.asked_for[1]
    assert complete(target, content) and start.startswith("bytes=1") and len(server.asked_for) == 2


@pytest.mark.parametrize("lacking", ["fcntl", "support"])
def test_where_there_are_no_locks_this_is_said(
    server, target, content, monkeypatch, caplog, lacking
):
    def unsupported(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if lacking == "fcntl":
        monkeypatch.setattr(locking, "fcntl", None)
    else:
        monkeypatch.setattr(locking.fcntl, "flock", unsupported)
    server.files[NAME] = content
    download(server.url(NAME), target)
    assert complete(target, content)
    assert "cannot be locked here: let no other process do the same" in caplog.text
