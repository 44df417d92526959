"""`run.py align` on pairs that are off by planted moves, beside ones that lie on each
other or show something else."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from extensions.tools.shared.html_page import is_page
from tests.running import run_tool
from tests.toolkit.data.pixels.test_alignment import moved, photograph, within
from toolkit.data.pixels.alignment import measure
from toolkit.errors import ConfigErrors, RunError, UserError

MOVES = {
    "shifted": (0.0, 0.0, 6.0, -4.0),
    "zoomed": (0.02, 0.0, 0.0, 0.0),
    "turned": (0.0, 1.2, 0.0, 0.0),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`after/` and `before/`: three pairs that are off, one that is not, one of two
    photographs."""
    monkeypatch.chdir(tmp_path)
    pairs = {
        name: (within(photograph(4)), within(moved(photograph(4), move)))
        for name, move in MOVES.items()
    }
    pairs |= {
        "good": (photograph(1), photograph(1)),
        "other": (photograph(2), ImageOps.fit(photograph(4), (512, 512))),
    }
    for made in ("after/10_it", "before"):
        (tmp_path / made).mkdir(parents=True)
    for name, (image, reference) in pairs.items():
        ImageOps.posterize(image, 4).save(tmp_path / "after" / "10_it" / f"{name}.png")
        (tmp_path / "after" / "10_it" / f"{name}.txt").write_text(f"make it {name}")
        reference.save(tmp_path / "before" / f"{name}.jpg", quality=95)
    return tmp_path


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def lint(folder: str, control: str, capsys: pytest.CaptureFixture[str]) -> dict:
    capsys.readouterr()
    with pytest.raises(RunError):  # the photographs are small
        run_tool("lint", [folder, "--control-path", control, "--json"])
    return json.loads(capsys.readouterr().out)


def shifted(told: dict) -> set[str]:
    return {
        Path(each["file"]).stem
        for each in told["findings"]
        if each["check"] == "pair_shift"
    }


@pytest.mark.slow
def test_pairs_lie_on_each_other_afterwards(
    folder: Path, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Their masks too: each is the image at half its size; `other` has none."""
    Path("masks").mkdir()
    for name in (*MOVES, "good"):
        mask = Image.open(f"after/10_it/{name}.png").convert("L").reduce(2)
        mask.save(f"masks/{name}.webp", lossless=True)
    before = digests(folder)
    flags = ["--control-path", "before", "--mask-path", "masks", "--output", "made"]
    run_tool("align", ["after", *flags])
    assert "5 pairs: 3 aligned, 1 lies on it already, 1 not measurable" in said[-1]
    assert {
        name: digest for name, digest in digests(folder).items() if "/made/" not in name
    } == before
    told = lint("made/images", "made/references", capsys)
    assert shifted(told) == set() and len(told["pairs"]) == 5
    for name in MOVES:
        image, reference = (
            Image.open(f"made/{part}/10_it/{name}.png")
            for part in ("images", "references")
        )
        assert image.size == reference.size and measure(image, reference).drift < 0.25
        assert min(image.size) > 0.9 * min(within(photograph(4)).size)
        # The image is cut, not resampled: its pixels are those of the original.
        whole = Image.open(f"after/10_it/{name}.png").convert("RGB").tobytes()
        assert image.convert("RGB").crop((9, 9, 200, 10)).tobytes() in whole
        assert Path(f"made/images/10_it/{name}.txt").read_text() == f"make it {name}"
        mask = Image.open(f"made/masks/10_it/{name}.png")
        assert (mask.size, mask.mode) == (image.size, "L")
        found = measure(image, mask.convert("RGB"))
        assert found.is_measurable and found.drift < 0.3
    kept, mine = (Path(part, "good.webp") for part in ("made/masks/10_it", "masks"))
    assert kept.read_bytes() == mine.read_bytes()
    assert not list(Path("made/masks").rglob("other*"))
    for name in ("good", "other"):
        for copy, original in (
            ("images/10_it/{}.png", "after/10_it/{}.png"),
            ("references/10_it/{}.jpg", "before/{}.jpg"),
        ):
            assert (folder / "made" / copy.format(name)).read_bytes() == Path(
                original.format(name)
            ).read_bytes()
    text = Path("made/align.html").read_text(encoding="utf-8")
    assert is_page(Path("made/align.html")) and text.count(
        "data:image/jpeg"
    ) == 2 * len(MOVES)
    heads = re.findall(r"<h2>\S*/(\w+)\.png</h2>", text)
    assert set(heads[:3]) == set(MOVES) and heads[3:] == ["other", "good"]


@pytest.mark.slow
def test_lint_and_align_tell_a_move_with_one_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result 5 pixels to the right, 3 down, 2 % larger and 1 degree clockwise of its
    reference."""
    monkeypatch.chdir(tmp_path)
    move = (0.02, 1.0, 5.0, 3.0)
    reference, result = within(photograph(4)), within(moved(photograph(4), move))
    for name, image in (("before", reference), ("after", result)):
        Path(name).mkdir()
        image.save(f"{name}/a.png")
    linted = lint("after", "before", capsys)
    (pair,) = linted["pairs"]
    (message,) = (
        each["message"] for each in linted["findings"] if each["check"] == "pair_shift"
    )
    run_tool("align", ["after", "--control-path", "before", "--output", "made"])
    page = Path("made/align.html").read_text(encoding="utf-8")
    told = ([pair["zoom"], pair["rotation"], *pair["shift"]],)
    told = (
        *told,
        *(
            [
                float(number) / (100 if at == 0 else 1)
                for at, number in enumerate(re.findall(r"[+-][0-9.]+", text)[:4])
            ]
            for text in (message, page[page.index("zoom ") :])
        ),
    )
    for numbers in told:
        assert numbers == [
            pytest.approx(value, abs=0.15 if at > 1 else 0.02)
            for at, value in enumerate(move)
        ]


@pytest.mark.slow
def test_of_several_references_each_is_cut_as_its_image_is(folder: Path) -> None:
    """The first is off, the second is not, the third shows something else."""
    for name, image in (("second", within(photograph(4))), ("third", photograph(0))):
        Path(name).mkdir()
        image.save(f"{name}/shifted.png")
    for path in [*Path("after/10_it").iterdir()]:
        if path.stem != "shifted":
            path.unlink()
    run_tool(
        "align",
        ["after", "--control-path", "before", "second", "third", "--output", "made"],
    )
    image, first, second, third = (
        Image.open(next(Path("made", part, "10_it").glob("shifted.*g")))
        for part in ("images", "references", "references_2", "references_3")
    )
    assert image.size == first.size == second.size and third.size == photograph(0).size
    assert max(measure(image, each).drift for each in (first, second)) < 0.25


def test_wrong_use_is_refused_before_anything_is_written(folder: Path) -> None:
    Path("made").mkdir()
    (folder / "made" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigErrors, match="is there already, and nothing is replaced"):
        run_tool("align", ["after", "--control-path", "before", "--output", "made"])
    assert [path.name for path in Path("made").iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigErrors, match="is not a folder"):
        run_tool("align", ["after", "--control-path", "nowhere", "--output", "new"])
    Path("before/good.jpg").unlink()
    with pytest.raises(UserError, match="good"):
        run_tool("align", ["after", "--control-path", "before", "--output", "new"])
    assert not Path("new").exists()
