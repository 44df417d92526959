"""The table of columns in docs/logging.md is what the code writes: no more, no less."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from extensions.from_scratch.flow_config import LOSS_FLOW
from extensions.from_scratch.losses_config import (
    ADVERSARIAL_WEIGHT,
    KL_METRICS,
    LPIPS_METRIC,
    PIXEL_METRICS,
)
from tests.conftest import ROOT
from tests.running import lines, run_job
from toolkit.contracts.training import StepResult, TrainState
from toolkit.train.callbacks.anomalies import EVENT
from toolkit.train.callbacks.metrics import MetricsCallback
from toolkit.train.run import Run

PAGE = ROOT / "docs" / "logging.md"
WRITERS = [
    path
    for room in ("toolkit", "extensions", "jobs")
    for path in sorted((ROOT / room).rglob("*.py"))
]


def rows() -> Iterator[tuple[str, list[str]]]:
    """File and the names in the second column of each row."""
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("<!-- columns -->") : text.index("<!-- end of columns -->")]
    for line in table.splitlines()[3:]:
        file, columns, _ = (cell.strip() for cell in line.strip("|").split(" | ", 2))
        yield file, re.findall(r"`([^`]+)`", columns)


def columns() -> set[str]:
    return {name for file, names in rows() if file == "metrics" for name in names}


def events() -> dict[str, set[str]]:
    """Event -> its columns."""
    return {
        names[0]: set(names[1:])
        for file, names in rows()
        if file == "events" and names[0] != "time"
    }


def known(name: str) -> bool:
    """Whether the table has a column of metrics.jsonl, by its name or by a pattern with
    `<...>`."""
    patterns = [
        re.sub(
            r"<\w+>", r"[^ ]+", re.escape(each).replace("\\<", "<").replace("\\>", ">")
        )
        for each in columns()
    ]
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def test_every_column_of_a_step_is_in_the_table(tmp_path: Path) -> None:
    result = StepResult(
        step=1,
        epoch=0,
        loss=0.5,
        lr=1e-4,
        grad_norm=1.0,
        samples=2,
        step_s=0.1,
        data_s=0.0,
        compile_s=3.0,
        skipped=True,
        per_sample={"loss": (0.5,), "t": (0.3,)},
        lr_by_group={"vae/bias": 1e-5},
        extra_metrics={"loss/vae": 0.5, "grad_norm/vae": 1.0, "loss_scale": 65536.0},
    )
    run = Run("maya", tmp_path, 1, 1, seed=1, roles={}, state=TrainState())
    callback = MetricsCallback()
    callback.on_start(run)
    callback.on_metrics(run, result)
    callback.on_end(run, finished=True)
    [written] = lines(tmp_path / "metrics.jsonl")
    assert [name for name in written if not known(name)] == []
    fixed = {
        name
        for file, names in list(rows())[:13]
        if file == "metrics"
        for name in names
        if "<" not in name
    }
    assert fixed - {"loss_scale"} <= set(written)


def test_every_number_of_a_trainer_is_in_the_table() -> None:
    """Constants, and the names that stand where a number is put."""
    constants = (
        *PIXEL_METRICS.values(),
        *KL_METRICS,
        LPIPS_METRIC,
        ADVERSARIAL_WEIGHT,
        LOSS_FLOW,
    )
    named = set()
    for path in WRITERS:
        if path.name in (
            "autoencoder_step.py",
            "loop.py",
            "flow_step.py",
            "joint.py",
        ):
            for found in re.findall(
                r'numbers(?:\[|=\{\*\*losses\.numbers, )f?"([^"]+)"',
                path.read_text("utf-8"),
            ):
                named.add(re.sub(r"\{\w+\}", "x", found))
    assert len(named) >= 3
    assert [name for name in (*constants, *sorted(named)) if not known(name)] == []
    written = {
        name
        for name in columns()
        if name.startswith(("loss_", "kl", "contrast", "color", "histogram"))
    }
    text = "\n".join(path.read_text("utf-8") for path in WRITERS)
    assert [name for name in sorted(written) if f'"{name}"' not in text] == []


def calls() -> Iterator[tuple[str, set[str]]]:
    """Each event that the code adds, with the names of its keywords."""
    for text in (path.read_text("utf-8") for path in WRITERS):
        if not re.search(r"\.(event|report)\(", text):
            continue
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.args
                and node.keywords
            ):
                first = node.args[0]
                name = (
                    first.value
                    if isinstance(first, ast.Constant)
                    else getattr(first, "id", "")
                )
                if (
                    node.func.attr in ("event", "report")
                    and isinstance(name, str)
                    and name
                ):
                    given = {word.arg for word in node.keywords if word.arg}
                    yield (EVENT if name == "EVENT" else name), given


def test_every_event_is_in_the_table_with_its_columns() -> None:
    table, found = events(), dict[str, set[str]]()
    for name, given in calls():
        if name != "event":  # it is passed on
            found[name] = found.get(name, set()) | given
    assert set(found) == set(table)
    assert {
        name: given - table[name]
        for name, given in found.items()
        if given - table[name]
    } == {}


@pytest.mark.slow
def test_a_run_writes_nothing_that_the_table_does_not_have(
    write_job, trainer, make_pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = make_pictures(tmp_path / "images", "a", "b")
    shown = {
        "width": 64,
        "height": 64,
        "sample_steps": 1,
        "sample_every": 1,
        "prompts": ["a"],
    }
    network = {"type": "loha", "linear": 2, "linear_alpha": 2}
    save = {
        "save_every": 1,
        "max_step_saves_to_keep": 1,
    }
    run_job(
        write_job(
            trainer(images, sample=shown, network=network, save=save), name="maya"
        )
    )
    written = lines(tmp_path / "output/maya/metrics.jsonl")
    assert {name for row in written for name in row if not known(name)} == set()
    happened = lines(tmp_path / "output/maya/events.jsonl")
    assert {row["event"] for row in happened} >= {
        "save",
        "sample",
        "memory",
    }
    for row in happened:
        assert set(row) - {"time", "event"} <= events()[row["event"]], json.dumps(row)
