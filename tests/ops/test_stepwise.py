import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from image_scan_oracle import image_scan_oracle, make_image_inputs
from selective_scan_base import SelectiveScanCases, make_inputs

import medmamba_jax as mm
from medmamba_jax.ops.scan.shapes import ScanShape
from medmamba_jax.ops.ss2d_scan import project_and_scan

# It treats channels and states alike, so that few widths stand for all.
QUICK = {(1, 8), (32, 1), (192, 16)}


class TestStepwise(SelectiveScanCases):
    implementation = "stepwise"

    @pytest.mark.parametrize(
        ("d", "n"),
        [
            pytest.param(d, n, marks=() if (d, n) in QUICK else pytest.mark.nightly)
            for d in (1, 32, 96, 192)
            for n in (1, 8, 16)
        ],
    )
    def test_widths(self, d, n):
        self.check(make_inputs(ScanShape(b=1, l=37, k=2, d=d, n=n), seed=d + n))


def test_the_backward_pass_keeps_one_state_of_sixteen_and_no_others():
    shape = ScanShape(b=2, l=1568, k=4, d=96, n=16)
    loss = jax.grad(lambda x: mm.selective_scan(**x, implementation="stepwise").sum())
    compiled = jax.jit(loss).lower(make_inputs(shape)).compile()
    states = 4 * shape.b * shape.l * shape.k * shape.d * shape.n  # bytes of all states in float32
    assert compiled.memory_analysis().temp_size_in_bytes < states / 4


def test_many_images_of_few_channels():
    """Then vector instructions work on the images."""
    TestStepwise().check(make_inputs(ScanShape(b=33, l=17, k=3, d=4, n=2)))


@pytest.mark.parametrize("b, d, r", [(2, 5, 2), (33, 4, 2)])
def test_an_image_with_its_projection(b, d, r):
    h, w, n = 2, 3, 2
    inputs = make_image_inputs(b, h, w, d, r, n)
    rng = np.random.default_rng(1)
    projection = rng.standard_normal((d, 4, r + 2 * n)) / d
    dy = rng.standard_normal((b, h, w, d))
    u = np.asarray(inputs["u"], np.float64)
    parameters = {name: inputs[name] for name in ("dt_weight", "dt_bias", "A", "D")}

    @jax.jit
    def both(u, projection, parameters, dy):
        y, pull = jax.vjp(
            lambda *x: project_and_scan(x[0], x[1], **x[2]), u, projection, parameters
        )
        return y, pull(dy)

    as_float32 = (jnp.asarray(x, jnp.float32) for x in (u, projection))
    y, (du, dprojection, gradients) = both(*as_float32, parameters, jnp.asarray(dy, jnp.float32))

    rows = np.einsum("bhwd,dkc->bhwkc", u, projection)
    parts = dict(zip(("dt", "B", "C"), np.split(rows, (r, r + n), axis=-1), strict=True))
    expected, by_hand = image_scan_oracle({**inputs, "u": u, **parts}, dy)
    drows = np.concatenate([by_hand.pop(name) for name in ("dt", "B", "C")], axis=-1)
    assert_close(y, expected, 1e-5, "y")
    assert_close(du, by_hand.pop("u") + np.einsum("bhwkc,dkc->bhwd", drows, projection), 1e-5, "u")
    assert_close(dprojection, np.einsum("bhwkc,bhwd->dkc", drows, u), 1e-5, "projection")
    assert sorted(by_hand) == sorted(gradients)
    for name, gradient in by_hand.items():
        assert_close(gradients[name], gradient, 1e-5, name)


def test_images_on_several_devices_are_not_gathered():
    """Then, too, the images are the lanes."""
    b, h, w, d, r, n = 32, 2, 3, 4, 1, 2
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:4]), "images")

    def array(*shape, axis=None):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    def loss(u, projection, dt_weight, dt_bias, A, D):
        parameters = {"dt_weight": dt_weight, "dt_bias": dt_bias, "A": A, "D": D}
        return project_and_scan(u, projection, implementation="stepwise", **parameters).sum()

    parameters = array(4, r, d), array(4, d), array(4, d, n), array(4, d)
    gradient = jax.jit(jax.grad(loss, range(6)))
    lowered = gradient.lower(array(b, h, w, d, axis="images"), array(d, 4, r + 2 * n), *parameters)
    text = lowered.compile().as_text()
    assert "all-reduce" in text and "all-gather" not in text
