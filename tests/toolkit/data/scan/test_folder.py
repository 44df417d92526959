import json
import os
import re
import shutil
from contextlib import nullcontext
from itertools import count
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import TURNED_HEIC
from tests.golden_tables import golden
from tests.processes import python
from tests.toolkit.data.conftest import make_dataset, make_files, make_images, refusal
from toolkit.config.sections.dataset import Rectangle
from toolkit.contracts.data import CaptionRules, Mask, Sample, Size
from toolkit.data.scan.directory import ScanCache
from toolkit.data.scan.fingerprint import fingerprint
from toolkit.data.scan.folder import find_images, scan_datasets
from toolkit.data.scan.found import named_as_regularisation
from toolkit.data.scan.items import make_items
from toolkit.errors import DataErrors

PHOTOS = "config/examples/photos"


def mistakes_of(*datasets) -> dict[str, str]:
    with pytest.raises(DataErrors) as caught:
        scan_datasets(datasets, None)
    return {Path(m.place).name: m.message for m in caught.value.errors}


def test_photographs_by_their_subfolders(dataset) -> None:
    scan = scan_datasets([dataset(PHOTOS, resolution=(256,))], "sks")
    assert [
        (f.folder, f.repeats, len(f.samples), f.missing_captions) for f in scan.folders
    ] == [
        (f"{PHOTOS}/20_photo_wide", 20, 2, 0),
        (f"{PHOTOS}/40_photo", 40, 3, 0),
    ]
    chelsea = scan.samples[0]
    assert (
        chelsea.size == Size(451, 300)
        and chelsea.control_images == ()
        and chelsea.rules.trigger == "sks"
    )
    assert (
        chelsea.caption
        == "sks " + Path(PHOTOS, "20_photo_wide/chelsea.txt").read_text().strip()
    )
    assert scan.notes == ()


@pytest.mark.parametrize(
    ("name", "repeats"),
    [
        *((name, 40) for name in ("40_char", "40_ü [x] 🙂", "40_", "0040_char")),
        *((name, 1) for name in ("char", "char_40", "4x_char", "-3_char", "40")),
    ],
)
def test_repeats_from_the_name_however_it_is_written(
    tmp_path: Path, monkeypatch, image, dataset, name: str, repeats: int
) -> None:
    folder = tmp_path / "of" / name
    image(folder / "a.png")
    (tmp_path / "40_link").symlink_to(folder)
    monkeypatch.chdir(folder)
    for given in (folder, f"{folder}/", folder.parent, "."):
        found = scan_datasets([dataset(given)], None).folders
        assert [each.repeats for each in found] == [repeats], given
    assert scan_datasets([dataset(tmp_path / "40_link")], None).folders[0].repeats == 40


def test_explicit_repeats_win_and_it_is_said(tmp_path: Path, image, dataset) -> None:
    image(tmp_path / "40_char" / "a.png")
    image(tmp_path / "0_other" / "a.png")
    scan = scan_datasets([dataset(tmp_path, num_repeats=7)], None)
    assert [f.repeats for f in scan.folders] == [7, 7]
    assert "num_repeats: 7" in scan.notes[1] and "40" in scan.notes[1]


def test_every_offender_is_named_at_once(tmp_path: Path, image, dataset) -> None:
    data, control = tmp_path / "data", tmp_path / "control"
    make_images(data / f"{name}.png" for name in ("good", "lonely", "encoded", "hurt"))
    make_images(control / f"{name}.png" for name in ("good", "twin", "encoded", "anim"))
    make_images(data / f"twin.{suffix}" for suffix in ("jpg", "png"))
    (data / "linked.png").symlink_to(tmp_path / "gone.png")
    (data / "encoded.txt").write_bytes(b"caf\xe9")
    (data / "good.txt").write_text("fine")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(data / "anim.webp", save_all=True, append_images=frames[1:])
    whole = image(control / "hurt.jpg", 300, 200).read_bytes()
    (control / "hurt.jpg").write_bytes(whole[: len(whole) // 2])
    image(tmp_path / "0_char" / "a.png")
    make_files(tmp_path / "none", ["a.psd", "40_sub/a.txt"])

    others = (dataset(tmp_path / name) for name in ("nowhere", "0_char", "none"))
    found = mistakes_of(dataset(data, control_path=(str(control),)), *others)
    words = {
        "nowhere": ["cannot be read as a folder"],
        "0_char": ["0 repeats"],
        "none": ["1 .psd", "1 subfolder", "'a.psd' is a .psd file, which is not read"],
        "lonely.png": ["no control image 'lonely'"],
        "twin.jpg": ["twin.jpg, twin.png"],
        "linked.png": [f"is a link to '{tmp_path}/gone.png', which does not exist"],
        "encoded.txt": ["offset 3"],
        "anim.webp": ["animated"],
        "hurt.jpg": ["truncated"],
    }
    assert found.keys() == words.keys()
    assert all(word in found[name] for name in words for word in words[name]), found


def test_own_images_shadow_subfolders_with_a_note(
    tmp_path: Path, image, dataset
) -> None:
    image(tmp_path / "data" / "a.png")
    image(tmp_path / "data" / "char" / "b.png")
    image(tmp_path / "data" / ".cache" / "c.png")
    scan = scan_datasets([dataset(tmp_path / "data", resolution=(64,))], "sks")
    assert [sample.name for sample in scan.samples] == ["a.png"]
    assert scan.notes == (
        f"{tmp_path}/data: holds images itself; subfolders ignored: char",
    )


def test_an_image_beside_subfolders_with_repeats_is_a_mistake(
    tmp_path: Path, image, dataset
) -> None:
    image(tmp_path / "data" / "cover.png")
    image(tmp_path / "data" / "20_a" / "a.png")
    (tmp_path / "data" / "30_empty").mkdir()
    message = mistakes_of(dataset(tmp_path / "data"))["data"]
    assert message.startswith(
        "holds images itself (cover.png), so those in 20_a would not be used. Move the loose"
    )
    (tmp_path / "data").rename(tmp_path / "40_data")
    assert [
        s.repeats for s in scan_datasets([dataset(tmp_path / "40_data")], None).samples
    ] == [40]


@pytest.fixture
def warned(tmp_path: Path):
    """The warnings for a folder with these files, as of `make_files`."""
    number = count()

    def run(files, trigger: str | None = "sks", inside: str = "", **keys) -> list[str]:
        folder = make_files(tmp_path / f"set{next(number)}", files) / inside
        keys = {"resolution": (64,), **keys}
        notes = scan_datasets([make_dataset(folder, **keys)], trigger).notes
        told = (note for note in notes if note.startswith("warning: "))
        return [note.removeprefix("warning: ").split(": ", 1)[1] for note in told]

    return run


def test_a_name_that_nearly_gives_repeats_is_a_warning(warned) -> None:
    names = dict.fromkeys(
        (
            "40 char",
            "40-char",
            "_40_char",
            "40 _char",
            "x40_char",
            "40x_char",
            "4O_char",
        ),
        40,
    )
    names |= {"char_40": 40, "my_char_15": 15, "char_100": 100, "my char-x40": 40}
    names |= {"４０_char": 40, "2l-char": 21, "7. char": 7, "100 - char": 100}
    for name, number in names.items():
        files = [f"{name}/a.png"]
        assert warned(files, inside=name) == [
            f"each image is used once per epoch. For {number} repeats begin its name with '{number}_', "
            f"or give 'num_repeats: {number}'"
        ]
        assert warned(files, inside=name, num_repeats=1) == []
    others = (
        "2024-05-01 char",
        "2024-photos",
        "char 40",
        "char_2",
        "char_41",
        "photos_512",
        "char_2020",
        "x1_40",
        "3D_renders",
        "4k-photos",
        "1-char",
        "col_1",
        "x_y",
    )
    for name in (*others, "40", "4x", "40_char", "40__char"):
        assert warned([f"{name}/a.png"], inside=name) == [], name


def test_images_without_any_words_are_a_warning(warned) -> None:
    files = {"a.png": "", "b.png": "", "a.txt": "a cat"}
    no_caption = "1 of 2 images has no caption (b.png) and trains with"
    why = "an empty prompt, as there is no trigger_word"
    remedy = "Write b.txt, or give 'default_caption'"
    assert warned(files, None) == [f"{no_caption} {why}. {remedy}"]
    assert warned(files, "sks") == [f"{no_caption} 'sks' alone. {remedy}"]
    for words in ({"default_caption": "a thing"}, {"is_reg": True}):
        assert warned(files, None, **words) == []
    remedy = "b.txt is empty: write the caption into it, or give 'default_caption'"
    assert warned(files | {"b.txt": "\n"}, None) == [f"{no_caption} {why}. {remedy}"]
    assert warned(["a.png"], "sks") == [], "it may be meant"
    (told,) = warned({"a.png": "", "a.txt": "\n"}, "sks")
    assert told.startswith("1 of 1 image has no caption (a.png) and trains with 'sks'")
    assert "a.txt is empty" in told


def test_a_folder_of_other_texts_is_not_taken_for_captions(warned) -> None:
    for files in (
        {"set/cat.png": "", "captions/dog.txt": "a dog"},
        {"set/cat.png": "", "other/cat.txt": "a cat"},
        {"set/cat.png": "", "captions/cat.txt": "a cat", "captions/cat.png": ""},
        {"set/cat.png": "", "set/cat.txt": "a cat", "captions/cat.txt": "a cat"},
    ):
        assert warned(files, inside="set") == [], files


@pytest.mark.parametrize(
    ("texts", "trigger", "told"),
    [
        *(
            (
                [f"{written}, a temple"],
                "",
                f"1 caption with '{written}', which nothing replaces: a.png. Give the job a 'trigger_word'",
            )
            for written in ("[trigger]", "[name]")
        ),
        (["[trigger], a temple"], "sks", None),
        *(
            (
                ["[trigger] in a garden", f"{written} in a garden"],
                "sks",
                f"1 caption with '{written}', which nothing replaces: b.png. Write '[trigger]'",
            )
            for written in ("[Trigger]", "{trigger}", "<trigger word>")
        ),
        (
            ["sks at night", '"sks in the rain"'],
            "sks",
            "1 caption in quotation marks, which are trained as part of it: b.png",
        ),
        (
            ["sks at night", "Sks, smiling"],
            "sks",
            "1 caption with 'sks' in different case, so that it is put in front as well: b.png",
        ),
        (
            [f"zxq, in a garden {name}" for name in "abcdef"],
            "",
            "6 of 6 captions begin with 'zxq', and there is no trigger_word. If it is yours, give "
            "'trigger_word: zxq'",
        ),
        ([f"zxq, in a garden {name}" for name in "abcdef"], "zxq", None),
    ],
)
def test_captions_that_are_probably_not_meant_so_are_a_warning(
    warned, texts: list[str], trigger: str, told: str | None
) -> None:
    files = dict(zip((f"{name}.png.txt" for name in "abcdef"), texts, strict=False))
    images = [name.removesuffix(".txt") for name in files]
    expected = [told] if told else []
    assert warned(files | dict.fromkeys(images, ""), trigger) == expected


def test_clear_pictures_and_those_that_need_a_package_are_warnings(
    tmp_path: Path, warned
) -> None:
    clear = tmp_path / "set0" / "clear.png"
    clear.parent.mkdir()
    Image.new("RGBA", (64, 64)).save(clear)
    assert warned({"a.png": "", "A.txt": "of a.png", "x.psd": ""}) == [
        "1 file not used, caption of an image whose name differs in case: A.txt. "
        "Give image and caption the same name, in upper and lower case too",
        "1 file not used, a .psd file, which is not read: x.psd. Convert it to PNG or JPEG",
        "2 of 2 images have no caption (a.png, clear.png) and train with 'sks' alone. Write a.txt etc., "
        "or give 'default_caption'",
        "1 of 2 images is fully transparent, so that nothing of it is seen: clear.png. Export them once more, "
        "or remove them",
    ]


def test_photographs_of_an_iphone_are_images(tmp_path: Path, dataset) -> None:
    for name in ("b.HEIC", "named_so.jpg", "of_a_camera.HIF"):
        shutil.copyfile(TURNED_HEIC, tmp_path / name)
    (tmp_path / "of_a_camera.txt").write_text("a street")
    scan = scan_datasets([dataset(tmp_path)], None)
    assert [sample.size for sample in scan.samples] == [(64, 96)] * 3
    assert scan.samples[2].caption == "a street"


def test_pictures_under_other_endings_are_read_or_named_with_what_to_do(
    tmp_path: Path, image, dataset
) -> None:
    whole = image(tmp_path / "a.jpg").read_bytes()
    for name in (
        *("b.mpo", "c.jpe", "d.JPG_large", "e.jfif"),
        *("without", "e.bin", "f.raw"),
    ):
        (tmp_path / name).write_bytes(whole)
    others = {
        "g.CR2": b"II*\0",
        "h.cr3": b"\0\0\0\x18ftypcrx ",
        "i.mp4": b"",
        "j.odd": b"\0\0\0\x20ftypisom",
        "k.tga": b"\0\0\2",
        "BMW.md": b"BMW is a maker of cars",
        "l.npz": b"PK\3\4",
    }
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    scan = scan_datasets([dataset(tmp_path, resolution=(64,))], "sks")
    assert [s.name for s in scan.samples] == [
        *("a.jpg", "b.mpo", "c.jpe", "d.JPG_large", "e.jfif")
    ]
    told = [note.partition(f"{tmp_path}: ")[2] for note in scan.notes]
    assert set(told) == {
        "1 file not used, a .tga file, which is not read: k.tga. Convert it to PNG or JPEG",
        "2 files not used, a camera's raw file: g.CR2, h.cr3. Export it as PNG or JPEG",
        "2 files not used, a video: i.mp4, j.odd. Take single frames as PNG",
        "3 files not used, an image that does not end with .jpg: e.bin, f.raw, without. Rename it to end with .jpg",
        "ignored, not an image: BMW.md, l.npz",
        "5 of 5 images have no caption (a.jpg, b.mpo, c.jpe, d.JPG_large, e.jfif) and train with 'sks' alone. "
        "Write a.txt etc., or give 'default_caption'",
    }
    assert len(scan.unused) == 8
    make_files(tmp_path / "films", ["a.mov"])
    told = str(mistakes_of(dataset(tmp_path / "films")))
    assert "'a.mov' is a video. Take single frames as PNG" in told


def test_the_trigger_word_is_the_dataset_s_or_the_job_s_and_none_for_regularisation_images(
    tmp_path: Path, dataset
) -> None:
    texts = {"a.txt": "a man", "b.txt": "[trigger] in a hat", "c.txt": ""}
    make_files(tmp_path, texts | dict.fromkeys(("a.png", "b.png", "c.png"), ""))
    for keys, captions in (
        ({"is_reg": True}, ["a man", "sks in a hat", ""]),
        ({}, ["sks a man", "sks in a hat", "sks"]),
        ({"trigger_word": ""}, ["sks a man", "sks in a hat", "sks"]),
        ({"trigger_word": "own"}, ["own a man", "own in a hat", "own"]),
    ):
        scan = scan_datasets([dataset(tmp_path, **keys)], "sks")
        assert [sample.caption for sample in scan.samples] == captions, keys
        assert scan.folders[0].is_reg == ("is_reg" in keys)


def test_images_far_below_the_resolution_are_a_warning(
    tmp_path: Path, image, warned
) -> None:
    image(tmp_path / "set0" / "small.png", 255, 255)
    image(tmp_path / "set0" / "wide.png", 512, 128)
    (tmp_path / "set1").symlink_to(tmp_path / "set0")
    assert warned([], resolution=(1024, 512)) == [
        "1 of 2 images are smaller than half of 'resolution: 512', and not enlarged: small.png (255x255)"
    ]
    assert warned([], resolution=(510,)) == []


@pytest.mark.parametrize(
    "case", golden("captions", table="file"), ids=lambda c: c["name"]
)
def test_golden_caption_files(tmp_path: Path, image, dataset, case: dict) -> None:
    image(tmp_path / "a.png")
    if case["file_text"] is not None:
        (tmp_path / "a.txt").write_bytes(case["file_text"].encode())
    default = case["options"].get("default_caption") or ""
    (sample,) = scan_datasets(
        [dataset(tmp_path, default_caption=default)], case["trigger_word"]
    ).samples
    # the peer doubles the space after commas, leaves one behind a trigger that stands
    # alone, and trains on the braces of a JSON document
    expected = case["result"].replace('{"caption": "x"}', "x")
    assert sample.caption == expected.replace(",  ", ", ").strip()


def test_images_are_found_as_a_scan_finds_them(tmp_path: Path, dataset) -> None:
    names = "4_x/a 4_x/b 4_x/b_ref 4_x/a_ref 7_y/c 7_y/c_ref"
    texts = {
        "4_x/a.txt": " ",
        "4_x/a.caption": "second",
        "4_x/b.txt": "of b",
        "4_x/b.caption": "unread",
    }
    make_files(tmp_path, texts | {f"{name}.png": "" for name in names.split()})
    keys = {"control_suffix": ("_ref",), "caption_ext": (".txt", ".caption")}
    section = dataset(tmp_path, **keys)
    images, mistakes, _ = find_images(section)
    samples = scan_datasets([section], None).samples
    assert [(i.path, i.repeats, i.caption, i.references) for i in images] == [
        (s.image, s.repeats, s.caption, s.control_images) for s in samples
    ]
    found = [[Path(path).name for path in each.captions] for each in images]
    assert (found, mistakes) == (
        [["a.caption", "a.txt"], ["b.txt", "b.caption"], []],
        [],
    )
    make_images([tmp_path / "7_y" / "c.jpg"])
    images, mistakes, _ = find_images(section)
    assert [each.shares_stem for each in images] == [False, False, True, True]
    assert mistakes == list(refusal([section], None).errors)


def test_pipes_and_devices_are_named_and_never_opened(
    tmp_path: Path, image, dataset
) -> None:
    """As image, caption, reference and mask; one that was opened would wait for a
    writer, or never end."""
    image(tmp_path / "data/a.png")
    image(tmp_path / "data/b.png")
    (tmp_path / "refs").mkdir(), (tmp_path / "masks").mkdir()
    for name in (
        "data/c.png",
        "data/a.txt",
        "refs/a.png",
        "masks/a.png",
        "data/unused",
    ):
        os.mkfifo(tmp_path / name)
    (tmp_path / "data/b.txt").symlink_to("/dev/zero")
    folders = {
        "control_path": (str(tmp_path / "refs"),),
        "mask_path": str(tmp_path / "masks"),
    }
    section = dataset(
        tmp_path / "data", **folders, control_optional=True, mask_optional=True
    )
    code = (  # in a process of its own, which can be ended
        "from types import SimpleNamespace as section\n"
        "from toolkit.config.sections.dataset import ColumnsConfig\n"
        "from toolkit.data.scan.folder import scan_datasets\n"
        f"try: scan_datasets([section(**{vars(section)!r})], None)\n"
        "except Exception as error: print(error)\n"
    )
    lines = python(code, seconds=60).splitlines()
    places = {
        str(tmp_path / name)
        for name in (
            "data/c.png",
            "data/a.txt",
            "data/b.txt",
            "refs/a.png",
            "masks/a.png",
        )
    }
    assert {line.partition(": ")[0] for line in lines} == places
    assert all(
        ": is a pipe, not a file" in line or ": is a device, not a file" in line
        for line in lines
    )


def test_order_does_not_depend_on_the_file_system(
    tmp_path: Path, image, dataset, monkeypatch
) -> None:
    make_images(tmp_path / f"{name}.png" for name in ("b", "a", "C", "ä"))
    entries = sorted(os.scandir(tmp_path), key=lambda entry: entry.name)
    for order in (entries, entries[::-1]):
        monkeypatch.setattr(
            os, "scandir", lambda folder, order=order: nullcontext(order)
        )
        names = [
            sample.name for sample in scan_datasets([dataset(tmp_path)], None).samples
        ]
        assert names == ["C.png", "a.png", "b.png", "ä.png"]


def test_scanning_and_planning_import_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "import toolkit.plan.run_plan, toolkit.data.batches.epoch_order, toolkit.data.scan.items\n"
        "import toolkit.plan.diffusion\n"
        "from toolkit.data.pixels.images import inspect_image; inspect_image(sys.argv[1])\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    python(code, f"{PHOTOS}/40_photo/coffee.jpg")


def test_every_field_of_a_sample(tmp_path: Path, image, dataset) -> None:
    data = tmp_path / "data" / "7_x"
    image(data / "a.png", 64, 48)
    (data / "a.txt").write_text("[trigger] on a hill")
    for folder in ("first", "second", "masks"):
        image(tmp_path / folder / "a.png", 64, 48)
    section = dataset(
        tmp_path / "data",
        control_path=(str(tmp_path / "first"), str(tmp_path / "second")),
        mask_path=str(tmp_path / "masks"),
        mask_min_value=0.25,
        invert_mask=True,
        caption_dropout_rate=0.125,
        shuffle_tokens=True,
        keep_tokens=2,
        background="black",
        flip_x=True,
    )
    plain, mirrored = scan_datasets([dataset(data), section], "sks").folders[1].samples
    assert plain == Sample(
        image=str(data / "a.png"),
        caption="sks on a hill",
        repeats=7,
        size=Size(64, 48),
        folder=f"{tmp_path}/data/7_x",
        control_images=(
            str(tmp_path / "first" / "a.png"),
            str(tmp_path / "second" / "a.png"),
        ),
        rules=CaptionRules(
            dropout_rate=0.125, shuffle_tokens=True, keep_tokens=2, trigger="sks"
        ),
        mask=Mask(str(tmp_path / "masks" / "a.png"), min_value=0.25, inverted=True),
        background="black",
        dataset=1,
    )
    assert plain.name == "a.png"
    assert mirrored == plain._replace(flip=True)


# ---------------------------------------------------------------- flips, masks,
# regularisation


def test_a_mirrored_image_is_a_sample_of_its_own(
    tmp_path: Path, image, dataset
) -> None:
    image(tmp_path / "3_x" / "a.png"), image(tmp_path / "3_x" / "b.png")

    def found(**flips: bool) -> list[tuple[str, bool]]:
        scan = scan_datasets([dataset(tmp_path, **flips)], None)
        assert scan.folders[0].missing_captions == 2 and all(
            sample.repeats == 3 for sample in scan.samples
        )
        return [(Path(sample.image).stem, sample.flip) for sample in scan.samples]

    assert found() == [("a", False), ("b", False)]
    assert found(flip_x=True)[:2] == [("a", False), ("a", True)]
    assert len(found(flip_x=True)) == 4


def test_images_without_transparency_count_whole_and_are_named_once(
    tmp_path: Path, dataset
) -> None:
    make_images(tmp_path / name for name in ("a.png", "c.jpg"))
    Image.new("RGBA", (64, 48)).save(tmp_path / "b.png")
    scan = scan_datasets([dataset(tmp_path, alpha_mask=True)], None)
    masks = [sample.mask for sample in scan.samples]
    assert masks == [None, Mask(str(tmp_path / "b.png"), alpha=True), None]
    assert [note for note in scan.notes if "alpha_mask" in note] == [
        f"{tmp_path}: alpha_mask: no transparency, so the whole image counts: a.png, c.jpg"
    ]


def test_a_mask_of_another_shape_is_noted(tmp_path: Path, image, dataset) -> None:
    for name, size in (("a", (32, 24)), ("b", (48, 64)), ("c", (65, 48))):
        image(tmp_path / "data" / f"{name}.png", 64, 48)
        image(tmp_path / "mask" / f"{name}.png", *size)
    section = dataset(tmp_path / "data", mask_path=str(tmp_path / "mask"))
    notes = scan_datasets([section], None).notes
    (told,) = (note for note in notes if "stretched" in note)
    assert told.endswith(": b.png")


def test_images_below_a_subfolder_without_any_are_told(tmp_path: Path, dataset) -> None:
    make_images(tmp_path / name for name in ("x/a.png", "y/z/b.png", "c/ref/a.png"))
    keys = {"control_path": (f"{tmp_path}/c/ref",), "resolution": (64,)}
    notes = scan_datasets([dataset(tmp_path, **keys)], "sks").notes
    assert [note for note in notes if "not used" in note] == [
        f"warning: {tmp_path}: {tmp_path}/y/z holds images that are not used. Only direct subfolders are looked into: "
        "give it as a dataset"
    ]


def test_forgiven_errors_leave_out_the_images_that_have_one(
    tmp_path: Path, image, dataset
) -> None:
    photos, before, masks = tmp_path / "photos", tmp_path / "before", tmp_path / "masks"
    for folder in (photos, before, masks):
        make_images(folder / f"{name}.png" for name in "abcdef")
    for name in "abcdef":
        (photos / f"{name}.txt").write_text(f"caption {name}")
    image(photos / "a.jpg")  # of the same stem
    (photos / "b.png").write_bytes(b"torn")
    (before / "c.png").write_bytes(b"torn")
    (masks / "d.png").unlink()
    (photos / "e.txt").write_bytes(b"\xff")  # the image can be used
    forgiven: list = []
    settings = dataset(photos, control_path=[str(before)], mask_path=str(masks))
    scan = scan_datasets([settings], None, forgiven=forgiven)
    assert [(Path(s.image).name, s.caption) for s in scan.samples] == [
        ("e.png", ""),
        ("f.png", "caption f"),
    ]
    assert {s.control_images for s in scan.samples} == {
        (str(before / f"{name}.png"),) for name in "ef"
    }
    assert sorted(Path(mistake.place).name for mistake in forgiven) == [
        "a.jpg",
        "b.png",
        "c.png",
        "d.png",
        "e.txt",
    ]
    assert list(refusal([settings], None).errors) == forgiven


def test_zip_files_are_folders(tmp_path: Path, image, dataset) -> None:
    make_images(
        tmp_path / "in" / name
        for name in ("3_x/a.png", "3_x/b.png", "before/a.png", "before/b.png")
    )
    (tmp_path / "in" / "3_x" / "a.txt").write_text("a cat")
    shutil.make_archive(str(tmp_path / "pairs"), "zip", tmp_path / "in")
    file = f"{tmp_path}/pairs.zip"
    section = dataset(file, control_path=(f"{file}/before",))
    cache = ScanCache(tmp_path / "_cache" / "scans")
    scan, again = (
        scan_datasets([section], None, scan_cache=each) for each in (cache, ScanCache())
    )
    (folder,) = scan.folders
    assert (folder.folder, folder.repeats, len(folder.samples)) == (f"{file}/3_x", 3, 2)
    assert [sample.caption for sample in scan.samples] == ["a cat", ""]
    assert all(
        Path(sample.control_images[0]).parts[-2:] == ("before", sample.name)
        for sample in scan.samples
    )
    assert all(
        Path(sample.image).is_relative_to(tmp_path / "_cache" / "zips")
        for sample in scan.samples
    )
    # wherever it was unpacked
    assert fingerprint(scan.samples) == fingerprint(again.samples)
    (tmp_path / "pairs.zip").write_bytes(b"PK")
    assert re.search("is not a readable zip file", str(refusal([section], None)))


def test_captions_of_several_lines_are_told_once(
    tmp_path: Path, image, dataset
) -> None:
    for name, text in (
        ("x/a", "a cat\nsits"),
        ("x/b", "a cat\n"),
        ("y/c", "a cat\r\n\r\nsits"),
    ):
        image(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text)
    sections = [dataset(tmp_path / name, resolution=(64,)) for name in ("x", "y")]
    scan = scan_datasets(sections, None)
    assert [sample.caption for sample in scan.samples] == [
        "a cat\nsits",
        "a cat",
        "a cat\n\nsits",
    ]
    together = "are trained together, as one caption with line breaks ('captions: lines' draws one at each use)"
    assert scan.notes == (
        f"2 of 3 captions have several lines, which {together}: a.png, c.png",
    )
    assert scan_datasets(sections, None, read_captions=False).notes == ()


def test_each_line_is_a_caption_with_prefix_and_trigger_word(
    tmp_path: Path, image, dataset
) -> None:
    for name, text in (
        ("a", " a cat\r\n\r\n  sks sits \n"),
        ("b", "a cat\n"),
        ("c", "[name], d\ne\ne"),
        ("d", ""),
    ):
        image(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text)
    keys = {"captions": "lines", "caption_prefix": "drawn", "default_caption": "none"}
    scan = scan_datasets([dataset(tmp_path, **keys)], "sks")
    assert [sample.caption for sample in scan.samples] == [
        "sks drawn. a cat", "sks drawn. a cat", "drawn. sks, d", "sks drawn. none",
    ]  # fmt: skip
    assert [sample.captions for sample in scan.samples] == [
        ("sks drawn. a cat", "drawn. sks sits"), (), ("drawn. sks, d", "sks drawn. e", "sks drawn. e"), (),
    ]  # fmt: skip
    assert (
        not [note for note in scan.notes if "lines" in note]
        and scan.folders[0].missing_captions == 1
    )
    plain = scan_datasets([dataset(tmp_path, captions="lines", is_reg=True)], "sks")
    assert plain.samples[0].texts == ("a cat", "sks sits") and plain.samples[
        1
    ].texts == ("a cat",)
    before = fingerprint(scan.samples)
    (tmp_path / "a.txt").write_text("a cat\nsks stands")
    after = fingerprint(scan_datasets([dataset(tmp_path, **keys)], "sks").samples)
    assert [name for name in before if before[name] != after[name]] == [
        f"{tmp_path}/a.png"
    ]


TEXTS = ["a cat", " ", "two\nlines"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a.json", {"caption": TEXTS}),
        ("a.json", TEXTS),
        ("x.json", {"a.png": TEXTS}),
        ("x.json", [{"file_name": "a.png", "prompt": TEXTS}]),
        ("x.jsonl", {"file_name": "a.png", "text": TEXTS}),
    ],
)
def test_a_list_in_json_is_several_captions_only_where_it_is_asked_for(
    tmp_path: Path, image, dataset, file: str, text: object
) -> None:
    image(tmp_path / "a.png")
    (tmp_path / file).write_text(json.dumps(text))
    sections = [
        dataset(tmp_path, caption_ext=(".json",), captions=captions)
        for captions in ("lines", "one")
    ]
    scan = scan_datasets(sections[:1], None)
    assert [sample.captions for sample in scan.samples] == [("a cat", "two", "lines")]
    [mistake] = refusal(sections, None).errors
    assert mistake.place == str(tmp_path / "a.png")
    assert (
        mistake.message
        == "has a list of 2 captions. Give 'captions: lines', or one of them as text"
    )
    assert not scan_datasets(sections, None, read_captions=False).samples[1].captions


def test_a_list_of_empty_texts_is_no_caption(tmp_path: Path, dataset) -> None:
    texts = {"a cat.json": '["", " "]', "b.json": '["a dog", ""]'}
    make_files(tmp_path, texts | dict.fromkeys(("a cat.png", "b.png"), ""))
    for captions in ("lines", "one"):
        section = dataset(tmp_path, caption_ext=(".json",), captions=captions)
        scan = scan_datasets([section], None)
        found = [sample.texts for sample in scan.samples]
        assert found == [("",), ("a dog",)], captions
        assert scan.folders[0].missing_captions == 1, captions


def test_tags_of_a_table_follow_each_caption_of_a_list_of_texts(
    tmp_path: Path, dataset
) -> None:
    table = tmp_path / "x.json"
    make_files(tmp_path, ["a.png"])
    section = dataset(tmp_path, captions_file=str(table), captions="lines")
    table.write_text('{"a": {"caption": ["one", "two"], "tags": "indoors"}}')
    (sample,) = scan_datasets([section], None).samples
    assert sample.captions == ("one, indoors", "two, indoors")
    for row in ('"text": ["a", 3]', '"text": []', '"tags": ["a", 3]'):
        table.write_text(f'[{{"file_name": "a.png", {row}}}]')
        told = str(refusal([section], None))
        fault = "has no 'file_name' and 'caption' of text"
        if "tags" in row:
            fault = "has 'tags' that are not text. Write texts, or give 'columns: {ignore: tags}'"
        assert fault in told, row


@pytest.mark.parametrize(
    ("resolution", "outcome"),
    [(512, "not enlarged"), (Rectangle(width=512, height=512), "enlarged to it")],
)
def test_what_becomes_of_small_images_is_told_as_it_is(
    tmp_path: Path, image, dataset, resolution, outcome
) -> None:
    image(tmp_path / "a.png", 64, 48)
    (told,) = (
        note
        for note in scan_datasets(
            [dataset(tmp_path, resolution=(resolution,))], "sks"
        ).notes
        if "half" in note
    )
    assert (
        f"smaller than half of 'resolution: {resolution}', and {outcome}: a.png (64x48)"
        in told
    )
    (sized,) = make_items(
        scan_datasets([dataset(tmp_path)], "sks").samples, lambda _: (resolution,), 16
    )
    assert (sized.crop.bucket == Size(512, 512)) == (outcome == "enlarged to it")


def test_the_folder_below_that_holds_the_images_is_named(
    tmp_path: Path, image, dataset
) -> None:
    data = tmp_path / "data"
    image(data / "my set" / "10_pipo" / "a.png"), image(data / "my set" / "b" / "a.png")
    (data / "my set" / "loop").symlink_to(data)
    found = mistakes_of(dataset(data))["data"]
    assert (
        f"'{data}/my set/10_pipo', '{data}/my set/b' do: give {data}/my set, {data}/my set/b"
        in found
    )
    shutil.rmtree(data / "my set" / "b")
    archive = shutil.make_archive(str(tmp_path / "set"), "zip", data)
    for folder in (str(data), archive):
        (message,) = mistakes_of(dataset(folder)).values()
        assert message.endswith(f"'{folder}/my set/10_pipo' does: give {folder}/my set")
    (tmp_path / "none").mkdir()
    assert "Supported: " in mistakes_of(dataset(tmp_path / "none"))["none"]


def test_a_folder_that_is_named_as_regularisation_images_is_told(
    tmp_path: Path, dataset
) -> None:
    names = "1_reg 1_reg_dog reg 2_woman-reg regularization Regularisation_Images class 1_class class_images"
    others = "40_regina 40_first_class 1_classic regatta 40_mychar"
    assert all(map(named_as_regularisation, names.split()))
    assert not any(map(named_as_regularisation, others.split()))
    make_files(tmp_path, ["1_reg/a.png"])
    for section, told in ((dataset(tmp_path), 1), (dataset(tmp_path, is_reg=True), 0)):
        notes = scan_datasets([section], "sks").notes
        of_folder = [note for note in notes if "/1_reg: its name says" in note]
        assert len(of_folder) == told


@pytest.mark.parametrize(
    ("names", "held_out"),
    [
        ("train validation test", 2),
        ("training val eval", 2),
        ("Train-1 dev testing", 2),
        *((names, 0) for names in ("validation test", "train contest", "trainer test")),
        ("a test", 0),
    ],
)
def test_folders_for_validation_and_test_beside_one_to_train_on_are_named(
    tmp_path: Path, dataset, names: str, held_out: int
) -> None:
    make_images(tmp_path / name / "x.png" for name in names.split())
    train, *others = names.split()
    scan = scan_datasets([dataset(tmp_path, resolution=(64,))], "sks")
    assert len(scan.samples) == len(names.split())
    expected = sorted(f"{tmp_path}/{name}" for name in others) if held_out else []
    assert [path for path, _ in scan.held_out] == expected
    remedy = f"For {train!r} alone give 'folder_path: {tmp_path}/{train}'"
    assert all(why.endswith(remedy) for _, why in scan.held_out)
    told = [note for note in scan.notes if remedy in note]
    assert len(told) == bool(held_out)
    assert all(
        note.startswith("warning: ") and repr(name) in note
        for note in told
        for name in others
    )


@pytest.mark.parametrize(
    ("names", "suffixes", "found"),
    [
        (
            "a.png a.txt a.CAPTION b.png b.v2.txt",
            (".txt", ".caption", ".v2.txt"),
            ["as the first of caption_ext (.txt .caption .v2.txt) is read: a.CAPTION"],
        ),
        (
            "a.png a.txt a.CAPTION b.png b.v2.txt",
            (".txt",),
            ["caption without an image: b.v2.txt"],
        ),
        (
            "a.png a.txt a.png.txt b.png c.txt",
            (".txt", ".txt"),
            [
                "second caption of an image: a.png.txt",
                "caption without an image: c.txt",
            ],
        ),
        (
            "a.png a.txt a.caption b.caption b.png c.txt",
            (".caption", ".txt"),
            [
                "caption without an image: c.txt",
                "as the first of caption_ext (.caption .txt) is read: a.txt",
            ],
        ),
    ],
)
def test_files_that_are_neither_image_nor_caption(
    tmp_path: Path,
    image,
    dataset,
    names: str,
    suffixes: tuple[str, ...],
    found: list[str],
) -> None:
    for name in names.split():
        image(tmp_path / name) if name.endswith(".png") else (
            tmp_path / name
        ).write_text("text")
    notes = scan_datasets([dataset(tmp_path, caption_ext=suffixes)], "sks").notes
    chosen = "ignored, not a caption, because caption_ext is .txt: a.CAPTION"
    is_noted = [note for note in notes if note.endswith(chosen)]
    assert bool(is_noted) == (suffixes == (".txt",))
    assert [
        note.partition(" not used, ")[2].partition(". ")[0]
        for note in notes
        if " not used, " in note
    ] == found
