"""A page of `medmamba demo` that is being served."""

import dataclasses
import io
import threading

import jax
import pytest
from PIL import Image

import medmamba_jax as mm
from medmamba_jax.demo.answers import Answers
from medmamba_jax.demo.server import Server

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def predictor(trained):
    """A trained model, one of whose classes has a hostile name."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        first = jax.devices()[:1]
        monkeypatch.setattr(jax, "devices", lambda *_: first)
        found = mm.load_run(trained[0]).predictor
    return dataclasses.replace(found, class_names=(HOSTILE, "bright"), calibration=None)


@pytest.fixture(scope="module")
def server(predictor):
    with Server(Answers(predictor, f"run {HOSTILE}"), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def png(images):
    file = io.BytesIO()
    Image.fromarray(images.splits["test"].read(0)).save(file, "PNG")
    return file.getvalue()
