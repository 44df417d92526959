"""What the guides say in words and the program does: one answer in both."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from extensions.tools.shared.examples import MODELS, written_job
from extensions.tools.ui.config import UiConfig
from tests.conftest import ROOT
from tests.docs.pages import blocks
from tests.processes import output_of
from toolkit.config import load_job
from toolkit.data.scan.words import word_findings
from toolkit.errors import ConfigErrors
from toolkit.extension import discover

PLACES = ("README.md", "docs", "config", "extensions", "toolkit", "jobs", "run.py")
PAGES = [
    name
    for name in output_of("git", "ls-files", *PLACES).splitlines()
    if name.endswith((".md", ".yaml", ".j2", ".py"))
]

PLAIN_PYTHON = re.compile(r"(?<![/\w.-])python3? run\.py")
"""A command without the environment that README makes."""

FOLDER = re.compile(r"(?<![\w/:-])(?:\./)?(datasets?)/(?=[a-z0-9])")
"""A folder of datasets as a path begins with it; an address of the page begins with
`/`."""


def test_guides_put_images_where_the_page_looks_for_them() -> None:
    named = {
        page: set(FOLDER.findall((ROOT / page).read_text(encoding="utf-8")))
        for page in PAGES
    }
    assert {
        page: found
        for page, found in named.items()
        if found - {UiConfig.model_fields["datasets"].default}
    } == {}
    assert {
        "README.md",
        "docs/first_character.md",
        "docs/before_and_after_pairs.md",
    } <= {p for p in named if named[p]}


def test_trigger_words_of_the_guides_have_no_meaning() -> None:
    """As the plan advises; a name or an ordinary word would be warned of."""
    given = re.compile(r"(?:trigger_word: |--trigger-word )\"?(\w+)")
    named = {
        word
        for page in PAGES
        if page.endswith((".md", ".yaml"))
        for word in given.findall((ROOT / page).read_text(encoding="utf-8"))
    }
    assert {"mychr", "nnx"} <= named and list(word_findings([], trigger="anna"))
    assert [word for word in named if list(word_findings([], trigger=word))] == []


def test_commands_are_those_of_the_environment_that_readme_makes() -> None:
    """Pages, examples' headers and messages; messages name the interpreter that runs
    (`toolkit.commands`)."""
    assert ".venv/bin/python run.py" in (ROOT / "README.md").read_text(encoding="utf-8")
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    docstring = re.compile(r'"""(?s:.*?)"""')
    assert [
        page
        for page, text in texts.items()
        if PLAIN_PYTHON.search(docstring.sub("", text))
    ] == []


def test_mistakes_are_reported_as_the_quickstart_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the key, the value and what to write instead; the lines are those of another
    job."""
    monkeypatch.chdir(tmp_path)
    job = written_job("a", str(ROOT / "config/examples/photos"), "a", MODELS[0].id, 24)
    wrong = job.replace("linear_alpha: 16", "linear_alpa: 16").replace(
        "scheduler: flowmatch", "scheduler: ddpm"
    )
    (tmp_path / "my_char.yaml").write_text(wrong, encoding="utf-8")
    with pytest.raises(ConfigErrors) as caught:
        load_job("my_char.yaml", discover().find_config)
    block = next(
        block
        for block in blocks("docs/quickstart.md", "text")
        if "linear_alpa" in block.text
    )
    place = re.compile(r"^\S+?:\d+:\d+: ", re.MULTILINE)
    assert place.sub("", str(caught.value)) == place.sub("", block.text.strip())


def test_the_prompt_with_flags_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pictures: Callable
) -> None:
    """docs/saving.md: every flag of the example, and those of its table."""
    (example,) = blocks("docs/saving.md", "text")
    (tmp_path / "prompts.txt").write_text(example.text, encoding="utf-8")
    job = written_job("a", str(ROOT / "config/examples/photos"), "a", MODELS[0].id, 24)
    before, _, after = job.partition("        samples:\n")
    (tmp_path / "job.yaml").write_text(
        f"{before}        prompts: prompts.txt\n{after[after.index('meta:') :]}"
    )
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path / "photos", "a")
    (sample,) = (
        load_job("job.yaml", discover().find_config)
        .processes[0]
        .section.sample_pictures()
    )
    assert sample.prompt == "a portrait of [trigger]"
    page = (ROOT / "docs" / "saving.md").read_text(encoding="utf-8")
    keys = re.findall(r"^\| `--\w+`.*?\| (`\w+`(?:, `\w+`)*)", page, re.MULTILINE)
    given = {
        key: getattr(sample, key) for row in keys for key in re.findall(r"\w+", row)
    }
    assert given == {
        **{
            "width": 768,
            "height": 1024,
            "sample_steps": 30,
            "seed": 7,
            "guidance_scale": 3.5,
            "neg": "blurry, dark",
        },
        **{"flow_shift": 3, "ctrl_img": ("photos/a.png",)},
    }


def test_more_steps_resume_as_the_guide_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a job for a published model; that for a small one has the quickstart's
    schedule, which ends with the run."""
    monkeypatch.chdir(tmp_path)
    depends = {}
    folders = {model.id: model.folder for model in MODELS} | {
        str(ROOT / "config/examples/tiny_mascots"): MODELS[0].folder
    }
    for model, folder in folders.items():
        (tmp_path / "job.yaml").write_text(
            written_job("a", str(ROOT / folder), "a", model, 24)
        )
        depends[model] = (
            load_job("job.yaml", discover().find_config)
            .processes[0]
            .section.train.needs_length()
        )
    assert [model for model, needs in depends.items() if needs] == [
        str(ROOT / "config/examples/tiny_mascots")
    ]
    guide = " ".join(
        (ROOT / "docs" / "first_character.md").read_text(encoding="utf-8").split()
    )
    assert (
        "needs `--allow-change` for that; the jobs that `new` writes for the published models have `constant`"
        in guide
    )
