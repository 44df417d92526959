"""What a real job says that it does: in run.json while it does it, after it was killed,
and on a terminal."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, child_environment
from tests.faults.conftest import STEP, Job
from tests.processes import until
from tests.small_hub import small_hub
from toolkit.train.run_reader import RunStatus, read_run


def doing(job: Job) -> str:
    """The text in run.json, without the time that is left."""
    try:
        run = read_run(job.folder)
    except Exception:  # noqa: BLE001 - no folder yet
        return ""
    return run.now.text() if run.now else ""


QUANTIZED = {"model__quantize": True, "model__qtype": "int8", "train__dtype": "float32"}
COMPILED = {
    "train__compile": {"enabled": True, "backend": "eager"},
    # Each layer takes seconds to be traced.
    "network__network_kwargs": {"only_if_contains": ["to_q"]},
}
QUANTIZING = ("toolkit.models.loading:fill", 2)
COMPILING = ("toolkit.memory.compiling:_CompileClock._end", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "places"),
    [
        (QUANTIZED, {"quantizing block 2 of 2": QUANTIZING, "step 2 of 6": (STEP, 6)}),
        (COMPILED, {"compiling": COMPILING}),
    ],
    ids=["quantized", "compiled"],
)
def test_it_is_said_while_it_is_done_and_after_a_kill(
    job: Job, changes: dict, places: dict[str, tuple[str, int]]
) -> None:
    """In each of these places it is held; at the last one, killed."""
    job.change(**changes)
    child = job.start(
        faults=[("hold", *place, str(job.cwd / said)) for said, place in places.items()]
    )
    for said in places:
        child.wait_until(lambda said=said: doing(job) == said)
        run = read_run(job.folder)
        assert run.status is RunStatus.RUNNING and run.now and run.now.started, said
        if said != [*places][-1]:
            (job.cwd / said).touch()
    child.send(signal.SIGKILL)
    child.wait()
    killed = read_run(job.folder)
    assert killed.status is RunStatus.KILLED and killed.now
    assert (killed.now.text(), killed.eta_s) == (said, None)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["stopped", "failed"])
def test_at_the_end_nothing_is_being_done(job: Job, end: str) -> None:
    """Where the end comes before the first step."""
    faults = {
        "stopped": [
            (
                "kill_self",
                "toolkit.data.batches.latent_cache:CacheEntry.encode",
                2,
                int(signal.SIGTERM),
            )
        ],
        "failed": [("fail", "toolkit.models.loading:fill", 1, errno.EIO)],
    }[end]
    job.change(train__steps=2)
    child = job.start(faults=faults)
    child.wait()
    document = json.loads((job.folder / "run.json").read_text())
    assert (document["status"], "now" in document) == (end, False), child.output
    assert read_run(job.folder).now is None


@pytest.mark.slow
def test_the_second_run_knows_its_time_from_the_first_second(job: Job) -> None:
    job.change(train__steps=12, train__gradient_accumulation=1, sample=None)
    job.run()
    held = ("hold", "toolkit.train.base_model:load_model", 1, str(job.cwd / "never"))
    job.name = "again"
    child = job.start(faults=[held])
    child.wait_until(lambda: doing(job) == "reading")
    now = read_run(job.folder).now
    assert now and now.left_s is not None and now.share is not None
    assert re.fullmatch(r"reading, \d+ s left for everything", now.line())
    child.end()


def lines_of(printed: str) -> list[str]:
    """Each state that the last line of a terminal had, and each line that stayed."""
    return [state.rstrip() for state in re.split(r"[\r\n]+", printed) if state.strip()]


@pytest.mark.slow
def test_a_terminal_shows_each_phase_in_one_line_that_is_rewritten(job: Job) -> None:
    job.change(train__steps=4)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), str(job.write())],
        cwd=job.cwd, stdout=follower, stderr=follower, env=child_environment(), close_fds=True,
    )  # fmt: skip
    os.close(follower)
    printed = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        printed += piece
    os.close(leader)
    assert process.wait() == 0, printed.decode()
    states = lines_of(printed.decode())
    wanted = [
        r"reading$",
        r"encoding 1 of 3 images",
        r"sampling 1 of 1",
        r"step 1 of 4 \| loss",
        "saving",
        r"step 4 of 4 \|",
    ]
    places = [
        next(
            (place for place, state in enumerate(states) if re.match(each, state)), None
        )
        for each in wanted
    ]
    assert None not in places and places == sorted(places), (places, states)
    log = (job.folder / "log.txt").read_text()
    assert "encoding 1 of 3" not in log and "step 4 of 4 | " in log, (
        "the log has what stayed"
    )
    without_colours = re.sub(r"\x1b\[[\d;]*m", "", printed.decode())
    assert "\x1b" not in without_colours


def test_a_pipe_gets_a_line_for_each_phase_and_the_first_step(whole: Job) -> None:
    said = whole.started[0].output.splitlines()
    wanted = [
        "reading",
        "encoding 1 of 3 images",
        "sampling 1 of 1",
        "step 1 of 6 | loss ",
        "saving",
        "step 6 of 6 | ",
    ]
    places = [
        next((place for place, line in enumerate(said) if line.startswith(each)), -1)
        for each in wanted
    ]
    assert -1 not in places and places == sorted(places), said
    assert len([line for line in said if line.startswith("step ")]) == 2
    log = (whole.folder / "log.txt").read_text().splitlines()
    assert {line for line in log if line[:2] != "  "} <= {*said}, "all but the plan"
    assert "now" not in json.loads((whole.folder / "run.json").read_text())


@pytest.mark.slow
def test_a_download_is_said_with_its_size(job: Job, tiny_model: Path) -> None:
    """By the files that grow in the cache, in run.json and in the output; then it is
    trained."""
    files = {
        path.relative_to(tiny_model).as_posix(): path.read_bytes()
        for path in tiny_model.rglob("*.*")
    }
    total = sum(map(len, files.values()))
    job.change(model__name_or_path="someone/model", memory_check=False, sample=None)
    job.change(train__steps=1)
    settings = {"HF_HOME": str(job.cwd / "home"), "HF_HUB_OFFLINE": "0"}
    settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with small_hub(files, "someone/model") as hub:
        hub.opened.clear()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), str(job.write())],
            cwd=job.cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=child_environment(settings | {"HF_ENDPOINT": hub.url}),
        )  # fmt: skip
        line = re.compile(r"downloading ([\d.]+) of ([\d.]+) [kM]B")
        found = until(lambda: line.fullmatch(doing(job)), 60, process)
        assert float(found[1]) < float(found[2]) and total > 40_000
        hub.opened.set()
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert (
        re.search(r"^downloading .* of .* [kM]B", said, re.MULTILINE)
        and "%|" not in said
    ), "no other bar beside it"
    assert (job.folder / "job.safetensors").is_file()
    assert "now" not in json.loads((job.folder / "run.json").read_text())
