"""What is an error, and what each kind says."""

from toolkit.errors import ConfigErrors, Diagnostic, Interrupted, RunError, UserError, did_you_mean, missing_package


def test_all_mistakes_are_in_the_message_one_line_each() -> None:
    error = ConfigErrors([Diagnostic(("a.yaml:1:2",), "first"), Diagnostic(("a.yaml:3:4",), "second")])
    assert str(error) == "a.yaml:1:2: first\na.yaml:3:4: second"
    assert [mistake.place for mistake in error.errors] == ["a.yaml:1:2", "a.yaml:3:4"]


def test_exit_codes() -> None:
    assert (UserError.exit_code, ConfigErrors.exit_code, RunError.exit_code) == (2, 2, 1)
    assert Interrupted(75).exit_code == 75


def test_did_you_mean_names_the_nearest() -> None:
    assert did_you_mean("linear_alpa", ["linear", "linear_alpha"], list_all=False) == ("Did you mean 'linear_alpha'?")


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
    assert missing_package("no_such_package", "pages").endswith("not installed. Run: pip install no_such_package")
