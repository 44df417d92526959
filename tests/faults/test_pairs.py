"""A run of pairs of images: killed anywhere it goes on to the same bytes, and several
processes are as one."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.conftest import (
    KILL,
    STEPS,
    Job,
    assert_same_but_for_rounding,
    draw_pictures,
    run_together,
)
from toolkit.config.sections.train import DISTANCE, MARGIN

pytestmark = pytest.mark.slow

COMPARE = "toolkit.train.preference:PreferenceStep.__call__"
"""Called first by the trial of the largest batch, then for each micro-batch."""

PAIRS = (("a", ("b",)), ("c", ("a", "b")), ("d", ("c",)))


def votes(folder: Path, rows: Sequence[tuple[str, Sequence[str]]] = PAIRS) -> Path:
    """A table of better images with their worse ones, beside them."""
    draw_pictures(folder, "a", "b", "c", "d")
    lines = [
        {"better": f"{one}.png", "worse": [f"{other}.png" for other in rest]}
        for one, rest in rows
    ]
    table = folder / "votes.jsonl"
    table.write_text(
        "".join(json.dumps(line | {"prompt": "a photo"}) + "\n" for line in lines),
        encoding="utf-8",
    )
    return table


@pytest.fixture
def of_pairs(job: Job, tmp_path: Path) -> Job:
    job.section["datasets"][0] = {
        "captions_file": str(votes(tmp_path / "votes")),
        "resolution": 64,
    }
    job.change(train__preference={"beta": 500, "sft_weight": 0.1})
    return job


def again(job: Job, folder: Path) -> Job:
    """The same job in another folder."""
    folder.mkdir()
    return Job(job.nursery, folder, copy.deepcopy(job.section), started=job.started)


def test_killed_in_any_micro_batch_it_ends_in_the_same_bytes(
    of_pairs: Job, tmp_path: Path
) -> None:
    """The second one of a step, the first one after a save, and the last one."""
    whole = again(of_pairs, tmp_path / "alone")
    whole.run()
    for call in (3, 6, 1 + 2 * (STEPS - 2)):
        assert (
            of_pairs.start(faults=[("kill_self", COMPARE, call, KILL)]).wait() == -KILL
        )
    of_pairs.run()
    ours, theirs = of_pairs.result(), whole.result()
    assert [
        name
        for name in ours.keys() | theirs.keys()
        if ours.get(name) != theirs.get(name)
    ] == []
    assert of_pairs.metrics()[-1][DISTANCE] > 0 and of_pairs.metrics()[-1][MARGIN] != 0


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_compare_the_pairs_that_one_does(
    of_pairs: Job, tmp_path: Path, parallel: str
) -> None:
    if parallel == "ddp":  # some micro-batches have no pair
        votes(tmp_path / "votes", (*PAIRS[:2], ("d", ())))
    of_pairs.change(sample=None, train__steps=2)
    one = again(of_pairs, tmp_path / "alone")
    one.run()
    of_pairs.change(train__parallel=parallel)
    assert "2 processes share the 2 x 1 images of each step" in run_together(of_pairs)
    assert_same_but_for_rounding(of_pairs, one)
    assert any(line.get(DISTANCE, 0) > 0 for line in one.metrics())


def test_processes_that_share_out_the_model_need_pairs_alone(
    of_pairs: Job, tmp_path: Path
) -> None:
    """A rank with another number of passes than the others would wait for them
    forever."""
    votes(tmp_path / "votes", (*PAIRS[:2], ("d", ())))
    of_pairs.change(train__parallel="fsdp")
    said = run_together(of_pairs, 2)
    assert (
        "1 of the images, such as " in said
        and "d.png, have no worse one, which 'train.parallel: fsdp' needs" in said
    )
    votes(tmp_path / "votes", PAIRS)
    of_pairs.change(train__preference__share=0.5)
    assert (
        "train.preference.share: is below 1: processes would make different passes"
        in run_together(of_pairs, 2)
    )
