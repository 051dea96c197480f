"""The benchmark of several devices: what it prints, and how it reads a program."""

import argparse

import jax
import numpy as np

from benchmarks import scaling
from benchmarks.row_files import TOO_LARGE

ROW = {
    "devices": 1,
    "place": "replicated",
    "variant": "medmamba_t",
    "dtype": "bfloat16",
    "batch_a_device": 64,
    "image_size": 224,
    "accumulate": 1,
    "compile_seconds": 31.4,
    "state_mib": 165.4,
    "temporary_mib": 4000.0,
    "collectives": {},
    "step_ms": 20.0,
    "images_per_second": 3200.0,
    "peak_mib": None,
    "collective_share": None,
    "versions": {"device": "2 x GPU", "jax": "0.10.2"},
}
TWO = ROW | {
    "devices": 2,
    "images_per_second": 6080.0,
    "collectives": {"copy": 3},
    "collective_share": 0.051,
    "peak_mib": 8000.4,
}


def test_the_table_has_efficiencies():
    rows = {
        "2_sharded": {"failed": TOO_LARGE, "versions": {}},
        "2_replicated": TWO,
        "1_replicated": ROW,
    }
    lines = scaling.table(rows).splitlines()
    assert lines[2:5] == [
        "| 1 | replicated | 3,200 | 1.00 | 20.0 | 165.4 | 4,000 |  |  |  | 31 |",
        "| 2 | replicated | 6,080 | 0.95 | 20.0 | 165.4 | 4,000 | 8,000 | 5.1% | 3 copy | 31 |",
        f"| 2 | sharded | {TOO_LARGE} |  |  |  |  |  |  |  |  |",
    ]
    assert lines[-1] == (
        "medmamba_t bfloat16, 64 images of 224 px a device; device 2 x GPU; jax 0.10.2"
    )
    assert scaling.efficiency(TWO, {"2_replicated": TWO}) is None


def test_a_point_is_one_command():
    assert scaling.points([1, 2]) == [(1, "replicated"), (2, "replicated"), (2, "sharded")]
    args = argparse.Namespace(
        **{"variant": "medmamba_t", "dtype": "bfloat16", "batch": 64, "image_size": 224},
        **{"accumulate": 2, "calls": 3, "groups": 4, "average": False, "profile": True},
    )
    command = scaling.command(2, "sharded", args)
    assert command[:5] == ["benchmarks.scaling", "--count", "2", "--place", "sharded"]
    assert command[-1] == "--profile" and command[command.index("--accumulate") + 1] == "2"


def test_bytes_and_collectives_of_a_program():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    sharded, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (["data"], []))
    shapes = [jax.ShapeDtypeStruct((8, 3), np.float32), jax.ShapeDtypeStruct((5,), np.int8)]
    assert scaling.bytes_a_device(shapes, [sharded, whole]) == 8 * 3 * 4 // 2 + 5
    total = jax.jit(lambda x: x.sum(0), out_shardings=whole)
    program = total.lower(jax.device_put(np.ones((8, 3), np.float32), sharded)).compile()
    assert scaling.collectives(program.as_text()) == {"all-reduce": 1}
    assert scaling._union([(0, 2), (5, 6), (1, 3), (5, 5.5)]) == 4
