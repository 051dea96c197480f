"""The cases that every implementation of the selective scan passes.

A new implementation's test file subclasses `SelectiveScanCases` and names itself.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from scan_oracle import scan_oracle

import medmamba_jax as mm
from medmamba_jax.ops.scan import IMPLEMENTATIONS, Case
from medmamba_jax.ops.scan.shapes import ScanShape, stage_shapes

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def make_inputs(shape: ScanShape, *, seed=0, dtype=np.float32, scale=None):
    """Random inputs as a trained block shows them: A near -(1..n), softplus(delta) near 0.05."""
    rng = np.random.default_rng(seed)
    b, l, k, d, n = shape.b, shape.l, shape.k, shape.d, shape.n
    inputs = {
        "u": rng.standard_normal((b, l, k, d)),
        "delta": rng.standard_normal((b, l, k, d)),
        "A": -np.arange(1, n + 1) * np.exp(0.1 * rng.standard_normal((k, d, n))),
        "B": rng.standard_normal((b, l, k, n)),
        "C": rng.standard_normal((b, l, k, n)),
        "D": 1 + 0.1 * rng.standard_normal((k, d)),
        "delta_bias": rng.uniform(-5, -2, (k, d)),
    }
    for name, factor in (scale or {}).items():
        inputs[name] = inputs[name] * factor
    return {name: jnp.asarray(x, dtype) for name, x in inputs.items()}


def tolerance(dtype, length):
    """Relative to the largest element; rounding adds up like a random walk along l.

    float32: 1e-6 is some 8 units in the last place for the sums over n and d. bfloat16: the
    result is rounded once (2**-9), and gradients are rounded once more.
    """
    if dtype == jnp.bfloat16:
        return 2 * 2.0**-8
    return {4: 1e-6, 8: 1e-14}[jnp.dtype(dtype).itemsize] * (1 + length**0.5)


class SelectiveScanCases:
    """`implementation`, set by the subclass, is what runs.

    Attributes:
      quick: the tests that are not nightly; a class without it runs them all.
      d, n: channels and states where a case does not name its own.
      k: directions where a case is about lengths.
      l: the length where a case is about directions.
    """

    implementation: str
    d, n = 8, 4
    k, l = 4, 20

    def shape(self, *, b, l, k):
        return ScanShape(b=b, l=l, k=k, d=self.d, n=self.n)

    def refusal(self, inputs):
        _, l, _, d = inputs["u"].shape
        case = Case(jax.default_backend(), inputs["u"].dtype, None, l, d, inputs["A"].shape[-1])
        return IMPLEMENTATIONS[self.implementation].refusal(case)

    def run(self, inputs, delta_softplus=True):
        return mm.selective_scan(
            **inputs, delta_softplus=delta_softplus, implementation=self.implementation
        )

    def value_and_gradients(self, inputs, dy, delta_softplus=True):
        @jax.jit
        def both(inputs, dy):
            y, pull = jax.vjp(lambda x: self.run(x, delta_softplus), inputs)
            return y, pull(dy)[0]

        return both(inputs, dy)

    def check(self, inputs, *, delta_softplus=True, dtype=jnp.float32):
        """Compares with the oracle, or sees that a case that cannot be taken is refused."""
        reason = self.refusal(inputs)
        if reason is not None:
            with pytest.raises(NotImplementedError, match=re.escape(reason)):
                jax.eval_shape(self.run, inputs)
            return
        length = inputs["u"].shape[1]
        u = inputs["u"]
        dy = jnp.asarray(np.random.default_rng(1).standard_normal(u.shape), u.dtype)
        y, gradients = self.value_and_gradients(inputs, dy, delta_softplus)
        assert y.dtype == inputs["u"].dtype
        arrays = [np.asarray(inputs[name], np.float64) for name in NAMES]
        y_ref, gradients_ref = scan_oracle(*arrays, delta_softplus, np.asarray(dy, np.float64))
        assert_close(y, y_ref, tolerance(dtype, length), "y")
        for name in NAMES:
            assert gradients[name].dtype == inputs[name].dtype
            assert_close(gradients[name], gradients_ref[name], tolerance(dtype, length), name)

    @pytest.mark.parametrize("length", [1, 7, 49, 50, 196, 784])
    def test_lengths(self, length):
        self.check(make_inputs(self.shape(b=2, l=length, k=self.k), seed=length))

    @pytest.mark.parametrize("d", [1, 32, 96, 192])
    @pytest.mark.parametrize("n", [1, 8, 16])
    def test_widths(self, d, n):
        self.check(make_inputs(ScanShape(b=1, l=37, k=2, d=d, n=n), seed=d + n))

    @pytest.mark.nightly
    @pytest.mark.parametrize("stage", stage_shapes(1))
    def test_stage_shapes(self, stage):
        self.check(make_inputs(stage_shapes(1)[stage]))

    @pytest.mark.parametrize("k", [1, 3])
    def test_directions(self, k):
        self.check(make_inputs(self.shape(b=3, l=self.l, k=k)))

    def test_without_softplus(self):
        inputs = make_inputs(self.shape(b=2, l=30, k=2))
        inputs["delta"] = jnp.abs(inputs["delta"]) * 0.1
        inputs["delta_bias"] = jnp.abs(inputs["delta_bias"]) * 0.01
        self.check(inputs, delta_softplus=False)

    def test_bfloat16(self):
        shape = ScanShape(b=2, l=50, k=4, d=32, n=16)
        self.check(make_inputs(shape, dtype=jnp.bfloat16), dtype=jnp.bfloat16)

    def test_float64_is_computed_in_float64(self):
        before = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", True)
        try:
            inputs = make_inputs(ScanShape(b=1, l=20, k=2, d=4, n=3), dtype=np.float64)
            self.check(inputs, dtype=jnp.float64)
        finally:
            jax.config.update("jax_enable_x64", before)

    def test_large_steps_underflow_to_the_right_answer(self):
        inputs = make_inputs(ScanShape(b=2, l=196, k=2, d=self.d, n=16))
        inputs["delta"] = jnp.asarray(
            np.random.default_rng(2).uniform(0, 5, inputs["u"].shape), jnp.float32
        )
        inputs["delta_bias"] = jnp.zeros_like(inputs["delta_bias"])
        decay = jnp.exp(inputs["delta"][..., None] * inputs["A"] * 196)
        assert float(decay.min()) == 0.0  # the case is what its name says
        self.check(inputs, delta_softplus=False)

    def test_zero_steps_leave_the_state_alone(self):
        inputs = make_inputs(self.shape(b=1, l=49, k=2))
        inputs["delta"] = jnp.zeros_like(inputs["delta"])
        inputs["delta_bias"] = jnp.zeros_like(inputs["delta_bias"])
        self.check(inputs, delta_softplus=False)
        y = jax.jit(lambda x: self.run(x, delta_softplus=False))(inputs)
        np.testing.assert_array_equal(y, inputs["D"] * inputs["u"])

    def test_magnitudes_of_trained_models_stay_finite(self):
        inputs = make_inputs(ScanShape(b=2, l=196, k=2, d=32, n=16))
        rng = np.random.default_rng(3)
        spans = {"u": 51, "delta": 12, "B": 18, "C": 18}
        for name, span in spans.items():
            shape = inputs[name].shape
            inputs[name] = jnp.asarray(rng.uniform(-span, span, shape), jnp.float32)
        self.check(inputs)  # NaN and infinity are not close to the oracle's finite values

    def test_vmap(self):
        inputs = make_inputs(self.shape(b=6, l=20, k=2))
        per_image = {"u", "delta", "B", "C"}
        axes = {name: 0 if name in per_image else None for name in NAMES}
        split = {
            name: x.reshape(3, 2, *x.shape[1:]) if name in per_image else x
            for name, x in inputs.items()
        }
        y = jax.jit(jax.vmap(self.run, in_axes=(axes,)))(split)
        whole = jax.jit(self.run)(inputs)
        np.testing.assert_allclose(y.reshape(whole.shape), whole, rtol=1e-6, atol=1e-6)

    def test_batch_sharding(self):
        devices = jax.devices()
        if len(devices) < 2:
            pytest.skip(f"needs 2 devices, has {len(devices)}")
        mesh = jax.sharding.Mesh(np.array(devices[:2]), ("data",))
        P, sharding = jax.sharding.PartitionSpec, jax.sharding.NamedSharding
        inputs = make_inputs(self.shape(b=4, l=50, k=2))
        dy = jnp.ones_like(inputs["u"])
        y, gradients = self.value_and_gradients(inputs, dy)
        placed = {
            name: jax.device_put(x, sharding(mesh, P("data") if x.ndim == 4 else P()))
            for name, x in inputs.items()
        }
        y_sharded, gradients_sharded = self.value_and_gradients(
            placed, jax.device_put(dy, sharding(mesh, P("data")))
        )
        assert y_sharded.sharding.spec[0] == "data"
        np.testing.assert_allclose(y, y_sharded, rtol=1e-5, atol=1e-6)
        for name in NAMES:
            assert_close(gradients_sharded[name], gradients[name], 1e-5, name)

    def test_two_runs_give_the_same_bits(self):
        inputs = make_inputs(self.shape(b=3, l=50, k=2))
        dy = jnp.ones_like(inputs["u"])
        first, second = (self.value_and_gradients(inputs, dy) for _ in range(2))
        jax.tree.map(np.testing.assert_array_equal, first, second)

    @pytest.mark.parametrize("platform", ["tpu", "cuda"])
    def test_lowers_for_other_platforms(self, platform):
        inputs = make_inputs(ScanShape(b=2, l=50, k=4, d=32, n=16))
        loss = jax.jit(jax.grad(lambda x: self.run(x).sum()))
        text = loss.trace(inputs).lower(lowering_platforms=(platform,)).as_text()
        assert "exponential" in text
