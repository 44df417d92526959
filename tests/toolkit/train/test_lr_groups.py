"""Which weight learns at which rate."""

from __future__ import annotations

import pytest

from toolkit.config.sections.train import LrGroupConfig
from toolkit.errors import UserError
from toolkit.train.lr_groups import LrGroup, build_param_groups, group_of_layers

LAYERS = ["blocks.0.attn.to_q", "blocks.0.mlp", "blocks.1.attn.to_q", "blocks.1.mlp"]
WEIGHTS = [f"{layer}.{matrix}" for layer in LAYERS for matrix in ("down", "up")]
UPS = {weight for weight in WEIGHTS if weight.endswith("up")}


def layer_of(weight: str) -> str:
    return weight.rpartition(".")[0]


def entries(*groups: dict) -> list[LrGroupConfig]:
    return [LrGroupConfig(**group) for group in groups]


def test_without_entries_all_weights_are_one_group_in_their_order() -> None:
    assert build_param_groups(WEIGHTS, layer_of, 0.1) == [
        LrGroup("base", 0.1, tuple(WEIGHTS))
    ]


def test_the_first_entry_that_matches_a_whole_name_decides() -> None:
    given = entries(
        {"match": r"blocks\.0\..*", "lr": 0.5, "name": "first"},
        {"match": ".*mlp", "lr_scale": 2},
    )
    assert build_param_groups(WEIGHTS, layer_of, 0.1, given) == [
        LrGroup("first", 0.5, tuple(WEIGHTS[:4])),
        LrGroup(".*mlp", 0.2, tuple(WEIGHTS[6:])),
        LrGroup("base", 0.1, tuple(WEIGHTS[4:6])),
    ]


def test_up_matrices_learn_faster_by_a_factor_of_the_rate_of_their_group() -> None:
    given = entries({"match": ".*mlp", "lr": 0.5, "name": "mlp"})
    groups = build_param_groups(WEIGHTS, layer_of, 0.1, given, UPS, up_ratio=4)
    assert [(group.name, group.lr) for group in groups] == [
        ("mlp", 0.5),
        ("mlp up", 2.0),
        ("base", 0.1),
        ("base up", 0.4),
    ]
    assert [
        name for group in groups if group.name.endswith("up") for name in group.weights
    ] == [
        *(w for w in WEIGHTS if "mlp.up" in w),
        *(w for w in WEIGHTS if "to_q.up" in w),
    ]
    assert sorted(name for group in groups for name in group.weights) == sorted(WEIGHTS)


@pytest.mark.parametrize("pattern", ["attn", "blocks.2.*", "to_q$"])
def test_a_pattern_that_matches_nothing_is_a_mistake_with_examples(
    pattern: str,
) -> None:
    with pytest.raises(UserError) as error:
        group_of_layers(
            entries({"match": ".*mlp", "lr": 1}, {"match": pattern, "lr": 1}), LAYERS
        )
    assert str(error.value).startswith(
        f"train.lr_groups[1].match: {pattern!r} matches none of the 4 trained layers."
    )
    assert "'blocks.0.attn.to_q'" in str(error.value)


def test_a_pattern_whose_layers_are_all_taken_is_a_mistake() -> None:
    with pytest.raises(
        UserError,
        match=r"lr_groups\[1\]\.match: '\.\*mlp' matches only layers that entries before it",
    ):
        group_of_layers(
            entries({"match": ".*", "lr": 1}, {"match": ".*mlp", "lr": 1}), LAYERS
        )
