"""Sample images: when, under which names, and with which weights."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image

from toolkit.contracts.training import TrainState
from toolkit.train.callbacks.sample import SampleCallback, Samples
from toolkit.train.run import Interval
from toolkit.train.sampling import SamplingInterrupted

NAME = re.compile(r"^\d{9}_\d+\.(jpg|png|webp)$")


class Drawing:
    """A hook that draws flat images, and what it saw and said."""

    def __init__(self, run, **changes) -> None:
        self.run = run
        self.weights: list[torch.Tensor] = []
        self.events: list[dict] = []
        run.event = self._event
        every = Interval(
            changes.pop("every", 10), changes.pop("epochs", 0), changes.pop("start", 0)
        )
        when = {
            key: changes.pop(key)
            for key in ("draws_first", "at_each_start")
            if key in changes
        }
        kind = changes.pop("picture_format", "jpg")
        samples = Samples(
            lambda index: self.draw(index), **{"texts": ("a", "b")} | changes
        )
        self.callback = SampleCallback(samples, kind, every, **when)

    def draw(self, index: int) -> Image.Image:
        self.weights.append(self.run.roles["network"].parameters["w"].detach().clone())
        return Image.new("RGB", (32, 16), (100 * index, 50, 0))

    def _event(self, event: str, **details) -> None:
        self.events.append({"event": event, **details})

    def run_to(self, last: int, result, finished: bool = True) -> list[tuple[int, int]]:
        """What the loop would call up to step `last`; (step, index) of the images that
        are there then."""
        self.callback.on_start(self.run)
        for step in range(self.run.state.step + 1, last + 1):
            self.run.state = TrainState(step=step)
            self.callback.after_step(self.run)
        self.callback.on_end(self.run, finished)
        return self.pictures()

    def names(self, step: int) -> list[str]:
        return sorted(p.name for p in self.run.folder.glob(f"samples/{step:09d}_*"))

    def pictures(self) -> list[tuple[int, int]]:
        names = [p.name for p in self.run.folder.glob("samples/*")]
        assert all(NAME.match(name) for name in names), names
        return sorted(
            (int(name[:9]), int(name.split("_")[-1].split(".")[0])) for name in names
        )


@pytest.fixture
def run(toy):
    return toy.run(50)


def sets(*steps: int) -> list[tuple[int, int]]:
    return [(step, index) for step in steps for index in (0, 1)]


def test_sets_are_drawn_before_the_first_step_at_the_interval_and_at_the_end(
    said: list[str], run, result
) -> None:
    drawing = Drawing(run)
    assert drawing.run_to(25, result) == sets(0, 10, 20, 25)
    assert [event["step"] for event in drawing.events] == [0, 10, 20, 25]
    assert all(NAME.match(name) for event in drawing.events for name in event["files"])
    assert said == [
        f"generated 2 sample images at step {step} in {run.folder}/samples"
        for step in (0, 10, 20, 25)
    ]


@pytest.mark.parametrize(
    ("settings", "last", "finished", "drawn"),
    [
        ({}, 20, True, (0, 10, 20)),  # the last set once
        ({"draws_first": False}, 10, True, (10,)),
        ({"start": 15, "draws_first": False}, 30, True, (20, 30)),
        ({"every": 0}, 25, True, (0, 25)),
        ({"draws_first": False}, 5, False, ()),  # a stop
    ],
)
def test_when_sets_are_drawn(
    run, result, settings: dict, last: int, finished: bool, drawn: tuple[int, ...]
) -> None:
    assert Drawing(run, **settings).run_to(last, result, finished) == sets(*drawn)


def test_a_set_where_the_run_goes_on_when_it_is_asked_for(run, result) -> None:
    run.state = TrainState(step=13)
    assert Drawing(run).run_to(13, result, finished=False) == []
    drawing = Drawing(run, at_each_start=True)
    assert drawing.run_to(15, result, finished=False) == sets(13)
    drawing.callback.on_end(run, finished=True)
    assert drawing.pictures() == sets(13, 15)


def test_going_on_draws_what_is_missing_and_nothing_twice(run, result) -> None:
    Drawing(run).run_to(10, result, finished=False)
    # the run ended in the middle of a set
    (run.folder / "samples").joinpath(Drawing(run).names(10)[1]).unlink()
    resumed = Drawing(run)
    assert resumed.run_to(15, result) == sets(0, 10, 15)
    assert [event["step"] for event in resumed.events] == [10, 15]
    # the run is done: started again it has nothing to draw
    run.state = TrainState(step=15)
    again = Drawing(run)
    again.run_to(15, result)
    assert again.events == []


@pytest.mark.parametrize(
    ("picture_format", "kind"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")]
)
def test_a_picture_has_the_format_that_is_asked_for(
    run, result, picture_format: str, kind: str
) -> None:
    Drawing(run, picture_format=picture_format).run_to(0, result)
    files = sorted(run.folder.glob("samples/*"), key=lambda path: path.stem[-1])
    assert [path.suffix for path in files] == [f".{picture_format}"] * 2
    with Image.open(files[1]) as picture:
        assert (picture.format, picture.size) == (kind, (32, 16))
        # the image of index 1
        assert abs(picture.convert("RGB").getpixel((8, 8))[0] - 100) < 4


def test_transparency_is_kept_where_the_format_has_it_and_laid_over_white_elsewhere(
    run, result
) -> None:
    found = {}
    for kind in ("jpg", "png", "webp"):
        drawing = Drawing(run, picture_format=kind)
        drawing.draw = lambda index: Image.new("RGBA", (32, 16), (0, 0, 255, 0))
        drawing.callback.sample_now(run)
        with Image.open(run.folder / "samples" / drawing.names(0)[0]) as image:
            found[kind] = (image.mode, image.convert("RGBA").getpixel((5, 5)))
    assert found["jpg"] == ("RGB", (255, 255, 255, 255))
    assert found["png"] == ("RGBA", (0, 0, 255, 0)) and found["webp"][1][3] == 0


def test_pictures_are_drawn_with_the_average_and_the_weights_come_back_bit_for_bit(
    toy, result
) -> None:
    run = toy.run(5, ema_decay=0.5)
    weight = toy.weight(run)
    with torch.no_grad():
        weight.copy_(torch.tensor([1 / 3, -0.0, 1e-38]))
    own = weight.detach().clone()
    average = run.roles["network"].ema.averages["w"]
    average.fill_(0.125)
    drawing = Drawing(run)
    drawing.callback.sample_now(run)
    assert all(seen.tolist() == [0.125] * 3 for seen in drawing.weights)
    assert weight.detach().numpy().tobytes() == own.numpy().tobytes()
    assert average.tolist() == [0.125] * 3


def test_the_weights_come_back_when_drawing_fails(toy) -> None:
    run = toy.run(5, ema_decay=0.5)
    run.roles["network"].ema.averages["w"].fill_(9.0)
    drawing = Drawing(run)

    def fail(index: int) -> Image.Image:
        raise RuntimeError("out of memory")

    drawing.draw = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        drawing.callback.sample_now(run)
    assert toy.weight(run).tolist() == [0.0, 0.0, 0.0]
    assert drawing.pictures() == []


def test_a_set_broken_off_by_a_stop_leaves_no_picture(run, result) -> None:
    drawing = Drawing(run)
    draw = drawing.draw

    def stopped_at_the_second(index: int):
        if index == 1:
            raise SamplingInterrupted
        return draw(index)

    drawing.draw = stopped_at_the_second
    assert drawing.run_to(10, result, finished=False) == []
    assert drawing.events == []
    # and the next start draws it
    assert Drawing(run).run_to(10, result, finished=False) == sets(10)
