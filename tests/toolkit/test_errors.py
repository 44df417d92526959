"""What is an error, and what each kind says."""

import sys
from pathlib import Path

import pytest

from tests.processes import python
from toolkit.errors import (
    ConfigErrors,
    Diagnostic,
    Interrupted,
    RunError,
    UserError,
    did_you_mean,
    install_command,
    missing_package,
)


def test_all_mistakes_are_in_the_message_one_line_each() -> None:
    error = ConfigErrors(
        [Diagnostic(("a.yaml:1:2",), "first"), Diagnostic(("a.yaml:3:4",), "second")]
    )
    assert str(error) == "a.yaml:1:2: first\na.yaml:3:4: second"
    assert [mistake.place for mistake in error.errors] == ["a.yaml:1:2", "a.yaml:3:4"]


def test_exit_codes() -> None:
    assert (UserError.exit_code, ConfigErrors.exit_code, RunError.exit_code) == (
        2,
        2,
        1,
    )
    assert Interrupted(75).exit_code == 75


def test_did_you_mean_names_the_nearest() -> None:
    assert did_you_mean("linear_alpa", ["linear", "linear_alpha"], list_all=False) == (
        "Did you mean 'linear_alpha'?"
    )


def test_did_you_mean_lists_everything_when_nothing_is_near() -> None:
    assert did_you_mean("zzz", ["b", "a"], list_all=False) == "Known names: a, b."


def test_did_you_mean_names_none_of_many_that_are_not_near() -> None:
    many = [f"{letter}{letter}{letter}" for letter in "abcdefghijkl"]
    assert did_you_mean("kxlxa", many, list_all=False) == ""
    assert did_you_mean("kxlxa", many) == f"Known names: {', '.join(many)}."


def test_did_you_mean_takes_a_name_that_is_no_text() -> None:
    assert did_you_mean(1, ["a"]) == "Known names: a."


def test_the_package_that_is_missing_is_named() -> None:
    assert missing_package("json", "pages") == ""
    command = install_command("no_such_package")
    assert missing_package("no_such_package", "pages").endswith(
        f"not installed. Run: {command}"
    )


@pytest.mark.parametrize(
    ("file", "has_pip", "plain", "with_options"),
    [
        (
            "",
            True,
            "{python} -m pip install pi-heif",
            "{python} -m pip install --no-deps lpips==0.1.4",
        ),
        (
            "",
            False,
            "uv pip install --python {python} pi-heif",
            "uv pip install --python {python} --no-deps lpips==0.1.4",
        ),
        (
            "uv-receipt.toml",
            False,
            "uv pip install --python {python} pi-heif",
            "uv pip install --python {python} --no-deps lpips==0.1.4",
        ),
        (
            "pipx_metadata.json",
            True,
            "pipx inject atelier pi-heif",
            "pipx inject --pip-args=--no-deps atelier lpips==0.1.4",
        ),
    ],
)
def test_packages_are_installed_where_the_program_runs(
    file: str,
    has_pip: bool,
    plain: str,
    with_options: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = tmp_path / "atelier"
    environment.mkdir()
    if file:
        (environment / file).touch()
    monkeypatch.setattr(sys, "prefix", str(environment))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    if has_pip:
        (tmp_path / "pip").mkdir()
    assert install_command("pi-heif") == plain.format(python=sys.executable)
    assert install_command("lpips==0.1.4", "--no-deps") == with_options.format(
        python=sys.executable
    )


def test_setuptools_can_be_imported_after_a_remedy() -> None:
    """Asking Python's finders for pip would forbid it, and so torch's compilers."""
    code = "from toolkit.errors import install_command; install_command('x'); import setuptools"
    python(code)
