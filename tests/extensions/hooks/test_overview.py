"""All samples of a run on one sheet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from extensions.hooks import overview
from extensions.hooks.overview import COLUMNS, OverviewCallback, write_contact_sheet
from tests.conftest import TURNED_HEIC
from toolkit.train.run import Run

COLOURS = ("red", "green", "blue")


def write_samples(
    folder: Path, steps: list[int], prompts: list[str], size: tuple[int, int] = (64, 48)
) -> Path:
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    for step in steps:
        files = [f"{step:09d}_{index}.png" for index in range(len(prompts))]
        for index, file in enumerate(files):
            Image.new("RGB", size, COLOURS[(index + step) % 3]).save(
                folder / "samples" / file
            )
        with (folder / "events.jsonl").open("a") as events:
            events.write(
                json.dumps(
                    {
                        "event": "sample",
                        "step": step,
                        "files": files,
                        "prompts": prompts,
                    }
                )
                + "\n"
            )
    return folder


def draw(callback: OverviewCallback, folder: Path) -> None:
    """What a run does after its samples."""
    run = Run("maya", folder, 9, 1, seed=1, roles={}, callbacks=[callback])
    run.event("sample", step=0)


def counted(sheet: Path) -> dict[tuple[int, int, int], int]:
    image = Image.open(sheet).convert("RGB")
    return {colour: count for count, colour in image.getcolors(1_000_000)}


def test_each_prompt_is_a_row_and_each_step_a_column(tmp_path: Path) -> None:
    sheet = write_contact_sheet(write_samples(tmp_path, [0, 1, 2], ["a cat", "a dog"]))
    colours = counted(sheet)
    shown = sum(
        colours.get(colour, 0) for colour in ((255, 0, 0), (0, 128, 0), (0, 0, 255))
    )
    assert shown == 6 * 64 * 48
    assert Image.open(sheet).width == 6 + 3 * (64 + 6)
    row = [
        Image.open(sheet)
        .convert("RGB")
        .getpixel((6 + column * 70 + 32, 14 + 6 + 14 + 24))
        for column in range(3)
    ]
    assert row == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]


def test_transparency_is_shown_over_white(tmp_path: Path) -> None:
    write_samples(tmp_path, [0], ["a cat"])
    for path in (tmp_path / "samples").glob("*.png"):
        Image.new("RGBA", (64, 48), (255, 0, 0, 0)).save(path)
    assert (255, 0, 0) not in counted(write_contact_sheet(tmp_path))


def test_of_many_steps_the_first_the_last_and_some_between_are_shown(
    tmp_path: Path,
) -> None:
    write_samples(tmp_path, list(range(0, 200, 10)), ["a"], size=(400, 300))
    sheet = Image.open(write_contact_sheet(tmp_path))
    assert sheet.width == 6 + COLUMNS * (192 + 6)


def test_a_prompt_of_another_script_and_a_missing_image_do_no_harm(
    tmp_path: Path,
) -> None:
    write_samples(tmp_path, [0, 5], ["猫 on a wall " * 30, "b"])
    (tmp_path / "samples" / "000000005_0.png").unlink()
    assert (
        sum(
            counted(write_contact_sheet(tmp_path)).get(colour, 0)
            for colour in ((255, 0, 0), (0, 0, 255))
        )
        > 0
    )


def test_the_sheet_is_no_sample_and_nothing_is_written_of_none(tmp_path: Path) -> None:
    assert write_contact_sheet(tmp_path) is None
    write_samples(tmp_path, [0], ["a"])
    first = write_contact_sheet(tmp_path).read_bytes()
    assert write_contact_sheet(tmp_path).read_bytes() == first


def test_more_prompts_than_fit_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "ROWS", 2)
    write_samples(tmp_path, [0], ["a", "b", "c"])
    assert (0, 0, 255) not in counted(write_contact_sheet(tmp_path))


def test_images_of_the_training_come_first_in_half_size(tmp_path: Path) -> None:
    write_samples(tmp_path / "run", [0, 1, 2], ["a cat"])
    (tmp_path / "data" / "2_more").mkdir(parents=True)
    for index in range(20):
        Image.new("RGB", (64, 64), (255, index * 10, 255)).save(
            tmp_path / "data" / "2_more" / f"{index:02}.png"
        )
    (tmp_path / "data" / "2_more" / "00.txt").write_text("a caption")
    draw(OverviewCallback(tmp_path / "run", [tmp_path / "data"]), tmp_path / "run")
    colours = counted(tmp_path / "run" / "samples" / "overview.png")
    shown = [
        green
        for (red, green, blue) in colours
        if (red, blue) == (255, 255) and green < 200
    ]
    # two of half the size in each of three columns
    assert sorted(shown) == [
        0,
        40,
        80,
        110,
        150,
        190,
    ]
    assert colours[255, 0, 255] == 29 * 29 and colours[255, 0, 0] == 64 * 48


def test_images_of_the_training_are_upright(tmp_path: Path) -> None:
    """As an iPhone writes them, and a JPEG that is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 64), (250, 200, 0)).save(tmp_path / "turned.jpg", exif=exif)
    sheet = write_contact_sheet(
        write_samples(tmp_path, [0, 1], ["a cat"]),
        [TURNED_HEIC, tmp_path / "turned.jpg"],
    )
    with Image.open(sheet) as image:
        bottom = [image.getpixel((6 + place * 35 + 5, 14 + 26)) for place in (0, 1)]
    assert [blue for *_, blue in bottom] == [
        pytest.approx(200, abs=12),
        pytest.approx(0, abs=12),
    ]


def test_reference_images_of_a_prompt_are_on_its_left_in_half_size(
    tmp_path: Path,
) -> None:
    run = write_samples(tmp_path / "run", [0, 1], ["a cat", "a dog"])
    pictures = [tmp_path / f"{name}.png" for name in ("first", "second")]
    for path, colour in zip(pictures, ("magenta", "cyan"), strict=True):
        Image.new("RGB", (64, 64), colour).save(path)
    draw(OverviewCallback(run, [], [[], pictures]), run)
    colours = counted(run / "samples" / "overview.png")
    assert colours[255, 0, 255] == colours[0, 255, 255] == 29 * 29
    assert (
        sum(
            colours.get(colour, 0) for colour in ((255, 0, 0), (0, 128, 0), (0, 0, 255))
        )
        == 4 * 64 * 48
    )
    sheet = Image.open(run / "samples" / "overview.png").convert("RGB")
    assert sheet.width == 6 + 29 + 6 + 2 * (64 + 6)
    top = 14 + 6 + 14 + 48 + 6 + 14  # of the second row
    assert [sheet.getpixel((6 + 14, top + below)) for below in (14, 29 + 6 + 14)] == [
        (255, 0, 255),
        (0, 255, 255),
    ]


def test_a_sheet_that_cannot_be_drawn_is_a_warning(tmp_path: Path, caplog) -> None:
    folder = write_samples(tmp_path, [0], ["a cat"])
    (folder / "samples" / "000000000_0.png").write_bytes(b"no image")
    draw(OverviewCallback(folder, []), folder)
    assert "no sheet of the samples" in caplog.text
