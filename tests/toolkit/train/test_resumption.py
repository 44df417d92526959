"""How a job resumes from a state: what may have changed, and what is said of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import heard
from tests.toolkit.train.states import make_run, save_state, take_steps
from toolkit.config.reading.removed import removed_at
from toolkit.config.sections.train import TrainConfig
from toolkit.config.sections.trainer import ModelSection, TrainerConfig
from toolkit.contracts.data import Sample, Size
from toolkit.data.batches.epoch_order import epoch_cursor
from toolkit.data.scan.fingerprint import fingerprint
from toolkit.data.scan.folder import DatasetScan, FolderInfo
from toolkit.errors import RunError, UserError
from toolkit.train import resumption
from toolkit.train.resumption import ResumePlan, Start, plan_start


class Job(ModelSection, TrainerConfig):
    """A trainer's section, as far as a resume is concerned with it."""

    train: TrainConfig = TrainConfig()


PLAIN = {
    "network": {"type": "lora", "linear": 4},
    "train": {"lr": 0.1, "steps": 10},
    "save": {"save_every": 2},
    "model": {"name_or_path": "a"},
}


def section(**keys: object) -> Job:
    return Job(type="toy", **{**PLAIN, **keys})


def changed(part: str, **values: object) -> Job:
    return section(**{part: {**PLAIN[part], **values}})


@pytest.mark.parametrize(
    ("before", "now", "line"),
    [
        (True, False, "ran compiled run uncompiled"),
        (False, True, "ran uncompiled run compiled"),
        (True, True, ""),
    ],
)
def test_blocks_that_are_compiled_no_more_are_mentioned(
    before: bool, now: bool, line: str, said: list[str]
) -> None:
    """What `compile: auto` became is recorded as it stands at each save."""
    resumption, used = (
        ResumePlan(Path("state"), {}, {}, compiled={"blocks": before}),
        {"blocks": now},
    )
    resumption.record_compiled(used)
    assert [line in text for text in said] == [True] * bool(line)
    used["blocks"] = False
    assert resumption.record["compiled"] == {"blocks": False}


@pytest.mark.parametrize(
    ("before", "mentioned"), [(2, True), (1, False), (None, False)]
)
def test_another_number_of_threads_than_the_state_was_computed_with_is_mentioned(
    before: int | None, mentioned: bool, said: list[str]
) -> None:
    """A state of an earlier version does not say its number."""
    document = {"dataset": "", **({"threads": before} if before else {})}
    resumption = ResumePlan.of(Start(Path("state"), document=document), section(), {})
    resumption.report_threads(1)
    line = "changed since the last run: threads of the CPU: 2 -> 1. Results differ by rounding"
    assert said == [line] * mentioned


@pytest.fixture
def scan(tmp_path: Path):
    """Writes these files as a dataset and scans it."""

    def make(**texts: str) -> DatasetScan:
        samples = []
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
            samples.append(
                Sample(str(tmp_path / name), "a caption", 1, Size(8, 8), "data")
            )
        return DatasetScan((FolderInfo(0, "data", 1, tuple(samples), 0),), ())

    return make


@pytest.fixture
def state(tmp_path: Path, scan) -> Path:
    """A state at step 3 in the middle of epoch 1, of the plain section and the files a
    and b."""
    run = make_run(tmp_path / "run")
    take_steps(run, 3)
    run.state.epoch, run.state.cursor, run.state.epochs_done = 1, epoch_cursor(1, 2), 1
    first = resumption_of(None, section(), scan(a="a", b="b"), False)
    run.checkpoint_metadata = first.record
    first.apply(run)
    return save_state(run)


def judge(
    state: Path, job: Job, found: DatasetScan, allow_change: bool = False
) -> tuple[ResumePlan, list[str]]:
    with heard() as said:
        return resumption_of(state, job, found, allow_change), said


def resumption_of(
    state: Path | None, job: Job, found: DatasetScan, allow_change: bool
) -> ResumePlan:
    """As a trainer asks for it."""
    digests = fingerprint(found.samples)
    start = Start(None)
    if state:
        with mock.patch.object(
            resumption, "find_checkpoint", lambda *_: (state, False)
        ):
            start = plan_start(
                state.parent.parent, job, 10**9, lambda: digests, False, allow_change
            )
    return ResumePlan.of(start, job, digests)


def test_files_of_the_end_that_were_deleted_are_written_again_or_told(
    state: Path, same: DatasetScan
) -> None:
    folder, digests = state.parent.parent, fingerprint(same.samples)
    recorded = {"record": json.loads((state / "state.json").read_text())}
    (folder / "run.json").write_text(
        json.dumps(
            {"name": "a", "status": "finished", "step": 3, "steps": 3, **recorded}
        )
    )

    def plan(**changes: Any) -> Start:
        job = changed("save", **changes) if changes else section()
        return plan_start(folder, job, 3, lambda: digests, False, True)

    assert (plan().complete_at, plan().checkpoint) == (None, state)
    (folder / "a.safetensors").write_bytes(b"whatever is in it")
    assert (plan().complete_at, plan().checkpoint) == (3, state)
    (folder / "a.safetensors").unlink()
    shutil.rmtree(state.parent)
    with pytest.raises(
        UserError,
        match=r"complete at step 3: a\.safetensors is not there any more, and no state was",
    ):
        plan(states="never")


@pytest.fixture
def same(scan) -> DatasetScan:
    return scan(a="a", b="b")


def test_a_moved_run_is_the_same_job(state: Path, same: DatasetScan) -> None:
    assert judge(state, section(training_folder="elsewhere", resume=3), same)[1] == []


def test_what_changes_the_result_is_refused_and_listed(
    state: Path, same: DatasetScan
) -> None:
    job = changed("train", lr=0.2, optimizer="adam", steps=20)
    with pytest.raises(UserError, match="--allow-change") as refused:
        judge(state, job, same)
    lines = str(refused.value).splitlines()
    assert lines[:2] == [
        "train.lr: 0.1 -> 0.2",
        "  train.optimizer: 'adamw' -> 'adam'",
    ], "a harmless key is not a reason"
    assert (
        len(lines) == 3
        and f"{state} was trained with other settings: add --allow-change to resume with"
        in lines[2]
    )
    assert judge(state, job, same, allow_change=True)
    assert judge(state, section(), same)


def test_another_job_in_the_folder_is_told_before_its_settings(
    state: Path, same: DatasetScan
) -> None:
    job = changed(
        "train",
        lr=0.2,
        optimizer="adam",
        steps=20,
        batch_size=2,
        max_grad_norm=3.0,
        lr_scheduler="cosine",
    )
    with pytest.raises(UserError) as refused:
        judge(state, job, same)
    first, *listed, last = str(refused.value).splitlines()
    assert first == f"{state} is of another job of this name: 6 settings differ."
    assert len(listed) == 6 and last.startswith(
        "To keep both runs, give the job another name"
    )
    assert judge(state, job, same, allow_change=True)


def test_more_steps_of_a_schedule_that_ends_with_the_run_have_two_ways(
    state: Path, same: DatasetScan
) -> None:
    document = json.loads((state / "state.json").read_text())
    document["settings"]["train"]["lr_scheduler"] = "cosine"
    (state / "state.json").write_text(json.dumps(document))
    longer = changed("train", lr_scheduler="cosine", steps=20)
    with pytest.raises(UserError) as refused:
        judge(state, longer, same)
    first, why = str(refused.value).splitlines()
    assert first == "train.steps: 10 -> 20"
    assert "number of steps: 'cosine' ends with the last one. Two ways: " in why
    assert "--allow-change to continue" in why and "--restart" in why
    assert judge(state, longer, same, allow_change=True)[1] == [
        "changed since the last run: train.steps: 10 -> 20"
    ]


def test_a_state_that_computes_something_else_is_refused(
    state: Path, same: DatasetScan
) -> None:
    document = json.loads((state / "state.json").read_text())
    (state / "state.json").write_text(json.dumps(document | {"revision": 2}))
    with pytest.raises(
        RunError,
        match=r"was written by an earlier version of this program\. .*or add --restart",
    ):
        judge(state, section(), same, allow_change=True)


def test_a_state_with_removed_keys_is_resumed_or_refused_with_the_remedy(
    state: Path, same: DatasetScan
) -> None:
    document = json.loads((state / "state.json").read_text())
    document["settings"]["train"] |= {"memory_account": False, "preference": None}
    (state / "state.json").write_text(json.dumps(document))
    plan, said = judge(state, section(), same)
    assert plan.state == state and said == []
    document["settings"]["train"]["preference"] = {"beta": 350.0}
    (state / "state.json").write_text(json.dumps(document))
    with pytest.raises(UserError) as refused:
        judge(state, section(), same)
    assert str(refused.value).startswith(
        f"train.preference: {removed_at('train.preference')}\nthis changes the result"
    )


def test_harmless_keys_are_noted(state: Path, same: DatasetScan) -> None:
    _, said = judge(state, changed("save", save_every=5), same)
    assert said == ["changed since the last run: save.save_every: 2 -> 5"]


@pytest.mark.parametrize("allow_change", [False, True])
def test_what_cannot_change_is_refused_whatever_is_allowed(
    state: Path, same: DatasetScan, allow_change: bool
) -> None:
    with pytest.raises(UserError, match="cannot change") as refused:
        judge(state, changed("network", linear=8), same, allow_change)
    assert str(refused.value).startswith("network.linear: 4 -> 8\nthis cannot change: ")
    assert "--allow-change" not in str(refused.value)


def test_another_optimizer_begins_with_a_fresh_state_and_the_same_weights(
    state: Path, same: DatasetScan, tmp_path: Path
) -> None:
    resumption, _ = judge(
        state, changed("train", optimizer="adam"), same, allow_change=True
    )
    assert resumption.new_optimizer
    run, old = (
        make_run(tmp_path / "run", optimizer="adam", fill=5),
        make_run(tmp_path / "run"),
    )
    take_steps(old, 3)
    resumption.apply(run)
    for name, weight in run.roles["network"].parameters.items():
        assert torch.equal(weight, old.roles["network"].parameters[name])
    assert not run.roles["network"].optimizer.state


def test_between_two_epochs_nothing_of_the_new_dataset_is_left_out(
    state: Path, scan, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    resumption, _ = judge(state, section(), scan(a="a", b="b", c="c"))
    document = json.loads((state / "state.json").read_text())
    document["state"]["cursor"] = epoch_cursor(1, 0)
    (state / "state.json").write_text(json.dumps(document))
    resumption.apply(run)
    assert (run.state.epoch, run.state.cursor, run.state.epochs_done) == (
        1,
        epoch_cursor(1, 0),
        1,
    )


@pytest.mark.parametrize(("steps", "goes_on"), [(3, False), (4, True)])
def test_only_a_run_that_goes_on_keeps_its_end_under_another_name(
    state: Path, scan, tmp_path: Path, steps: int, goes_on: bool
) -> None:
    """One that was killed as it ended writes the same file again."""
    folder = tmp_path / "run"
    info = {"training_info": json.dumps({"step": 3})}
    save_file({"w": torch.ones(1)}, folder / "toy.safetensors", info)
    run = replace(make_run(folder), name="toy", steps=steps)
    judge(state, section(), scan(a="a", b="b"))[0].apply(run)
    kept = {path.name for path in folder.glob("toy*")}
    assert kept == {"toy_000000003.safetensors" if goes_on else "toy.safetensors"}


@pytest.mark.parametrize("text", [None, "", "[", "[1]", '"x"', "\0"])
def test_a_lost_or_damaged_list_of_files_is_no_reason_to_fail(
    state: Path, scan, tmp_path: Path, text
) -> None:
    [listing] = (tmp_path / "run").glob("dataset-*.json")
    listing.write_text(text) if text is not None else listing.unlink()
    resumption, _ = judge(state, section(), scan(a="new"))
    with heard() as said:
        resumption.apply(make_run(tmp_path / "run"))
    assert "missing or damaged" in said[-1] and listing.name in said[-1]


def test_the_files_of_the_dataset_are_kept_for_the_next_comparison(
    state: Path, scan, tmp_path: Path
) -> None:
    resumption, _ = judge(state, section(), scan(a="a"))
    resumption.apply(make_run(tmp_path / "run"))
    kept = [
        json.loads(path.read_text())
        for path in sorted((tmp_path / "run").glob("dataset-*.json"))
    ]
    assert sorted(map(len, kept)) == [1, 2]


def test_another_base_lora_under_the_same_name_is_noticed(tmp_path: Path, scan) -> None:
    """What was trained is a change of the model with that file in it; where the file
    lies is no matter."""
    file = tmp_path / "style.safetensors"
    file.write_bytes(b"one")
    job = changed("model", base_loras=[{"path": str(file), "multiplier": 1.0}])
    found = scan(a="a", b="b")
    run = make_run(tmp_path / "run")
    run.checkpoint_metadata = resumption_of(None, job, found, False).record
    take_steps(run, 3)
    state = save_state(run)
    assert judge(state, job, found)[1] == []
    elsewhere = file.rename(tmp_path / "other.safetensors")
    _, said = judge(
        state,
        changed("model", base_loras=[{"path": str(elsewhere), "multiplier": 1.0}]),
        found,
    )
    assert said == [
        f"changed since the last run: model.base_loras[0].path: {str(file)!r} -> {str(elsewhere)!r}"
    ]
    file.write_bytes(b"two")
    with pytest.raises(UserError, match=r"^model\.base_loras\[0\]\.sha256: '7692c3"):
        judge(state, job, found, allow_change=True)


def test_a_recovery_adapter_goes_by_what_is_in_it(tmp_path: Path, scan) -> None:
    file = tmp_path / "recovery.safetensors"
    file.write_bytes(b"one")
    job = changed("model", accuracy_recovery_adapter=str(file))
    found = scan(a="a", b="b")
    run = make_run(tmp_path / "run")
    run.checkpoint_metadata = resumption_of(None, job, found, False).record
    take_steps(run, 3)
    state = save_state(run)
    elsewhere = file.rename(tmp_path / "other.safetensors")
    assert (
        judge(state, changed("model", accuracy_recovery_adapter=str(elsewhere)), found)[
            1
        ]
        == []
    )
    elsewhere.write_bytes(b"two")
    with pytest.raises(
        UserError, match=r"^model\.accuracy_recovery_adapter: 'sha256 7692c3"
    ):
        judge(
            state,
            changed("model", accuracy_recovery_adapter=str(elsewhere)),
            found,
            allow_change=True,
        )


def test_a_run_keeps_the_spelling_of_its_files(state: Path, scan) -> None:
    """A checkpoint without a record is of a version that knew one spelling."""
    found = scan(a="a", b="b")
    fresh = resumption_of(None, section(), found, False)
    assert fresh.record_spelling("new", "old") == "new" == fresh.record["spelling"]
    resumed = resumption_of(state, section(), found, False)
    assert resumed.record_spelling("new", "old") == "old" == resumed.record["spelling"]
    assert "spelling" not in json.loads((state / "state.json").read_text())
    recorded = replace(resumed, spelling="another")
    assert (
        recorded.record_spelling("new", "old")
        == "another"
        == recorded.record["spelling"]
    )
