"""`network`: kinds, patterns, and what belongs to one kind only."""

import signal
import sys
import tomllib

import pytest

from tests.conftest import ROOT
from tests.parts import needs_foreign_names
from tests.toolkit.config.conftest import trainer
from toolkit.config.sections import network
from toolkit.errors import UserError, install_command


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("network: {type: DoRA}", "dora"),
        ("network: {type: loha}", "loha"),
        ("network: {type: lycoris}", "lora"),
        ("network: {type: lycoris, network_kwargs: {algo: LoKr}}", "lokr"),
        ("network: {type: lycoris, network_kwargs: {algo: locon}}", "lora"),
        ("network: {type: lokr, network_kwargs: {algo: lokr}}", "lokr"),
        ("network: {network_kwargs: {algo: lora}}", "lora"),
        ("network: {type: lycoris, network_kwargs: {algo: }}", "lora"),
        ("network: {type: lycoris, network_kwargs: {algo: BOFT}}", "boft"),
        (
            "network: {type: lycoris, network_kwargs: {algo: diag-oft, rescaled: true}}",
            "diag-oft",
        ),
        ("network: {type: lycoris, network_kwargs: {algo: glora}}", "glora"),
        ("network: {type: lycoris, network_kwargs: {algo: ia3}}", "ia3"),
        ("network: {type: lycoris, network_kwargs: {algo: full}}", "lycoris-full"),
        ("network: {type: glora, network_kwargs: {algo: glora}}", "glora"),
    ],
)
def test_lycoris_is_the_kind_that_algo_names(section, line: str, kind: str) -> None:
    assert section(line).network.type == kind


@needs_foreign_names
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "network: {network_kwargs: {algo: lokr}}",
            "network.network_kwargs.algo: applies to 'type: lycoris' only.",
        ),
        (
            "network: {type: full, network_kwargs: {algo: full}}",
            "network.network_kwargs.algo: applies to 'type: lyc",
        ),
        (
            "network: {type: lycoris, network_kwargs: {algo: tlora}}",
            "network.network_kwargs.algo: 'tlora' is not s",
        ),
        (
            "network: {type: lycoris, network_kwargs: {algo: norm}}",
            "network.network_kwargs.algo: 'norm' is not s",
        ),
        (
            "network: {type: lycoris, network_kwargs: {algo: dylora}}",
            "network.network_kwargs.algo: 'dylora' is not ",
        ),
        (
            "network: {type: lycoris, network_kwargs: {algo: boft, constrant: 0.1}}",
            "network.network_kwargs.constrant: unknown key. Did you mean 'constraint'?",
        ),
        (
            "network: {type: lycoris, network_kwargs: {algo: glora, rescaled: true}}",
            "network.network_kwargs.rescaled: is no argument of 'glora': it is one of boft, diag-oft. Remove it.",
        ),
        (
            "network: {network_kwargs: {constraint: 0.1}}",
            "network.network_kwargs.constraint: is no argument of 'lora': it is one of boft, diag-oft. Remove it.",
        ),
        (
            "network: {type: boft, scale_weight_norms: 1}",
            "network.scale_weight_norms: the change of 'boft' cannot be scaled down by its weights. Remove it.",
        ),
        (
            "network: {type: glora, pretrained_lora_path: a.safetensors}",
            "network.pretrained_lora_path: 'glora' cannot start from a file. Remove it, or give the file as model.b",
        ),
        (
            "network: {type: glora, linear_alpha: 0}",
            "network.linear_alpha: 'glora' takes 0 for the rank. Give the value that is meant.",
        ),
        (
            "network: {type: ia3, loraplus_lr_ratio: 4}",
            "network.loraplus_lr_ratio: network.type 'ia3' has no up matri",
        ),
        (
            "network: {type: lycoris, network_kwargs: {algo: loka}}",
            "network.network_kwargs.algo: 'loka' is unknown.",
        ),
        (
            "network: {include_patterns: '(attn'}",
            "network.include_patterns: '(attn' is not a valid regular expression",
        ),
        (
            "network: {exclude_patterns: [ok, '*']}",
            "network.exclude_patterns[1]: '*' is not a valid regular expressio",
        ),
        (
            "network: {type: lokr, factor: 0}",
            "network.factor: 0 is not a valid factor. Use -1 (balanced) or a positive",
        ),
        (
            "network: {type: lokr, lokr_factor: -2}",
            "network.lokr_factor: -2 is out of range: must be >= -1.",
        ),
        (
            "network: {rank_dropout: 1}",
            "network.rank_dropout: 1 is out of range: must be < 1.",
        ),
        (
            "network: {scale_weight_norms: -1}",
            "network.scale_weight_norms: -1 is out of range: must be >= 0.",
        ),
        (
            "network: {loraplus_lr_ratio: -1}",
            "network.loraplus_lr_ratio: -1 is out of range: must be >= 0.",
        ),
        (
            "network: {type: loha, loraplus_lr_ratio: 16}",
            "network.loraplus_lr_ratio: network.type 'loha' has no up ma",
        ),
        (
            "network: {type: lokr, loraplus_lr_ratio: 16}",
            "network.loraplus_lr_ratio: network.type 'lokr' has no up ma",
        ),
        (
            "network: {network_kwargs: {lokr_full_rank: maybe}}",
            "network.network_kwargs.lokr_full_rank: 'maybe' is neither",
        ),
        (
            "network: {lokr_full_rank: false, network_kwargs: {lokr_full_rank: true}}",
            "network.network_kwargs.lokr_full_rank: 'process[0].network.network_kwargs.lokr_full_rank' and 'process",
        ),
    ],
)
def test_what_is_wrong_is_said_at_its_place(faults, line: str, message: str) -> None:
    (found,) = faults(line)
    assert found.startswith(message)


def test_a_pattern_or_a_list_of_them(section) -> None:
    network = section(
        "network: {include_patterns: '.*attn.*', exclude_patterns: [a, b]}"
    ).network
    assert (network.include_patterns, network.exclude_patterns) == (
        (".*attn.*",),
        ("a", "b"),
    )


@needs_foreign_names
def test_a_factor_without_lokr_is_told(load) -> None:
    (warning,) = load(
        trainer("network: {type: lora, lokr_factor: 8, lokr_full_rank: true}")
    ).warnings
    assert warning.endswith(
        "network.lokr_factor: has no effect: it concerns LoKr only."
    )
    assert load(trainer("network: {type: lora, lokr_factor: -1}")).warnings == ()
    assert (
        load(
            trainer("network: {type: lycoris, factor: 8, network_kwargs: {algo: lokr}}")
        ).warnings
        == ()
    )


@needs_foreign_names
def test_the_size_in_words(section) -> None:
    words = {
        "{rank: 4}": "rank 4, alpha 4 (not given: the rank)",
        "{type: lokr, rank: 4}": "balanced, rank 4, alpha 4 (not given: the rank)",
        "{type: lokr, rank: 4, alpha: 8, factor: 8}": "factor 8, rank 4, alpha 8",
        "{type: lokr, factor: 8, lokr_full_rank: true}": "factor 8, second factor whole",
        "{type: glora, rank: 4, alpha: 2}": "rank 4, alpha 2",
        "{type: diag-oft, rank: 4}": "with blocks of at most 4",
        "{type: ia3}": "without a rank",
    }
    for line, expected in words.items():
        assert section(f"network: {line}").network.size() == expected


@needs_foreign_names
@pytest.mark.parametrize(
    ("line", "whole"),
    [
        ("{type: lokr, network_kwargs: {lokr_full_rank: true}}", True),
        ("{type: lokr, network_kwargs: {lokr_full_rank: false}}", False),
        (
            "{type: lycoris, network_kwargs: {algo: lokr, factor: 8, lokr_full_rank: true}}",
            True,
        ),
        ("{type: lokr, network_kwargs: {lokr_full_rank: }}", False),
        (
            "{type: lokr, lokr_full_rank: true, network_kwargs: {lokr_full_rank: true, only_if_contains: [attn]}}",
            True,
        ),
    ],
)
def test_a_whole_second_factor_may_be_asked_for_among_the_kwargs(
    section, line: str, whole: bool
) -> None:
    network = section(f"network: {line}").network
    assert network.lokr_full_rank is whole
    assert network.network_kwargs.only_if_contains == (
        ("attn",) if "attn" in line else ()
    )


@needs_foreign_names
def test_a_factor_may_be_given_among_the_kwargs_too(section, faults) -> None:
    network = section(
        "network: {type: lycoris, network_kwargs: {algo: lokr, factor: 8}}"
    ).network
    assert (network.type, network.factor) == ("lokr", 8)
    (found,) = faults("network: {type: lokr, factor: 4, network_kwargs: {factor: 8}}")
    assert "mean the same, but 8 and 4 were given" in found


@pytest.mark.parametrize(
    "pattern", [r"(([a-z_.0-9])+)+$X", r"(a|ab|b)*c|.*.*.*.*.*.*.*.*.*.*.*.*.*X"]
)
def test_a_pattern_that_takes_longer_than_any_run_is_given_up(
    monkeypatch, pattern: str
) -> None:
    monkeypatch.setattr(network, "MATCH_SECONDS", 0.2)
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(
        UserError, match=r"is not done with the names of the layers after 0\.2 s"
    ):
        network.matching(pattern, ["transformer_blocks.59.attn.to_add_out_and_more"])
    assert network.matching("a.*", ["ab", "b"]) == ["ab"]
    assert (
        signal.getitimer(signal.ITIMER_REAL) == (0, 0)
        and signal.getsignal(signal.SIGALRM) is before
    )


def test_a_pattern_that_cannot_be_compiled_is_one_line(faults) -> None:
    for pattern in ("a{99999999999}", "(" * 3000 + "a" + ")" * 3000, "(a"):
        (fault,) = faults(f"network: {{exclude_patterns: ['{pattern}']}}")
        assert "is not a valid regular expression: " in fault


@pytest.mark.parametrize("kind", ["boft", "diag-oft", "glora", "ia3", "lycoris-full"])
def test_without_lycoris_its_kinds_name_the_package_and_the_extra(
    monkeypatch, faults, section, kind: str
) -> None:
    assert section(f"network: {{type: {kind}}}").network.type == kind
    monkeypatch.setitem(sys.modules, "lycoris", None)
    assert faults(f"network: {{type: {kind}}}") == [
        f"network.type: '{kind}' needs the package lycoris-lora (the extra 'lycoris'), which is not installed. "
        f"Run: {install_command('lycoris-lora==4.1.3')}"
    ]
    assert (
        section("network: {type: lycoris, network_kwargs: {algo: lokr}}").network.type
        == "lokr"
    )


def test_the_package_is_the_one_of_the_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    assert project["optional-dependencies"]["lycoris"] == [network.LYCORIS]


def test_factors_that_comfyui_ignores_are_told(load) -> None:
    job = "network: {{type: {}, network_kwargs: {{rescaled: true}}}}"
    (warning,) = load(trainer(job.format("diag-oft"))).warnings
    assert "network.network_kwargs.rescaled: ComfyUI ignores these factors" in warning
    assert load(trainer(job.format("boft"))).warnings == ()


def test_what_an_algorithm_does_not_use_is_told(load) -> None:
    for kind, keys in (
        ("ia3", "linear linear_alpha"),
        ("boft", "linear_alpha"),
        ("glora", ""),
    ):
        given = load(
            trainer(f"network: {{type: {kind}, linear: 32, linear_alpha: 8}}")
        ).warnings
        found = [line.partition("network.")[2].partition(":")[0] for line in given]
        assert found == keys.split(), kind
