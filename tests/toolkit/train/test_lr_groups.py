"""Which weight learns at which rate."""

from __future__ import annotations

from toolkit.train.lr_groups import LrGroup, build_param_groups

WEIGHTS = [f"blocks.{index}.{part}" for index in (0, 1) for part in ("down", "up")]
UPS = {weight for weight in WEIGHTS if weight.endswith("up")}


def test_without_a_ratio_all_weights_are_one_group_in_their_order() -> None:
    assert build_param_groups(WEIGHTS, 0.1, UPS) == [
        LrGroup("base", 0.1, tuple(WEIGHTS))
    ]


def test_up_matrices_learn_faster_by_a_factor() -> None:
    assert build_param_groups(WEIGHTS, 0.1, UPS, up_ratio=4) == [
        LrGroup("base", 0.1, ("blocks.0.down", "blocks.1.down")),
        LrGroup("base up", 0.4, ("blocks.0.up", "blocks.1.up")),
    ]
