"""The TPU kernel in interpret mode on a CPU, and its lowering to Mosaic."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from selective_scan_base import SelectiveScanCases, make_inputs

from medmamba_jax.ops.scan.implementations import (
    IMPLEMENTATIONS,
    Implementation,
    on_step_sizes,
)
from medmamba_jax.ops.scan.pallas_tpu import Blocks, refusal, scan_pallas_tpu
from medmamba_jax.ops.scan.shapes import ScanShape, stage_shapes

ARGUMENTS = ("u", "delta", "A", "B", "C", "D")


class TestPallasTpu(SelectiveScanCases):
    """In Pallas' interpreter, which is slow."""

    implementation = "pallas_tpu"
    quick = ("test_directions", "test_bfloat16", "test_batch_sharding")

    @pytest.fixture(autouse=True)
    def interpreted(self, monkeypatch):
        row = Implementation(
            on_step_sizes(functools.partial(scan_pallas_tpu, interpret=True)),
            refusal=lambda case: refusal(dtype=case.dtype, n=case.n),
        )
        monkeypatch.setitem(IMPLEMENTATIONS, "pallas_tpu", row)

    def test_batch_sharding(self):
        """Through `shard_map`: JAX cannot partition a Mosaic kernel by itself."""
        devices = jax.devices()
        if len(devices) < 2:
            pytest.skip(f"needs 2 devices, has {len(devices)}")
        mesh = jax.sharding.Mesh(np.array(devices[:2]), ("data",))
        P = jax.sharding.PartitionSpec
        inputs = make_inputs(ScanShape(b=4, l=50, k=2, d=8, n=4))
        specs = {name: P("data") if x.ndim == 4 else P() for name, x in inputs.items()}
        sharded = jax.shard_map(
            self.run, mesh=mesh, in_specs=(specs,), out_specs=P("data"), check_vma=False
        )

        @functools.partial(jax.jit, static_argnums=0)
        def both(run, inputs):
            y, pull = jax.vjp(run, inputs)
            return y, pull(jnp.ones_like(y))[0]

        y, gradients = both(self.run, inputs)
        y_sharded, gradients_sharded = both(sharded, inputs)
        assert y_sharded.sharding.spec[0] == "data"
        np.testing.assert_allclose(y, y_sharded, rtol=1e-5, atol=1e-6)
        for name, gradient in gradients.items():
            assert_close(gradients_sharded[name], gradient, 1e-5, name)

    @pytest.mark.parametrize(
        ("stage", "dtype", "batched"),
        [
            ("S1", jnp.float32, False),
            ("S2", jnp.bfloat16, False),
            ("S3", jnp.float32, True),
            ("S4", jnp.bfloat16, True),
        ],
    )
    def test_lowers_for_other_platforms(self, stage, dtype, batched):
        """To Mosaic, for a TPU alone; whether libtpu compiles the result is not tested here."""
        assert_lowers_to_mosaic(stage_shapes(2)[stage], dtype, batched)

    @pytest.mark.parametrize("d, n", [(1, 1), (300, 3), (512, 256)])
    def test_lowers_at_odd_widths(self, d, n):
        assert_lowers_to_mosaic(ScanShape(b=1, l=130, k=1, d=d, n=n), jnp.float32)

    @pytest.mark.parametrize(
        ("l", "d"), [pytest.param(150, 500, id="padded"), pytest.param(256, 512, id="whole")]
    )
    def test_several_blocks_of_both_l_and_d(self, l, d):
        shape = ScanShape(b=1, l=l, k=2, d=d, n=4)
        blocks = Blocks.of(l, d, shape.n)
        assert blocks.along_l == 2 and blocks.along_d == 2
        covered = blocks.along_l * blocks.steps, blocks.along_d * blocks.lanes
        assert covered == ((160, 512) if (l, d) == (150, 500) else (l, d))
        self.check(make_inputs(shape))

    def test_gradients_keep_each_input_s_dtype(self):
        inputs = make_inputs(ScanShape(b=2, l=50, k=2, d=8, n=4))
        for name in ("u", "B", "C"):
            inputs[name] = inputs[name].astype(jnp.bfloat16)
        self.check(inputs, dtype=jnp.bfloat16)


def assert_lowers_to_mosaic(shape: ScanShape, dtype, batched=False):
    inputs = make_inputs(shape, dtype=dtype)
    inputs["delta"] = inputs["delta"].astype(jnp.float32)
    arguments = [inputs[name] for name in ARGUMENTS]
    run = scan_pallas_tpu
    if batched:
        arguments = [x[None] for x in arguments]
        run = jax.vmap(run)

    def both(dy, *arguments):
        y, pull = jax.vjp(run, *arguments)
        return y, pull(dy)

    lowered = jax.jit(both).trace(arguments[0], *arguments).lower(lowering_platforms=("tpu",))
    text = lowered.as_text()
    assert text.count("stablehlo.custom_call @tpu_custom_call") == 3
    for sweep in ("forward", "borders", "backward"):
        assert f"selective_scan_{sweep}" in text


@pytest.mark.parametrize("n", [1, 16, 256])
def test_blocks_cover_l_and_d_and_fit_in_vmem(n):
    for length in (1, 7, 8, 49, 127, 128, 129, 196, 784, 3136):
        for d in (1, 96, 128, 300, 512, 640, 768):
            blocks = Blocks.of(length, d, n)
            assert blocks.steps % 8 == 0 and blocks.steps <= 128
            assert blocks.lanes % 128 == 0 and blocks.lanes <= 384
            assert 4 * blocks.steps * n * blocks.lanes <= 2**22
            assert 0 <= blocks.along_d * blocks.lanes - d < 128
            # Padding: one step for each block to be even, and seven to be whole registers.
            assert 0 <= blocks.along_l * blocks.steps - length <= 8 * blocks.along_l


def test_refusal_names_what_it_cannot_take():
    assert refusal(dtype=jnp.float32, n=1) is None
    assert refusal(dtype=jnp.bfloat16, n=256) is None
    assert "float64" in refusal(dtype=np.float64, n=16)
    assert "n=257" in refusal(dtype=jnp.float32, n=257)
