"""Numbers at the beginning of folders' names: repeats, and what is probably none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toolkit.data.conftest import make_dataset, make_image
from toolkit.data.scan.folder import scan_datasets
from toolkit.data.scan.repeats import probably_no_repeats

PROBABLY = {
    "01_anna 02_bob 03_carl": "count up",
    "1_anna 2_bob 3_carl": "count up",
    "1_anna 2_bob 3_carl misc": "count up",
    "00_anna 01_bob": "count up",
    "7_a 8_b 9_c 10_d": "count up",
    "2023_summer 2024_winter misc": "look like dates",
    "20250816_paris": "look like dates",
    "202508_paris": "look like dates",
    "512_faces 1024_bodies": "look like sizes in pixels",
    "768_faces 3_x": "look like sizes in pixels",
    "007_bond": "begin with 0",
    "40_char": "",
    "10_char 5_style 1_other": "",
    "1_background 2_character": "",
    "3_a 3_b 3_c": "",
    "100_char 200_other": "",
    "240501_paris 240612_rome": "look like dates",
    "1080_clips": "look like sizes in pixels",
    "12345_photo": "are larger than repeats are",
    "209913_x": "are larger than repeats are",
    "999_x": "",
    "200_a 100_b": "",
    "faces bodies": "",
    "": "",
}
"""Names of neighbouring folders -> why their numbers are probably no repeats."""


def test_numbers_that_are_probably_no_repeats() -> None:
    found = {names: probably_no_repeats(names.split()) for names in PROBABLY}
    assert found == PROBABLY


def scanned(folder: Path, *names: str, **settings) -> tuple[dict[str, int], list[str]]:
    """Repeats of each folder, and what the scan asks."""
    for name in names:
        make_image(folder / name / "a.png", 512, 512)
    scan = scan_datasets([make_dataset(folder, **settings)], None)
    assert [f"warning: {place}: {question}" for place, question in scan.questions] == [
        note for note in scan.notes if "are the numbers of" in note
    ]
    return {Path(each.folder).name: each.repeats for each in scan.folders}, [
        text for _, text in scan.questions
    ]


def test_they_are_repeats_as_ever_and_the_plan_asks(tmp_path: Path) -> None:
    repeats, asked = scanned(tmp_path, "01_anna", "02_bob", "03_carl")
    assert repeats == {"01_anna": 1, "02_bob": 2, "03_carl": 3}
    assert asked == [
        "are the numbers of 01_anna (1), 02_bob (2), 03_carl (3) repeats? They count up, and each image is used as "
        "often per epoch. If they are part of the names, give 'num_repeats: 1'"
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_repeats": 1}, {"2023_a": 1, "0_b": 1}),
        ({"num_repeats": 4}, {"2023_a": 4, "0_b": 4}),
    ],
)
def test_the_answer_ends_the_question(
    tmp_path: Path, settings: dict, expected: dict[str, int]
) -> None:
    assert scanned(tmp_path, *expected, **settings) == (expected, [])


def test_a_name_that_is_nearly_one_of_repeats_is_told_unless_they_are_given(
    tmp_path: Path,
) -> None:
    make_image(tmp_path / "40 char" / "c.png", 512, 512)
    notes = scan_datasets([make_dataset(tmp_path / "40 char")], None).notes
    assert len([note for note in notes if "For 40 repeats" in note]) == 1
    off = scan_datasets([make_dataset(tmp_path / "40 char", num_repeats=1)], None).notes
    assert not [note for note in off if "repeats" in note]


def test_folders_of_several_entries_are_beside_each_other(tmp_path: Path) -> None:
    entries = []
    for name in ("1_anna", "2_bob", "3_carl", "1_reg"):
        make_image(tmp_path / name / "a.png", 512, 512)
        entries.append(make_dataset(tmp_path / name, is_reg=name == "1_reg"))
    (asked,) = scan_datasets(entries, None).questions
    assert (
        asked[0] == str(tmp_path)
        and "1_anna (1), 2_bob (2), 3_carl (3) repeats? They count up" in asked[1]
    )


def test_a_fraction_is_no_number_of_repeats(tmp_path: Path) -> None:
    make_image(tmp_path / "0.5_x" / "a.png", 512, 512)
    (note,) = [
        note
        for note in scan_datasets([make_dataset(tmp_path)], None).notes
        if "repeats" in note
    ]
    assert note.startswith(
        f"warning: {tmp_path}/0.5_x: the 0.5 in its name is not used, as repeats are whole numbers"
    )
