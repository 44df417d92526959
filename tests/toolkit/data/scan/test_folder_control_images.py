import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.toolkit.data.conftest import make_images, refusal
from toolkit.data.scan.folder import scan_datasets
from toolkit.data.scan.partners import PAIRS, root_of, with_affix


def controls(scan) -> list[list[str]]:
    return [
        ["/".join(Path(path).parts[-2:]) for path in sample.control_images]
        for sample in scan.samples
    ]


def masks(scan) -> list[str | None]:
    return [
        sample.mask and "/".join(Path(sample.mask.file).parts[-2:])
        for sample in scan.samples
    ]


def notes_of(scan, *words: str) -> list[str]:
    return [note for note in scan.notes if all(word in note for word in words)]


REF = {"control_path": ("ref",)}
SUFFIX = {"control_suffix": ("_ref",)}
PARTNERS = {
    # what: (files, keys, the control images of each image, files that no image uses)
    "slots are in the order of control_path": (
        "data/a.png z/a.JPG c/a.webp", {"control_path": ("z", "c/")}, ["z/a.JPG c/a.webp"], [],
    ),
    "a subfolder of the same name goes first": (
        "data/4_x/a.png data/4_x/b.png ref/a.png ref/b.png ref/4_x/a.png", REF, ["4_x/a.png", "ref/b.png"],
        ["ref/a.png"],
    ),
    "optional ones may be missing and close up": (
        "data/a.png data/b.png data/c.png r1/a.png r2/a.png r2/b.png",
        {"control_path": ("r1", "r2"), "control_optional": True}, ["r1/a.png r2/a.png", "r2/b.png", ""], [],
    ),
    "those inside the dataset folder are no images": (
        "data/4_x/a.png data/control/a.png", {"control_path": ("data/control",)}, ["control/a.png"], [],
    ),
    "numbers are slots": (
        "data/a.png data/b.png data/b_1.png ref/a_0010.png ref/a_0002.png ref/b.png ref/b_1.png", REF,
        ["ref/a_0002.png ref/a_0010.png", "ref/b.png", "ref/b_1.png"], [],
    ),
    "a number adds to the one without, and 2_1 is that of 2_1 alone": (
        "data/1.png data/2.png data/2_1.png "
        "ref/1.png ref/1_10.png ref/1_2.png ref/1_hat.png ref/2.png ref/2_1.png ref/2_0.png", REF,
        ["ref/1.png ref/1_2.png ref/1_10.png", "ref/2.png ref/2_0.png", "ref/2_1.png"], ["ref/1_hat.png"],
    ),
    "a number behind the suffix": (
        "data/a.png data/a_ref.png data/a_ref_1.png data/a_1.png", SUFFIX | {"control_optional": True},
        ["data/a_ref.png data/a_ref_1.png", ""], [],
    ),
    "the mask of a control image is no image": (
        "data/a.png data/a_ref.png data/a_mask.png data/a_ref_mask.png", SUFFIX | {"mask_suffix": "_mask"},
        ["data/a_ref.png"], [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", PARTNERS)
def test_control_images_are_found_by_folder_suffix_and_number(
    tmp_path: Path, dataset, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    files, keys, found, unused = PARTNERS[what]
    make_images(tmp_path / file for file in files.split())
    monkeypatch.chdir(tmp_path)
    scan = scan_datasets([dataset("data", **keys)], None)
    assert controls(scan) == [each.split() for each in found]
    assert [path for path, _ in scan.unpaired] == unused


def test_masks_are_found_by_stem_in_the_subfolder_first_and_are_no_targets(
    tmp_path: Path, dataset
) -> None:
    make_images(
        tmp_path / name
        for name in ("4_x/a.png", "4_x/b.png", "mask/4_x/a.webp", "mask/b.PNG")
    )
    keys = {"mask_path": f"{tmp_path}/mask", "mask_min_value": 0.2, "invert_mask": True}
    scan = scan_datasets([dataset(tmp_path, **keys)], None)
    assert masks(scan) == ["4_x/a.webp", "mask/b.PNG"]
    assert all(
        (s.mask.alpha, s.mask.min_value, s.mask.inverted) == (False, 0.2, True)
        for s in scan.samples
    )


def test_two_numbered_control_images_of_one_name_are_a_mistake(
    tmp_path: Path, image, dataset
) -> None:
    image(tmp_path / "data" / "a.png")
    image(tmp_path / "ref" / "a_1.png"), image(tmp_path / "ref" / "a_1.jpg")
    assert re.search(
        r"control images share the stem 'a_1': a_1.jpg, a_1.png",
        str(
            refusal(
                [dataset(tmp_path / "data", control_path=(f"{tmp_path}/ref",))], None
            )
        ),
    )


def test_control_images_and_masks_that_no_image_uses_are_told(
    tmp_path: Path, image, dataset
) -> None:
    image(tmp_path / "data" / "a.png")
    for folder in ("ref", "mask"):
        image(tmp_path / folder / "a.png"), image(tmp_path / folder / "b.png")
    (
        image(tmp_path / "ref" / "4_x" / "c.png"),
        (tmp_path / "ref" / "a.txt").write_text("a cat"),
    )
    paths = {"control_path": (f"{tmp_path}/ref",), "mask_path": f"{tmp_path}/mask"}
    scan = scan_datasets([dataset(tmp_path / "data", **paths)], None)
    assert [Path(path).parts[-2:] for path, _ in scan.unpaired] == [
        ("ref", "b.png"),
        ("mask", "b.png"),
    ]
    assert notes_of(
        scan,
        f"warning: {tmp_path}/ref: 1 file not used, control image without an image: b.png",
    )
    assert notes_of(
        scan, f"warning: {tmp_path}/mask: 1 file not used, mask without an image: b.png"
    )
    assert notes_of(
        scan, f"{tmp_path}/ref: subfolders without a folder of images ignored: 4_x"
    )
    assert [
        Path(path).name
        for path, reason in scan.unused
        if "beside a control image" in reason
    ] == ["a.txt"]


def test_control_images_of_another_dataset_and_of_the_validation_are_not_left_over(
    tmp_path: Path, image, dataset
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "ref")
    for name in ("a", "b", "c"):
        image(tmp_path / name / f"{name}.png"), image(tmp_path / "ref" / f"{name}.png")
    section = {
        name: dataset(tmp_path / name, control_path=(f"{tmp_path}/ref",))
        for name in ("a", "b", "c")
    }
    section["b"].control_path = (f"{tmp_path}/link/",)
    assert (
        scan_datasets([section["a"], section["b"]], None, also=[section["c"]]).unpaired
        == ()
    )
    assert len(scan_datasets([section["a"]], None, also=[section["c"]]).unpaired) == 1
    both_ways = [
        dataset(tmp_path / "a", control_path=(f"{tmp_path}/ref",)),
        dataset(tmp_path / "ref"),
    ]
    (tmp_path / "ref" / "a.txt").write_text("its own caption")
    scan = scan_datasets(both_ways, None)
    assert scan.unpaired == scan.unused == ()


def test_a_control_image_or_mask_that_several_images_share_by_name_is_told(
    tmp_path: Path, image, dataset
) -> None:
    make_images(tmp_path / "data" / f"{name}.png" for name in ("x/1", "y/1", "x/2"))
    make_images(
        tmp_path / f"{name}.png"
        for name in ("ref/1", "ref/2", "mask/x/1", "mask/y/1", "mask/x/2")
    )
    section = dataset(
        tmp_path / "data",
        control_path=(f"{tmp_path}/ref",),
        mask_path=f"{tmp_path}/mask",
    )
    (told,) = notes_of(scan_datasets([section], None), "is the one of 2 images")
    assert (
        told.startswith(f"warning: {tmp_path}/ref/1.png: ")
        and "x/1.png" in told
        and "y/1.png" in told
    )
    twice = [
        dataset(tmp_path / "data" / name, control_path=(f"{tmp_path}/ref",))
        for name in ("x", "y")
    ]
    # which the job says itself
    assert not notes_of(scan_datasets(twice, None), "is the one of")


def test_control_images_and_masks_told_by_a_suffix_are_no_targets(
    tmp_path: Path, image, dataset
) -> None:
    names = "a a_ref a_ref2 a-masklabel b b_ref c_ref"
    make_images(tmp_path / "4_x" / f"{name}.png" for name in names.split())
    suffixes = {
        "control_suffix": ("_ref2", "_ref"),
        "mask_suffix": "-masklabel",
        "mask_optional": True,
    }
    section = dataset(tmp_path, **suffixes, control_optional=True)
    scan = scan_datasets([section], None)
    assert controls(scan) == [
        ["4_x/a_ref2.png", "4_x/a_ref.png"],
        ["4_x/b_ref.png"],
        [],
    ]
    # c_ref is of no image, and is one
    assert masks(scan) == [
        "4_x/a-masklabel.png",
        None,
        None,
    ]
    assert notes_of(
        scan,
        "1 file named like control images or masks, and trained as images: c_ref.png",
    )
    assert {
        Path(mistake.place).name
        for mistake in refusal(
            [dataset(tmp_path, control_suffix=("_ref",))], None
        ).errors
    } == {
        "a_ref2.png",
        "a-masklabel.png",
        "c_ref.png",
    }


# ---------------------------------------------------------------- pairs as other
# programs name them

FAL = {"image_suffix": "_end", "control_suffix": ("_start", "_start2")}


def test_pairs_in_one_folder_have_suffixes_and_one_caption(
    tmp_path: Path, image, dataset
) -> None:
    make_images(
        tmp_path / "4_x" / f"{name}.png"
        for name in (
            "a_start",
            "a_start2",
            "a_end",
            "b_end",
            "b_start",
            "other",
            "c_start",
        )
    )
    for name in ("a", "b_end"):
        (tmp_path / "4_x" / f"{name}.txt").write_text(name)
    scan = scan_datasets([dataset(tmp_path, **FAL, control_optional=True)], None)
    assert [(Path(sample.image).name, sample.caption) for sample in scan.samples] == [
        ("a_end.png", "a"),
        ("b_end.png", "b_end"),
    ]
    assert controls(scan) == [
        ["4_x/a_start.png", "4_x/a_start2.png"],
        ["4_x/b_start.png"],
    ]
    assert [Path(path).name for path, _ in scan.unpaired] == [
        "c_start.png",
        "other.png",
    ] and not scan.unused
    assert re.search(
        r"b_end.png: has no control image 'b_start2'",
        str(refusal([dataset(tmp_path, **FAL)], None)),
    )
    assert re.search(
        r"image_suffix '_after'. It has 'a_end.png': write",
        str(refusal([dataset(tmp_path / "4_x", image_suffix="_after")], None)),
    )


@pytest.mark.parametrize(
    ("names", "given"),
    [
        (
            "a_start a_end b_start b_start2 b_end",
            "_end, control_suffix: [_start, _start2], control_optional: true",
        ),
        (
            "a_start a_start2 a_start10 a_end",
            "_end, control_suffix: [_start, _start2, _start10]",
        ),
        ("a_before a_after b_before b_after c d", "_after, control_suffix: [_before]"),
        ("a_START a_END b_START b_END c_end", "_END, control_suffix: [_START]"),
        ("a-start a-end", '"-end", control_suffix: ["-start"]'),
        ("a before|a after|b before|b after", '" after", control_suffix: [" before"]'),
        ("a_start a_end b c", "_end, control_suffix: [_start]"),
        ("a_end b_end c_start d_start", ""),
        ("a_start a_end b c d e", ""),
        ("the_end week_end", ""),
        ("before_1 after_1 before_2 after_2", "after_*, control_suffix: [before_*]"),
        ("Before1 After1 Before2 After2 Before3", "After*, control_suffix: [Before*]"),
        ("BEFORE-x AFTER-x", "AFTER-*, control_suffix: [BEFORE-*]"),
        ("input 3|output 3|input 4|output 4", "output *, control_suffix: [input *]"),
        (
            "before (1)|after (1)|before (2)|after (2)",
            "after *, control_suffix: [before *]",
        ),
        ("shot_input_1 shot_output_1", "shot_output_*, control_suffix: [shot_input_*]"),
        ("a: before_1|a: after_1", '"a: after_*", control_suffix: ["a: before_*"]'),
        ("input_3 input2_3 output_3", "output_*, control_suffix: [input_*, input2_*]"),
        ("before12 after12 before1 after1", "after*, control_suffix: [before*]"),
        ("1_src 1_tgt 2_src 2_tgt", "_tgt, control_suffix: [_src]"),
        ("001source 001target", "target, control_suffix: [source]"),
        ("img001-before img001-after", '"-after", control_suffix: ["-before"]'),
        ("1A 1B 2A 2B", "B, control_suffix: [A]"),
        ("x1_a x1_b x2_a x2_b", "_b, control_suffix: [_a]"),
        ("1A 1B", ""),
        ("1A 1B 2A 2B x", ""),
        ("1A 1B 2A 2B 2C", ""),
        ("A1 B1 A2 B2", ""),
        ("anna_a anna_b eve_a eve_b", ""),
        ("1a 2b 3a 4b", ""),
        ("anna_before_concert anna_after_concert anna_1 anna_2 anna_3", ""),
        ("anna_before_concert eve_after_concert", ""),
        ("source_1 source_2 source_3", ""),
        ("resource_1 retarget_1 weekend1 restart1", ""),
    ],
)
def test_images_that_look_like_pairs_are_told(
    tmp_path: Path, image, dataset, names: str, given: str
) -> None:
    listed = names.split("|") if "|" in names else names.split()
    make_images(tmp_path / f"{name}.png" for name in listed)
    scan = scan_datasets([dataset(tmp_path)], "sks")
    found = [note.partition("give '")[2] for note in notes_of(scan, "look like pairs")]
    assert found == ([f"image_suffix: {given}'"] if given else [])
    assert [path for path, _ in scan.unpaired] == [str(tmp_path)] * bool(given)
    if given:
        keys = yaml.safe_load("{image_suffix: " + given + "}")
        assert all(
            scan_datasets(
                [dataset(tmp_path, **keys | {"control_optional": True})], "sks"
            )
            .samples[0]
            .control_images
        )


def test_images_without_a_partner_are_named_with_the_pairs(
    tmp_path: Path, image, dataset
) -> None:
    names = "after_1 before_1 after_2 before_2 before_3 party"
    make_images(tmp_path / f"{name}.png" for name in names.split())
    (told,) = notes_of(scan_datasets([dataset(tmp_path)], "sks"), "look like pairs")
    assert told == (
        f"warning: {tmp_path}: its images look like pairs (2 have no partner: before_3.png, party.png), and each is "
        "trained by itself. For pairs give 'image_suffix: after_*, control_suffix: [before_*]'"
    )


def test_a_word_before_the_name_is_given_with_a_star(
    tmp_path: Path, image, dataset
) -> None:
    make_images(
        tmp_path / f"{name}.png"
        for name in (
            "after_1",
            "before_1",
            "after_2",
            "before_2",
            "before_2_0",
            "mask_1",
            "before_3",
            "party",
        )
    )
    for name in ("1", "after_2"):
        (tmp_path / f"{name}.txt").write_text(f"caption {name}")
    keys = {
        "image_suffix": "after_*",
        "control_suffix": ("before_*",),
        "mask_suffix": "mask_*",
        "mask_optional": True,
    }
    scan = scan_datasets([dataset(tmp_path, **keys)], None)
    assert [(Path(sample.image).name, sample.caption) for sample in scan.samples] == [
        ("after_1.png", "caption 1"),
        ("after_2.png", "caption after_2"),
    ]
    assert [
        [Path(path).name for path in sample.control_images] for sample in scan.samples
    ] == [
        ["before_1.png"],
        ["before_2.png", "before_2_0.png"],
    ]
    assert [sample.mask and Path(sample.mask.file).name for sample in scan.samples] == [
        "mask_1.png",
        None,
    ]
    assert [Path(path).name for path, _ in scan.unpaired] == [
        "before_3.png",
        "party.png",
    ] and not scan.unused
    named = scan_datasets([dataset(tmp_path, **keys, captions="names")], None)
    assert [sample.caption for sample in named.samples] == ["1", "2"]


@pytest.mark.parametrize(
    ("stem", "affix", "root"),
    [
        ("a_end", "_end", "a"),
        ("a_end", "_END", None),
        ("after_1", "after_*", "1"),
        ("1_after_2", "after_*", None),
        ("x-1-y", "x-*-y", "1"),
        ("xy", "xy*y", None),
        ("a", "", "a"),
    ],
)
def test_an_affix_is_taken_off_and_put_back(
    stem: str, affix: str, root: str | None
) -> None:
    assert root_of(stem, affix) == root
    if root is not None:
        assert with_affix(root, affix) == stem


def test_each_word_of_a_pair_has_a_source_and_each_two_are_there_once() -> None:
    assert all(words.source for words in PAIRS)
    assert len({words[:2] for words in PAIRS}) == len(PAIRS)
    page = (ROOT / "docs" / "before_and_after_pairs.md").read_text()
    assert [
        words
        for words in PAIRS
        if f"`{words.control}`, `{words.image}`" not in page and not words.is_letter
    ] == []


@pytest.mark.parametrize(
    ("files", "pair"),
    [
        ("end/a end/b start/a start/b", ("end", "start")),
        ("10_Targets/a 10_controls/a x/b", ("10_Targets", "10_controls")),
        ("images/a images/b images/c references/a", None),
        ("end/a start/b", None),
        ("src/a tgt/a", ("tgt", "src")),
        ("a/1 b/1", None),
    ],
)
def test_subfolders_that_look_like_pairs_are_told(
    tmp_path: Path, image, dataset, files: str, pair
) -> None:
    make_images(tmp_path / f"{file}.png" for file in files.split())
    scan = scan_datasets([dataset(tmp_path)], "sks")
    given = (
        f"'folder_path: {tmp_path}/{pair[0]}' and 'control_path: {tmp_path}/{pair[1]}'"
        if pair
        else ""
    )
    told = notes_of(scan, "look like pairs")
    assert [note.partition("For pairs give ")[2] for note in told] == [given] * bool(
        pair
    )
    assert [path for path, _ in scan.unpaired] == [str(tmp_path)] * bool(pair)


# ---------------------------------------------------------------- masks


def test_all_missing_masks_are_named_unless_they_are_optional(
    tmp_path: Path, image, dataset
) -> None:
    make_images(tmp_path / "data" / f"{name}.png" for name in ("a", "b", "c"))
    image(tmp_path / "mask" / "b.png")
    section = dataset(tmp_path / "data", mask_path=str(tmp_path / "mask"))
    refused = refusal([section], None)
    assert [Path(m.place).name for m in refused.errors] == ["a.png", "c.png"]
    assert "has no mask 'a' in" in refused.errors[0].message
    assert "mask_optional" in refused.errors[0].message
    section.mask_optional = True
    assert masks(scan_datasets([section], None)) == [None, "mask/b.png", None]


def test_damaged_and_ambiguous_masks_are_mistakes(
    tmp_path: Path, image, dataset
) -> None:
    for name in ("a", "b"):
        image(tmp_path / "data" / f"{name}.png")
        image(tmp_path / "mask" / f"{name}.png")
    image(tmp_path / "mask" / "a.jpg")
    (tmp_path / "mask" / "b.png").write_bytes(b"no picture")
    found = {
        Path(m.place).name: m.message
        for m in refusal(
            [dataset(tmp_path / "data", mask_path=str(tmp_path / "mask"))], None
        ).errors
    }
    assert (
        set(found) == {"a.jpg", "b.png"}
        and "masks share the stem 'a': a.jpg, a.png" in found["a.jpg"]
    )


@pytest.mark.parametrize("size", [(1, 201), (5, 2000), (1, 50_000), (1005, 5)])
def test_a_reference_that_is_too_long_for_its_width_is_named(
    tmp_path: Path, image, dataset, size
) -> None:
    image(tmp_path / "data" / "a.png", *size), image(tmp_path / "data" / "b.png")
    image(tmp_path / "ref" / "a.png", *size), image(tmp_path / "ref" / "b.png", 200, 1)
    section = dataset(tmp_path / "data", control_path=(str(tmp_path / "ref"),))
    (mistake,) = refusal([section], None).errors
    assert mistake.place == str(tmp_path / "ref" / "a.png")
    assert mistake.message.startswith(
        f"is {size[0]} x {size[1]}: as a control image at most 200 times as long as wide"
    )
