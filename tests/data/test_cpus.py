import os
import threading
import time

import numpy as np
import pytest

from medmamba_jax.data import LabelledImages, Preprocessing
from medmamba_jax.data.config import DataConfig
from medmamba_jax.data.cpus import usable_cpus
from medmamba_jax.data.first_pass import first_pass


@pytest.fixture
def one_cpu():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not tie a process to CPUs")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


class Watching:
    """Notes the threads that ask for images."""

    def __init__(self):
        self.threads = set()

    def __len__(self):
        return 12

    def __getitem__(self, place):
        self.threads.add(threading.get_ident())
        time.sleep(0.01)  # so that every thread gets something to do
        return np.full((32, 32), place, np.uint8)


def test_what_the_process_may_use_counts(one_cpu, monkeypatch):
    assert usable_cpus() == 1
    monkeypatch.setattr(os, "process_cpu_count", lambda: 5, raising=False)
    assert usable_cpus() == 5


def test_without_affinity_all_count(monkeypatch):
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cpus() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus() == 1


def test_the_first_pass_decodes_on_these_only(one_cpu, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    watching = Watching()
    images = LabelledImages(watching, np.arange(12) % 2)
    preprocessing = Preprocessing((32, 32), 1, "bilinear", (0.5,), (0.5,))
    first_pass(images, preprocessing, DataConfig())
    assert len(watching.threads) == 1
