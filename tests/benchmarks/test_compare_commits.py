"""What counts as the same, under a table of renames; the jobs are runnable on this checkout. Comparing whole jobs is
the script itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import compare_commits
from benchmarks.compare_commits import JOBS, OF_RESUMED, Outcome, Ran, Side, Table, compare, facts_of, job_of, same
from tests.model_folders import write_model
from toolkit.config import load_job
from toolkit.extension import discover


def write_run(folder: Path, weight: float = 1.0, loss: float = 0.5, time: int = 1) -> Path:
    """A run's folder with one file of each kind."""
    for name in ("state", "samples"):
        (folder / name).mkdir(parents=True)
    tensors = {"network/a": torch.tensor([weight, 2.0])}
    save_file(tensors, folder / "state" / "weights.safetensors", metadata={"info": '{"step": 3}', "ss_name": "x"})
    lines = [{"step": 1, "loss": loss, "step_s": time}, {"step": 2, "loss": 0.25, "step_s": time}]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps({"status": "done", "updated": time}), encoding="utf-8")
    image = Image.new("RGB", (2, 2), (int(weight), 0, 0))
    image.save(folder / "samples" / f"{1795218539850 + time}__000000003_0.png")
    return folder


def differences(before: Path, after: Path, **table: Any) -> list[tuple[str, str, str]]:
    """(kind, place, how) of everything that makes the comparison fail."""
    allowed = table.pop("allowed", {})
    _, found = compare("job", facts_of(before), facts_of(after), Table(table, allowed))
    return [(one.kind, one.place, one.how) for one in found if one.counts]


def test_runs_that_differ_in_times_alone_are_the_same(tmp_path: Path) -> None:
    before, after = write_run(tmp_path / "a", time=1), write_run(tmp_path / "b", time=2)
    equal, found = compare("job", facts_of(before), facts_of(after), Table())
    assert found == []
    assert equal == {"tensors": 1, "metadata": 2, "logs": 4, "documents": 1, "images": 1, "files": 4}


def test_every_kind_of_difference_is_seen(tmp_path: Path) -> None:
    before, after = write_run(tmp_path / "a"), write_run(tmp_path / "b", weight=3.0, loss=0.75)
    (after / "run.json").unlink()
    assert differences(before, after) == [
        ("documents", "job/run.json: status", "missing"),
        ("files", "job/run.json: is there", "missing"),
        ("images", "job/samples/000000003_0.png: pixels", "differs"),
        ("logs", "job/metrics.jsonl: line 1: loss", "differs"),
        ("tensors", "job/state/weights.safetensors: network/a", "differs"),
    ]


def test_renamed_names_are_found_again(tmp_path: Path) -> None:
    before, after = write_run(tmp_path / "a"), tmp_path / "b" / "run"
    (after / "checkpoints").mkdir(parents=True)
    save_file(
        {"modules/a": torch.tensor([1.0, 2.0])},
        after / "checkpoints" / "weights.safetensors",
        metadata={"info": '{"steps": 3}', "ss_name": "y"},
    )
    (after / "metrics.jsonl").write_text('{"step": 1, "mean": 0.5}\n{"step": 2, "mean": 0.25}\n', encoding="utf-8")
    (after / "run.json").write_text('{"state": "done"}', encoding="utf-8")
    (before / "samples").rename(tmp_path / "samples")
    table = {
        "files": {"^state/": "checkpoints/"},
        "tensors": {"^network/": "modules/"},
        "metadata": {"/step$": "/steps"},
        "logs": {": loss$": ": mean"},
        "documents": {"^status$": "state"},
        "values": {"^x$": "y"},
    }
    assert differences(before, after, **table) == []
    assert len(differences(before, after)) > 5


def test_what_is_allowed_needs_a_reason_and_does_not_count(tmp_path: Path) -> None:
    before, after = write_run(tmp_path / "a"), write_run(tmp_path / "b", loss=0.75)
    assert differences(before, after, allowed={r"^job/metrics\.jsonl: .*loss$": "another loss"}) == []
    assert differences(before, after, allowed={r"^other/": "another job"}) != []


def test_what_is_added_is_shown_and_does_not_count(tmp_path: Path) -> None:
    before, after = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    (after / "run.json").write_text('{"status": "done", "pid": 3}', encoding="utf-8")
    outcome = Outcome(Table())
    outcome.add("job", facts_of(before), facts_of(after))
    assert not outcome.failed
    assert "job/run.json: pid: 3" in outcome.render()


def test_nothing_at_all_is_a_failure(tmp_path: Path) -> None:
    outcome = Outcome(Table())
    outcome.add("job", facts_of(tmp_path), facts_of(tmp_path))
    assert outcome.failed


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), True),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.bfloat16), False),
        (torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0]]), False),
        (torch.tensor(3), torch.tensor(3), True),
        (np.zeros((2, 2)), np.zeros((2, 3)), False),
        (1, 1.0, False),
        (1, True, False),
        (0.1, 0.1, True),
        ([], {}, False),
    ],
)
def test_the_same_is_bit_by_bit(one: Any, other: Any, expected: bool) -> None:
    assert same(one, other) is expected


def test_lines_of_events_are_counted_by_kind(tmp_path: Path) -> None:
    """Two threads write them, so that their order is left to chance."""
    save, sample = '{"event": "save", "step": 3}\n', '{"event": "sample", "step": 3}\n'
    for name, lines in (("a", save + sample), ("b", sample + save)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.jsonl").write_text(lines, encoding="utf-8")
    assert differences(tmp_path / "a", tmp_path / "b") == []


def test_a_table_with_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text('{"metrics": {}, "allowed": {}}', encoding="utf-8")
    with pytest.raises(SystemExit, match="unknown: metrics"):
        Table.read(tmp_path / "table.json")


@pytest.mark.parametrize(
    ("code", "errors", "refused"), [(2, "job.json:1: no", True), (2, "Traceback ...", False), (1, "no", False)]
)
def test_a_refusal_is_a_message_about_the_input(code: int, errors: str, refused: bool) -> None:
    assert Ran(code, "", errors).refused is refused


@pytest.mark.parametrize("references", [True, False])
@pytest.mark.parametrize("name", [*JOBS, "resumed"])
def test_every_job_is_a_valid_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, references: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    compare_commits.write_images(tmp_path / "images")
    job = job_of(name, JOBS.get(name, OF_RESUMED), references)
    side = Side("before", Path("."), tmp_path)
    write_model(tmp_path / "model")
    section = load_job(tmp_path / side.write(name, job), discover().find_config).processes[0].section
    assert bool(section.datasets[0].control_path) is (references and name.startswith("lora_int8"))
    assert (section.train.steps, section.save.save_every) == (6, 3)
