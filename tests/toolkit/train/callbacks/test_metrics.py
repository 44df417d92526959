"""metrics.jsonl."""

from __future__ import annotations

import json
import time
from datetime import datetime

import pytest

from toolkit.contracts.training import TrainState
from toolkit.train.callbacks.metrics import MetricsCallback

KEYS = [
    "step",
    "epoch",
    "loss",
    "lr",
    "grad_norm",
    "samples",
    "step_s",
    "data_s",
    "time",
    "t_mean",
]


@pytest.fixture
def run(toy):
    toy.folder.mkdir()
    return toy.run(10)


def read(run) -> list[dict]:
    text = (run.folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def write(run, results) -> None:
    callback = MetricsCallback()
    callback.on_start(run)
    for result in results:
        callback.on_metrics(run, result)
    callback.on_end(run, finished=True)


def test_each_step_has_one_line_with_the_documented_keys(run, result) -> None:
    write(run, [result(1, epoch=2, loss=0.25), result(2)])
    assert [list(line) for line in read(run)] == [KEYS, KEYS]
    first = read(run)[0]
    assert (
        time.time() - 60
        < datetime.strptime(first.pop("time"), "%Y-%m-%dT%H:%M:%S%z").timestamp()
        <= time.time()
    )
    assert first == {
        "step": 1,
        "epoch": 2,
        "loss": 0.25,
        "lr": 0.1,
        "grad_norm": 2.0,
        "samples": 3,
        "step_s": 0.25,
        "data_s": 0.0625,
        "t_mean": 0.75,
    }


def test_rates_of_groups_and_further_numbers_have_keys_of_their_own(
    run, result
) -> None:
    numbers = {"max_norm/keys_scaled": 2.0, "max_norm/max_key_norm": float("nan")}
    write(
        run,
        [
            result(
                1,
                lr_by_group={"attention": 0.5, "d*lr/base": 0.25},
                extra_metrics=numbers,
            )
        ],
    )
    (line,) = read(run)
    assert {key: line[key] for key in line if key not in KEYS} == {
        "lr/attention": 0.5,
        "lr/d*lr/base": 0.25,
        "max_norm/keys_scaled": 2.0,
        "max_norm/max_key_norm": None,
    }


def test_a_line_can_be_read_as_soon_as_its_step_is_done(run, result) -> None:
    callback = MetricsCallback()
    callback.on_start(run)
    callback.on_metrics(run, result(1))
    assert [line["step"] for line in read(run)] == [1]
    callback.on_error(run, OSError())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_null_and_the_step_marked_as_skipped(
    run, result, value: float
) -> None:
    write(
        run,
        [
            result(
                1,
                loss=value,
                grad_norm=value,
                per_sample={"t": (value, 0.5)},
                skipped=True,
            )
        ],
    )
    [line] = read(run)
    assert line["loss"] is line["grad_norm"] is line["t_mean"] is None
    assert line["skipped"] is True


def test_going_on_cuts_the_steps_that_are_trained_again(run, result) -> None:
    write(run, [result(step, loss=1.0) for step in range(1, 8)])
    run.state = TrainState(step=4)
    write(run, [result(5, loss=2.0)])
    assert [(line["step"], line["loss"]) for line in read(run)] == [
        *((n, 1.0) for n in range(1, 5)),
        (5, 2.0),
    ]


def test_starting_anew_cuts_everything(run, result) -> None:
    write(run, [result(1), result(2)])
    write(run, [])
    assert read(run) == []


@pytest.mark.parametrize(
    ("tail", "kept"),
    [
        ('{"step": 3, "lo', [1, 2]),  # half a line
        ('{"step": 3}', [1, 2, 3]),  # a whole line without its line end
        ("\0\0\0\0", [1, 2]),  # a block that the disk never got
        ("\xff\xfe", [1, 2]),  # no text at all
        ('"step"\n[3]\n{"step": null}\n', [1, 2]),
    ],
)
def test_what_a_crash_left_at_the_end_does_not_spoil_the_next_line(
    run, result, tail: str, kept: list[int]
) -> None:
    path = run.folder / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail.encode("latin-1"))
    run.state = TrainState(step=3)
    write(run, [result(4)])
    assert [line["step"] for line in read(run)] == [*kept, 4]
