"""What a dry run says of the run's folder, time and disk, against what the run then
does."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.dry_run import plan_job
from tests.conftest import ROOT
from tests.light_start import FORBID
from tests.running import run_job
from toolkit.config import JobContext, load_job
from toolkit.errors import RunError, UserError
from toolkit.extension import discover
from toolkit.files.log import shown
from toolkit.files.run_files import about
from toolkit.memory.estimate import GB
from toolkit.memory.flops import KERNELS_PER_BLOCK
from toolkit.memory.kept_times import RunTimes, remember_run_times
from toolkit.plan import memory, planning
from toolkit.plan.cards import CARDS, assumed_card
from toolkit.plan.diffusion import SdPlanner
from toolkit.plan.memory import GPU_SIZES_GB, Machine
from toolkit.plan.memory_inputs import groups_of
from toolkit.plan.outlook import TimeOutlook
from toolkit.plan.run_time import times_key
from toolkit.plan.step_time import HOST_S
from toolkit.system.nvidia import Gpu
from toolkit.train.callbacks.times import LEAST_STEPS
from toolkit.train.lock import run_lock

Plan = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def job(
    write_job, trainer, make_pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """A job on two images, with these changes of its section."""
    monkeypatch.chdir(tmp_path)
    data = make_pictures(tmp_path / "data", "a", "b")
    return lambda name="job", **changes: write_job(trainer(data, **changes), name=name)


@pytest.fixture(scope="module")
def plan() -> Plan:
    """The dry run of a job: its entry of the JSON, and its words."""
    table = discover()

    def plan(path: Path, **options: Any) -> tuple[dict[str, Any], str]:
        found = plan_job(load_job(path, table.find_config), **options)
        return found.to_json()["processes"][0], found.render()

    return plan


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a job; what it printed, or the error that it ended with."""

    def run(path: Path, **options: bool) -> str:
        capsys.readouterr()
        try:
            with shown():
                run_job(path, **options)
        except (UserError, RunError) as error:
            return str(error)
        return capsys.readouterr().out

    return run


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its time of writing, but for the lock, which every start
    takes."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.lock"
    ]
    return {
        path.relative_to(folder).as_posix(): (
            path.read_bytes(),
            path.stat().st_mtime_ns,
        )
        for path in files
    }


PUBLISHED = {"name_or_path": "Qwen/Qwen-Image-Edit-2509"}
INT4 = PUBLISHED | {
    "quantize": True,
    "qtype": "int4",
    "quantize_te": True,
    "qtype_te": "int4",
    "low_vram": True,
}
BF16 = {"dtype": "bf16"}
SWAPPED = {"blocks_to_swap": 30}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> dict[str, Gpu]:
    """Device -> the GPU that this machine has there."""
    found = {
        "cuda:0": Gpu("NVIDIA L40S", 8, 48 * GB),
        "cuda:1": Gpu("NVIDIA GeForce GT 710", 3, 2 * GB),
    }
    monkeypatch.setattr(
        memory, "gpu_of_job", lambda device: found.get(device, Gpu("", 0, 0))
    )
    return found


def line_of_time(words: str) -> str:
    return next(
        line.strip() for line in words.splitlines() if line.startswith("  time: ")
    )


def test_on_a_known_gpu_the_first_dry_run_calculates_the_time(
    job, plan: Plan, here
) -> None:
    found, words = plan(job(device="cuda:0", train=BF16 | {"gradient_accumulation": 3}))
    time, parts = found["time"], found["time"]["parts"]
    assert (time["steps"], time["card"], time["measured"]) == (2, "an L40S", False)
    # Two blocks, which compiling does not pay for, leave the card waiting for the host.
    assert time["step_s"] == pytest.approx(
        3 * 2 * KERNELS_PER_BLOCK[""] * HOST_S, rel=0.01
    )
    assert time["seconds"] == pytest.approx(sum(parts.values()))
    assert (parts["steps"], parts["compiling"]) == (2 * time["step_s"], 0)
    assert found["no_time"] is None and line_of_time(words) == (
        "time: under a minute on an L40S (calculated); a step takes 0.14 s"
    )


@pytest.mark.parametrize(
    ("device", "card", "reason"),
    [
        ("cpu", "", None),
        ("auto", "", None),
        ("cpu", "4090", "this job runs on 'device: cpu', so --card has no effect"),
        ("cuda:1", "", "NVIDIA GeForce GT 710 is not in the table of cards"),
        ("cuda:0", "", "the table of cards has no rate for float32"),
    ],
)
def test_where_nothing_can_be_calculated_the_first_steps_tell(
    job, plan: Plan, here, device: str, card: str, reason: str | None
) -> None:
    found, words = plan(job(device=device), card=card)
    assert (found["time"], found["no_time"]) == (None, reason)
    why = f"not calculated: {reason}" if reason else "the first steps will tell"
    assert line_of_time(words) == f"time: {why}"


@pytest.mark.parametrize("model", [PUBLISHED, INT4])
def test_without_a_gpu_a_well_known_card_is_meant_that_the_job_fits(
    job, plan: Plan, here, model: dict[str, Any]
) -> None:
    found, words = plan(job(device="auto", model=model, train=BF16 | {"steps": 1000}))
    card = assumed_card(found["memory"]["fits_cards_gb"][0]).called
    assert found["time"]["card"] == card and found["time"]["assumed"]
    said = f" on {card} (calculated; the smallest card that it fits, others: --card)"
    assert said in line_of_time(words)


@pytest.mark.parametrize(
    ("device", "model", "asked", "card"),
    [
        ("auto", PUBLISHED, "", "a GPU of 20 GB"),
        ("auto", PUBLISHED, "4090", "an RTX 4090"),
        ("cuda:0", PUBLISHED, "", "an L40S"),
        ("cpu", PUBLISHED, "", ""),
        ("auto", {}, "", ""),
    ],
)
def test_the_card_of_a_job_counts_where_none_is_here(
    job, plan: Plan, here, device: str, model: dict[str, Any], asked: str, card: str
) -> None:
    changes = {"model": INT4} if model else {}
    found, words = plan(
        job(device=device, card="20 GB", train=BF16, **changes), card=asked
    )
    time = found["time"] or {"card": "", "assumed": False}
    assert (time["card"], time["assumed"]) == (card, False)
    assert ("peak" in words) and (" on a GPU of 20 GB (" in words) == ("20" in card)


def test_a_run_plans_for_the_card_of_the_job_too(job) -> None:
    path = job(device="auto", card="RTX 4090", model=INT4, train=BF16)
    section = load_job(path, discover().find_config).processes[0].section
    planner = SdPlanner(section, JobContext("job"), Machine("cpu", 8 * GB))
    assert planner.machine.asked == "an RTX 4090" and planner.here.kind == "cpu"
    wrong = section.model_copy(update={"card": "Radeon"})
    with pytest.raises(UserError, match="card: 'Radeon' is not in the table of cards"):
        SdPlanner(wrong, JobContext("job"))


@pytest.mark.slow
def test_no_two_facts_of_a_plan_contradict_each_other_on_any_card(
    job, plan: Plan, here
) -> None:
    """Jobs of about 6 to 60 GB, on each card of the table."""
    seen = set()
    for model in (INT4, INT4 | {"qtype": "int8"}, PUBLISHED, PUBLISHED | SWAPPED):
        path = job(device="auto", model=model, train=BF16 | {"steps": 100})
        for card in CARDS:
            found, words = plan(path, card=card.name)
            peak, limit = found["memory"]["device_bytes"], card.memory_gb * GB
            called, fits = card.called, memory.fit(peak, limit)
            seen.add(fits)
            assert f" on {called} (" in words, "the memory is that on this card"
            assert f": {fits} its {card.memory_gb:.1f} GB" in words
            assert (f"{called} has {limit / GB:.1f} GB: not enough" in words) == (
                peak > limit
            )
            assert (found["time"] is None) == (fits == "does not fit")
            if found["time"]:
                assert found["time"]["card"] == called
            else:
                assert found["no_time"] == f"it does not fit {called}"
            sizes = {*found["memory"]["fits_cards_gb"]}
            if card.memory_gb in GPU_SIZES_GB:
                assert (card.memory_gb in sizes) == (fits == "fits")
            if fits == "fits":
                assert {
                    size for size in GPU_SIZES_GB if size >= card.memory_gb
                } <= sizes
            assert not any(called in reason for reason in found["will_not_start"])
    assert seen >= {"fits", "does not fit"}


@pytest.mark.slow
def test_the_card_that_is_asked_for_counts(
    write_job, trainer, make_pictures, plan: Plan, here, tmp_path: Path
) -> None:
    data = make_pictures(tmp_path / "large", "a", size=(1024, 1024))
    train = BF16 | {"steps": 1000, "batch_size": 4}
    path = write_job(
        trainer(
            data,
            device="cuda:0",
            model=INT4,
            train=train,
            datasets=[{"folder_path": str(data), "resolution": 1024}],
        )
    )
    seconds = {
        card: plan(path, card=card)[0]["time"]["step_s"]
        for card in ("RTX 4070", "12", "H100", "")
    }
    assert seconds["RTX 4070"] == seconds["12"] > 10 * seconds["H100"]
    assert seconds["H100"] < seconds[""] < seconds["12"], "the L40S of this machine"


@pytest.mark.slow
def test_from_the_second_run_on_times_are_those_measured_here(
    job, plan: Plan, run
) -> None:
    train = {"steps": LEAST_STEPS + 2}
    small = {"width": 64, "height": 64, "sample_steps": 2}
    sample = {"samples": ["a cat"], "sample_every": 6, **small}
    path = job(train=train, sample=sample)
    run(path)
    (kept,) = json.loads(Path("output/_cache/run_times.json").read_text()).values()
    more = job(
        name="more",
        train={"steps": 100},
        sample=sample,
    )
    found, words = plan(more)
    time = found["time"]
    assert (time["steps"], time["step_s"], time["card"], time["measured"]) == (
        100,
        kept["step_s"],
        "this CPU",
        True,
    )
    # One before step 1, 17 in the run, the last of them at its end.
    assert (
        time["parts"]["samples"] == pytest.approx(18 * kept["picture_s"])
        and kept["picture_s"] > 0
    )
    assert line_of_time(words).startswith(
        f"time: {about(time['seconds'])} on this CPU (measured here)"
    )
    # What else decides the time of a step.
    for change in (
        {"batch_size": 2},
        {"gradient_checkpointing": "full"},
        {"gradient_accumulation": 2},
    ):
        assert plan(job(name="more", train=train | change))[0]["time"] is None
    assert (
        plan(job(name="more", train=train, network={"type": "lora", "linear": 8}))[0][
            "time"
        ]
        is None
    )


def test_what_was_measured_here_replaces_the_table(
    job, plan: Plan, here, tmp_path: Path
) -> None:
    path = job(device="cuda:0", train=BF16 | {"steps": 1000})
    calculated = plan(path)[0]["time"]
    key = times_key(
        load_job(path, discover().find_config).processes[0].section,
        groups(path),
        "NVIDIA L40S",
    )
    remember_run_times("output", key, RunTimes(7.5))
    measured, words = plan(path)
    assert (
        measured["time"]["step_s"] == 7.5 and measured["time"]["card"] == "NVIDIA L40S"
    )
    assert measured["time"]["parts"] == calculated["parts"] | {"steps": 7500.0}
    assert (
        line_of_time(words)
        == "time: about 2.1 h on NVIDIA L40S (measured here); a step takes 7.5 s"
    )
    assert (
        plan(path, card="L40S")[0]["time"]["parts"]["steps"]
        == calculated["parts"]["steps"]
    ), "asked for: the table's"


def groups(path: Path) -> Any:
    section: Any = load_job(path, discover().find_config).processes[0].section
    planner = SdPlanner(section, JobContext("job"))
    return groups_of(section, planner.scan())


@pytest.mark.slow
def test_a_resume_counts_what_is_left(job, plan: Plan, run, here) -> None:
    steps = {"train": BF16 | {"steps": 4}}
    run(job(device="cpu", train=BF16 | {"steps": 2}))
    whole = plan(job(device="cuda:0", name="other", **steps))[0]["time"]
    rest = plan(job(device="cuda:0", **steps))[0]
    assert rest["start"]["what"] == "resumes" and rest["time"]["steps"] == 2
    assert rest["time"]["parts"]["steps"] == whole["parts"]["steps"] / 2
    assert rest["time"]["parts"]["loading"] == whole["parts"]["loading"]


def test_the_largest_other_parts_are_named_where_they_take_more_than_a_minute() -> None:
    parts = {
        "steps": 18_000.0,
        "samples": 900.0,
        "encoding": 500.0,
        "saving": 450.0,
        "loading": 59.0,
    }
    of_hours = TimeOutlook(2000, 9.0, 20_000, "an RTX 4070", False, parts)
    assert of_hours.line(False) == (
        "time: about 5.6 h on an RTX 4070 (calculated), 15 min of it for samples, 8.3 min of it for encoding; "
        "a step takes 9 s"
    )
    short = TimeOutlook(
        20, 0.5, 69, "an RTX 4070", False, {"steps": 10.0, "loading": 59.0}
    )
    assert (
        short.line(False)
        == "time: about 1.1 min on an RTX 4070 (calculated); a step takes 0.5 s"
    )
    assert (
        of_hours.line(True)
        == "time: about 9 s for each step on an RTX 4070 (calculated)"
    )


def test_the_guide_says_whose_time_it_is() -> None:
    guide = " ".join(
        (ROOT / "docs" / "first_character.md").read_text(encoding="utf-8").split()
    )
    assert (
        "about 4.3 h on an RTX 4070 (calculated)" in guide
        and "(measured here)" in guide
    )
    assert "`fits its 24.0 GB`" in guide and "`does not fit its 24.0 GB`" in guide


def test_a_short_run_on_a_known_gpu_compiles_nothing_and_the_plan_says_why(
    job, plan: Plan, here, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = "NVIDIA H100 80GB HBM3"
    here["cuda:0"] = Gpu(gpu, 9, 80 * GB)
    took: dict[str, float] = {}
    monkeypatch.setattr(planning, "compile_seconds", took.get)
    short = job(device="cuda:0", train=BF16 | {"steps": 240})
    line = r"train\.compile auto: the blocks are not compiled: it takes about 43 s, and 240 steps of [\d.]+ instead of "
    found = re.search(
        line + r"[\d.]+ s \(calculated for an H100\) save (\d+) s", plan(short)[1]
    )
    assert found is not None and 0 < int(found[1]) < 43
    for train in ({"steps": 9000}, {"steps": 240, "compile": {"enabled": True}}):
        assert (
            "the blocks are not compiled"
            not in plan(job(device="cuda:0", train=BF16 | train))[1]
        )
    took[gpu] = int(found[1]) - 1  # cached programs, the last time
    assert "the blocks are not compiled" not in plan(short)[1]


def test_a_level_that_excludes_compiled_blocks_says_so_instead(job, plan: Plan) -> None:
    train = BF16 | {"gradient_checkpointing": "block_offload"}
    text = plan(job(device="cuda:0", train=train))[1]
    assert (
        "train.compile auto: the blocks are not compiled: 'gradient_checkpointing: block_offload' moves"
        in text
    )
    assert (
        "not compiled"
        not in plan(
            job(device="cuda:0", train=train | {"compile": {"enabled": False}})
        )[1]
    )


@pytest.mark.slow
def test_what_is_said_of_a_folder_is_what_the_run_does(
    job, plan: Plan, run, run_py, tmp_path: Path
) -> None:
    """Beside what tests/jobs/process/test_image_trainer.py holds for all trainers; a
    dry run needs no torch, no network and no file."""
    folder = tmp_path / "output" / "job"
    run(job())
    before = contents(folder)
    for changes, options in (
        ({"train": {"lr": 0.02, "steps": 9}}, {}),
        ({"network": {"type": "lora", "linear": 8}}, {"allow_change": True}),
        ({"resume": 7}, {}),
    ):
        found, words = plan(job(**changes), **options)
        start = found["start"]
        assert start["what"] == "refused" and found["will_not_start"] == [
            start["reason"]
        ]
        assert start["reason"] == run(job(**changes), **options)
        assert "warning: this will not start: " in words

    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FORBID)
    path, site = job(train={"steps": 3}), {"PYTHONPATH": str(tmp_path / "site")}
    result = run_py(path, "--dry-run", env=site)
    assert (result.returncode, result.stderr) == (0, "")
    assert "folder: output/job: resumes at step 2 of 3" in result.stdout

    (tmp_path / "data" / "a.txt").write_text("another caption")
    reason = plan(job())[0]["start"]["reason"]
    assert "the dataset is another one: 1 edited" in reason and reason == run(job())
    assert plan(job(), allow_change=True)[0]["start"]["what"] == "complete"
    assert "a new run; the old one is moved aside" in plan(job(), restart=True)[1]
    assert contents(folder) == before
    with run_lock(folder):
        assert "is running in this folder" in plan(job())[0]["start"]["reason"]
    document = folder / "state" / "step_000000002" / "state.json"
    # as long as before: only the run reads all hashes
    document.write_bytes(b"[" * document.stat().st_size)
    assert "what it records cannot be used" in plan(job())[0]["start"]["reason"]
    document.unlink()
    assert "no valid checkpoint found" in plan(job())[0]["start"]["reason"]


@pytest.mark.slow
def test_a_run_whose_checkpoints_were_deleted_is_not_called_a_new_one(
    job, plan: Plan, run, tmp_path: Path
) -> None:
    """The way on that the warning names is taken, and trains from the LoRA."""
    network = {"type": "lora", "linear": 4}
    save = {"save_every": 1, "max_step_saves_to_keep": 5}
    run(job(network=network, train={"steps": 2}, save=save))
    shutil.rmtree(tmp_path / "output" / "job" / "state")
    more = job(network=network, train={"steps": 3}, save=save)
    found, words = plan(more)
    said = found["start"]["again"]
    assert f"warning: folder: output/job: {said}" in words
    assert "has no checkpoint, so it begins again at step 1, and its 3 files" in said
    way = re.search(r"network\.(pretrained_lora_path): (\S+)$", said)
    assert way is not None and way[2] == "output/job/job.safetensors"
    run(job(name="on", network={**network, way[1]: way[2]}, train={"steps": 1}))
    assert (tmp_path / "output" / "on" / "on.safetensors").is_file()
    run(more)
    log = (tmp_path / "output" / "job" / "log.txt").read_text(encoding="utf-8")
    assert "output/job: the run in it has no checkpoint" in log
    assert plan(job(name="third"))[0]["start"]["again"] is None


@pytest.mark.parametrize(
    ("save", "files", "states"),
    [
        (
            {"save_every": 2},
            5 + 1,
            3,
        ),  # 10 saves; while the third state is written the other two are there
        (
            {"save_every": 2, "max_step_saves_to_keep": 0, "max_states_to_keep": 0},
            10 + 1,
            10,
        ),
        ({"save_every": 0}, 1, 1),
        ({"save_every": 8, "states": "at_end"}, 2 + 1, 1),
        ({"save_every": 8, "states": "never"}, 2 + 1, 0),
    ],
)
def test_the_disk_is_that_of_all_files_that_are_there_at_once(
    job, plan: Plan, save: dict, files: int, states: int
) -> None:
    weights = 2 * 4 * (8 * (64 + 64) + 2 * (64 + 6 * 64) + 4 * (64 + 256))
    found, _ = plan(job(train={"steps": 20}, save={"dtype": "float32", **save}))
    assert found["disk"]["needed_bytes"] == weights * (4 * files + 12 * states)


def test_a_large_model_without_a_gpu_is_told_and_so_is_its_download(
    job, plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    from toolkit.system import nvidia

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        nvidia, "read_facts", lambda: nvidia.NvidiaFacts("13.0", "570.1", 1)
    )
    found, words = plan(
        job(device="auto", model={"name_or_path": "Qwen/Qwen-Image-Edit-2509"})
    )
    assert found["model"]["download"]["folder"] == str(tmp_path / "hub")
    assert f"download: 57.7 GB, to {tmp_path / 'hub'} (" in words
    assert (
        "warning: this will not start: device: auto: " in words
        and "driver 570.1 is too old" in words
    )
    assert "device: " not in " ".join(plan(job(device="auto"))[0]["will_not_start"]), (
        "the tiny model may start"
    )


@pytest.mark.slow
def test_a_chosen_device_that_is_not_there_is_an_error_and_the_first_gpu_may_be_the_cpu(
    job, plan: Plan, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small model; a dry run says both before the run does."""
    from toolkit.system import nvidia

    monkeypatch.setattr(nvidia, "read_facts", lambda: nvidia.NvidiaFacts(None, None, 0))
    for device in ("cuda", "cuda:1"):
        (reason,) = plan(job(device=device))[0]["will_not_start"]
        assert reason.startswith(
            f"device: {device}: no such device can be used here. Write 'device: auto'"
        )
        assert run(job(device=device)).startswith(
            f"device: {device}: no such device can be used here"
        )
    found, words = plan(job(device="cuda:0"))
    assert (
        found["will_not_start"] == []
        and "warning: device: cuda:0: no such device" in words
    )
    assert "device: cuda:0 is not available" in run(job(device="cuda:0"))
    assert "no such device" not in plan(job(device="auto"))[1]
