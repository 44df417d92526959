"""Candidates that somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from extensions.tools.shared.candidates import CANDIDATES, Group, read_groups
from toolkit.errors import UserError

ROW = {
    "prompt": "x",
    "control": [],
    "model": "m",
    "seed": [1, 2],
    "lora": [[], []],
    "files": ["0.png", "1.png"],
}
HUGE = "1e400"
"""A number beyond all that a computer has: JSON reads it as infinite."""


@pytest.mark.parametrize(
    "seed", [f"[{HUGE}, 1]", f"[1, -{HUGE}]", "[NaN, 1]", HUGE, f"[[{HUGE}], 1]"]
)
def test_a_seed_beyond_all_numbers_is_named_with_its_line(
    tmp_path: Path, seed: str
) -> None:
    path = tmp_path / CANDIDATES
    rows = [json.dumps(ROW), json.dumps(ROW).replace("[1, 2]", seed)]
    path.write_text("\n".join(rows))
    with pytest.raises(UserError) as caught:
        read_groups(tmp_path)
    assert str(caught.value) == (
        f"{path}:2: was not written by this program. Remove the line, or give another folder"
    )


def test_settings_of_an_image_with_such_a_seed_are_none(tmp_path: Path) -> None:
    settings = {
        "reference": [],
        "lora": [],
        "model": {"name_or_path": "m"},
        "seed": float(HUGE),
        "prompt": "x",
    }
    with pytest.raises(UserError, match=r"'.*a\.png' has no settings of an image"):
        Group.of(settings, "a.png", tmp_path)
