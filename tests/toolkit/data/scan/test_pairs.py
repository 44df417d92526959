"""Tables of pairs: which images are compared, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from toolkit.config.sections.dataset import DatasetConfig
from toolkit.contracts.data import Sample
from toolkit.data.scan.folder import scan_datasets
from toolkit.errors import DataErrors

Row = dict[str, object]


@pytest.fixture
def scan(tmp_path: Path) -> Callable[..., tuple[tuple[Sample, ...], tuple[str, ...]]]:
    """The samples and notes of a table with these rows, beside the images a.png, b.png,
    c.png, large.png and copy.png, which is a.png."""
    for name, side, colour in (
        ("a", 64, "teal"),
        ("b", 64, "red"),
        ("c", 64, "blue"),
        ("large", 96, "teal"),
    ):
        Image.new("RGB", (side, side), colour).save(tmp_path / f"{name}.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "copy.png")

    def scan(*rows: Row, **keys: object) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
        table = tmp_path / "votes.jsonl"
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = scan_datasets([DatasetConfig(captions_file=str(table), **keys)], None)
        return found.samples, found.notes

    return scan


def pair(
    better: str = "a.png",
    worse: object = "b.png",
    prompt: str = "a cat",
    **more: object,
) -> Row:
    return {"better": better, "worse": worse, "prompt": prompt, **more}


def names(sample: Sample) -> list[str]:
    return [Path(path).name for path in (sample.image, *sample.worse)]


def test_only_the_better_images_are_trained_each_with_its_worse_ones(
    scan, tmp_path: Path
) -> None:
    rows = pair(), pair(worse="c.png"), pair("c.png", ["b.png"], control="large.png")
    samples, _ = scan(*rows)
    assert [names(sample) for sample in samples] == [
        ["a.png", "b.png", "c.png"],
        ["c.png", "b.png"],
    ]
    assert [Path(path).name for path in samples[1].control_images] == ["large.png"]
    again, _ = scan(*rows, folder_path=str(tmp_path))
    assert [names(sample) for sample in again] == [names(sample) for sample in samples]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            pair(worse="large.png"),
            r"a\.png: is 64x64, and its worse image .*large\.png 96x96: both images .* one size",
        ),
        (pair(worse="a.png"), "a.png: is the better and the worse image of one pair"),
        (
            pair(worse="copy.png"),
            r"a\.png: is the same as its worse image .*copy\.png\. Remove the line",
        ),
        (pair(prompt=""), "a.png: has no prompt"),
        (
            pair(worse="gone.png"),
            r"gone\.png: is named in .*votes\.jsonl:2 as a worse image and is not there",
        ),
        (
            pair("gone.png"),
            r"gone\.png: is named in .*votes\.jsonl:2 and is not an image",
        ),
        (
            pair(control="gone.png"),
            r"gone\.png: is named in .*votes\.jsonl:2 as a control image and is not there",
        ),
    ],
)
def test_pairs_that_teach_nothing_are_refused(scan, row: Row, said: str) -> None:
    with pytest.raises(DataErrors, match=said):
        scan(pair("b.png", "c.png"), row)


def test_a_worse_image_that_cannot_be_read_is_named_or_left_out(
    scan, tmp_path: Path
) -> None:
    rows = pair(), pair("c.png", "a.png")
    scan(*rows)
    (tmp_path / "b.png").write_bytes(b"not an image")
    with pytest.raises(DataErrors, match=r"b\.png"):
        scan(*rows)
    samples, notes = scan(*rows, skip_unreadable=True)
    assert [names(sample) for sample in samples] == [["c.png", "a.png"]]
    assert any("1 of 2 images left out" in note for note in notes)


def test_one_better_image_has_one_prompt(scan) -> None:
    with pytest.raises(
        DataErrors, match=r"votes\.jsonl:2: 'a\.png' has a caption in line 1"
    ):
        scan(pair(), pair(worse="c.png", prompt="a dog"))


def test_votes_that_contradict_each_other_are_counted(scan) -> None:
    _, notes = scan(pair(), pair("b.png", "a.png"), pair("c.png", "a.png"))
    assert any("1 of 2 pairs are preferred both ways" in note for note in notes)
    assert not any(
        "both ways" in note for note in scan(pair(), pair("b.png", "c.png"))[1]
    )


def test_votes_for_neither_image_are_skipped_and_counted(scan, tmp_path: Path) -> None:
    neither = {"vote": "same", "images": ["a.png", "c.png"], "prompt": "a cat"}
    samples, notes = scan(neither, pair(), neither | {"vote": "both bad"})
    assert [names(sample) for sample in samples] == [["a.png", "b.png"]]
    assert (
        f"{tmp_path / 'votes.jsonl'}: 2 votes for neither of two images: not used"
        in notes
    )
    samples, _ = scan(pair() | {"vote": "better"})  # a column of somebody's own table
    assert [names(sample) for sample in samples] == [["a.png", "b.png"]]
    assert not any("votes for neither" in note for note in scan(pair())[1])
    with pytest.raises(
        DataErrors,
        match=r"votes\.jsonl: has votes for neither of two images alone\. Vote on more",
    ):
        scan(neither)
