import pytest

from toolkit.config.sections.network import NetworkConfig, NetworkKwargs
from toolkit.errors import UserError
from toolkit.networks.targets import select_target_modules, unused_choices

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
def test_layers_are_chosen_by_parts_of_their_names(
    only, ignore, chosen: list[int]
) -> None:
    settings = NetworkConfig(
        network_kwargs=NetworkKwargs(only_if_contains=only, ignore_if_contains=ignore)
    )
    assert select_target_modules(settings, NAMES) == [NAMES[index] for index in chosen]


def test_no_layer_left_is_a_mistake_that_shows_a_name() -> None:
    with pytest.raises(
        UserError, match=r"leave no layer to train.*blocks\.0\.attn\.to_q"
    ):
        select_target_modules(
            NetworkConfig(network_kwargs=NetworkKwargs(only_if_contains=["atn"])), NAMES
        )


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        ((r".*attn.*",), (), [0, 2]),
        ((), (r".*attn.*",), [1, 3]),
        ((r"blocks\.1\..*",), (r".*attn.*",), [1, 2, 3]),  # include wins
        ((r"blocks\.0\..*", r".*2"), (), [0, 1, 3]),
        ((), (r"attn",), [0, 1, 2, 3]),  # the whole name has to match
    ],
)
def test_layers_are_chosen_by_patterns_of_their_whole_names(
    include, exclude, chosen: list[int]
) -> None:
    settings = NetworkConfig(include_patterns=include, exclude_patterns=exclude)
    assert select_target_modules(settings, NAMES) == [NAMES[index] for index in chosen]


def test_texts_narrow_what_patterns_choose() -> None:
    settings = NetworkConfig(
        include_patterns=[r".*attn.*"],
        network_kwargs=NetworkKwargs(ignore_if_contains=["blocks.0"]),
    )
    assert select_target_modules(settings, NAMES) == [NAMES[2]]


@pytest.mark.parametrize(
    ("section", "chosen"),
    [
        ({}, [0, 2]),
        ({"include_patterns": [r".*0\.mlp.*"]}, [1]),
        ({"exclude_patterns": [r".*0\..*"]}, [2]),
        (
            {"exclude_patterns": [r".*0\..*"], "include_patterns": [r".*1\.mlp.*"]},
            [2, 3],
        ),
        ({"network_kwargs": {"only_if_contains": ["mlp"]}}, [1, 3]),
        ({"network_kwargs": {"ignore_if_contains": ["blocks.0"]}}, [2]),
    ],
)
def test_layers_that_are_not_usual_have_to_be_named(
    section: dict, chosen: list[int]
) -> None:
    settings = NetworkConfig(**section)
    found = select_target_modules(settings, NAMES, usual=r".*\.attn\..*")
    assert found == [NAMES[index] for index in chosen]


def test_patterns_that_match_nothing_are_a_mistake() -> None:
    with pytest.raises(
        UserError,
        match=r"include_patterns .* leave no layer to train.*match the whole name",
    ):
        select_target_modules(NetworkConfig(include_patterns=["attn"]), NAMES)


def test_what_fits_no_layer_is_told() -> None:
    settings = NetworkConfig(
        include_patterns=[r".*attn.*", "attn"],
        exclude_patterns=["norm"],
        network_kwargs=NetworkKwargs(
            only_if_contains=["blocks", "heads"], ignore_if_contains=["mpl"]
        ),
    )
    assert [
        line.partition(f" {NAMES[0]!r}")[0] for line in unused_choices(settings, NAMES)
    ] == [
        "network.include_patterns: 'attn' matches no layer. A pattern has to match the whole name. Write '.*attn.*'.",
        "network.exclude_patterns: 'norm' matches no layer. Names look like",
        "network.network_kwargs.only_if_contains: no layer's name contains 'heads'. They look like",
        "network.network_kwargs.ignore_if_contains: no layer's name contains 'mpl'. They look like",
    ]


def test_patterns_that_cancel_each_other_are_told() -> None:
    """What musubi-tuner does with both: include brings back what exclude leaves out."""

    def told(exclude: str) -> list[str]:
        settings = NetworkConfig(
            include_patterns=[r".*attn.*"], exclude_patterns=[exclude]
        )
        return [line.partition(":")[0] for line in unused_choices(settings, NAMES)]

    settings = NetworkConfig(
        include_patterns=[r".*attn.*"], exclude_patterns=[r".*1\.mlp.*"]
    )
    assert len(select_target_modules(settings, NAMES)) == 3
    assert told(r".*1\.mlp.*") == ["network.include_patterns"]
    assert told(r".*mlp.*") == told(r".*blocks.*") == []
