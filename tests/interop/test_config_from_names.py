"""Reading the architecture off an official state_dict."""

import jax
import numpy as np
import pytest
from official_shapes import official_shapes

import medmamba_jax as mm
from medmamba_jax.interop import config_from_state_dict
from medmamba_jax.interop.torch_names import rows
from medmamba_jax.models import abstract_weights


def abstract(shapes):
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}


def shapes_of(config):
    return official_shapes(
        config.depths,
        config.dims,
        classes=config.num_classes,
        channels=config.in_channels,
        patch=config.patch_size,
        states=config.d_state,
        first_version=config.block == "conv_ssm",
    )


CONFIGS = {
    name: mm.MedMambaConfig.variant(name, num_classes=6) for name in mm.VARIANTS if name != "tiny"
}
CONFIGS["unusual"] = mm.MedMambaConfig(
    depths=(3, 1, 2), dims=(20, 40, 80), num_classes=0, in_channels=1, patch_size=2, d_state=5
)


@pytest.mark.parametrize("name", CONFIGS)
def test_names_tell_the_architecture(name):
    config = CONFIGS[name]
    assert config_from_state_dict(abstract(shapes_of(config))) == config


@pytest.mark.parametrize("name", CONFIGS)
def test_the_table_covers_every_official_name_in_order(name):
    config = CONFIGS[name]
    shapes = shapes_of(config)
    assert [row.torch_name for row in rows(config)] == list(shapes)
    ours = jax.tree.leaves(abstract_weights(config))
    assert sum(x.size for x in ours) == sum(int(np.prod(shape)) for shape in shapes.values())


@pytest.mark.parametrize(
    ("name", "tensors"), [("medmamba_t", 355), ("medmamba_s", 491), ("medmamba_b", 627)]
)
def test_number_of_official_tensors(name, tensors):
    assert len(list(rows(CONFIGS[name]))) == tensors


def test_changes_set_what_weights_do_not_tell():
    shapes = abstract(shapes_of(CONFIGS["medmamba_t"]))
    config = config_from_state_dict(shapes, drop_path_rate=0.3, compute_dtype="bfloat16")
    assert config.drop_path_rate == 0.3
    assert config.compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"conv1.weight": (64, 3, 7, 7), "fc.bias": (1000,)},
        {"patch_embed.proj.weight": (96, 3, 4, 4), "layers.0.blocks.0.attn.qkv.weight": (288, 96)},
        {"patch_embed.proj.weight": (96, 48), "layers.0.blocks.0.self_attention.A_logs": (4, 2)},
        {"patch_embed.proj.weight": (8, 3, 4, 4), "layers.0.blocks.0.self_attention.A_logs": (4,)},
    ],
    ids=["empty", "resnet", "swin", "linear_patches", "flat_decays"],
)
def test_foreign_names_are_refused(shapes):
    with pytest.raises(ValueError, match="not an official MedMamba state_dict"):
        config_from_state_dict(abstract(shapes))
