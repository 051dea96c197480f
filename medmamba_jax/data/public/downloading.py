"""Downloads a file and resumes interrupted downloads. Only a complete file gets its final name."""

import http.client
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from medmamba_jax.files import write_atomically
from medmamba_jax.locking import alone

_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 20


def download(url: str, target: Path) -> None:
    """Downloads a file. It resumes an earlier download that was interrupted.

    An incomplete file is called `<target>.part`. Beside it, `<target>.part.tag` holds the version
    of the file that the server sent. The download starts again at the first byte if the file has
    changed on the server, or if the server names no version or cannot send parts. If another
    process downloads the same file, this process waits for the lock `<target>.lock`.

    Args:
        url: http or https.
        target: the file to write, if it does not exist. Missing folders are created.

    Raises:
        OSError: the server cannot be reached, refuses the request, or stops before the end.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with alone(target.with_name(f"{target.name}.lock"), f"downloading {target}"):
        if target.exists():
            return
        part = target.with_name(f"{target.name}.part")
        tag = target.with_name(f"{part.name}.tag")
        try:
            _append(url, part, tag, target.name)
        except http.client.HTTPException as error:
            raise ConnectionError(f"the connection broke off ({error!r})") from error
        part.replace(target)
        tag.unlink()


def _append(url: str, part: Path, tag: Path, name: str) -> None:
    """Downloads what `part` lacks."""
    start = part.stat().st_size if part.exists() and tag.exists() and tag.read_text() else 0
    response = _rest(url, start, tag.read_text()) if start else None
    if response is None:
        start, response = 0, _request(url, {})
    with response:
        if start == 0:
            part.unlink(missing_ok=True)
            write_atomically(tag, _version(response))
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        progress = tqdm(
            desc=name,
            total=total,
            initial=start,
            unit="B",
            unit_scale=True,
            disable=None,
            leave=False,
        )
        with progress, part.open("ab") as file:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                progress.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"it broke off after {part.stat().st_size} of {total} bytes")


def _rest(url: str, start: int, version: str) -> http.client.HTTPResponse | None:
    """Requests the bytes from `start` on; None if the response does not hold exactly these."""
    try:
        response = _request(url, {"Range": f"bytes={start}-", "If-Range": version})
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return None
        raise
    if response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        return response
    response.close()
    return None


def _request(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    try:
        return urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS
        )
    except urllib.error.HTTPError as error:
        error.close()
        raise


def _version(response: http.client.HTTPResponse) -> str:
    """Returns the version of the file for the header If-Range; "" if the server names none."""
    etag = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):  # files with the same weak ETag may differ in bytes
        return etag
    return response.headers.get("Last-Modified", "")
