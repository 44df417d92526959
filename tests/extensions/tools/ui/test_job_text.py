"""Edits of a job's YAML: one value changes, every other character stays, and what
cannot be edited so is refused."""

from __future__ import annotations

import difflib
import json
import random
from pathlib import Path

import pytest

from extensions.tools.shared.examples import MODELS, written_job
from extensions.tools.ui.job_text import JobText
from tests.conftest import ROOT

EXAMPLES = sorted((ROOT / "config" / "examples").glob("*.yaml"))
EXAMPLES = [path for path in EXAMPLES if path.stem != "fluxflow"]
"""Jobs; fluxflow.yaml is a file of another program."""
QUICKSTART = (ROOT / "config" / "examples" / "quickstart.yaml").read_text(
    encoding="utf-8"
)


def changed_lines(old: str, new: str) -> list[str]:
    """Lines that went (-) and came (+)."""
    lines = difflib.ndiff(old.splitlines(), new.splitlines())
    return [f"{line[0]}{line[2:].strip()}" for line in lines if line[0] in "-+"]


def edited(text: str, key: str, given: str, is_text: bool = False) -> JobText:
    job = JobText(text)
    return job.set(job.path(key), given, is_text)


@pytest.mark.parametrize(
    ("key", "given", "lines"),
    [
        ("train.steps", "90", ["-steps: 240", "+steps: 90"]),
        ("config.name", "a: b", ["name"]),
        ("trigger_word", "zuzu", ["+trigger_word: zuzu"]),
        ("datasets[].folder_path", "my pictures", ["folder_path"]),
        ("train.ema_config.ema_decay", "0.5", ["-ema_decay: 0.98", "+ema_decay: 0.5"]),
        (
            "datasets[].resolution",
            "[128, 96]",
            ["-resolution: 128", "+resolution: [128, 96]"],
        ),
        (
            "model.model_kwargs.match_target_res",
            "false",
            ["-model_kwargs: {match_target_res: true}", "match"],
        ),
        (
            "model.model_kwargs.reference_area",
            "100",
            ["-model", "+model_kwargs: {match_target_res: true, reference_area: 100}"],
        ),
        ("validation.every", "50", ["+validation: {every: 50}"]),
    ],
)
def test_a_value_changes_its_line_alone(key: str, given: str, lines: list[str]) -> None:
    new = edited(
        QUICKSTART, key, given, is_text=key in ("config.name", "datasets[].folder_path")
    )
    found = changed_lines(QUICKSTART, new.text)
    assert len(found) <= 2 and all(
        any(part in line for line in found) for part in lines
    )
    assert new.get(new.path(key)) == given
    assert [
        line.partition("#")[2] for line in QUICKSTART.splitlines() if "#" in line
    ] == [line.partition("#")[2] for line in new.text.splitlines() if "#" in line]


def test_a_comment_keeps_its_column_and_a_quoted_text_its_quotes() -> None:
    text = written_job("zuzu", "pictures", "zuzu", MODELS[0].id, 24)
    new = edited(
        edited(text, "train.steps", "12345").text,
        "trigger_word",
        "ohwx man",
        is_text=True,
    )
    line = next(line for line in new.text.splitlines() if "steps: 12345" in line)
    assert line.index("#") == next(
        line for line in text.splitlines() if "steps: 2000" in line
    ).index("#")
    assert 'trigger_word: "ohwx man" ' in new.text
    assert (
        edited(new.text, "train.steps", "2000").text
        == edited(text, "trigger_word", "ohwx man", True).text
    )


@pytest.mark.parametrize("path", EXAMPLES[::3], ids=lambda path: path.stem)
def test_what_is_added_and_taken_out_again_leaves_the_text_as_it_was(
    path: Path,
) -> None:
    text = path.read_text(encoding="utf-8")
    for key in (
        "stop_when.loss",
        "train.seed_of_nothing",
        "save.of_nothing",
        "model.a.b.c",
        "datasets[].nothing",
    ):
        added = edited(text, key, "7")
        assert added.text != text and added.get(added.path(key)) == "7"
        assert added.remove(added.path(key)).text == text, key


@pytest.mark.slow
def test_every_scalar_of_examples_can_be_replaced_or_is_refused() -> None:
    """The edit itself sees to it that what is accepted has the old values but for
    one."""
    refused = []
    for path in EXAMPLES[:4]:
        job = JobText(path.read_text(encoding="utf-8"))
        assert job.root is not None
        for node in job.root.walk():
            if isinstance(node.value, dict | list):
                continue
            try:
                assert (
                    len(
                        changed_lines(
                            job.text, job.set(node.path, "odd: 'value' # 7", True).text
                        )
                    )
                    == 2
                )
            except ValueError:
                refused.append((path.stem, node.path))
    assert {stem for stem, _ in refused} <= {"quickstart", "mascot_hats"}, (
        "their lists have anchors"
    )


def test_prompts_that_stay_keep_their_sizes_and_comments() -> None:
    text = written_job("zuzu", "pictures", "zuzu", MODELS[0].id, 80)
    job = JobText(text)
    first, second = job.prompts()
    assert changed_lines(text, job.set_prompts([first, "new", second]).text) == [
        '+- prompt: "new"'
    ]
    assert [
        line
        for line in changed_lines(text, job.set_prompts([second]).text)
        if line[0] == "+"
    ] == []
    assert job.set_prompts([second]).data(job.path("sample.samples[].width")) == 832
    assert job.set_prompts(["x", first, second]).prompts() == ["x", first, second]
    assert (
        job.set_prompts([first, second, "y: [z", "#"]).set_prompts([first, second]).text
        == text
    )
    assert job.set_prompts([]).prompts() == []
    assert job.set_prompts([]).set_prompts(["again"]).prompts() == ["again"]


def test_any_lists_of_prompts_become_one_another() -> None:
    draw = random.Random(0)
    job = JobText(
        written_job("zuzu", "pictures", "zuzu", "config/examples/tiny_mascots", 24)
    )
    for _ in range(30):
        wanted = [
            draw.choice(["a", "b", "[trigger], c", "#d", "'"])
            for _ in range(draw.randrange(5))
        ]
        job = job.set_prompts(wanted)
        assert job.prompts() == wanted


@pytest.mark.parametrize("key", ["train.steps", "model.model_kwargs.match_target_res"])
@pytest.mark.parametrize(
    "given",
    [
        "5\nconfig: {}",
        "}",
        "{a: 1",
        "- a",
        "&a b",
        "*a",
        "!!python/name:os.system",
        "\u2028",
        "1, b: 2",
        "a # b",
        "true}",
    ],
)
def test_nothing_that_is_typed_changes_another_key(given: str, key: str) -> None:
    for is_text in (True, False):
        try:
            new = edited(QUICKSTART, key, given, is_text)
        except ValueError:
            continue
        assert not is_text or new.get(new.path(key)) == " ".join(given.split())
        old, data = JobText(QUICKSTART).data(()), new.data(())
        for whole in (old, data):
            section = whole["config"]["process"][-1][key.partition(".")[0]]
            del section.get("model_kwargs", section)[key.rpartition(".")[2]]
        assert json.dumps(old) == json.dumps(data)


def test_an_anchor_and_an_alias_are_left_to_the_editor() -> None:
    job = JobText("config: [{place: &places [meadow, room]}, {place: *places}]\n")
    with pytest.raises(ValueError, match="place"):
        job.set(("config", 0, "place"), "[room]", False)
    place = ("config", 1, "place")
    assert job.set(place, "[room]", False).data(place) == ["room"]


def test_text_that_is_no_yaml_has_no_values_and_takes_none() -> None:
    job = JobText("config: [")
    assert (job.get(job.path("config.name")), job.prompts()) == ("", [])
    with pytest.raises(ValueError, match="no job"):
        job.set(job.path("config.name"), "a", True)
    with pytest.raises(ValueError, match="no job"):
        edited("train: {steps: 5}", "train.steps", "6")


def test_json_with_tabs_and_comments_keeps_them() -> None:
    text = '{\n\t// mine\n\t"config": {"name": "a"} /* it */\n}\n'
    job = JobText(text)
    assert job.get(("config", "name")) == "a"
    assert job.set(("config", "name"), "b", True).text == text.replace('"a"', '"b"')
