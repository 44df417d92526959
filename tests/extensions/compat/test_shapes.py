"""Arguments as texts `name=value`, of optimizers and networks."""

from __future__ import annotations

import pytest

from tests.toolkit.config.conftest import trainer


@pytest.mark.parametrize(
    ("written", "fields"),
    [
        (
            "['loraplus_lr_ratio=4', 'rank_dropout=0.1']",
            {"loraplus_lr_ratio": 4, "rank_dropout": 0.1},
        ),
        (
            "loraplus_lr_ratio=4 rank_dropout = 0.1",
            {"loraplus_lr_ratio": 4, "rank_dropout": 0.1},
        ),
        ("module_dropout=0", {"module_dropout": 0}),
        ("\"exclude_patterns=[r'.*norm.*']\"", {"exclude_patterns": (".*norm.*",)}),
        (
            "[\"include_patterns=['.*attn.*', 'b c']\"]",
            {"include_patterns": (".*attn.*", "b c")},
        ),
        (
            "\"include_patterns=['a', 'b'] module_dropout=0.5\"",
            {"include_patterns": ("a", "b"), "module_dropout": 0.5},
        ),
        ("include_patterns=.*attn.*", {"include_patterns": (".*attn.*",)}),
        ("[]", {"loraplus_lr_ratio": 0}),
        ("{rank_dropout: 0.5}", {"rank_dropout": 0.5}),
    ],
)
def test_network_args_are_keys_of_the_network(
    section, written: str, fields: dict
) -> None:
    network = section(f"network:\n  network_args: {written}").network
    assert {name: getattr(network, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("name", "extras", "fields"),
    [
        (
            "Comfy-Org/Qwen-Image-2.1",
            "Qwen/Qwen-Image-2.1",
            {"name_or_path": "Qwen/Qwen-Image-2.1"},
        ),
        ("Comfy-Org/Qwen-Image-2.1", "", {"name_or_path": "Qwen/Qwen-Image-2.1"}),
        ("a/b", "a/b", {"name_or_path": "a/b", "transformer_path": None}),
        (
            "x.safetensors",
            "a/b",
            {"name_or_path": "a/b", "transformer_path": "x.safetensors"},
        ),
    ],
)
def test_where_ai_toolkit_takes_the_other_parts_from(
    section, name: str, extras: str, fields: dict
) -> None:
    """Its page writes the first for Qwen-Image-2.1."""
    more = f", extras_name_or_path: {extras}" * bool(extras)
    model = section(
        f"model: {{name_or_path: {name}{more}, model_kwargs: {{use_comfy_weights: true}}}}"
    ).model
    assert {field: getattr(model, field) for field in fields} == fields


def test_kohyas_module_of_lycoris_trains_the_algorithm_that_its_arguments_name(
    section, faults
) -> None:
    written = "network_module: lycoris.kohya, network_dim: 4, network_args: [algo={}]"
    network = section(
        f"network: {{{written.format('diag-oft, constraint=1e-3, conv_dim=4')}}}"
    ).network
    assert (network.type, network.linear, network.network_kwargs.constraint) == (
        "diag-oft",
        4,
        1e-3,
    )
    assert section(f"network: {{{written.format('locon')}}}").network.type == "lora"
    (fault,) = faults(f"network: {{{written.format('tlora')}}}")
    assert "'tlora' is not supported." in fault


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ("algo: boft, constrain: 0.5, use_tucker: true", {"constraint": 0.5}),
        (
            "algo: boft, bypass_mode: true, conv_dim: 4, train_norm: false",
            {"constraint": 0},
        ),
    ],
)
def test_arguments_of_lycoris_that_ask_for_nothing_here_pass(
    section, written: str, arguments: dict
) -> None:
    network = section(
        f"network: {{type: lycoris, network_kwargs: {{{written}}}}}"
    ).network
    assert network.type == "boft"
    assert {
        name: getattr(network.network_kwargs, name) for name in arguments
    } == arguments


def test_arguments_of_lycoris_that_mean_another_network_are_refused(faults) -> None:
    for argument in ("train_norm", "use_scalar", "dora_wd", "decompose_both"):
        (fault,) = faults(
            f"network: {{type: lycoris, network_kwargs: {{algo: glora, {argument}: true}}}}"
        )
        assert fault.startswith(f"network.network_kwargs.{argument}: ")


def test_factor_belongs_to_lokr(section) -> None:
    assert (
        section("network: {type: lokr, network_args: ['factor=4']}").network.factor == 4
    )


def test_arguments_without_effect_are_warnings(load) -> None:
    job = load(
        trainer("network: {network_args: [verbose=True, conv_dim=4, conv_alpha=1]}")
    )
    assert [line.split("network_args")[1] for line in job.warnings] == [
        "[0].verbose: 'verbose' has no effect: the log has one level.",
        "[1].conv_dim: 'conv_dim' has no effect: the transformer has no convolutions.",
        "[2].conv_alpha: 'conv_alpha' has no effect: the transformer has no convolutions.",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "network: {network_args: [rank_dropuot=1]}",
            "network.network_args[0].rank_dropuot: 'rank_dropuot' is unknow",
        ),
        (
            "network: {network_args: [rank_dropout=x]}",
            "network.network_args[0].rank_dropout: 'x' is not a number.",
        ),
        (
            "network: {network_args: [rank_dropout=2]}",
            "network.network_args[0].rank_dropout: 2 is out of range: must",
        ),
        (
            "network: {network_args: [rank_dropout]}",
            "network.network_args[0]: 'rank_dropout' is not of the form name=",
        ),
        (
            "network: {network_args: ['include_patterns=(a']}",
            "network.network_args[0].include_patterns: '(a' is not a",
        ),
        (
            "network: {rank: 4, network_args: [linear=8]}",
            "network.rank: 'rank' and 'linear' mean the same, but 4 and",
        ),
        (
            "network: {network_module: networks.lora_wan}",
            "network.network_module: 'networks.lora_wan' is unknown. Did",
        ),
        (
            "network: {type: dora, network_module: networks.loha}",
            "network.network_module: 'network_module' and 'type'",
        ),
    ],
)
def test_what_is_wrong_is_said_at_its_place(faults, lines: str, message: str) -> None:
    (found,) = faults(lines)
    assert found.startswith(message)


STREAMED = "url: a.tar"


@pytest.mark.parametrize(
    ("dataset", "of_all", "kept"),
    [
        ("cache_latents_to_disk: true", "", (True, True)),
        ("cache_latents_to_disk: false", "", (False, True)),
        ("cache_latents: false, cache_latents_to_disk: true", "", (False, True)),
        (
            "cache_latents_to_disk: true, cache_text_embeddings: false",
            "",
            (True, False),
        ),
        ("cache_latents_to_disk: false", "false", (False, False)),
        ("cache_text_embeddings: true", "false", (True, True)),
        ("cache: latents", "true", (True, False)),
        ("shuffle_tokens: true, cache_latents_to_disk: true", "", (True, False)),
        ("shuffle_tokens: true, cache_latents_to_disk: 'no'", "", (False, False)),
        (f"{STREAMED}, cache_latents: true", "", (False, False)),
        (f"{STREAMED}, cache_latents_to_disk: true", "", (True, False)),
        (f"{STREAMED}, cache_latents: false", "true", (False, True)),
    ],
)
def test_three_switches_are_what_outlives_the_run(
    section, dataset: str, of_all: str, kept: tuple[bool, bool]
) -> None:
    place = "" if STREAMED in dataset else "folder_path: photos, "
    lines = [f"datasets: [{{{place}{dataset}}}]"]
    lines += [f"train: {{cache_text_embeddings: {of_all}}}"] * bool(of_all)
    found = section(*lines).datasets[0]
    assert (found.keeps("latents"), found.keeps("text")) == kept


@pytest.mark.parametrize(
    ("dataset", "fault"),
    [
        ("cache_latents: maybe", "cache_latents: 'maybe' is not true or false."),
        (
            "cache: text, cache_latents_to_disk: true",
            "cache_latents_to_disk: 'cache_latents_to_disk' and 'cache' mean the same, but",
        ),
        (
            "cache_text_embeddings: true, shuffle_tokens: true",
            "cache_text_embeddings: keeps text embeddings, and with 'shuffle_tokens: true'",
        ),
        (
            "cache: text, shuffle_tokens: true",
            "cache: keeps text embeddings, and with 'shuffle_tokens: true' a caption changes",
        ),
    ],
)
def test_switches_that_contradict_are_an_error(
    faults, dataset: str, fault: str
) -> None:
    (found,) = faults(f"datasets: [{{folder_path: photos, {dataset}}}]")
    assert found.startswith(f"datasets[0].{fault}")


@pytest.mark.parametrize(
    ("line", "params", "told"),
    [
        ("lr_scheduler: Polynomial, lr_scheduler_power: '2'", {"power": 2}, ""),
        ("lr_scheduler: rex, lr_scheduler_min_lr_ratio: 0", {"min_lr_ratio": 0}, ""),
        (
            "lr_scheduler: cosine_with_restarts, lr_scheduler_num_cycles: 3, lr_scheduler_power: 1.0",
            {"num_cycles": 3},
            "",
        ),
        (
            "lr_scheduler: cosine_with_restarts, lr_scheduler_num_cycles: 3, "
            "lr_scheduler_params: {num_warmup_steps: 5}",
            {"num_cycles": 3, "num_warmup_steps": 5},
            "",
        ),
        ("lr_scheduler_num_cycles: 1, lr_scheduler_timescale: 0", {}, ""),
        ("lr_scheduler: cosine, lr_scheduler_min_lr_ratio: ", {}, "has no value"),
        (
            "lr_scheduler: cosine, lr_scheduler_power: 2",
            {},
            "train.lr_scheduler_power: has no effect: lr_scheduler cosine ignores it.",
        ),
    ],
)
def test_options_of_a_schedule_are_its_parameters(
    load, line: str, params: dict, told: str
) -> None:
    job = load(trainer(f"train: {{{line}}}"))
    assert job.processes[0].section.train.lr_scheduler_params == params
    assert bool(job.warnings) == bool(told)
    assert all(told in warning for warning in job.warnings)


def test_an_option_and_a_parameter_that_differ_are_an_error(faults) -> None:
    (found,) = faults(
        "train: {lr_scheduler: polynomial, lr_scheduler_power: 2, lr_scheduler_params: {power: 3}}"
    )
    assert "mean the same" in found
