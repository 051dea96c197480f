import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import medmamba_jax as mm
from benchmarks import resnet
from benchmarks.resnet import ResNet, ResNetConfig
from medmamba_jax.errors import UserError
from medmamba_jax.models import abstract_weights
from medmamba_jax.models.config import OTHER_ARCHITECTURES
from medmamba_jax.models.structure import by_name
from medmamba_jax.runs import RunDescription, load_run
from medmamba_jax.training.config import ModelConfig


@pytest.mark.parametrize(("variant", "count"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_parameters_are_as_many_as_torchvision_documents(variant, count):
    params, statistics = abstract_weights(ResNetConfig.variant(variant))
    assert sum(x.size for x in jax.tree.leaves(params)) == count
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert "stem.norm.mean" in by_name(statistics)


def reference(torch, depths, bottleneck, classes):
    """A ResNet of torchvision's layout, with torchvision's names, written in PyTorch."""
    nn = torch.nn
    expansion = 4 if bottleneck else 1

    class Block(nn.Module):
        def __init__(self, n_in, width, stride):
            super().__init__()
            n_out = expansion * width

            def conv(a, b, side, step):
                return nn.Conv2d(a, b, side, step, side // 2, bias=False)

            if bottleneck:
                self.conv1, self.conv2 = conv(n_in, width, 1, 1), conv(width, width, 3, stride)
                self.conv3, self.bn3 = conv(width, n_out, 1, 1), nn.BatchNorm2d(n_out)
            else:
                self.conv1, self.conv2 = conv(n_in, width, 3, stride), conv(width, width, 3, 1)
            self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.downsample = None
            if stride != 1 or n_in != n_out:
                self.downsample = nn.Sequential(conv(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            if bottleneck:
                y = self.bn3(self.conv3(torch.relu(y)))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
            n_in = 64
            for i, depth in enumerate(depths):
                width, blocks = 64 * 2**i, []
                for j in range(depth):
                    blocks.append(Block(n_in, width, 2 if i and not j else 1))
                    n_in = expansion * width
                setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
            self.fc = nn.Linear(n_in, classes)

        def forward(self, x):
            x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
            for i in range(len(depths)):
                x = getattr(self, f"layer{i + 1}")(x)
            return self.fc(x.mean((2, 3)))

    return Network()


def torch_name(name):
    """The name of torchvision for a parameter or a statistic of ours."""
    *place, layer, kind = name.split(".")
    kind = {
        "kernel": "weight",
        "scale": "weight",
        "mean": "running_mean",
        "var": "running_var",
    }.get(kind, kind)
    if layer == "head":
        return f"fc.{kind}"
    layer = {"conv": "conv", "norm": "bn"}[layer]
    if place == ["stem"]:
        return f"{layer}1.{kind}"
    _, stage, block, *rest = place
    inside = f"layer{int(stage) + 1}.{block}"
    if rest == ["shortcut"]:
        return f"{inside}.downsample.{0 if layer == 'conv' else 1}.{kind}"
    return f"{inside}.{layer}{int(rest[1]) + 1}.{kind}"


def as_torch(torch, tensors):
    """A state dict with the names and the layout of PyTorch."""
    found = {}
    for name, value in tensors.items():
        value = np.asarray(value)
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim)
        value = value if axes is None else value.transpose(axes)
        found[torch_name(name)] = torch.from_numpy(value.copy())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("blocks", "bottleneck"), [((2, 1), False), ((1, 1), True)])
def test_outputs_and_statistics_are_those_of_pytorch(torch, blocks, bottleneck):
    config = ResNetConfig(blocks, bottleneck, num_classes=5)
    model = ResNet(config, rngs=nnx.Rngs(0))
    other = reference(torch, blocks, bottleneck, 5)
    state = by_name(nnx.to_pure_dict(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))))
    other.load_state_dict(as_torch(torch, state))
    images = np.random.default_rng(0).normal(size=(3, 45, 38, 3)).astype(np.float32)
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    run = nnx.jit(lambda model, images: model(images))
    # In training mode, which also updates the running statistics, and then by these.
    expected = other(inputs).detach().numpy()
    np.testing.assert_allclose(run(model, images), expected, rtol=1e-3, atol=1e-4)
    updated = as_torch(torch, by_name(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))))
    for name, value in updated.items():
        np.testing.assert_allclose(value, other.state_dict()[name], rtol=1e-3, atol=1e-5)
    model.eval()
    expected = other.eval()(inputs).detach().numpy()
    np.testing.assert_allclose(run(model, images), expected, rtol=1e-3, atol=1e-4)


def test_initialisation_is_torchvisions():
    model = ResNet(ResNetConfig((1, 1), True, num_classes=50), rngs=nnx.Rngs(0))
    for convolution in (model.stem, *model.stages[1][0].convolutions):
        height, width, _, n_out = convolution.conv.kernel.shape
        deviation = np.sqrt(2 / (height * width * n_out))
        assert np.std(convolution.conv.kernel) == pytest.approx(deviation, rel=0.05)
        assert (np.asarray(convolution.norm.scale) == 1).all()
    bound = 1 / np.sqrt(model.head.kernel.shape[0])
    assert np.abs(model.head.kernel).max() == pytest.approx(bound, rel=0.01)
    assert np.std(model.head.kernel) == pytest.approx(bound / np.sqrt(3), rel=0.05)
    assert 0 < np.abs(model.head.bias).max() <= bound


def test_bfloat16_is_close_to_float32():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    config = ResNetConfig((1,), False, num_classes=4)
    exact = ResNet(config, rngs=nnx.Rngs(0))(images)
    rounded = ResNet(dataclasses.replace(config, compute_dtype="bfloat16"), rngs=nnx.Rngs(0))(
        images
    )
    assert exact.dtype == rounded.dtype == jnp.float32
    assert not jnp.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, atol=0.05)


def test_a_setting_of_medmamba_is_refused():
    with pytest.raises(UserError, match=r"model\.d_state is for a MedMamba"):
        ModelConfig("resnet18", d_state=8)
    with pytest.raises(UserError, match="compute_dtype must be one of float32, bfloat16"):
        ModelConfig("resnet18", compute_dtype="float16")


@pytest.fixture
def resnet_tiny(monkeypatch):
    monkeypatch.setitem(resnet.VARIANTS, "resnet_tiny", {"blocks": (1,), "bottleneck": False})
    monkeypatch.setitem(OTHER_ARCHITECTURES, "resnet_tiny", ResNetConfig)


@pytest.mark.slow
@pytest.mark.usefixtures("resnet_tiny", "one_device")
def test_a_run_trains_resumes_and_is_evaluated_and_summed_up(
    config, images, tmp_path, monkeypatch, caplog
):
    both = config("resnet_tiny", ema_decay=0.5)
    results = mm.train(both, tmp_path / "run", images)
    one = config("resnet_tiny", ema_decay=0.5, epochs=1)
    mm.train(one, tmp_path / "resumed", images)
    assert mm.train(both, tmp_path / "resumed", images) == results
    assert load_run(tmp_path / "run").evaluate(images) == results
    assert isinstance(RunDescription.read(tmp_path / "run").model, ResNetConfig)
    rows = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["train/loss"] != rows[1]["train/loss"]

    # `medmamba summarize` does not know the ResNets.
    monkeypatch.delitem(OTHER_ARCHITECTURES, "resnet_tiny")
    shutil.rmtree(tmp_path / "run/checkpoints")
    from medmamba_jax.runs.summaries import summarize

    found = summarize([tmp_path / "run", tmp_path / "resumed"], tmp_path)
    assert "model.bottleneck" in caplog.text
    assert json.dumps(results["test"]["auc"]) in json.dumps(found)
