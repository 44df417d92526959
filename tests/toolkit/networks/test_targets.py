import pytest

from toolkit.errors import UserError
from toolkit.networks.targets import select_targets

NAMES = ["blocks.0.attn.to_q", "blocks.0.mlp.2", "blocks.1.attn.to_q", "blocks.1.mlp.2"]


@pytest.mark.parametrize(
    ("only", "ignore", "chosen"),
    [
        ((), (), [0, 1, 2, 3]),
        (("attn",), (), [0, 2]),
        ((), ("blocks.1.",), [0, 1]),
        (("attn", "mlp"), ("blocks.0.",), [2, 3]),
    ],
)
def test_layers_are_chosen_by_parts_of_their_names(only, ignore, chosen: list[int]) -> None:
    assert select_targets(NAMES, only, ignore) == [NAMES[index] for index in chosen]


def test_no_layer_left_is_a_mistake_that_shows_a_name() -> None:
    with pytest.raises(UserError, match=r"leave no layer to train.*blocks\.0\.attn\.to_q"):
        select_targets(NAMES, only_if_contains=["atn"])
