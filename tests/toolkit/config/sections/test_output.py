"""`save`: when files are written and how many are kept; `sample`: shapes, and what an
item takes from its section."""

from __future__ import annotations

import os

import pytest

from tests.parts import needs_foreign_names
from tests.toolkit.config.conftest import trainer
from toolkit.registry import HINTED_TOOLS, LEFT_OUT


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "steps", "epochs"),
    [
        ("", 250, 0),
        ("save_every: 0", 0, 0),
        ("save_every_n_steps: 100", 100, 0),
        (
            "save_every_n_epochs: 2",
            0,
            2,
        ),  # the default of save_every is nothing that was asked for
        ("save_every_n_epochs: 0", 0, 0),
        ("save_every: 0, save_every_n_epochs: 2", 0, 2),
        ("save_every: 250, save_every_n_epochs: 2", 250, 0),  # steps override epochs
        ("save_every: 100, save_every_n_epochs: 0", 100, 0),
        ("save_every: null, save_every_n_epochs: 3", 0, 3),
    ],
)
def test_steps_above_zero_decide_where_they_are_given(
    section, keys: str, steps: int, epochs: int
) -> None:
    assert section(f"save: {{{keys}}}").save.interval() == (steps, epochs)


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ("", 5),
        ("max_step_saves_to_keep: 0", 0),
        ("save_last_n_steps: 3", 3),
        ("save_every_n_epochs: 1", 5),
        ("save_every_n_epochs: 1, save_last_n_epochs: 2", 2),
        ("save_every_n_epochs: 1, save_last_n_epochs: 0", 0),
        ("save_every_n_epochs: 1, save_last_n_epochs: 2, max_step_saves_to_keep: 9", 2),
        ("save_every: 10, save_last_n_epochs: 2, max_step_saves_to_keep: 9", 9),
    ],
)
def test_as_many_files_stay_as_the_deciding_interval_says(
    section, keys: str, kept: int
) -> None:
    assert section(f"save: {{{keys}}}").save.files_to_keep() == kept


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "warning"),
    [
        (
            "save_every: 50, save_every_n_epochs: 2",
            "save_every_n_epochs: has no effect: 'save_every: 50' takes preced",
        ),
        (
            "save_last_n_epochs: 2",
            "save_last_n_epochs: has no effect: files are not saved by epoch.",
        ),
        (
            "save_last_n_steps: 1000",
            "save_last_n_steps: 1000 files are kept: it is their number, not a distance",
        ),
    ],
)
def test_keys_that_do_nothing_or_look_misunderstood_are_told(
    load, keys: str, warning: str
) -> None:
    (line,) = load(trainer(f"save: {{{keys}}}")).warnings
    assert line.split("process[0].save.")[1].startswith(warning)


@pytest.mark.parametrize(
    "keys",
    [
        "save_every: 5",
        "save_every_n_epochs: 2, save_last_n_epochs: 2",
        "save_every: 5, no_metadata: true",
    ],
)
def test_jobs_without_contradiction_are_silent(load, keys: str) -> None:
    assert load(trainer(f"save: {{{keys}}}")).warnings == ()


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            "save_every_n_epochs: -1",
            "save_every_n_epochs: -1 is out of range: must be >= 0.",
        ),
        (
            "save_last_n_epochs: -1",
            "save_last_n_epochs: -1 is out of range: must be >= 0.",
        ),
        ("save_every_n_epochs: 0.5", "save_every_n_epochs: 0.5"),
        ("no_metadata: 3", "no_metadata: 3"),
        ("push_to_hub: true", "push_to_hub: needs a repository: set hf_repo_id"),
        (
            "save_last_n_steps: 3, max_step_saves_to_keep: 4",
            "save_last_n_steps: 'save_last_n_steps' and 'max_step_sav",
        ),
    ],
)
def test_mistakes_of_a_save_section(faults, keys: str, message: str) -> None:
    (found,) = faults(f"save: {{{keys}}}")
    assert found.startswith(f"save.{message}")


def test_push_to_hub_without_the_tool_that_uploads_is_refused(
    faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = HINTED_TOOLS["publication"]
    monkeypatch.setenv(LEFT_OUT, tool)
    assert faults("save: {push_to_hub: true, hf_repo_id: me/x}") == [
        f"save.push_to_hub: needs the tool {tool!r}, which is absent. Leave it out."
    ]


# ------------------------------------------------------------ sample


def test_prompts_become_samples(section) -> None:
    sample = section(
        "sample: {prompts: [a, '', 'b -- c'], neg: false, seed: 5, walk_seed: true}"
    ).sample
    assert [item.prompt for item in sample.samples] == ["a", "", "b -- c"]
    assert [(item.seed, item.neg, item.width) for item in sample.sample_items()] == [
        (5, "", 1024),
        (6, "", 1024),
        (7, "", 1024),
    ]


def test_a_text_among_the_samples_is_its_prompt(section) -> None:
    sample = section("sample: {samples: [a cat --d 7 --w 512, {prompt: a dog}]}").sample
    first, second = sample.sample_items()
    assert (first.prompt, first.seed, first.width, second.prompt, second.seed) == (
        "a cat",
        7,
        512,
        "a dog",
        42,
    )


def test_an_item_outranks_its_section(section) -> None:
    sample = section(
        "sample: {neg: ugly, seed: 5, samples: [{prompt: a, neg: '', seed: 0, width: 512}, {prompt: b}]}"
    ).sample
    first, second = sample.sample_items()
    assert (first.neg, first.seed, first.width) == ("", 0, 512)
    assert (second.neg, second.seed, second.width) == ("ugly", 5, 1024)


@pytest.mark.parametrize(
    ("keys", "steps", "epochs"),
    [
        ("", 250, 0),
        ("sample_every: 0", 0, 0),
        ("sample_every_n_epochs: 2", 0, 2),
        ("sample_every_n_epochs: 0", 0, 0),
        ("sample_every: 100, sample_every_n_epochs: 2", 0, 2),  # epochs override steps
        ("sample_every: 100, sample_every_n_epochs: 0", 100, 0),
    ],
)
def test_epochs_above_zero_decide(section, keys: str, steps: int, epochs: int) -> None:
    assert section(f"sample: {{{keys}}}").sample.interval() == (steps, epochs)


@needs_foreign_names
def test_a_file_of_prompts_has_one_per_line(section, tmp_path) -> None:
    text = "\ufeff# portraits\na cat, smiling -- happy\n\n   # none\r\n  a dog [trigger] --w 96 --n bad  \n"
    (tmp_path / "my prompts.txt").write_text(text, encoding="utf-8")
    for key in ("prompts", "sample_prompts"):
        first, second = section(
            f"sample: {{{key}: my prompts.txt, neg: ugly}}"
        ).sample.sample_items()
        assert (first.prompt, first.neg) == ("a cat, smiling -- happy", "ugly")
        assert (second.prompt, second.width, second.neg) == (
            "a dog [trigger]",
            96,
            "bad",
        )


def test_a_mistake_in_a_file_of_prompts_names_its_line(faults, tmp_path) -> None:
    (tmp_path / "p.txt").write_text("a\nb --w 1\n")
    assert faults("sample: {prompts: p.txt}") == [
        "sample.prompts.p.txt:2.--w: 1 is out of range: must be >= 64."
    ]
    (tmp_path / "p.txt").write_text("# nothing\n")
    assert "'p.txt' holds no prompt." in faults("sample: {prompts: p.txt}")[0]
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe")
    assert "cannot be read (not UTF-8" in faults("sample: {prompts: p.txt}")[0]


def test_a_pipe_is_no_file_of_prompts(faults, tmp_path) -> None:
    os.mkfifo(tmp_path / "p.txt")
    assert "'p.txt' is not a file." in faults("sample: {prompts: p.txt}")[0]


@needs_foreign_names
def test_the_shift_comes_from_the_section(section) -> None:
    keys = "flow_shift: 3, samples: [{prompt: a}, {prompt: b, discrete_flow_shift: 2}, {prompt: c --fs 1.5}]"
    assert [
        item.flow_shift for item in section(f"sample: {{{keys}}}").sample.sample_items()
    ] == [3, 2, 1.5]


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            "prompts: [a], samples: [{prompt: b}]",
            "prompts: 'samples' is given as well. Remove one of them.",
        ),
        (
            "prompts: [a], sample_prompts: b.txt",
            "prompts: 'sample_prompts' is given as well. Remove one of them.",
        ),
        (
            "prompts: a",
            "prompts: is not a list. Write one prompt per line, each after '- ', or give a text file (.txt)",
        ),
        (
            "prompts: none.txt",
            "prompts: 'none.txt' cannot be read (No such file or directory; working directory: ",
        ),
        ("flow_shift: 0", "flow_shift: 0 is out of range: must be >= 0.001."),
        ("prompts: [a, 5]", 'prompts[1]: 5 is not text. Put it in quotes: "5"'),
        ("prompts: [null]", "prompts[0]: needs a value."),
        ("samples: [{seed: 1}]", "samples[0].prompt: is required."),
        (
            "samples: [{prompt: a, ctrl_img: none.png}]",
            "samples[0].ctrl_img: 'none.png' does not exist",
        ),
        (
            "samples: [{prompt: a, ctrl_img_2: none.png}]",
            "samples[0].ctrl_img_2: 'none.png' does not exist",
        ),
        (
            "samples: [{prompt: a, ctrl_img_1: photos}]",
            "samples[0].ctrl_img_1: 'photos' is not a file.",
        ),
        ("sampler: ddpm", "sampler: 'ddpm' is unknown. Use 'flowmatch'."),
        ("width: 32", "width: 32 is out of range: must be >= 64."),
        ("sample_steps: 0", "sample_steps: 0 is out of range: must be >= 1."),
        ("format: gif", "format: 'gif' is unknown."),
    ],
)
def test_mistakes_of_a_sample_section(faults, keys: str, message: str) -> None:
    (found,) = faults(f"sample: {{{keys}}}")
    assert found.startswith(f"sample.{message}")
