"""The configuration's checks, and the sizes of the named variants."""

import dataclasses

import jax
import pytest

import medmamba_jax as mm
from medmamba_jax.errors import UserError
from medmamba_jax.models import abstract_weights


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depths", ()),
        ("depths", 2),
        ("depths", (2, 0, 4, 2)),
        ("depths", (2, 2.0, 4, 2)),
        ("depths", (2, 2)),
        ("dims", (96, 192, 384)),
        ("dims", (97, 194, 388, 776)),
        ("dims", (96, 192, 384, 700)),
        ("dims", (-96, -192, -384, -768)),
        ("num_classes", -1),
        ("num_classes", True),
        ("num_classes", 2.0),
        ("in_channels", 0),
        ("block", "vss"),
        ("patch_size", 0),
        ("d_state", "16"),
        ("drop_rate", 1.0),
        ("attn_drop_rate", -0.1),
        ("drop_path_rate", None),
        ("drop_path_rate", True),
        ("compute_dtype", "float16"),
        ("remat", (True, False)),
        ("remat", (1, 0, 0, 0)),
        ("remat", "all"),
        ("remat", 1),
        ("remat", None),
        ("scan_implementation", "cuda"),
    ],
)
def test_bad_values_name_the_field(field, value):
    with pytest.raises(UserError, match=field):
        mm.MedMambaConfig(**{field: value})


def test_every_field_is_checked_above():
    marks = test_bad_values_name_the_field.pytestmark
    checked = {field for field, _ in marks[0].args[1]}
    assert checked == {field.name for field in dataclasses.fields(mm.MedMambaConfig)}


def test_lists_become_tuples_so_that_configs_hash():
    config = mm.MedMambaConfig(depths=[1, 2], dims=[8, 16], remat=[True, False])
    assert hash(config) == hash(mm.MedMambaConfig((1, 2), (8, 16), remat=(True, False)))


def test_variants_take_changes_and_unknown_names_are_refused():
    assert mm.MedMambaConfig.variant("medmamba_t") == mm.MedMambaConfig()
    assert mm.MedMambaConfig.variant("medmamba_s", num_classes=3).num_classes == 3
    with pytest.raises(UserError, match="medmamba_t, medmamba_s"):
        mm.MedMambaConfig.variant("medmamba_xl")
    with pytest.raises(TypeError, match="attention_heads"):
        mm.MedMambaConfig.variant("medmamba_t", attention_heads=3)


def test_a_variant_may_set_any_field_and_changes_win(monkeypatch):
    fields = {"depths": (1,), "dims": (8,), "d_state": 8, "drop_path_rate": 0.0, "remat": True}
    monkeypatch.setitem(mm.VARIANTS, "x", {**fields, "scan_implementation": "sequential"})
    config = mm.MedMambaConfig.variant("x")
    assert config == mm.MedMambaConfig(**fields, scan_implementation="sequential")
    # None is "as the variant has it", or the default where the variant says nothing.
    names = {field.name for field in dataclasses.fields(config)}
    assert mm.MedMambaConfig.variant("x", **dict.fromkeys(names)) == config
    changed = mm.MedMambaConfig.variant("x", d_state=4, drop_path_rate=0.2, remat=False)
    assert (changed.d_state, changed.drop_path_rate, changed.remat) == (4, 0.2, (False,))
    assert changed.scan_implementation == "sequential"


@pytest.mark.parametrize(
    ("name", "num_classes", "count"),
    [
        ("medmamba_t", 6, 14_457_222),
        ("medmamba_s", 6, 18_625_158),
        ("medmamba_b", 6, 39_864_838),
        ("medmamba_v1", 6, 13_939_974),
        ("medmamba_s_paper", 1000, 23_557_480),
        ("medmamba_b_paper", 1000, 48_144_872),
    ],
)
def test_parameter_counts_of_the_variants(name, num_classes, count):
    config = mm.MedMambaConfig.variant(name, num_classes=num_classes)
    params, _ = abstract_weights(config)
    assert sum(x.size for x in jax.tree.leaves(params)) == count


def test_drop_path_rates_rise_linearly_over_all_blocks():
    config = mm.MedMambaConfig(depths=(2, 1, 3), dims=(8, 16, 32), drop_path_rate=0.5)
    rates = [rate for stage in range(3) for rate in config.drop_path_rates(stage)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    one = mm.MedMambaConfig(depths=(1,), dims=(8,), drop_path_rate=0.5)
    assert one.drop_path_rates(0) == (0.0,)


def test_step_size_ranks():
    config = mm.MedMambaConfig()
    assert [config.dt_rank(stage) for stage in range(4)] == [3, 6, 12, 24]
    assert mm.MedMambaConfig(depths=(1,), dims=(34,)).dt_rank(0) == 2  # 17 / 16, rounded up
