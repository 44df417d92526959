"""The section of `type: mascots`: sizes, values, and settings that leave nothing to
draw."""

from __future__ import annotations

from pathlib import Path

import pytest
from mascots.config import MascotsConfig

from toolkit.config import load_job
from toolkit.config.reading.process import JobContext
from toolkit.errors import ConfigErrors


@pytest.fixture
def load(write_job, tmp_path: Path):
    def one(**section: object) -> MascotsConfig:
        job = write_job({"type": "mascots", "path": str(tmp_path / "new"), **section})
        return load_job(job, lambda uid: MascotsConfig).processes[0].section

    return one


def test_a_path_is_all_it_needs(load) -> None:
    section = load()
    assert (section.count, section.size, section.mascots, section.captions) == (
        100,
        ((128, 128),),
        "pretraining",
        "mixed",
    )
    assert section.recipe() == load(name="other").recipe()
    assert section.casting().jitter == 0 and load(jitter=1).casting().jitter == 1


def test_sizes_are_numbers_or_width_by_height(load) -> None:
    assert load(size=[96, "192x128", "64"]).size == ((96, 96), (192, 128), (64, 64))
    assert load(size="96 x 144").size == ((96, 144),)


def test_values_are_found_whatever_their_case(load) -> None:
    section = load(
        only={"hat": ["Top Hat", "none", "none"], "pose": "waving"}, mascots="any"
    )
    assert section.only.given() == {"hat": ("top hat", "none"), "pose": ("waving",)}
    assert section.casting().values("pose") == ("waving",)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"size": 16}, r"size.*: 16 is out of range: sides are 32 to 1024 pixels"),
        (
            {"size": "wide"},
            r"size.*: 'wide' is not a size. Write pixels such as 128, or width x height such as '192x128'",
        ),
        ({"size": [True]}, r"size.*: True is not a size"),
        ({"size": []}, r"size"),
        ({"count": -1}, r"count"),
        ({"seed": 2**32}, r"seed"),
        ({"jitter": 1.5}, r"jitter"),
        ({"colours": "red"}, r"colours: unknown key"),
        (
            {"only": {"hat": "crwon"}},
            r"only\.hat: 'crwon' is unknown. Did you mean 'crown'\?",
        ),
        ({"only": {"hut": "cap"}}, r"only\.hut: unknown key. Did you mean 'hat'"),
        (
            {"only": {"body": "star"}},
            r"only\.body: 'star' is not among the mascots of 'pretraining'. Write 'mascots: any'",
        ),
        (
            {
                "only": {"body": "round", "colour": "red", "hat": "none"},
                "mascots": "held_out",
            },
            r"only: no body, colour and hat of these are together in 'held_out'. Allow more of them",
        ),
        (
            {"count": 0},
            r"count: nothing to draw. Give count, edits, edits_of_two or scribbles above 0",
        ),
        ({"character": {"body": "star"}}, r"character\.trigger"),
        (
            {"character": {"trigger": "pipo", "colour": "tael"}},
            r"character\.colour: 'tael' is unknown. Did you mean 'teal'",
        ),
        (
            {"character": {"trigger": "pipo"}, "mascots": "any"},
            r"mascots: 'character' is drawn alone",
        ),
        (
            {"character": {"trigger": "pipo"}, "only": {"eyes": "one eye"}},
            r"only\.eyes: 'character' says what it is",
        ),
        (
            {
                "edits": 1,
                "only": {
                    "held": "book",
                    "pose": "waving",
                    "place": "snow",
                    "eyes": "one eye",
                },
            },
            r"only: leaves nothing to change in an edit. Allow two values of held or pose or place or eyes",
        ),
        (
            {"edits": 1, "changes": "pose", "only": {"pose": "waving"}},
            r"only: .* Allow two values of pose\.",
        ),
        (
            {"edits": 1, "changes": ["hat", "colour"]},
            r"changes: not every mascot can change so. Add one of held, ",
        ),
        ({"changes": "poes"}, r"changes: 'poes' is unknown. Did you mean 'pose'\?"),
    ],
)
def test_a_mistake_names_its_key(load, section: dict, message: str) -> None:
    with pytest.raises(ConfigErrors, match=rf"process\[0\]\.{message}"):
        load(**section)


def test_a_file_is_no_folder(load, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    with pytest.raises(ConfigErrors, match=r"process\[0\]\.path: .* is a file"):
        load()


def test_the_plan_says_what_is_drawn(load) -> None:
    section = load(count=1200, edits=30, scribbles=5, size=[64, "96x64"])
    text = section.plan(JobContext("job")).render()
    assert "draws 1,200 pictures, 30 edits, 5 scribbles at 64x64, 96x64 in " in text


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ({"size": [96, 64], "crop": 65}, "crop"),
        ({"crop": 31}, "crop"),
        ({"mascots": "random", "only": {"body": ["round"]}}, r"only\.body"),
        ({"mascots": "random", "only": {"colour": ["red"]}}, r"only\.colour"),
        ({"mascots": "patterned", "only": {"mark": ["none"]}}, r"only\.mark"),
    ],
)
def test_crops_fit_and_strangers_have_their_own_looks(
    load, section: dict, place: str
) -> None:
    with pytest.raises(ConfigErrors, match=rf"process\[0\]\.{place}:"):
        load(**section)
    assert load(size=[96, 64], crop=64).crop == 64
