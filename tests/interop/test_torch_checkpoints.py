"""Finding a MedMamba in what training scripts save; the values are compared with PyTorch's own."""

import itertools
import logging

import numpy as np
import pytest

from medmamba_jax.errors import UserError
from medmamba_jax.interop import (
    config_from_state_dict,
    read_state_dict,
    weights_from_state_dict,
    weights_to_state_dict,
)
from medmamba_jax.interop.torch_checkpoints import official_state_dict

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: torch)")

pytestmark = pytest.mark.usefixtures("torch")

COUNTER = "num_batches_tracked"
STATISTICS = ("running_mean", "running_var", COUNTER)


@pytest.fixture
def block():
    """One block will do; replaces the fixture that runs both."""
    return "ss_conv_ssm"


@pytest.fixture
def tensors(state_dict):
    return {name: torch.from_numpy(x.copy()) for name, x in state_dict.items()}


def other(tensors):
    """Other weights under the same names."""
    return {name: x + 1 for name, x in tensors.items()}


def prefixed(prefix, tensors):
    return {prefix + name: x for name, x in tensors.items()}


def assert_same(actual, expected):
    """Compares with tensors; halves are converted by PyTorch."""
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        array = (tensor.float() if half else tensor).detach().numpy()
        assert actual[name].dtype == array.dtype, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def there_and_back(tensors):
    """Converts a state_dict to our tensors, and back."""
    config = config_from_state_dict(tensors)
    return weights_to_state_dict(config, *weights_from_state_dict(config, tensors))


def of(tensors):
    """The weights of a checkpoint of other things, too."""
    return {
        "epoch": 3,
        "best": 0.5,
        "note": None,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]},
        **tensors,
    }


WRAPPERS = {
    "none": lambda x: x,
    "state_dict": lambda x: of({"state_dict": x}),
    "model_state_dict": lambda x: of({"model_state_dict": x}),
    "model": lambda x: of({"model": x}),
    "net": lambda x: of({"net": x}),
    "deepspeed": lambda x: of({"module": x}),
    "twice": lambda x: of({"model": of({"state_dict": x})}),
    "timm_ema": lambda x: of({"state_dict_ema": x, "state_dict": other(x)}),
    "timm_ema_alone": lambda x: of({"state_dict_ema": x}),
    "model_ema": lambda x: of({"model": other(x), "model_ema": x}),
    "ema_state_dict": lambda x: of({"ema_state_dict": x, "model_state_dict": other(x)}),
    "shadow": lambda x: of({"net": other(x), "ema": {"decay": 0.9, "shadow": x}}),
    "swa": lambda x: of({"state_dict": other(x), "swa_state_dict": x}),
    "lightning_average": lambda x: of({"current_model_state": other(x), "state_dict": x}),
    "lightning_callback": lambda x: of(
        {"state_dict": other(x), "callbacks": {"EMA": {"ema_weights": x}}}
    ),
    "ema_in_names": lambda x: {**prefixed("model.", other(x)), **prefixed("ema_model.module.", x)},
    "ema_pytorch": lambda x: of(
        {"ema": {**prefixed("online_model.", other(x)), **prefixed("ema_model.", x)}}
    ),
    "teacher_alone": lambda x: of({"teacher": x}),
}

PREFIXES = (
    "",
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.",
    "model._orig_mod.",
    "_orig_mod.model.module.",
    "net.backbone.",
    "_fsdp_wrapped_module.",
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_prefixes_and_dtypes(tensors, wrapper, prefix):
    for dtype, requires_grad in itertools.product(DTYPES, (False, True)):
        expected = {
            name: x.to(dtype, copy=True).requires_grad_(requires_grad)
            if x.is_floating_point()
            else x
            for name, x in tensors.items()
        }
        found = official_state_dict(WRAPPERS[wrapper](prefixed(prefix, expected)), "x.pth")
        assert_same(found, expected)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".pth.tar", ".weights", ""])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_pytorch_may_have_any_ending(tensors, tmp_path, suffix, zipped):
    path = tmp_path / f"checkpoint{suffix}"
    parameters = {
        name: torch.nn.Parameter(x) if x.is_floating_point() else x for name, x in tensors.items()
    }
    torch.save(
        of({"state_dict": prefixed("module.", parameters)}),
        path,
        _use_new_zipfile_serialization=zipped,
    )
    assert_same(read_state_dict(path), parameters)


def wrap_inside(name):
    """A name as torch.compile and checkpointing of single blocks make it."""
    return name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module._orig_mod.")


@pytest.mark.parametrize(
    "rename",
    [
        wrap_inside,
        lambda name: f"module.{name}" if "layers.1" in name else name,
        lambda name: f"model.{name}" if "layers.1" in name else name,
        lambda name: name if "head" in name else f"backbone.{name}",
        lambda name: f"model.{'_orig_mod.' if 'blocks' in name else ''}{name}",
    ],
    ids=["inside", "module_for_some", "model_for_some", "backbone_and_head", "mixed"],
)
def test_prefixes_may_differ_within_a_model(tensors, rename):
    found = official_state_dict({rename(name): x for name, x in tensors.items()}, "x.pth")
    assert_same(dict(sorted(found.items())), dict(sorted(tensors.items())))


class TestAverage:
    def test_the_choice_is_logged(self, tensors, caplog):
        content = {"model": other(tensors), "model_ema": tensors}
        with caplog.at_level(logging.WARNING, logger="absl"):
            official_state_dict(content, "x.pth")
        (record,) = caplog.records
        assert record.getMessage() == (
            "x.pth: takes the average of the weights, under 'model_ema', not those under 'model';"
            " to take these, save them alone"
        )

    def test_one_model_alone_needs_no_warning(self, tensors, caplog):
        official_state_dict(of({"model": prefixed("module.", tensors)}), "x.pth")
        assert not caplog.records

    def test_an_average_of_parameters_alone_has_the_statistics_of_its_model(self, tensors, caplog):
        # As scripts do that keep a `shadow` of `named_parameters()`.
        raw = {name: x + 1 if x.is_floating_point() else x for name, x in tensors.items()}
        shadow = {name: x for name, x in tensors.items() if not name.endswith(STATISTICS)}
        found = official_state_dict({"model": raw, "ema": {"shadow": shadow}}, "x.pth")
        expected = shadow | {k: x for k, x in raw.items() if k.endswith(STATISTICS)}
        assert_same(found, expected)
        assert "the statistics of BatchNorm are those under 'model'" in caplog.text

    @pytest.mark.parametrize("places", [("student", "teacher"), ("model", "best"), ("ema", "swa")])
    def test_models_of_equal_right_are_refused_by_name(self, tensors, places):
        one, two = places
        with pytest.raises(UserError, match="several models") as caught:
            official_state_dict({one: tensors, two: other(tensors)}, "x.pth")
        assert f"'{one}'" in str(caught.value) and f"'{two}'" in str(caught.value)

    def test_an_average_that_was_not_kept_is_no_average(self, tensors):
        found = official_state_dict({"model": tensors, "model_ema": None}, "x.pth")
        assert_same(found, tensors)


class TestOtherTensors:
    def test_counters_of_profilers_are_ignored_with_a_note(self, tensors, tmp_path, caplog):
        # What thop.profile registers on every module, and AveragedModel on itself.
        counters = {
            f"{module}{counter}": torch.zeros(1, dtype=torch.float64)
            for module in ("", "layers.0.", "layers.0.blocks.0.ln_1.", "head.")
            for counter in ("total_ops", "total_params")
        }
        content = prefixed("module.", tensors | counters) | {"n_averaged": torch.tensor(7)}
        torch.save(content, tmp_path / "x.pth")
        assert_same(read_state_dict(tmp_path / "x.pth"), tensors)
        assert "ignores 4 total_ops of the profiler thop" in caplog.text
        assert "ignores 4 total_params of the profiler thop" in caplog.text
        assert "ignores 1 n_averaged of torch.optim.swa_utils" in caplog.text

    def test_a_state_dict_given_as_it_is_may_have_them_too(self, tensors):
        given = tensors | {"layers.0.total_ops": torch.zeros(1)}
        assert_same(there_and_back(given), tensors)

    def test_what_lightning_saves_beside_the_model_is_ignored_with_a_warning(self, tensors, caplog):
        content = prefixed("model.", tensors) | {"criterion.weight": torch.ones(5)}
        assert_same(official_state_dict({"state_dict": content}, "x.ckpt"), tensors)
        assert "ignores 1 tensors outside the model, such as criterion.weight" in caplog.text

    @pytest.mark.parametrize("prefix", ["", "module.", "model."])
    def test_unknown_tensors_in_the_model_are_kept_for_the_list_of_misfits(self, tensors, prefix):
        content = prefixed(prefix, tensors | {"norm.weight": torch.ones(16)})
        found = official_state_dict(content, "x.pth")
        with pytest.raises(UserError, match=r"unexpected: norm\.weight \(16,\)"):
            there_and_back(found)

    def test_two_tensors_for_one_name_are_refused(self, tensors):
        content = tensors | {"module.head.bias": tensors["head.bias"] + 1}
        with pytest.raises(UserError, match=r"two tensors for head\.bias"):
            official_state_dict(content, "x.pth")

    def test_what_is_no_tensor_is_refused(self, tensors):
        with pytest.raises(UserError, match=r"scale is a float, not a tensor"):
            official_state_dict({"model": tensors | {"layers.0.scale": 0.5}}, "x.pth")

    def test_a_dictionary_that_holds_itself_ends(self, tensors):
        content = {"model": tensors}
        content["self"] = content
        assert_same(official_state_dict(content, "x.pth"), tensors)

    @pytest.mark.parametrize("content", [{}, [1], None, {"conv1.weight": torch.ones(3)}])
    def test_no_medmamba(self, content):
        with pytest.raises(UserError, match=r"x\.pth holds no official MedMamba state_dict"):
            official_state_dict(content, "x.pth")


class TestCounters:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32])
    @pytest.mark.parametrize("shape", [(), (1,)])
    def test_any_kind_of_number_is_a_counter(self, tensors, dtype, shape):
        given = {
            name: torch.full(shape, 2048).to(dtype) if name.endswith(COUNTER) else x
            for name, x in tensors.items()
        }
        expected = {k: torch.tensor(2048) if k.endswith(COUNTER) else x for k, x in tensors.items()}
        assert_same(there_and_back(given), expected)

    @pytest.mark.parametrize("given", ["missing", "float16", "nan"])
    def test_a_counter_that_is_not_known_becomes_0_with_a_note(self, tensors, given, tmp_path):
        half = {"float16": torch.tensor(70000).half(), "nan": torch.tensor(np.nan)}
        content = {
            k: half[given] if k.endswith(COUNTER) else x
            for k, x in tensors.items()
            if not (given == "missing" and k.endswith(COUNTER))
        }
        torch.save(content, tmp_path / "x.pth")
        found = there_and_back(read_state_dict(tmp_path / "x.pth"))
        expected = {k: torch.tensor(0) if k.endswith(COUNTER) else x for k, x in tensors.items()}
        assert_same(found, expected)

    def test_one_that_is_missing_among_others_leaves_them(self, tensors, caplog):
        first, *_ = [name for name in tensors if name.endswith(COUNTER)]
        del tensors[first]
        found = there_and_back(tensors)
        assert found.pop(first) == 0
        assert_same(found, tensors)
        assert f"become 0, such as {first}" in caplog.text

    def test_several_numbers_are_no_counter(self, tensors):
        name = next(name for name in tensors if name.endswith(COUNTER))
        with pytest.raises(UserError, match=r"misshapen: .*num_batches_tracked is \(2,\)"):
            there_and_back(tensors | {name: torch.zeros(2)})


QUANTIZED = {"scale": 0.1, "zero_point": 0, "dtype": torch.qint8}
STRANGE = {
    "float8_e4m3fn": lambda x: x.to(torch.float8_e4m3fn),
    "float8_e5m2": lambda x: x.to(torch.float8_e5m2),
    "sparse_coo": lambda x: x.to_sparse(),
    "sparse_csr": lambda x: x.to_sparse_csr(),
    "quantized tensor (qint8)": lambda x: torch.quantize_per_tensor(x, **QUANTIZED),
    "complex64": lambda x: x.to(torch.complex64),
    "bool": lambda x: x > 0,
    "device 'meta'": lambda x: x.to("meta"),
}


@pytest.mark.filterwarnings("ignore:.*(Sparse|quantiz|Quantiz|TypedStorage)")
class TestStrangeTensors:
    @pytest.mark.parametrize("kind", STRANGE)
    def test_they_are_refused_by_name(self, tensors, tmp_path, kind):
        tensors["head.weight"] = STRANGE[kind](tensors["head.weight"])
        torch.save({"model": tensors}, tmp_path / "x.pth")
        with pytest.raises(UserError, match=r"x\.pth: head\.weight is ") as caught:
            read_state_dict(tmp_path / "x.pth")
        assert kind in str(caught.value)

    @pytest.mark.parametrize("kind", STRANGE)
    def test_so_are_those_that_a_caller_gives(self, tensors, kind):
        tensors["head.weight"] = STRANGE[kind](tensors["head.weight"])
        with pytest.raises(UserError, match=r"head\.weight is "):
            there_and_back(tensors)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
    def test_integers_are_no_weights(self, tensors, dtype):
        tensors["head.weight"] = torch.ones(5, 16, dtype=dtype)
        name = str(dtype).removeprefix("torch.")
        with pytest.raises(UserError, match=rf"quantized: head\.weight is {name}"):
            there_and_back(tensors)

    def test_they_may_stand_outside_the_model(self, tensors):
        content = {"model": tensors, "optimizer": {"v": torch.eye(3).to_sparse()}}
        assert_same(official_state_dict(content, "x.pth"), tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_converts_exactly(tensors, dtype):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[~every.isnan()]
    tensors["head.weight"] = every
    found = official_state_dict(tensors, "x.pth")["head.weight"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, every.float().numpy())
    assert (np.signbit(found) == torch.signbit(every).numpy()).all()  # -0.0, too


def test_weights_that_require_gradients_can_be_given(tensors):
    given = {k: torch.nn.Parameter(x) if x.is_floating_point() else x for k, x in tensors.items()}
    assert_same(there_and_back(given), tensors)
