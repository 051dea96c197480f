"""The GPU kernels: compiled where a GPU that can run them is, in Pallas's interpreter elsewhere.

The interpreter takes some 50 ms for a step of a tile, so what is long runs on a GPU only.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from image_scan_oracle import image_scan_oracle, make_image_inputs
from selective_scan_base import SelectiveScanCases, make_inputs, tolerance

from medmamba_jax.ops import pallas_gpu
from medmamba_jax.ops.pallas_gpu.problem import (
    SHARED_MEMORY,
    KernelConfig,
    backward_bytes,
    choose_chunks,
    choose_config,
)
from medmamba_jax.ops.scan import IMPLEMENTATIONS, Case
from medmamba_jax.ops.scan.implementations import Implementation
from medmamba_jax.ops.scan.shapes import ScanShape, stage_shapes
from medmamba_jax.ops.ss2d_scan import ss2d_scan

ON_GPU = jax.default_backend() == "gpu"
INTERPRET = {} if ON_GPU else {"interpret": True}
PATIENCE = 80  # steps of tiles that the interpreter may take in one test


nightly = pytest.mark.nightly


def skip_if_long(steps, d):
    if not ON_GPU and steps * (d // 32) > PATIENCE:
        pytest.skip("takes long in the interpreter; runs on a GPU")


class KernelCases(SelectiveScanCases):
    d, n = 32, 16
    # The interpreter takes directions one by one, so a length needs few and a direction few steps.
    k, l = (4, 20) if ON_GPU else (2, 9)

    @pytest.fixture(autouse=True)
    def kernels(self, monkeypatch):
        if not ON_GPU:
            row = IMPLEMENTATIONS[self.implementation]
            row = Implementation(
                functools.partial(row.scan, **INTERPRET),
                functools.partial(row.image, **INTERPRET),
                refusal=pallas_gpu.refusal_of_shape,
            )
            monkeypatch.setitem(IMPLEMENTATIONS, self.implementation, row)

    def value_and_gradients(self, inputs, dy, delta_softplus=True):
        _, l, k, d = inputs["u"].shape
        skip_if_long(l * k, d)
        return super().value_and_gradients(inputs, dy, delta_softplus)

    def test_batch_sharding(self):
        if not ON_GPU:
            pytest.skip("the interpreter's callbacks cannot be split; test_by_image has the rule")
        super().test_batch_sharding()

    @pytest.mark.parametrize("batch", [4, 5])
    def test_batches_that_fill_and_do_not_fill_tiles(self, batch):
        self.check(make_inputs(ScanShape(b=batch, l=9, k=1, d=32, n=16), seed=batch))

    def test_several_chunks(self):
        self.check(make_inputs(ScanShape(b=1, l=37, k=1, d=32, n=16)))

    def test_its_own_widths_are_not_refused(self):
        for length in (4, 7, 784):
            assert self.refusal(make_inputs(self.shape(b=1, l=length, k=1))) is None

    @pytest.mark.parametrize("narrow", [("u", "B", "C"), ("delta",)])
    def test_mixed_dtypes(self, narrow):
        inputs = make_inputs(ScanShape(b=2, l=8, k=1, d=32, n=16))
        for name in narrow:
            inputs[name] = inputs[name].astype(jnp.bfloat16)
        self.check(inputs, dtype=jnp.bfloat16)

    @pytest.mark.parametrize("bias", [-3.0, -7.0, -12.0])
    def test_small_steps_are_as_exact_as_large_ones(self, bias):
        """Without u's own part, y and the gradient of delta are as small as the steps."""
        inputs = make_inputs(ScanShape(b=1, l=4, k=1, d=32, n=16))
        inputs["D"] = jnp.zeros_like(inputs["D"])
        inputs["delta"] = 0.1 * inputs["delta"]
        inputs["delta_bias"] = jnp.full_like(inputs["delta_bias"], bias)
        self.check(inputs)

    def test_64_bit_indices_are_refused(self):
        """`refusal_of_shape` stands in for `refusal` here, so the latter is asked."""
        case = Case("gpu", jnp.dtype("float32"), None, 49, 32, 16)
        before = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", True)
        try:
            assert "jax_enable_x64 is on" in pallas_gpu.refusal(case)
        finally:
            jax.config.update("jax_enable_x64", before)


# Off a GPU the interpreter runs them.
@pytest.mark.nightly
class TestPallasGpu(KernelCases):
    implementation = "pallas_gpu"

    def test_lowers_for_other_platforms(self):
        """To Mosaic, for CUDA alone, and without a device; ptxas is not part of that."""
        inputs = make_inputs(ScanShape(b=2, l=50, k=3, d=32, n=16))

        def loss(inputs):
            return pallas_gpu.scan_sequences(**inputs, delta_softplus=True).sum()

        lowered = jax.jit(jax.grad(loss)).trace(inputs).lower(lowering_platforms=("cuda",))
        assert lowered.as_text().count("stablehlo.custom_call @mosaic_gpu") == 2


@pytest.mark.skipif(not ON_GPU, reason="as pallas_gpu but for the states; test_images has one")
class TestPallasGpuRecompute(KernelCases):
    implementation = "pallas_gpu_recompute"

    def test_lowers_for_other_platforms(self):
        pytest.skip("as pallas_gpu")


def run_image(inputs, **mode):
    x = dict(inputs)
    return pallas_gpu.scan_image(*[x.pop(name) for name in ("u", "dt", "B", "C")], **x, **mode)


@dataclasses.dataclass(frozen=True)
class ImageCase:
    b: int
    h: int
    w: int
    d: int
    r: int
    dtype: str = "float32"
    keep_states: bool = True
    config: KernelConfig | None = None


def check_image(case: ImageCase):
    skip_if_long(4 * case.h * case.w, case.d)
    inputs = make_image_inputs(case.b, case.h, case.w, case.d, case.r, 16, dtype=case.dtype)
    dy = np.random.default_rng(1).standard_normal(inputs["u"].shape)
    dy = jnp.asarray(dy, case.dtype)

    @jax.jit
    def both(inputs, dy):
        run = functools.partial(
            run_image, keep_states=case.keep_states, config=case.config, **INTERPRET
        )
        y, pull = jax.vjp(run, inputs)
        return y, pull(dy)[0]

    with jax.default_matmul_precision("highest"):
        y, gradients = both(inputs, dy)
    expected, gradients_expected = image_scan_oracle(inputs, np.asarray(dy, np.float64))
    limit = tolerance(jnp.dtype(case.dtype), case.h * case.w)
    assert y.dtype == inputs["u"].dtype
    assert_close(y, expected, limit, "y")
    for name, gradient in gradients_expected.items():
        assert gradients[name].dtype == inputs[name].dtype
        assert_close(gradients[name], gradient, limit, name)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(ImageCase(2, 4, 5, 32, 3), id="narrow", marks=nightly),
        pytest.param(
            ImageCase(1, 5, 4, 32, 20, keep_states=False), id="steps read, recompute", marks=nightly
        ),
        pytest.param(ImageCase(2, 4, 4, 32, 8, "bfloat16"), id="bfloat16", marks=nightly),
        pytest.param(
            ImageCase(1, 4, 5, 32, 4, config=KernelConfig(4, 1, 2, 3, 2)),
            id="segments",
            marks=nightly,
        ),
        pytest.param(ImageCase(2, 5, 9, 64, 20, "bfloat16"), id="bfloat16, steps read"),
        pytest.param(ImageCase(3, 9, 5, 96, 6), id="odd sides"),
        pytest.param(ImageCase(128, 14, 14, 96, 3), id="whole tiles"),
        pytest.param(ImageCase(2, 33, 47, 64, 20), id="large and odd"),
        pytest.param(ImageCase(3, 40, 24, 128, 4), id="four tiles"),
        pytest.param(
            ImageCase(2, 64, 64, 96, 3, config=KernelConfig(8, 2, 3, 5, 4)), id="many segments"
        ),
        *(
            pytest.param(ImageCase(2, side, side, d, r, dtype), id=f"{stage}, {dtype}")
            for stage, (side, d, r) in {
                "S1": (56, 96, 3),
                "S2": (28, 192, 6),
                "S3": (14, 384, 12),
                "S4": (7, 768, 24),
                "B1": (56, 128, 4),
                "B4": (7, 1024, 32),
            }.items()
            for dtype in ("float32", "bfloat16")
        ),
    ],
)
def test_images(case):
    check_image(case)


def test_the_outputs_of_an_image_whose_lines_are_padded():
    """The part of the case "narrow" that is quick in the interpreter."""
    inputs = make_image_inputs(2, 4, 5, 32, 3, 16)
    with jax.default_matmul_precision("highest"):
        y = jax.jit(functools.partial(run_image, **INTERPRET))(inputs)
    expected, _ = image_scan_oracle(inputs, np.zeros(y.shape))
    assert_close(y, expected, tolerance(jnp.float32, 4 * 5), "y")


@pytest.mark.parametrize(
    ("rank", "dtype"),
    [
        pytest.param(3, "float32", id="padded to 4"),
        pytest.param(12, "bfloat16", id="rank 12", marks=nightly),
        pytest.param(20, "float32", id="steps read", marks=nightly),
        pytest.param(20, "bfloat16", id="steps read, bfloat16", marks=nightly),
    ],
)
def test_projecting_inside_equals_projecting_before(rank, dtype):
    """The kernels' own rows against dt, B and C that `ss2d_scan` gets."""
    inputs = make_image_inputs(2, 4, 4, 32, rank, 16, dtype=dtype)
    u = inputs.pop("u")
    rest = {name: inputs[name] for name in ("dt_weight", "dt_bias", "A", "D")}
    rng = np.random.default_rng(0)
    projection = jnp.asarray(rng.standard_normal((32, 4, rank + 32)) / 32**0.5, dtype)
    dy = jnp.asarray(rng.standard_normal(u.shape), dtype)

    def inside(u, projection, rest):
        return pallas_gpu.project_and_scan_image(u, projection, **rest, **INTERPRET)

    def before(u, projection, rest):
        rows = jnp.einsum("bhwd,dkc->bhwkc", u, projection, preferred_element_type=jnp.float32)
        dt, B, C = jnp.split(rows, (rank, rank + 16), -1)
        return ss2d_scan(u, dt, B, C, **rest, implementation="sequential")

    results = []
    with jax.default_matmul_precision("highest"):
        for run in (inside, before):
            y, pull = jax.vjp(run, u, projection, rest)
            results.append(jax.tree.leaves([y, pull(dy)]))
    limit = tolerance(jnp.dtype(dtype), 16)
    for i, (ours, expected) in enumerate(zip(*results, strict=True)):
        assert ours.dtype == expected.dtype
        # In bfloat16 the rows' gradients are rounded before they are projected back.
        assert_close(ours, expected, limit if dtype == "float32" else 2 * limit, f"leaf {i}")


@nightly
def test_two_runs_give_the_same_bits():
    inputs = make_image_inputs(2, 4, 4, 32, 3, 16)
    gradient = jax.jit(jax.grad(lambda x: run_image(x, **INTERPRET).sum()))
    jax.tree.map(np.testing.assert_array_equal, gradient(inputs), gradient(inputs))


@pytest.mark.parametrize(
    "stage, dtype",
    [
        pytest.param("S1", "float32", marks=nightly),
        pytest.param("S3", "bfloat16", marks=nightly),
        ("S4", "bfloat16"),
    ],
)
def test_the_model_s_stages_lower_without_a_gpu(stage, dtype):
    shape = stage_shapes(64)[stage]
    side, r = round(shape.l**0.5), shape.d // 32
    inputs = jax.eval_shape(
        lambda: make_image_inputs(shape.b, side, side, shape.d, r, 16, dtype=dtype)
    )
    loss = jax.jit(jax.grad(lambda x: run_image(x).astype(jnp.float32).sum()))
    text = loss.trace(inputs).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.custom_call @mosaic_gpu") >= 2
    # Nothing is as large as all states of all steps, (b, l, k, n, d).
    shapes = re.findall(r"tensor<((?:[0-9]+x)+)(?:f32|bf16)>", text)
    largest = max(math.prod(int(size) for size in x[:-1].split("x")) for x in shapes)
    assert largest < shape.b * shape.l * shape.k * shape.d * shape.n / 4


SHAPES = [
    (b, h, w, d)
    for b in (1, 8, 64, 128)
    for h, w in ((56, 56), (28, 28), (14, 14), (7, 7), (128, 128), (33, 47), (4, 5), (1, 1568))
    for d in (32, 96, 128, 768, 1024)
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [0, 4, 8, 12])
def test_every_default_fits_the_hardware(rank, dtype):
    for b, h, w, d in SHAPES:
        chunks = choose_chunks(h, w, four_orders=h > 1)
        config = choose_config(chunks, b, h, w, 4, d, rank=rank, dtype=jnp.dtype(dtype))
        assert (config.chunk, config.forward_chunks) == (chunks.chunk, chunks.forward_chunks)
        needed = backward_bytes(config.chunk, rank, jnp.dtype(dtype), config.warpgroups)
        assert config.warpgroups >= 2 and needed <= SHARED_MEMORY
        assert 1 <= config.forward_segments <= 32 and 1 <= config.backward_segments <= 32


@pytest.mark.parametrize("keep_states", [True, False])
def test_a_call_cuts_the_map_once_for_both_passes_and_all_devices(monkeypatch, keep_states):
    from medmamba_jax.ops.pallas_gpu import scan

    cuts, problems = [], []

    def cut_once(*args, **kwargs):
        cuts.append(choose_chunks(*args, **kwargs))
        return cuts[-1]

    def stand_in(make, problem, **options):
        problems.append(problem)
        return make(problem, **options, interpret=False)

    monkeypatch.setattr(scan, "choose_chunks", cut_once)
    monkeypatch.setattr(scan, "_kernel", lambda mode, *args, **options: stand_in(*args, **options))
    inputs = make_image_inputs(4, 9, 5, 32, 3, 16)
    loss = jax.grad(lambda x: run_image(x, keep_states=keep_states).sum())
    jax.eval_shape(loss, inputs)
    assert len(cuts) == 1 and len(problems) >= 2
    assert {(p.config.chunk, p.config.forward_chunks) for p in problems} == {
        (cuts[0].chunk, cuts[0].forward_chunks)
    }
