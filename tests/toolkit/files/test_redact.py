"""What is redacted of a text, and what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import quote

import pytest

from toolkit.files import redact as module
from toolkit.files.redact import (
    contains_secret,
    is_secret_variable,
    redact,
    redact_json,
    redact_text,
    register_secret,
    remember_environment,
    wandb_keys,
)

HF = "hf_" + "aB3" * 11 + "z"
HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"a: {HF}", "a: <redacted>"),
        (f"# my token is {HF}, keep it", "# my token is <redacted>, keep it"),
        (f"wandb: {HEX}", "wandb: <redacted>"),
        (f"revision: {HEX}", f"revision: {HEX}"),
        (f'  "revision": "{HEX}"', f'  "revision": "{HEX}"'),
        ("hf_token: abc", "hf_token: <redacted>"),
        ("wandb_api_key: 'a b'", "wandb_api_key: <redacted>"),
        ('{client_secret: "x", n: 1}', "{client_secret: <redacted>, n: 1}"),
        ("password: hunter2 # mine", "password: <redacted> # mine"),
        ("db_password: 1234", "db_password: <redacted>"),
        ("  - api_key: a,b", "  - api_key: <redacted>,b"),
        ("hf_token: ${HF_TOKEN}", "hf_token: ${HF_TOKEN}"),
        ("hf_token: ${HF_TOKEN:-}", "hf_token: ${HF_TOKEN:-}"),
        ("hf_token: ${HF_TOKEN:-abc}", "hf_token: <redacted>"),
        ("hf_token:", "hf_token:"),
        ("hf_token: null", "hf_token: null"),
        ("keep_tokens: 3", "keep_tokens: 3"),
        ("keyboard: a", "keyboard: a"),
        ("header: Bearer x.y-z", "header: Bearer <redacted>"),
        ("prompt: the bearer of the ring", "prompt: the bearer of the ring"),
        ("url: https://me:pw@host/x", "url: https://<redacted>@host/x"),
        ("url: https://host/a@b", "url: https://host/a@b"),
        ("name_or_path: hf_style/model", "name_or_path: hf_style/model"),
    ],
)
def test_secrets_go_and_the_rest_stays(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(redact(text)) == expected


# ------------------------------------------------------------ values that were told


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_values", set())
    monkeypatch.setattr(module, "_forms", [])
    monkeypatch.setattr(module, "_known", None)


NASTY = 'it\'s "q" \\ ü\tend'


@pytest.mark.parametrize(
    "written",
    [
        str,
        repr,
        lambda value: repr(f"{value}'"),
        lambda value: repr([value, '"']),
        lambda value: str(KeyError(value)),
        json.dumps,
        lambda value: json.dumps({"a": value}, ensure_ascii=False),
        lambda value: repr(repr(value)),
        lambda value: json.dumps(repr(value)),
        lambda value: quote(value, safe=""),
        lambda value: f"a{value}b",
        lambda value: json.dumps(value).upper(),
        lambda value: repr(value).lower(),
    ],
)
@pytest.mark.parametrize("value", ["simple-value", NASTY])
def test_a_value_is_found_in_every_form(
    value: str, written: Callable[[str], str]
) -> None:
    text = f"before {written(value)} after"
    assert redact_text(text) == text
    register_secret([value])
    words = set(redact_text(text).lower().replace("'", " ").replace("<", " ").split())
    assert not {"simple", "value", "it", "end"} & words
    assert redact_text(text).count("<redacted>") == 1
    assert redact_text(redact_text(text)) == redact_text(text)


def test_which_values_are_secrets() -> None:
    """Long ones; the longest first; of several lines each; digits as a whole number
    only."""
    register_secret(["12345", "", " a ", "redacted", "REDACTED", "<redacted>"])
    assert (
        redact_text("12345  a  redacted <redacted>") == "12345  a  redacted <redacted>"
    )
    register_secret(["abcdef"])
    register_secret(["abcdef-ghi", "  first line\n    second line\nx\n", "123456"])
    assert redact_text("abcdef-ghi abcdef") == "<redacted> <redacted>"
    assert redact_text("first line") == redact_text("second line") == "<redacted>"
    assert redact_text("x  y, pin 123456.") == "x  y, pin <redacted>."
    assert (
        redact_text("loss 0.123456 of 1234567, 123456.5")
        == "loss 0.123456 of 1234567, 123456.5"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("value '0123456789abc...' is wrong", "value '<redacted>...' is wrong"),
        (
            "value '0123456789abc…xyzABCDEFG' is wrong",
            "value '<redacted>…<redacted>' is wrong",
        ),
        ("a prompt with 0123456789...", "a prompt with <redacted>..."),
        ("0123456789 then ...", "0123456789 then ..."),
        ("value '0123456789ABC...' is wrong", "value '<redacted>...' is wrong"),
        (
            "a \N{LATIN CAPITAL LETTER I WITH DOT ABOVE} 0123...",
            "a \N{LATIN CAPITAL LETTER I WITH DOT ABOVE} <redacted>...",
        ),
        ("loading ... done ... end", "loading ... done ... end"),
    ],
)
def test_what_is_left_of_a_shortened_value_goes_too(text: str, expected: str) -> None:
    register_secret(["0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"])
    assert redact_text(text) == expected


def test_tokens_of_the_environment_are_known_without_a_config() -> None:
    remember_environment(
        {
            "HF_TOKEN": "letters",
            "WANDB_API_KEY": HEX,
            "OPENAI_API_KEY": "sk-1234",
            "USER": "somebody-1",
        }
    )
    assert (
        redact_text(f"letters {HEX} somebody-1") == "<redacted> <redacted> somebody-1"
    )


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "DB_PASS", "MY_AUTH", "MY_CREDENTIALS", "SESSION_COOKIE"]
)
@pytest.mark.parametrize(
    "value", ["sk-proj-12345", "Tr0ub4dor", "two words", "/9j/4AAQSkZJRg==", "12345678"]
)
def test_what_is_named_like_a_secret_is_known_without_a_config(
    name: str, value: str
) -> None:
    remember_environment({name: value})
    assert redact_text(f"failed with {value!r}") == "failed with '<redacted>'"


@pytest.mark.parametrize(
    "value",
    [
        *("", "true", "1234567", "disabled", "Disabled", "DISABLED"),
        *(
            "/tmp/ssh-1/agent.2",
            "/usr/keys:/etc/keys",
            "~/.ssh/id_ed25519",
            "./keys/a.json",
            "C:\\keys\\a.json",
        ),
        *("https://login.example.org", "http://127.0.0.1:8080/"),
    ],
)
def test_ordinary_values_are_no_secrets_whatever_the_name(value: str) -> None:
    remember_environment({"MY_AUTH_KEY": value})
    assert redact_text(f"in {value!r}") == f"in {value!r}"


SECRET_NAMES = (
    "MY_TOKEN my_api_key dbPassword SECRETS KEYS_PATH DB_PASS passwd MYSQL_PWD "
    "MY_AUTH MY_CREDENTIALS AUTH_HEADER"
)
ORDINARY_NAMES = "PWD OLDPWD GIT_AUTHOR_NAME XAUTHORITY BYPASS USER DATA"


def test_a_variable_tells_by_its_name() -> None:
    assert all(map(is_secret_variable, [*SECRET_NAMES.split(), "MY_CREDENTIALS"]))
    assert not any(map(is_secret_variable, ORDINARY_NAMES.split()))


# ------------------------------------------------------------ shapes, in any text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"a{HF}", "a<redacted>"),
        (rf'"line\n{HF}"', r'"line\n<redacted>"'),
        ("hf_oauth_eyJhbGciOiJFZERTQSJ9.e30.x-y_z", "<redacted>"),
        (f"wandb_v1_{'aB3' * 8}", "<redacted>"),
        (f"rpa_{'AB3' * 12}", "<redacted>"),
        (f"ghp_{'aB3' * 12}", "<redacted>"),
        ("Authorization: Bearer short", "Authorization: Bearer <redacted>"),
        (
            "{'authorization': 'Basic dXNlcjpwdw=='}",
            "{'authorization': 'Basic <redacted>'}",
        ),
        ("Bearer abc123", "Bearer <redacted>"),
        ("the Ring Bearer walks on.", "the Ring Bearer walks on."),
        ("https://me:p@ss@host/x", "https://<redacted>@host/x"),
        ("https://host?mail=a@b", "https://host?mail=a@b"),
        ("password: hunter2", "password: hunter2"),
        (f"commit {HEX}", f"commit {HEX}"),
        ("hf_style/model", "hf_style/model"),
    ],
)
def test_only_what_is_unmistakable_goes_from_any_text(text: str, expected: str) -> None:
    assert redact_text(text) == expected
    assert contains_secret(text) is (text != expected)


def test_wandb_keys_of_the_old_form_are_found_and_commits_are_not() -> None:
    assert wandb_keys(f"a: {HEX}\nrevision: {HEX[::-1]}") == [HEX]


# ------------------------------------------------------------ JSON data


def test_data_keeps_its_shape_and_its_numbers() -> None:
    register_secret(["123456", "secret-1"])
    data = {
        "n": 123456,
        "x": 0.123456,
        "t": True,
        "none": None,
        "a": ["secret-1", ("123456",)],
        "secret-1": {"b": "c"},
    }
    assert redact_json(data) == {
        "n": 123456,
        "x": 0.123456,
        "t": True,
        "none": None,
        "a": ["<redacted>", ["<redacted>"]],
        "<redacted>": {"b": "c"},
    }


def test_a_digest_stays_unless_it_is_the_secret() -> None:
    digest = "0123456789abcdef" * 4
    register_secret(["abcdef"])
    assert redact_json([digest]) == [digest]
    register_secret([digest])
    assert redact_json([digest]) == ["<redacted>"]


def test_names_of_keys_count_only_when_asked() -> None:
    data = {"api_key": "plain", "my_secret": ["a"], "keep_tokens": 1, "other": "x"}
    assert redact_json(data) == data
    assert redact_json(data, by_key=True) == data | {
        "api_key": "<redacted>",
        "my_secret": ["<redacted>"],
    }


def test_a_line_without_a_mark_is_not_searched_for_shapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pattern takes nine times as long as the marks."""
    line = "step 1234/3400 36.3% | loss 0.1234 (avg 0.1200) | lr 1.0e-04 | 1.23 s/it | ETA 45m12s"
    monkeypatch.setattr(module, "_SHAPES", None)
    assert redact_text(line) == line
