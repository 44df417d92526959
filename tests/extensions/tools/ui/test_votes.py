"""The pairs of a folder and the file of the votes on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock
from zlib import crc32

import pytest
from PIL import Image
from starlette.exceptions import HTTPException

from extensions.tools.shared.candidates import Group
from extensions.tools.ui.votes import Ballot, pairs_of
from tests.conftest import child_environment
from tests.running import lines
from toolkit.config.sections.dataset import DatasetConfig
from toolkit.data.scan.folder import scan_datasets
from toolkit.errors import RunError


def drawn(folder: Path, *names: str, side: int = 32) -> tuple[str, ...]:
    for name in names:
        Image.new("RGB", (side, side), f"#{crc32(name.encode()) & 0xFFFFFF:06x}").save(
            folder / name
        )
    return names


def group(prompt: str, files: tuple[str, ...], *control: str) -> Group:
    return Group(prompt, control, "", (0,) * len(files), ((),) * len(files), files)


def ballot_of(folder: Path, *groups: Group) -> Ballot:
    return Ballot(folder, pairs_of(groups))


@pytest.fixture
def cats(tmp_path: Path) -> Group:
    """Four images of a cat, which are six pairs."""
    files = drawn(tmp_path, "a.png", "b.png", "c.png", "d.png")
    return group("a cat", files, "photo.png")


def test_pairs_are_asked_in_turns_and_not_twice(tmp_path: Path, cats: Group) -> None:
    dogs = group("a dog", drawn(tmp_path, "e.png", "f.png"))
    many = group("a bird", drawn(tmp_path, *(f"{number}.png" for number in range(6))))
    pairs = pairs_of([cats, dogs, many, dogs, group("text", ("x.txt", "y.txt"))])
    assert [pair.group.prompt for pair in pairs[:4]] == [
        "a cat",
        "a dog",
        "a bird",
        "a cat",
    ]
    assert len(pairs) == 6 + 1 + 5 == len({pair.names for pair in pairs})
    # either order: nobody learns which is newer
    assert {pair.left < pair.right for pair in pairs} == {
        True,
        False,
    }
    ballot = Ballot(tmp_path, pairs)
    (tmp_path / pairs[0].left).unlink()
    drawn(tmp_path, pairs[1].right, side=48)
    (tmp_path / pairs[2].right).write_bytes((tmp_path / pairs[2].left).read_bytes())
    # of the first an image is gone, of the second the size differs, the third are the
    # same
    shown = ballot.next_pairs(20)
    assert len(shown) > 3 and not any(pair in shown for pair in pairs[:3])


def test_each_vote_is_a_line_and_is_taken_back(tmp_path: Path, cats: Group) -> None:
    ballot = ballot_of(tmp_path, cats)
    for choice in ("left", "right", "same", "both bad"):
        (pair,) = ballot.next_pairs(1)
        # pressed twice
        assert ballot.vote(pair.names, choice) and ballot.vote(pair.names, choice)
        assert not ballot.vote(pair.names, "right" if choice == "left" else "left")
    rows = lines(tmp_path / "votes.jsonl")
    first, second, *others = ballot.pairs[:4]
    common = {"prompt": "a cat", "control": ["photo.png"]}
    assert rows[0] == {"better": first.left, "worse": first.right, **common}
    assert rows[1] == {"better": second.right, "worse": second.left, **common}
    said = zip(others, ("same", "both bad"), strict=True)
    assert rows[2:] == [
        {"vote": what, "images": sorted(pair.names), **common} for pair, what in said
    ]
    again = ballot_of(tmp_path, cats)
    assert again.votes == rows == ballot.votes and len(again.decided) == 2
    again.undo(4)
    again.undo(4)
    assert (
        lines(tmp_path / "votes.jsonl") == rows[:3]
        and again.next_pairs(1)[0].names == others[1].names
    )
    assert not again.vote(
        frozenset(("a.png", "../secret.png")), "left"
    ) and not again.vote(first.names, "best")
    for count in (3, 2, 1, 0):
        again.undo(count)
    assert (tmp_path / "votes.jsonl").read_bytes() == b"" and not ballot_of(
        tmp_path, cats
    ).votes


def test_the_votes_are_a_dataset(tmp_path: Path, cats: Group) -> None:
    drawn(tmp_path, "photo.png", side=48)
    ballot = ballot_of(tmp_path, cats)
    for choice in ("left", "same", "right"):
        ballot.vote(ballot.next_pairs(1)[0].names, choice)
    for dataset in (
        {"captions_file": str(tmp_path / "votes.jsonl")},
        {"folder_path": str(tmp_path)},
    ):
        scan = scan_datasets([DatasetConfig(**dataset)], None)
        found = {
            (Path(sample.image).name, Path(worse).name)
            for sample in scan.samples
            for worse in sample.worse
        }
        assert (
            found == {(row["better"], row["worse"]) for row in ballot.decided}
            and scan.pairs == 2
        )
        assert {Path(sample.control_images[0]).name for sample in scan.samples} == {
            "photo.png"
        }
        assert any("1 vote for neither" in note for note in scan.notes)


def test_a_vote_that_is_cut_off_while_it_is_written_leaves_the_file_as_it_was(
    tmp_path: Path, cats: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    ballot, file = ballot_of(tmp_path, cats), tmp_path / "votes.jsonl"
    first, second = ballot.next_pairs(2)
    ballot.vote(first.names, "left")
    before, synced = file.read_bytes(), []
    with monkeypatch.context() as patch, pytest.raises(RunError):
        patch.setattr(
            "os.replace", Mock(side_effect=OSError(28, "No space left on device"))
        )
        ballot.vote(second.names, "left")
    assert (
        file.read_bytes() == before and ballot_of(tmp_path, cats).votes == ballot.votes
    )
    fsync = os.fsync
    monkeypatch.setattr(
        "os.fsync",
        lambda number: (
            synced.append(os.readlink(f"/proc/self/fd/{number}")) or fsync(number)
        ),
    )
    ballot.vote(second.names, "left")  # what is written, then its name in the folder
    assert len(synced) == 2 and Path(synced[0]).parent == tmp_path == Path(synced[1])


VOTER = """
import sys
from pathlib import Path
from unittest.mock import Mock
from zlib import crc32
from extensions.tools.shared.candidates import Group
from extensions.tools.ui.votes import Ballot, pairs_of
names = tuple(f"{number}.png" for number in range(2000))
ballot = Ballot(Path(sys.argv[1]), pairs_of([Group("a cat", files=names)]))
for pair in ballot.pairs:
    assert ballot.vote(pair.names, "left")
    print(len(ballot.votes), flush=True)
"""


@pytest.mark.slow
def test_a_kill_loses_no_vote_that_was_answered(tmp_path: Path) -> None:
    command = [sys.executable, "-c", VOTER, str(tmp_path)]
    voter = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=child_environment()
    )
    assert voter.stdout is not None
    said = ""
    for said in voter.stdout:
        if int(said) == 20:
            voter.send_signal(signal.SIGKILL)
    voter.wait()
    names = tuple(f"{number}.png" for number in range(2000))
    ballot = ballot_of(tmp_path, group("a cat", names))
    assert len(ballot.votes) - int(said) in (0, 1) and all(
        "better" in row for row in ballot.votes
    )


def test_a_file_that_leads_elsewhere_is_not_written(
    tmp_path: Path, cats: Group
) -> None:
    elsewhere = tmp_path.parent / f"{tmp_path.name}_elsewhere"
    elsewhere.write_text(
        json.dumps({"better": "a.png", "worse": "b.png", "prompt": "secret"}) + "\n"
    )
    os.symlink(elsewhere, tmp_path / "votes.jsonl")
    ballot = ballot_of(tmp_path, cats)
    for asked in (
        lambda: ballot.votes,
        lambda: ballot.vote(ballot.pairs[0].names, "left"),
    ):
        with pytest.raises(HTTPException):
            asked()
    assert "secret" in elsewhere.read_text()
