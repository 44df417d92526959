"""What is blacked out of a text, and what is not."""

from __future__ import annotations

import pytest

from toolkit.config import redact

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
