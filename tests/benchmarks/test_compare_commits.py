"""What counts as the same, under a table of renames; the jobs are runnable on this
checkout. Comparing whole jobs is the script itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.compare_commits import PARTS, RESUMED, Before, Ran
from benchmarks.freeze.comparing import Outcome, Table, compare, same
from benchmarks.freeze.facts import facts_of, printed
from benchmarks.freeze.jobs import GUIDE, JOBS, KILLED, document, lora, write_images
from benchmarks.freeze.messages import BROKEN, VALID, broken
from tests.model_folders import write_model
from toolkit.config import load_job
from toolkit.errors import UserError
from toolkit.extension import discover


def write_run(
    folder: Path, weight: float = 1.0, loss: float = 0.5, time: int = 1
) -> Path:
    """A run's folder with one file of each kind."""
    for name in ("state", "samples"):
        (folder / name).mkdir(parents=True)
    tensors = {"network/a": torch.tensor([weight, 2.0])}
    save_file(
        tensors,
        folder / "state" / "weights.safetensors",
        metadata={"info": '{"step": 3}', "ss_name": "x"},
    )
    lines = [
        {"step": 1, "loss": loss, "step_s": time},
        {"step": 2, "loss": 0.25, "step_s": time},
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8"
    )
    (folder / "run.json").write_text(
        json.dumps({"status": "done", "updated": time}), encoding="utf-8"
    )
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
    assert equal == {
        "tensors": 1,
        "metadata": 2,
        "logs": 4,
        "documents": 1,
        "images": 1,
        "files": 4,
    }


def test_every_kind_of_difference_is_seen(tmp_path: Path) -> None:
    before, after = (
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", weight=3.0, loss=0.75),
    )
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
    (after / "metrics.jsonl").write_text(
        '{"step": 1, "mean": 0.5}\n{"step": 2, "mean": 0.25}\n', encoding="utf-8"
    )
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
    assert (
        differences(
            before, after, allowed={r"^job/metrics\.jsonl: .*loss$": "another loss"}
        )
        == []
    )
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
    (tmp_path / "table.json").write_text(
        '{"metrics": {}, "allowed": {}}', encoding="utf-8"
    )
    with pytest.raises(SystemExit, match="unknown: metrics"):
        Table.read(tmp_path / "table.json")


@pytest.mark.parametrize(
    ("code", "errors", "refused"),
    [(2, "job.json:1: no", True), (2, "Traceback ...", False), (1, "no", False)],
)
def test_a_refusal_is_a_message_about_the_input(
    code: int, errors: str, refused: bool
) -> None:
    assert Ran(code, "", errors).refused is refused


def test_only_the_place_of_a_message_and_what_it_names_count() -> None:
    def said(output: str, errors: str) -> dict[tuple[str, str, str], Any]:
        return printed("x", 2, output, errors, {"/tmp/a": "FOLDER"})

    one = said(
        "  15 pictures at 128x128 in /tmp/a/x (3.2 s)\n",
        "warning: train.lr: 0.5 is much.\nno.yaml: not there.\n",
    )
    assert one == said(
        "15 images at 128x128, FOLDER/x, 9 s\n",
        "warning: train.lr: half\nno.yaml: missing\n",
    )
    for other in (
        said(
            "14 pictures at 128x128 in /tmp/a/x\n", "warning: train.lr: x\nno.yaml: x\n"
        ),
        said("15 pictures at 128x128 in /tmp/a/x\n", "train.lr: x\nno.yaml: x\n"),
        said(
            "15 pictures at 128x128 in /tmp/a/x\n",
            "warning: train.lr: x\nno.yaml: x\nno.yaml: y\n",
        ),
    ):
        assert one != other


def test_a_page_is_what_it_shows(tmp_path: Path) -> None:
    pages = {
        "a": '<h1 class="x">Loss 0.25</h1><img src="1.png"><script type="application/json">{"step": 3}</script>',
        "b": '<p><b>Loss</b> 0.25</p><a><img src="1.png" class="y"></a><style>h1 {top: 7px}</style>'
        '<script type="application/json">{"step":3}</script>',
        "c": '<h1>Loss 0.25</h1><script type="application/json">{"step": 3}</script>',
    }
    for name, text in pages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").write_text(text, encoding="utf-8")
    assert facts_of(tmp_path / "a") == facts_of(tmp_path / "b")
    lost = [place for _, place, _ in differences(tmp_path / "a", tmp_path / "c")]
    assert lost == ["job/index.html: 1.png", "job/index.html: word png"]


def test_what_the_first_side_found_is_kept(tmp_path: Path) -> None:
    before = Before("before", tmp_path, tmp_path / "work")
    facts = {("plans", "a", "steps"): 3}
    assert before.kept("a part", lambda: facts) == facts
    assert before.kept("a part", lambda: None) == facts


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_images(folder / "images")
    write_model(folder / "model")
    (folder / "job.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture
def workplace(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inputs)


def loaded(section: dict[str, Any]) -> Any:
    Path("job.json").write_text(json.dumps(document("job", section)), encoding="utf-8")
    return load_job("job.json", discover().find_config)


OF_A_RUN = {"flow", "flow_joint"}
"""Jobs that read an autoencoder of an earlier one."""


@pytest.mark.parametrize("name", [name for name in JOBS if name not in OF_A_RUN])
def test_every_job_is_a_valid_config(workplace: None, name: str) -> None:
    assert loaded(JOBS[name]).processes


@pytest.mark.parametrize(
    "name",
    [name for name, (base, _) in BROKEN.items() if base in ("lora", "vae", "guide")],
)
def test_every_mistake_is_refused_or_warned_of(workplace: None, name: str) -> None:
    try:
        config = loaded(broken(name))
    except UserError:
        return
    base, edits = BROKEN[name]
    assert edits and config.processes[0] != loaded(VALID[base]).processes[0]


def test_a_mistake_changes_nothing_but_its_own_job() -> None:
    valid = json.dumps(VALID["lora"])
    assert broken("no type").keys() == lora().keys() - {"type"} | {"validation"}
    assert json.dumps(VALID["lora"]) == valid and "modle" not in GUIDE


def test_parts_have_unlike_names() -> None:
    assert not PARTS.keys() & RESUMED.keys() and set(RESUMED.values()) == KILLED.keys()
