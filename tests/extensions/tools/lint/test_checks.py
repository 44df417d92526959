"""Each check finds what it is for, and a good dataset has no findings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageFilter

from extensions.tools.lint.checks import run_checks
from extensions.tools.lint.dataset import SMALL_SIDE, read_datasets
from extensions.tools.lint.likeness import ORIENTATIONS, most_like
from jobs.dry_run import plan_job
from tests.conftest import ROOT
from tests.extensions.tools.lint.conftest import picture
from tests.running import section_of
from tests.toolkit.data.conftest import make_dataset
from toolkit.config import load_job
from toolkit.config.sections.dataset import DatasetConfig
from toolkit.data.scan.folder import scan_datasets
from toolkit.errors import Diagnostic
from toolkit.extension import discover

DEFAULTS = ("--resolution", "256")


def lint(*flags: str) -> list[Diagnostic]:
    """The findings of the command with these flags."""
    config = section_of("lint", flags)
    return [
        finding
        for data in read_datasets(config, lambda *_: None)
        for finding in run_checks(data, config)
    ]


def found(*flags: str) -> set[tuple[str, str]]:
    """Checks and names of files."""
    return {
        (finding.check, Path(finding.place).name)
        for finding in lint("photos", *DEFAULTS, *flags)
    }


def blurred() -> Image.Image:
    return picture(9).filter(ImageFilter.GaussianBlur(3))


def clear() -> Image.Image:
    image = picture(9)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def again() -> Image.Image:
    image = picture(3).point(lambda value: min(255, value + 6))
    return image.resize((200, 150), Image.Resampling.LANCZOS)


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "blurred": blurred,
    "enlarged": lambda: picture(9, 102, 77).resize(
        (256, 192), Image.Resampling.BICUBIC
    ),
    "tiny": lambda: picture(9, 96, 64),
    "aspect": lambda: picture(9, 512, 96),
    "transparent": clear,
    "mode": lambda: picture(9).convert("CMYK"),
    "duplicate": again,
    "unusable": lambda: picture(9),  # half of its file
}
CAPTIONS = {
    "no_caption": " ",
    "long_caption": "ohwx man, " + "a very long sentence about nothing, " * 80,
    "trigger": "a man in a garden",
    "syntax": "ohwx man, {red|blue} hat",
}
"""Check -> the picture, or its caption, that is added to a good folder."""


def spoil(folder: Path, check: str) -> Path:
    """Adds what a check is for; returns the picture."""
    suffix = "jpg" if check in ("mode", "duplicate") else "png"
    bad = folder / f"bad.{suffix}"
    PICTURES.get(check, lambda: picture(9))().save(bad, quality=95)
    if check == "unusable":
        bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    bad.with_suffix(".txt").write_text(CAPTIONS.get(check, "ohwx man somewhere"))
    return bad


def test_a_good_folder_has_no_findings(folder: Path) -> None:
    assert found() == found("--least-size", "0.5") == set()


@pytest.mark.parametrize("check", [*PICTURES, *CAPTIONS])
def test_what_is_wrong_with_one_picture_is_found_and_nothing_else(
    folder: Path, check: str
) -> None:
    flags = ("--least-size", "0.5") if check == "tiny" else ()
    bad = spoil(folder, check)
    assert found(*flags) == {(check, bad.name)}


def test_what_is_measured_is_the_crop_at_the_size_that_is_trained(folder: Path) -> None:
    spoil(folder, "blurred")
    flags = ("photos", "--skip", "aspect", "enlarged", "--resolution")
    assert [finding.check for finding in lint(*flags, "256")] == ["blurred"]
    assert lint(*flags, "32") == []


def test_the_trigger_word_of_a_folder_stands_in_each_caption_as_it_is_written(
    folder: Path,
) -> None:
    (folder / "0.txt").write_text("Ohwx man")
    (folder / "1.txt").write_text("an ohwxman")
    (folder / "2.txt").write_text("")
    told = {
        Path(each.place).name: each.message
        for each in lint("photos", *DEFAULTS, "--trigger-word", "ohwx")
    }
    assert (
        told["0.png"]
        == "has no 'ohwx' in these letters in its caption, so it is put in front: 'Ohwx man'"
    )
    assert told["1.png"].startswith(
        "has 'ohwx' only inside another word, so it is not put in front"
    )
    assert (
        told["2.png"] == "has no caption: it trains with 'ohwx' alone"
        and len(told) == 3
    )


def test_a_placeholder_in_a_caption_of_a_folder_is_the_trigger_word(
    folder: Path,
) -> None:
    for index in range(6):
        (folder / f"{index}.txt").write_text(f"[trigger] at place {index}")
    (folder / "0.txt").write_text("somewhere else")
    config = section_of("lint", ("photos", *DEFAULTS, "--trigger-word", "ohwx"))
    [data] = read_datasets(config, lambda *_: None)
    captions = [
        item.sample.caption
        for item in sorted(data.items, key=lambda item: item.sample.image)
    ]
    assert captions == [
        "ohwx somewhere else",
        *(f"ohwx at place {index}" for index in range(1, 6)),
    ]
    [told] = run_checks(data, config)
    assert (
        told.message
        == "has no 'ohwx' in its caption, so it is put in front: 'somewhere else'"
    )


def test_one_caption_for_all_is_told_of_the_folder(folder: Path) -> None:
    for path in folder.glob("*.txt"):
        path.write_text("a man")
    assert found() == {("same_caption", "photos")}


def test_captions_of_several_lines_are_told_and_each_is_checked_where_they_are_meant(
    folder: Path,
) -> None:
    (folder / "0.txt").write_text("ohwx man, outside\nan ohwxman")
    told = [each for each in lint("photos", *DEFAULTS) if each.check == "several_lines"]
    assert [Path(each.place).name for each in told] == ["0.png"]
    assert told[0].message.startswith(
        "has a caption of 2 lines, which are trained as one: "
    )
    section = {
        "type": "sd_trainer",
        "trigger_word": "ohwx",
        "model": {"name_or_path": str(ROOT / "config/examples/tiny_mascots")},
    }
    section |= {
        "datasets": [{"folder_path": "photos", "captions": "lines", "resolution": 128}]
    }
    job = {"job": "extension", "config": {"name": "j", "process": [section]}}
    Path("job.json").write_text(json.dumps(job))
    found = [
        each.message
        for each in lint("job.json")
        if each.check in ("several_lines", "trigger")
    ]
    assert found == [
        "has 'ohwx' only inside another word, so it is not put in front: 'an ohwxman'"
    ]


@pytest.mark.slow
def test_pairs_are_compared_with_all_others(folder: Path) -> None:
    before, second = folder.parent / "before", folder.parent / "second"
    for made in (before, second):
        made.mkdir()
    for index in range(6):  # an edit changes a part of the picture
        image = picture(index)
        image.paste(Image.new("RGB", (60, 60), (200, 30, 30)), (20, 20))
        image.save(before / f"{index}.jpg", quality=90)
        picture(100 + index).save(second / f"{index}.png")
    (before / "3.jpg").rename(before / "7.jpg")
    (before / "4.jpg").rename(before / "3.jpg")
    (before / "7.jpg").rename(before / "4.jpg")
    picture(60).save(before / "7.jpg")  # of no image
    picture(0).save(before / "0.jpg", quality=95, subsampling=0)  # changes nothing
    (before / "1.jpg").unlink()
    with Image.open(before / "2.jpg") as image:
        image.resize((256, 160)).save(before / "2.jpg", quality=90)
    assert found("--control-path", "before", "second") == {
        ("unpaired", "7.jpg"),
        ("pair_order", "3.png"),
        ("pair_order", "4.png"),
        ("same_as_reference", "0.png"),
        ("pair_shape", "2.png"),
        ("unusable", "1.png"),
    }


@pytest.mark.slow
def test_references_whose_slots_are_exchanged_are_found(folder: Path) -> None:
    one, two = folder.parent / "one", folder.parent / "two"
    for made in (one, two):
        made.mkdir()
    for index in range(6):
        like, unlike = (one, two) if index != 4 else (two, one)
        image = picture(index)
        image.paste(Image.new("RGB", (60, 60), (200, 30, 30)), (20, 20))
        image.save(like / f"{index}.png")
        picture(50 + index).save(unlike / f"{index}.png")
    assert found("--control-path", "one", "two") == {("pair_order", "4.png")}


def test_a_folder_of_regularisation_images_is_told(folder: Path) -> None:
    folder.rename("1_reg")
    Path("photos").mkdir()
    Path("1_reg").rename("photos/1_reg")
    assert found() == {("regularisation", "1_reg")}


@pytest.mark.parametrize("names", ["#_start #_end", "before_# after_#", "#A #B"])
def test_names_of_pairs_in_one_folder_are_told_in_the_words_of_the_plan(
    folder: Path, names: str
) -> None:
    control, image = names.split()
    for index in range(6):
        name = (control if index < 3 else image).replace("#", str(index % 3))
        (folder / f"{index}.png").rename(folder / f"{name}.png")
        (folder / f"{index}.txt").rename(folder / f"{name}.txt")
    [told] = [each for each in lint("photos", *DEFAULTS) if each.check == "unpaired"]
    keys = (
        (image, control)
        if not image.startswith("#")
        else (image.replace("#", ""), control.replace("#", ""))
    )
    given = f"image_suffix: {keys[0]}, control_suffix: [{keys[1]}]".replace("#", "*")
    looks = "its images look like pairs, and each is trained by itself"
    assert (told.place, told.message) == (
        "photos",
        f"{looks}. For pairs give '{given}'",
    )
    notes = scan_datasets([DatasetConfig(folder_path="photos")], None).notes
    assert f"warning: photos: {told.message}" in notes


def test_folders_for_validation_and_test_are_told(folder: Path) -> None:
    shutil.copytree(folder, "set/train")
    for index, name in enumerate(("validation", "test")):
        Path("set", name).mkdir()
        picture(60 + index).save(Path("set", name, "v.png"))
        Path("set", name, "v.txt").write_text("ohwx man at another place")
    shutil.rmtree("photos")
    Path("set").rename("photos")
    assert found() == {("leak", "validation"), ("leak", "test")}


@pytest.mark.slow
def test_a_copy_is_found_among_hundreds() -> None:
    pictures = numpy.random.default_rng(0).integers(
        0, 256, (600, 4, 4, 3), dtype=numpy.uint8
    )
    pictures = pictures.repeat(8, axis=1).repeat(8, axis=2)
    pictures[500] = pictures[12, :, ::-1] // 2 + 40
    assert list(most_like(pictures, pictures, 0.97, earlier=True)) == [
        (500, 12, "mirrored")
    ]
    pictures[500, 10:16, 10:16] = [255, 0, 0]  # something is changed in it
    assert list(most_like(pictures, pictures, 0.97, earlier=True)) == []


def test_a_copy_is_told_with_the_way_it_is_turned(folder: Path) -> None:
    """The file itself is turned: its sides are exchanged."""
    copy = picture(3).transpose(Image.Transpose.ROTATE_90)
    copy.resize((copy.width * 3 // 4, copy.height * 3 // 4)).save(folder / "bad.png")
    (folder / "bad.txt").write_text("ohwx man somewhere")
    [told] = lint("photos", *DEFAULTS, "--skip", "tiny", "enlarged", "blurred")
    assert (told.check, Path(told.place).name) == ("duplicate", "bad.png")
    assert told.message.endswith("3.png shows, turned left")


def test_each_orientation_has_its_words() -> None:
    random = numpy.random.default_rng(0)
    blocks = random.integers(0, 256, (3, 4, 4, 3), dtype=numpy.uint8)
    pictures = blocks.repeat(8, axis=1).repeat(8, axis=2)
    shown = pictures[1]
    mirrored = shown[:, ::-1]
    copies = {
        "": shown,
        "turned left": numpy.rot90(shown),
        "upside down": shown[::-1, ::-1],
        "turned right": numpy.rot90(shown, -1),
        "mirrored": mirrored,
        "mirrored and turned left": numpy.rot90(mirrored),
        "mirrored top to bottom": shown[::-1],
        "mirrored and turned right": numpy.rot90(mirrored, -1),
    }
    for words, copy in copies.items():
        found = list(most_like(copy[None], pictures, 0.97, earlier=False))
        assert found == [(0, 1, words)]
    assert copies.keys() == set(ORIENTATIONS)


@pytest.mark.parametrize(
    "colours", [("red", "white"), ("#787878", "#8c8c8c"), ("gray", "white")]
)
def test_flat_drawings_of_other_shapes_are_not_duplicates(
    colours: tuple[str, str],
) -> None:
    """Where the colours are pale, a shape that differs is a small difference; a
    rectangle is not a stretched square. A resized copy is found."""
    boxes = {
        "square": (30, 30, 98, 98),
        "rectangle": (20, 40, 108, 88),
        "circle": (30, 30, 98, 98),
    }
    hexagon = [(64, 25), (100, 45), (100, 85), (64, 105), (28, 85), (28, 45)]
    drawn = []
    for name in (*boxes, "hexagon", "copy"):
        image = Image.new("RGB", (128, 128), colours[1])
        pen = ImageDraw.Draw(image)
        if name in ("hexagon", "copy"):
            pen.polygon(hexagon, colours[0])
        else:
            (pen.ellipse if name == "circle" else pen.rectangle)(
                boxes[name], colours[0]
            )
        image = image.resize((100, 100)) if name == "copy" else image
        drawn.append(
            numpy.asarray(image.resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.BOX))
        )
    pairs = list(most_like(numpy.stack(drawn), numpy.stack(drawn), 0.97, earlier=True))
    assert pairs == [(4, 3, "")]


def test_an_image_that_the_coarse_sizes_cut_gets_a_resolution(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    picture(1, 160, 120).save("photos/a.png")
    (tmp_path / "photos" / "a.txt").write_text("a photo")
    [finding] = [
        each for each in lint("photos", "--resolution", "128") if each.check == "aspect"
    ]
    assert finding.message.endswith(
        "its bucket 128 x 128; at 'resolution: 160' it loses 6%"
    )


def test_a_profile_that_is_not_used_is_listed_in_the_words_of_the_plan(
    folder: Path,
) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = spoil(folder, "mode")
    with Image.open(path) as image:
        image.save(path, icc_profile=profile)
    fault = "its colour profile is for RGB, its pixels are CMYK: taken as sRGB"
    assert fault in [
        each.message for each in lint("photos", *DEFAULTS) if each.check == "mode"
    ]
    notes = scan_datasets([make_dataset(folder)], None).notes
    assert f"{folder}/bad.jpg: {fault}" in notes


def test_masks_are_judged_as_the_plan_judges_them(folder: Path) -> None:
    """Of values 0 and 1 each mask is named, in the words of the plan."""
    masks = folder.parent / "masks"
    masks.mkdir()
    for image in folder.glob("*.png"):
        mask = Image.new("L", (256, 192), 0)
        mask.paste(255 if image.stem == "0" else 1, (0, 0, 128, 192))
        mask.save(masks / image.name)
    section = {
        "type": "sd_trainer",
        "device": "cpu",
        "trigger_word": "ohwx",
        "training_folder": "out",
    }
    section |= {"model": {"name_or_path": str(ROOT / "config/examples/tiny_mascots")}}
    section |= {
        "datasets": [{"folder_path": "photos", "resolution": 256, "mask_path": "masks"}]
    }
    Path("job.json").write_text(
        json.dumps({"job": "extension", "config": {"name": "j", "process": [section]}})
    )
    found = [each for each in lint("job.json") if each.check == "mask"]
    assert [Path(each.place).name for each in found] == [
        f"{index}.png" for index in range(1, 6)
    ]
    assert (
        "dark throughout, and only white (255) counts fully: brightest value 1 of 255"
        in found[0].message
    )
    plan = plan_job(load_job("job.json", discover().find_config)).render()
    assert "masks: 6 of 6, 8.5% of the area counts on average" in plan
    assert (
        "warning: photos: 5 of 6 masks are dark throughout, and only white (255) counts fully: 1.png"
        in plan
    )


def test_numbers_that_are_probably_no_repeats_are_asked_about(folder: Path) -> None:
    for index, name in enumerate(("2023_summer", "2024_winter")):
        (folder / name).mkdir()
        for path in folder.glob(f"{index}.*"):
            path.rename(folder / name / path.name)
    for path in folder.glob("*.*"):
        path.unlink()
    (asked,) = [each for each in lint("photos", *DEFAULTS) if each.check == "repeats"]
    assert asked.place == "photos"
    assert asked.message.startswith(
        "are the numbers of 2023_summer (2,023), 2024_winter (2,024) repeats?"
    )
