"""What a person reads when the program ends, and the exit code."""

from __future__ import annotations

import io
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from jobs.exit import report, run_with_exit_code
from toolkit.errors import (
    ConfigErrors,
    Diagnostic,
    Interrupted,
    ReportedExit,
    RunError,
    UserError,
)
from toolkit.files.log import StatusLine


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - gives the exception a traceback
        return caught


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("wrong"), 2, "wrong\n"),
        (
            ConfigErrors([Diagnostic(("a:1:1",), "x"), Diagnostic(("a:2:1",), "y")]),
            2,
            "a:1:1: x\na:2:1: y\n",
        ),
        (RunError("cannot go on"), 1, "cannot go on\n"),
        (Interrupted(75), 75, "Stopped.\n"),
        (KeyboardInterrupt(), 130, "Stopped.\n"),
        (
            SystemExit(None),
            1,
            "Failed: the code of an extension called sys.exit(None).\n",
        ),
        (SystemExit(0), 1, "Failed: the code of an extension called sys.exit(0).\n"),
        (ReportedExit(75), 75, ""),
        (
            OSError(28, "No space left on device", "a/b"),
            1,
            "Failed: a/b: No space left on device\n",
        ),
        (ReportedExit(0), 0, ""),
        (
            SystemExit("message"),
            1,
            "Failed: the code of an extension called sys.exit('message').\n",
        ),
    ],
)
def test_the_message_alone(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(raised(error)) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", words)


def test_a_message_begins_a_line_below_the_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    StatusLine().update("encoding 2 of 6 images, 2 s left")
    report(Interrupted(130))
    report(UserError("again"))
    assert terminal.getvalue().endswith("\rencoding 2 of 6 images, 2 s left\n")
    assert capsys.readouterr().err == "Stopped.\nagain\n"


def test_a_defect_keeps_its_traceback_and_ends_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert report(raised(KeyError("lost"))) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "Failed: KeyError: 'lost'"


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_missing_package_says_what_to_install(
    wrapped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    error: BaseException = ModuleNotFoundError("No module named 'torch'", name="torch")
    if wrapped:
        outer = RunError("cannot load")
        outer.__cause__ = error
        error = outer
    assert report(error) == 1
    assert f"'torch' is not installed for {sys.executable}" in capsys.readouterr().err


def test_a_package_that_misses_a_module_of_its_own_is_not_to_be_installed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "json.gone"
    error = ModuleNotFoundError(f"No module named {name!r}", name=name)
    assert report(error) == 1
    assert "is not installed" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "requirement, name",
    [
        ("requests", "requests"),
        ("tokenizers>=9.0,<10", "tokenizers"),
        ("a.b-c", "a.b-c"),
    ],
)
def test_a_library_that_misses_a_package_of_its_own_is_told_by_its_name(
    requirement: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers' own check raises, for a package that is not there, an error whose
    name is a whole sentence."""
    sentence = f"The {requirement!r} distribution was not found and is required by this application. Try: pip install x"
    assert report(raised(PackageNotFoundError(sentence))) == 1
    said = capsys.readouterr().err
    assert (
        f"\nThe Python package {name!r} is not installed for {sys.executable}" in said
    )


def test_guarded_gives_the_code_of_either(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with_exit_code(lambda code: code, 3) == 3
    assert run_with_exit_code(int, "x") == 1
