"""TensorBoard's files, read back record by record."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from extensions.trackers.tensorboard_tracker import TensorBoardTracker, folder_of
from tests.event_files import curves, events


def test_scalars_are_written_with_their_steps(tracked, tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tracked())
    tracker.scalars(1, {"loss/current": 0.5, "lr": 0.25})
    tracker.scalars(2, {"loss/current": 0.125})
    tracker.close()
    assert curves(tmp_path / "tb" / "job") == {
        "loss/current": {1: 0.5, 2: 0.125},
        "lr": {1: 0.25},
    }


def test_a_picture_is_kept_in_a_format_every_browser_shows(
    tracked, tmp_path: Path, picture: Path
) -> None:
    tracker = TensorBoardTracker(tracked())
    tracker.image(7, "samples/0", picture)
    tracker.close()
    [event] = [
        event for event in events(tmp_path / "tb" / "job") if event.summary.value
    ]
    [value] = event.summary.value
    assert (event.step, value.tag, value.image.width, value.image.height) == (
        7,
        "samples/0",
        48,
        32,
    )
    shown = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert (shown.format, shown.size) == ("JPEG", (48, 32))
    assert all(
        abs(a - b) < 8
        for a, b in zip(shown.getpixel((20, 20)), (200, 40, 90), strict=True)
    )


def test_going_on_replaces_the_steps_that_are_trained_again(
    tracked, tmp_path: Path
) -> None:
    for start, last, loss in ((0, 5, 1.0), (3, 6, 2.0)):
        tracker = TensorBoardTracker(tracked(step=start))
        for step in range(start + 1, last + 1):
            tracker.scalars(step, {"loss": loss})
        tracker.close()
    folder = tmp_path / "tb" / "job"
    assert len(list(folder.iterdir())) == 2
    assert curves(folder) == {"loss": {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0, 5: 2.0, 6: 2.0}}


def test_beginning_anew_replaces_everything(
    tracked, tmp_path: Path, picture: Path
) -> None:
    first = TensorBoardTracker(tracked())
    first.image(0, "samples/0", picture)
    first.scalars(1, {"loss": 1.0})
    first.close()
    TensorBoardTracker(tracked()).close()
    assert curves(tmp_path / "tb" / "job") == {}


def test_what_was_told_can_be_read_while_the_run_goes_on(
    tracked, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("extensions.trackers.tensorboard_tracker.FLUSH_EVERY_S", 0)
    tracker = TensorBoardTracker(tracked())
    tracker.scalars(1, {"loss": 1.0})
    assert curves(tmp_path / "tb" / "job") == {"loss": {1: 1.0}}
    tracker.close()


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ({}, "job"),
        ({"log_prefix": "mine_"}, "mine_job"),
        ({"log_prefix": "a/", "log_tracker_name": "b"}, "a/job/b"),
    ],
)
def test_the_folder_has_the_prefix_the_job_and_the_tracker_in_its_name(
    tracked, tmp_path: Path, options: dict, folder: str
) -> None:
    assert folder_of(tracked(**options)) == tmp_path / "tb" / folder
