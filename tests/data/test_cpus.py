import os
import threading
import time

import numpy as np
import pytest

from medmamba_jax.data import Preprocessing
from medmamba_jax.data.auditing.fingerprints import fingerprint
from medmamba_jax.data.cpus import usable_cpus
from medmamba_jax.data.reading.caching import DecodedImages, OnDisk


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


def test_the_audit_decodes_on_these_only(one_cpu, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    split = Watching()
    fingerprint(split, Preprocessing((32, 32), 1, "bilinear", (0.5,), (0.5,)).decode)
    assert len(split.threads) == 1


def test_so_do_caches(one_cpu, monkeypatch, tmp_path):
    class Written(DecodedImages):
        def key(self):  # reads the files, and does not decode them
            return "key"

    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    split = Watching()
    preprocessing = Preprocessing((32, 32), 1, "bilinear", (0.5,), (0.5,))
    OnDisk(Written(split, preprocessing, resized=True), tmp_path)[0]
    assert len(split.threads) == 1
