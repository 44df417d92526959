"""The folders that are written, and that a job may be run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.running import run_job
from toolkit.config import load_job
from toolkit.config.reading.process import JobContext
from toolkit.errors import UserError
from toolkit.extension import discover

SETTINGS = {
    "count": 5,
    "edits": 4,
    "edits_of_two": 3,
    "scribbles": 2,
    "size": [64, "64x48"],
    "seed": 3,
}


@pytest.fixture
def draw_in(write_job, tmp_path: Path):
    """Runs the job in this process; the folder."""

    def run(folder: str = "drawn", **section: object) -> Path:
        run_job(
            write_job(
                {
                    "type": "mascots",
                    "path": str(tmp_path / folder),
                    **SETTINGS,
                    **section,
                }
            )
        )
        return tmp_path / folder

    return run


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_the_folders_are_as_trainers_read_them(draw_in) -> None:
    files = set(bytes_of(draw_in()))
    expected = {
        f"pictures/{index:06}{suffix}"
        for index in range(5)
        for suffix in (".png", ".txt")
    }
    expected |= {
        f"edits/after/{index:06}{suffix}"
        for index in range(4)
        for suffix in (".png", ".txt")
    }
    expected |= {f"edits/picture_1/{index:06}.png" for index in range(4)}
    expected |= {
        f"edits_of_two/after/{index:06}{suffix}"
        for index in range(3)
        for suffix in (".png", ".txt")
    }
    expected |= {
        f"edits_of_two/picture_{number}/{index:06}.png"
        for index in range(3)
        for number in (1, 2)
    }
    assert files == expected | {f"scribbles/{index:06}.png" for index in range(2)} | {
        "atelier.json",
        "mascots.json",
    }


def test_both_pictures_of_a_pair_have_one_size(draw_in) -> None:
    folder = draw_in(edits=8)
    sizes = set()
    for after in (folder / "edits" / "after").glob("*.png"):
        before = folder / "edits" / "picture_1" / after.name
        assert Image.open(after).size == Image.open(before).size
        sizes.add(Image.open(after).size)
    assert sizes == {(64, 64), (64, 48)}


def test_one_instruction_may_stand_for_all_pairs(draw_in) -> None:
    named, usual = (
        draw_in("named", edits=2, instruction="hatswap"),
        draw_in("usual", edits=2),
    )
    assert {file.read_text() for file in (named / "edits" / "after").glob("*.txt")} == {
        "hatswap\n"
    }
    assert "instruction" not in json.loads((usual / "mascots.json").read_text())


def test_the_same_settings_give_the_same_bytes_and_more_of_them_the_same_first(
    draw_in,
) -> None:
    first, again, more, other = (
        bytes_of(draw_in(folder, **changes))
        for folder, changes in (
            ("a", {}),
            ("b", {}),
            ("c", {"count": 9}),
            ("d", {"seed": 4}),
        )
    )
    assert first == again
    assert all(
        more[name] == data for name, data in first.items() if not name.endswith(".json")
    )
    assert all(
        other[name] != data for name, data in first.items() if name.endswith(".png")
    )


def test_complete_pictures_are_kept_and_others_not_replaced_unasked(
    draw_in, tmp_path: Path, caplog
) -> None:
    folder = draw_in()
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    draw_in()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    with pytest.raises(
        UserError,
        match=r"process\[0\]\.path: .*pictures of other settings. .*overwrite: true",
    ):
        draw_in(seed=4)
    assert bytes_of(draw_in(seed=4, overwrite=True)) == bytes_of(
        draw_in("fresh", seed=4)
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(
            UserError, match=r"path: '.*mine' was not made by this program"
        ):
            draw_in("mine", overwrite=overwrite)
    assert bytes_of(tmp_path / "mine") == {"photo.png": b"mine"}


def test_a_folder_is_there_only_when_it_is_complete(
    draw_in, tmp_path: Path, monkeypatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(discover().process_class("mascots"), "_scribble", full)
    with pytest.raises(
        Exception, match="drawn: cannot be written: No space left on device"
    ):
        draw_in()
    assert not list(tmp_path.glob("*drawn*"))
    monkeypatch.undo()
    assert json.loads((draw_in() / "mascots.json").read_text())["licence"] == "CC0-1.0"


def test_a_trainer_may_read_what_it_draws(
    write_job, trainer, draw_in, tmp_path: Path
) -> None:
    folder = draw_in("data")
    extensions = discover()
    training = trainer(str(folder / "pictures"))
    pairs = {"folder_path": str(folder / "edits_of_two" / "after"), "resolution": 64}
    pairs["control_path"] = [
        str(folder / "edits_of_two" / f"picture_{number}") for number in (1, 2)
    ]
    training["datasets"].append(pairs)
    section = load_job(write_job(training), extensions.find_config).processes[0].section
    plan = section.plan(JobContext("job"))
    assert [dict(each.references) for each in plan.datasets] == [{0: 5}, {2: 3}]


def test_crops_are_squares_of_the_pictures_that_would_be_drawn_whole(draw_in) -> None:
    whole, crops = draw_in("whole", count=4), draw_in("crops", count=4, crop=40)
    places = set()
    for kind in ("pictures", "scribbles"):
        for file in sorted((crops / kind).glob("*.png")):
            crop, picture = Image.open(file), Image.open(whole / kind / file.name)
            assert crop.size == (40, 40)
            found = [
                (left, top)
                for left in range(picture.width - 39)
                for top in range(picture.height - 39)
                if picture.crop((left, top, left + 40, top + 40)).tobytes()
                == crop.tobytes()
            ]
            assert found
            places.add(found[0])
    assert len(places) > 3
    assert (crops / "pictures" / "000000.txt").read_text() == (
        whole / "pictures" / "000000.txt"
    ).read_text()
    edited = "edits/after/000000.png"
    assert (crops / edited).read_bytes() == (whole / edited).read_bytes()
