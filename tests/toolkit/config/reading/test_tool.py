"""The flags of a tool are the keys of its section."""

from __future__ import annotations

from typing import ClassVar

import pytest
from pydantic import Field

from toolkit.config.reading.base import StrictModel
from toolkit.config.reading.field_types import StrOrList
from toolkit.config.reading.process import Diagnostic
from toolkit.config.reading.tool import ToolConfig, load_tool, tool_parser
from toolkit.errors import UserError


class DrawConfig(ToolConfig):
    """`type: draw`: draws."""

    positional: ClassVar[tuple[str, ...]] = ("source", "more")

    more: tuple[str, ...] = ()
    """Further ones."""

    source: str
    """What is drawn."""

    sigma_rel: float = Field(default=0.5, gt=0)
    """Width, in % of it."""

    prompt: StrOrList = ()
    """Texts."""

    steps: int = 4
    """Steps."""

    fast: bool = False
    """Faster."""

    def check(self, job):
        if self.source == "dark":
            yield Diagnostic(("steps",), "is required.")
        if self.source == "bad":
            yield Diagnostic(("source",), "cannot be drawn.")
        if self.prompt == ("none",):
            yield Diagnostic(("prompt", 0), "says nothing.")


def load(line: str) -> DrawConfig:
    return load_tool("draw", DrawConfig, line.split()).processes[0].section


@pytest.mark.parametrize(
    ("line", "fast", "more"),
    [
        ("--fast a.png b.png", True, ("b.png",)),
        ("--fast true a.png", True, ()),
        ("--fast no a.png", False, ()),
        ("--fast=off a.png", False, ()),
        ("a.png --fast b.png", True, ("b.png",)),
        ("a.png --fast", True, ()),
    ],
)
def test_a_switch_takes_no_other_word_for_its_value(
    line: str, fast: bool, more: tuple[str, ...]
) -> None:
    section = load(line)
    assert (section.source, section.fast, section.more) == ("a.png", fast, more)


def test_flags_are_read_as_the_values_of_a_job_are() -> None:
    section = load(
        "a.png b.png 7 --sigma-rel 1e-1 --prompt 7 true --prompt x --fast --steps 0x10"
    )
    assert (section.source, section.more) == ("a.png", ("b.png", "7"))
    assert (section.sigma_rel, section.prompt, section.fast, section.steps) == (
        0.1,
        ("7", "true", "x"),
        True,
        16,
    )
    assert (
        load("--sigma_rel 2 a --fast false").model_dump()
        == load("a --sigma-rel 2").model_dump()
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "",
            "run.py draw: the following arguments are required: SOURCE. Usage: run.py draw [options] SOURCE MORE. 'run",
        ),
        (
            "a --setps 3",
            "run.py draw: unknown argument '--setps'. Did you mean '--steps'?",
        ),
        (
            "a --sigma-rel 0",
            "run.py draw: --sigma-rel: 0 is out of range: must be > 0.",
        ),
        ("a --steps many", "run.py draw: --steps: 'many' is not a whole number."),
        ("bad", "run.py draw: source: cannot be drawn."),
        ("dark", "run.py draw: --steps: is required."),
        ("a --prompt none", "run.py draw: --prompt: says nothing."),
    ],
)
def test_errors_name_the_flag(line: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        load(line)
    assert str(refused.value).startswith(message)


def test_all_unknown_flags_are_told_without_names_that_mislead() -> None:
    with pytest.raises(UserError) as refused:
        load("a --setps 3 --frobnicate --sigma_rle=2")
    assert str(refused.value).splitlines() == [
        "run.py draw: unknown argument '--setps'. Did you mean '--steps'?",
        "run.py draw: unknown argument '--frobnicate'. 'run.py draw --help' lists its flags.",
        "run.py draw: unknown argument '--sigma_rle=2'. Did you mean '--sigma-rel'?",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "a b c",
        "a --more b c",
        "--source a b c",
        "--more b c --source=a",
        "--more b c -- a",
    ],
)
def test_what_needs_no_flag_may_have_one(line: str) -> None:
    section = load(line)
    assert (section.source, section.more) == ("a", ("b", "c"))


def test_all_errors_come_at_once() -> None:
    with pytest.raises(UserError) as refused:
        load("a --sigma-rel 0 --steps many")
    assert len(str(refused.value).splitlines()) == 2


def test_help_has_every_key_with_its_default() -> None:
    text = tool_parser("draw", DrawConfig).format_help()
    assert "--sigma-rel" in text and "Width, in % of it. (default: 0.5)" in " ".join(
        text.split()
    )
    assert "--name" not in text and "--type" not in text


class InnerConfig(StrictModel):
    """How bright."""

    lamp: str
    """Name."""

    watts: int = 60
    """Power."""

    shade: bool = False
    """Whether it has one."""


class LitConfig(ToolConfig):
    """`type: lit`: a tool with a section."""

    sections: ClassVar[dict[str, tuple[str, ...]]] = {"light": ("lamp", "watts")}

    light: InnerConfig | None = None
    """The lamp."""


def test_keys_of_a_section_are_flags_and_the_first_is_the_section() -> None:
    def light(line: str) -> InnerConfig | None:
        return load_tool("lit", LitConfig, line.split()).processes[0].section.light

    assert light("--light desk --watts 40") == InnerConfig(lamp="desk", watts=40)
    assert light("") is None
    help_text = tool_parser("lit", LitConfig).format_help()
    assert "--watts" in help_text and "--shade" not in help_text
    for line, message in {
        "--light desk --watts many": "run.py lit: --watts: 'many' is not a whole number.",
        "--light desk --wats 4": "run.py lit: unknown argument '--wats'. Did you mean '--watts'?",
        "--watts 4": "run.py lit: --light: is required",
    }.items():
        with pytest.raises(UserError) as refused:
            light(line)
        assert str(refused.value).startswith(message)


def test_an_empty_word_is_one_like_others() -> None:
    with pytest.raises(UserError, match=r"^run\.py draw: source: needs a value\.$"):
        load_tool("draw", DrawConfig, ["", "inf"])
