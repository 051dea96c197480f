import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import medmamba_jax as mm
from benchmarks import resnet
from benchmarks.resnet import ResNet, ResNetConfig
from medmamba_jax.errors import UserError
from medmamba_jax.models import (
    abstract_weights,
    evaluation_graphdef,
    split_model,
    training_graphdef,
)
from medmamba_jax.models.structure import by_name, with_tensors
from medmamba_jax.runs import RunDescription, load_run
from medmamba_jax.training.config import ModelConfig


@pytest.mark.parametrize(("variant", "count"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_parameters_are_as_many_as_torchvision_documents(variant, count):
    params, statistics = abstract_weights(ResNetConfig.variant(variant))
    assert sum(x.size for x in jax.tree.leaves(params)) == count
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert "stem.norm.mean" in by_name(statistics)


WIDTH = 8


@pytest.fixture
def narrow(monkeypatch):
    """Makes ResNets of an eighth of the channels, which compile and run faster."""
    monkeypatch.setattr(resnet, "_WIDTH", WIDTH)


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
            self.conv1, self.bn1 = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False), nn.BatchNorm2d(WIDTH)
            n_in = WIDTH
            for i, depth in enumerate(depths):
                width, blocks = WIDTH * 2**i, []
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


def from_torch(network, tree):
    """The tensors of a network in PyTorch, in the places of the leaves of a tree."""
    state = network.state_dict()
    tensors = {}
    for name, leaf in by_name(tree).items():
        value = state.pop(torch_name(name)).numpy()
        axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim, range(value.ndim))
        tensors[name] = jnp.asarray(value.transpose(axes).copy())
        assert tensors[name].shape == leaf.shape
    return with_tensors(tree, tensors), set(state)


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("blocks", "bottleneck"), [((2, 1), False), ((1, 1), True)])
def test_outputs_and_statistics_are_those_of_pytorch(torch, blocks, bottleneck):
    config = ResNetConfig(blocks, bottleneck, num_classes=5)
    params, statistics = abstract_weights(config)
    other = reference(torch, blocks, bottleneck, 5)
    start, others = from_torch(other, params)
    before, _ = from_torch(other, statistics)
    assert all("running" in name or "tracked" in name for name in others)
    images = np.random.default_rng(0).normal(size=(3, 45, 38, 3)).astype(np.float32)
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    @jax.jit
    def trained(params, statistics, images):
        model = nnx.merge(training_graphdef(config), params, statistics)
        return model(images), split_model(model)[1]

    logits, statistics = trained(start, before, images)
    np.testing.assert_allclose(logits, other(inputs).detach(), rtol=1e-3, atol=1e-4)
    expected, _ = from_torch(other, statistics)  # the call has updated them
    chex.assert_trees_all_close(statistics, expected, rtol=1e-3, atol=1e-5)

    @jax.jit
    def evaluated(params, statistics, images):
        return nnx.merge(evaluation_graphdef(config), params, statistics)(images)

    logits = evaluated(start, statistics, images)
    np.testing.assert_allclose(logits, other.eval()(inputs).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_initialisation_is_torchvisions():
    config = ResNetConfig((1,), True, num_classes=50)
    model = nnx.jit(lambda: ResNet(config, rngs=nnx.Rngs(0)))()
    for convolution in (model.stem, *model.stages[0][0].convolutions):
        height, width, _, n_out = convolution.conv.kernel.shape
        deviation = np.sqrt(2 / (height * width * n_out))
        assert np.std(convolution.conv.kernel) == pytest.approx(deviation, rel=0.05)
        assert (np.asarray(convolution.norm.scale) == 1).all()
    bound = 1 / np.sqrt(model.head.kernel.shape[0])
    assert np.abs(model.head.kernel).max() == pytest.approx(bound, rel=0.01)
    assert np.std(model.head.kernel) == pytest.approx(bound / np.sqrt(3), rel=0.05)
    assert 0 < np.abs(model.head.bias).max() <= bound


def test_a_setting_of_medmamba_is_refused():
    with pytest.raises(UserError, match=r"model\.d_state is for a MedMamba"):
        ModelConfig("resnet18", d_state=8)
    with pytest.raises(UserError, match="compute_dtype must be one of float32, bfloat16"):
        ModelConfig("resnet18", compute_dtype="float16")


@pytest.fixture
def resnet_tiny(monkeypatch):
    monkeypatch.setitem(resnet.VARIANTS, "resnet_tiny", {"blocks": (1,), "bottleneck": False})


@pytest.mark.nightly
@pytest.mark.usefixtures("resnet_tiny", "narrow", "one_device")
def test_a_run_trains_resumes_and_is_evaluated_and_summed_up(config, images, tmp_path, monkeypatch):
    for epochs in (1, 2):
        built = config("resnet_tiny", ema_decay=0.5, epochs=epochs)
        results = mm.train(built, tmp_path / "run", images)
    assert load_run(tmp_path / "run").evaluate(images) == results
    assert isinstance(RunDescription.read(tmp_path / "run").model, ResNetConfig)
    rows = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["train/loss"] != rows[1]["train/loss"]

    # `medmamba summarize` does not know the ResNets.
    monkeypatch.delitem(resnet.VARIANTS, "resnet_tiny")
    with pytest.raises(UserError, match="does not have the network 'resnet_tiny': use the script"):
        load_run(tmp_path / "run").predictor  # noqa: B018  (the property reads the checkpoint)
    shutil.rmtree(tmp_path / "run/checkpoints")
    from medmamba_jax.runs.summaries import summarize

    found = summarize([tmp_path / "run"], tmp_path)
    assert json.dumps(results["test"]["auc"]) in json.dumps(found)
