"""The process that tests run in: eight CPU devices. Fixtures of small runs."""

import atexit
import dataclasses
import json
import os
import shutil
import signal
import tempfile

# A shell lets its background jobs ignore the interrupt, which processes of the tests would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# All of these must be set before JAX starts.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8"
)

# What one worker, or a process that a test starts, has compiled the others read. The workers
# inherit the folder from the process that makes and removes it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import filelock
import jax
import numpy as np
import plain_block  # noqa: F401  adds the model `tiny`
import pytest

import medmamba_jax as mm
from medmamba_jax.runs import Progress


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Gives each test that asks for the fixture `torch` the mark of the same name."""
    for item in items:
        if "torch" in item.fixturenames:
            item.add_marker("torch")


@pytest.fixture(scope="session")
def torch():
    """The package PyTorch; a test that asks for it skips where it is not installed."""
    return pytest.importorskip("torch", reason="PyTorch is not installed (extra: torch)")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """Keeps the default cache of images out of the home folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("medmamba_jax.data.config._CACHE_FOLDER", str(folder))


@pytest.fixture
def one_device(monkeypatch):
    """Runs on the first device; `monkeypatch.undo()` gives the others back."""
    use_one_device(monkeypatch)


def use_one_device(monkeypatch):
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)


@pytest.fixture(scope="session")
def images():
    """Two classes that differ in brightness; 20 train, 10 val and 9 test images of 32 px."""
    rng = np.random.default_rng(0)

    def split(n):
        labels = np.arange(n) % 2
        base = 90 + 70 * labels[:, None, None]
        pixels = np.clip(base + rng.normal(0, 40, (n, 32, 32)), 0, 255)
        return mm.LabelledImages(
            pixels.astype(np.uint8), labels, ("dark", "bright"), name="blobs", synthetic=True
        )

    return mm.Dataset({"train": split(20), "val": split(10), "test": split(9)})


@pytest.fixture(scope="session")
def marked_images():
    """As many images with any of two marks, a bright left and a bright right; some not known."""
    rng = np.random.default_rng(0)

    def split(n):
        marks = np.stack([np.arange(n) % 2, np.arange(n) // 2 % 2], axis=1).astype(np.float32)
        pixels = 90 + 70 * np.repeat(marks, 16, axis=1)[:, None, :] + rng.normal(0, 40, (n, 32, 32))
        marks[::5, 0] = marks[1::5, 1] = np.nan
        pixels = np.clip(pixels, 0, 255).astype(np.uint8)
        return mm.LabelledImages(pixels, marks, ("left", "right"), name="marks", synthetic=True)

    return mm.Dataset({"train": split(20), "val": split(10), "test": split(9)})


@pytest.fixture(scope="session")
def config():
    """Returns a function (**changes of the section train) -> a small configuration."""

    def config(variant="tiny", **changes):
        small = mm.default_config()
        small.model.variant = variant
        small.data.image_size = 32
        small.train.update(epochs=2, batch_size=8, lr=1e-3)
        small.results.report = False
        small.results.resamples = 100
        built = mm.Config.of(small)
        return dataclasses.replace(built, train=dataclasses.replace(built.train, **changes))

    return config


@pytest.fixture(scope="session")
def trained(config, images, tmp_path_factory):
    """Workdir and results of `config(epochs=2)` on `images`; to be read only.

    The worker that needs it first trains it for all. Each has a copy.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # each worker has a folder of its own in it
    workdir, done = folder / "trained", folder / "trained.json"
    with filelock.FileLock(folder / "trained.lock"), pytest.MonkeyPatch.context() as monkeypatch:
        if not done.exists():
            shutil.rmtree(workdir, ignore_errors=True)  # of a worker that failed
            use_one_device(monkeypatch)
            done.write_text(json.dumps(mm.train(config(epochs=2), workdir, images)))
        own = shutil.copytree(workdir, tmp_path_factory.mktemp("trained") / "run")
    return own, json.loads(done.read_text())


@pytest.fixture(scope="session")
def mamba_run(config, images, tmp_path_factory):
    """The folder of a run of MedMamba's own blocks; its checkpoint holds the initial weights."""
    folder = tmp_path_factory.mktemp("mamba") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_one_device(monkeypatch)
        with mm.start_run(config(variant="tiny_mamba"), folder, images) as run:
            parts = {"params": run.state.params, "statistics": run.state.statistics}
            run.store.save(Progress(epoch=1, best_epoch=1), parts)
    return folder


@pytest.fixture
def run_of_two_epochs(trained, tmp_path):
    """A workdir of one's own that holds the trained run."""
    return shutil.copytree(trained[0], tmp_path / "run")


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium, driven by Selenium; its log has every request and console message."""
    driver = shutil.which("chromedriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not (driver and chromium):
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for name in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        *("disable-dev-shm-usage", f"user-data-dir={tmp_path_factory.mktemp('chromium')}"),
    ):
        options.add_argument(f"--{name}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    started = webdriver.Chrome(options=options, service=service)
    yield started
    started.quit()
