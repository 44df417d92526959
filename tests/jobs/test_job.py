"""A job builds all processes, then runs them in order, and tells the one that fails."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import BaseJob, ExtensionJob
from tests.processes import in_processes
from toolkit.errors import Interrupted, RunError
from toolkit.system.distributed import ProcessGroup

PROCESS = """
    import weakref

    from jobs.process import BaseExtensionProcess

    class Model:
        pass

    class SimpleProcess(BaseExtensionProcess):
        def __init__(self, process_id, job, config):
            super().__init__(process_id, job, config)
            self.say("built")

        def say(self, word):
            self.job.meta["log"].append((word, self.process_id))

        def run(self):
            super().run()
            self.say("ran")
            if self.get_conf("makes"):
                model = Model()
                model.itself = model
                self.job.meta["model"] = weakref.ref(model)
            elif "model" in self.job.meta:
                self.say("still there" if self.job.meta["model"]() else "gone")
            if self.get_conf("leaves"):
                raise SystemExit(0)
            if self.get_conf("fails"):
                raise ValueError("first")

        def on_error(self, error):
            self.say(f"heard {error}")
            if self.get_conf("fails") == "twice":
                raise KeyError("second")
            if self.get_conf("leaves") == "twice":
                raise SystemExit(0)
"""


@pytest.fixture
def build(
    build_job: Callable[..., ExtensionJob],
    simple_extension: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    package = simple_extension("step")
    (package / "process.py").write_text(
        PROCESS.replace("\n    ", "\n"), encoding="utf-8"
    )

    def build(*sections: dict) -> ExtensionJob:
        return build_job(
            *({"type": "step", **section} for section in sections), meta={"log": []}
        )

    return build


def test_all_are_built_before_the_first_runs(build) -> None:
    job = build({}, {})
    assert job.meta["log"] == [("built", 0), ("built", 1)]
    job.run()
    assert job.meta["log"][2:] == [("ran", 0), ("ran", 1)]


def test_the_process_that_fails_hears_of_it_and_ends_the_job(build) -> None:
    job = build({}, {"fails": True}, {})
    with pytest.raises(ValueError, match="first"):
        job.run()
    assert job.meta["log"][3:] == [("ran", 0), ("ran", 1), ("heard first", 1)]


def test_a_failing_on_error_does_not_hide_the_first_error(
    build, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="first"):
        build({"fails": "twice"}).run()
    assert "on_error of SimpleProcess failed too" in capsys.readouterr().err


@pytest.mark.parametrize("leaves", [True, "twice"])
def test_a_process_that_leaves_the_program_has_failed(build, leaves: object) -> None:
    job = build({"leaves": leaves}, {})
    with pytest.raises(RunError, match=r"SimpleProcess called sys\.exit\(0\)"):
        job.run()
    heard = "heard SimpleProcess called sys.exit(0): it counts as failed."
    assert job.meta["log"][2:] == [("ran", 0), (heard, 0)]


def test_a_stop_is_no_error(build) -> None:
    job = build({})
    job.process[0].run = stop
    with pytest.raises(Interrupted):
        job.run()
    assert ("heard", 0) not in [
        (word.split()[0], index) for word, index in job.meta["log"]
    ]


def stop() -> None:
    raise Interrupted(75)


def test_a_process_needs_no_on_error(build) -> None:
    class Bare:
        def run(self) -> None:
            raise ValueError("bare")

    job = build({})
    job.process[:] = [Bare()]
    with pytest.raises(ValueError, match="bare"):
        job.run()


def test_what_a_process_leaves_in_circles_of_references_is_gone_before_the_next_one(
    build,
) -> None:
    job = build({"makes": True}, {})
    job.run()
    assert ("gone", 1) in job.meta["log"]


def test_cleanup_lets_go_of_the_processes(build) -> None:
    job = build({})
    job.cleanup()
    assert job.process == []


def test_what_a_drop_in_may_ask_of_its_job(build) -> None:
    job = build({"a": {"b": 1}})
    assert isinstance(job, BaseJob)
    assert (job.name, job.job) == ("job", "extension")
    assert job.processes is job.process
    assert job.config == {"name": "job", "process": [{"type": "step", "a": {"b": 1}}]}
    assert job.raw_config["config"] is job.config
    assert job.process[0].config is job.config["process"][0]
    assert isinstance(job.process[0].config, OrderedDict)


def test_a_job_changes_its_own_copies_only(build) -> None:
    job = build({"a": {"b": 1}})
    job.meta["log"].append("mine")
    job.config["process"][0]["a"]["b"] = 2
    assert "mine" not in job.job_config.meta["log"]
    assert job.job_config.processes[0].raw["a"] == {"b": 1}


def test_of_several_processes_only_the_first_runs_what_does_not_run_everywhere(
    build,
) -> None:
    job = build({}, {})
    job.process[1].runs_everywhere = True

    def run(process_group: ProcessGroup) -> list:
        job.process_group = process_group
        process_group.init_process_group = lambda minutes: None  # it is
        job.run()
        return job.meta["log"][2:]

    assert in_processes(2, run) == [[("ran", 0), ("ran", 1)], [("ran", 1)]]


def test_its_device_is_the_best_there_is(build) -> None:
    from toolkit.system.device import pick_device

    assert build({}).device == str(pick_device("auto"))
