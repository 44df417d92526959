"""Optimizers and schedules by role: the three spellings, which goes first, and mistakes
in the JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from extensions.compat.fluxflow_optimizers import RoleOptimizers
from tests.extensions.compat import fluxflow_guide as guide
from toolkit.config import load_job
from toolkit.config.reading.located import ConfigNode, Diagnostics
from toolkit.config.reading.yaml_reader import read_yaml
from toolkit.errors import ConfigErrors
from toolkit.extension import discover


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Step:
    """The optimizers of a step, from the text of each place."""

    def __init__(self, *levels: str, folder: str = ".") -> None:
        self.diagnostics = Diagnostics("c.yaml")
        self.nodes = [
            read_yaml(level or "{}", self.diagnostics) if level else _empty()
            for level in levels
        ]
        self.optimizers = RoleOptimizers(
            Path(folder), [node.value for node in self.nodes], self.diagnostics
        )

    def entry(self, role: str, lr_min: float | None = None) -> dict[str, Any]:
        place = _empty()
        node = (
            None
            if lr_min is None
            else ConfigNode(lr_min, (), place.key_at, place.value_at)
        )
        entry = self.optimizers.entry(role, node, place)
        self.diagnostics.raise_errors()
        return {
            key: value.data() if isinstance(value, ConfigNode) else value
            for key, value in entry.items()
        }

    def faults(self, role: str = "vae") -> list[str]:
        with pytest.raises(ConfigErrors) as caught:
            self.entry(role)
        return str(caught.value).splitlines()


def _empty() -> ConfigNode:
    return ConfigNode({}, (), (0, 0), (0, 0))  # type: ignore[arg-type]


COSINE = {
    "lr_scheduler": "CosineAnnealingLR",
    "lr_scheduler_params": {"eta_min_factor": 0.1},
}


def test_a_role_without_an_entry_is_adamw_along_a_cosine() -> None:
    assert Step("").entry("vae") == {"optimizer": "adamw", **COSINE}


def test_the_discriminators_adamw_has_the_guides_betas_and_amsgrad() -> None:
    assert Step("").entry("discriminator")["optimizer_params"] == {
        "betas": [0.0, 0.9],
        "amsgrad": True,
    }
    given = Step("optimizers: {D_img: {lr: 5e-6, betas: [0.5, 0.9]}}").entry(
        "discriminator"
    )
    assert (given["lr"], given["optimizer_params"]) == (
        5e-6,
        {"betas": [0.5, 0.9], "amsgrad": True},
    )
    assert "optimizer_params" not in Step(
        "optimizers: {discriminator: {type: SGD}}"
    ).entry("discriminator")


@pytest.mark.parametrize("key", ["optimizer_type", "type"])
@pytest.mark.parametrize("place", ["optimizers", "optimizer_config"])
@pytest.mark.parametrize("role", ["flow", "flow_processor"])
def test_every_spelling_of_an_entry_is_read(key: str, place: str, role: str) -> None:
    found = Step(
        f"{place}: {{{role}: {{{key}: Lion, lr: 5e-7, betas: [0.9, 0.95]}}}}"
    ).entry("flow")
    assert (found["optimizer"], found["lr"], found["optimizer_params"]) == (
        "Lion",
        5e-7,
        {"betas": [0.9, 0.95]},
    )


def test_both_in_one_mapping() -> None:
    text = (
        "optimization: {optimizers: {vae: {type: SGD, momentum: 0.9}}, schedulers: "
        "{vae: {type: StepLR, step_size: 3}}}"
    )
    assert Step(text).entry("vae") == {
        "optimizer": "SGD",
        "optimizer_params": {"momentum": 0.9},
        "lr_scheduler": "StepLR",
        "lr_scheduler_params": {"step_size": 3},
    }


def test_schedules_end_at_a_share_of_the_rate() -> None:
    assert Step("").entry("vae", 0.05)["lr_scheduler_params"] == {
        "eta_min_factor": 0.05
    }
    assert Step("").entry("text_encoder")["lr_scheduler_params"] == {
        "eta_min_factor": 0.001
    }
    own = Step(
        "schedulers: {vae: {scheduler_type: CosineAnnealingLR, T_max: 100, eta_min_factor: 0.2}}"
    ).entry("vae", 0.05)
    assert own["lr_scheduler_params"] == {"T_max": 100, "eta_min_factor": 0.2}


@pytest.mark.parametrize(
    ("kind", "needs"),
    [
        ("LinearLR", ""),
        ("ConstantLR", ""),
        ("StepLR", "step needs 'step_size'"),
        ("ExponentialLR", "exponential needs 'gamma'"),
    ],
)
def test_a_schedule_without_arguments_takes_none_of_the_cosine_of_the_process(
    kind: str, needs: str, folder: Path
) -> None:
    (folder / "a").mkdir()
    Image.new("RGB", (32, 32)).save(folder / "a" / "a.png")
    (folder / "a.txt").write_text("a.png\ta photo\n")
    job = f"schedulers: {{vae: {{type: {kind}}}}}"
    (folder / "c.yaml").write_text(
        "data: {data_path: a, captions_file: a.txt}\nmodel: {vae_dim: 16}\n"
        f"training: {{output_path: out, n_epochs: 1, batch_size: 1, train_vae: true, optimization: {{{job}}}}}\n"
    )
    try:
        section = load_job("c.yaml", discover().find_config).processes[0].section
    except ConfigErrors as error:
        assert (
            str(error)
            == f"c.yaml:3:115: training.optimization.schedulers.vae.type: {needs}, which is not given."
        )
    else:
        assert section.optimizers.vae.lr_scheduler_params == {} and not needs


def test_plateau_takes_the_mode_of_a_loss_only() -> None:
    text = "schedulers: {{vae: {{type: ReduceLROnPlateau, mode: {}, patience: 3}}}}"
    assert Step(text.format("min")).entry("vae")["lr_scheduler_params"] == {
        "patience": 3
    }
    (line,) = Step(text.format("max")).faults()
    assert (
        line
        == "c.yaml:1:51: schedulers.vae.mode: 'max': a loss is to fall. Write min, or leave it out."
    )


def write_json(name: str, data: Any) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(
        data if isinstance(data, str) else json.dumps(data, indent=2), encoding="utf-8"
    )


def test_the_guides_json_file_gives_all_four_roles() -> None:
    write_json("configs/all.json", guide.LION_FLOW)
    step = Step("optim_sched_config: configs/all.json")
    for role, given in guide.LION_FLOW["optimizers"].items():
        entry = step.entry(role)
        assert (entry["optimizer"], entry["lr"]) == (given["type"], given["lr"])
        assert entry["optimizer_params"] == {
            k: v for k, v in given.items() if k not in ("type", "lr")
        }
        end = guide.LION_FLOW["schedulers"][role]["eta_min_factor"]
        assert entry["lr_scheduler_params"] == {"eta_min_factor": end}


def test_inline_goes_before_the_file_and_the_step_before_what_it_inherits() -> None:
    write_json(
        "a.json", {"optimizers": {"vae": {"type": "AdamW", "lr": 1, "eps": 1e-6}}}
    )
    write_json(
        "b.json",
        {"optimizers": {"vae": {"type": "AdamW", "lr": 2, "weight_decay": 0.5}}},
    )
    step = "optim_sched_config: a.json\noptimizers: {vae: {lr: 3}}"
    found = Step(step, "", "optim_sched_config: b.json").entry("vae")
    assert (found["lr"], found["optimizer_params"]) == (
        3,
        {"eps": 1e-6, "weight_decay": 0.5},
    )


def test_arguments_of_another_class_are_not_inherited() -> None:
    found = Step(
        "optimizers: {vae: {type: Lion}}",
        "",
        "optimizers: {vae: {type: AdamW, eps: 1, lr: 2}}",
    ).entry("vae")
    assert found == {"optimizer": "Lion", **COSINE}


def test_the_file_is_looked_for_beside_the_config_and_then_in_the_working_directory() -> (
    None
):
    write_json("sub/x.json", {"optimizers": {"vae": {"lr": 1}}})
    write_json("x.json", {"optimizers": {"vae": {"lr": 2}}})
    write_json("y.json", {"optimizers": {"vae": {"lr": 3}}})
    assert Step("optim_sched_config: x.json", folder="sub").entry("vae")["lr"] == 1
    assert Step("optim_sched_config: y.json", folder="sub").entry("vae")["lr"] == 3
    (line,) = Step("optim_sched_config: z.json", folder="sub").faults()
    assert line.startswith(
        "c.yaml:1:21: optim_sched_config: 'z.json' does not exist (looked for "
    )
    assert line.count("z.json") == 3


def test_a_fault_of_the_json_has_the_files_line_and_column() -> None:
    write_json("x.json", '{"optimizers": {\n  "vae": {"lr": 1,}\n}}')
    (line,) = Step("optim_sched_config: x.json").faults()
    assert line.startswith("x.json:2:1") and "not valid JSON: " in line
    assert line.endswith("'python -m json.tool x.json' checks it.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1]", "x.json:1:1: is not a mapping."),
        (
            '{"optimizer": {}}',
            "x.json:1:2: optimizer: unknown key. Did you mean 'optimizers'?",
        ),
        (
            '{"optimizers": {"vea": {}}}',
            "x.json:1:17: optimizers.vea: 'vea' is not a set of weights. Did you mean 'va",
        ),
        (
            '{"optimizers": {"vae": 3}}',
            "x.json:1:24: optimizers.vae: 3 is not a mapping",
        ),
        (
            '{"optimizers": {"vae": {"lr": 1, "lr": 2}}}',
            "x.json:1:34: optimizers.vae.lr: duplicate key",
        ),
    ],
)
def test_mistakes_in_the_json_have_their_place(text: str, expected: str) -> None:
    write_json("x.json", text)
    assert Step("optim_sched_config: x.json").faults()[0].startswith(expected)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (
            "optimizers: {vae: {type: SGD, optimizer_type: Lion}}",
            ("'type'", "'optimizer_type'"),
        ),
        (
            "optimizers: {vae: {lr: 1}}\noptimizer_config: {vae: {lr: 2}}",
            ("'optimizer_config.vae'", "'optimizers.vae'"),
        ),
        (
            "optimizers: {flow: {lr: 1}, flow_processor: {lr: 2}}",
            ("'flow_processor'", "'flow'"),
        ),
    ],
)
def test_two_spellings_with_different_values_name_both(
    text: str, names: tuple[str, str]
) -> None:
    (line,) = Step(text).faults("flow")
    assert f"{names[0]} and {names[1]} mean the same" in line


def test_an_entry_for_a_role_that_the_step_does_not_train_is_told() -> None:
    step = Step("optimizers: {vae: {lr: 1}, text_encoder: {lr: 2}}")
    step.optimizers.check(step.nodes[0].value, ("vae",), "one")
    (line,) = step.diagnostics.warnings
    assert line.endswith(
        "optimizers.text_encoder: has no effect: step 'one' trains vae."
    )
