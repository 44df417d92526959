"""Names of PNG files of generated pictures."""

from __future__ import annotations

import re

import pytest

from extensions.tools.shared.image_files import picture_name
from toolkit.files import redact


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("A red fox, asleep!", "a-red-fox-asleep"),
        ("photo of Zq81.xx_04-Pass by", "photo-of-redacted-by"),
        ("photo of zQ81.XX_04-pASS", "photo-of-redacted"),
        ("a secret that the length would cut Zq81.xx_04-Pass", "a-secret-that-the-length-would-cut-redac"),
        ("hf_aB3aB3aB3aB3aB3aB3aB3aB3", "redacted"),
        ("?", "picture"),
    ],
)
def test_a_name_has_words_of_the_prompt_and_no_secret(monkeypatch: pytest.MonkeyPatch, prompt: str, words: str) -> None:
    for name, value in (("_values", set()), ("_forms", []), ("_known", None)):
        monkeypatch.setattr(redact, name, value)
    redact.register_secret(["Zq81.xx_04-Pass"])
    settings = {"prompt": prompt, "seed": 7, "reference": [], "lora": [], "model": {}}
    assert re.fullmatch(rf"{words}_7_[0-9a-f]{{10}}\.png", picture_name(settings))
