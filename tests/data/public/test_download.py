"""Downloads that end early, go on, and find the file changed."""

import numpy as np
import pytest

from medmamba_jax.data.public.download import download

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
    """The file is there, and nothing is left beside it."""
    return target.read_bytes() == content and list(target.parent.iterdir()) == [target]


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
