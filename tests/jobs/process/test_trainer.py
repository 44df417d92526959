"""A second trainer: a linear autoencoder on folders of images goes through the rooms
that all trainers share."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs import ExtensionJob, JobOptions
from jobs.dry_run import plan_job
from jobs.process.trainer import Trainer
from tests.network_files import same_tensors
from tests.parts import needs_part
from tests.running import check_every, lines, losses
from toolkit.config import load_job
from toolkit.errors import Interrupted, RunError, UserError
from toolkit.extension import discover
from toolkit.files.log import shown
from toolkit.shortage import FILES, MEMORY, THREADS
from toolkit.train.lock import run_lock

INIT = """
    from toolkit.extension import Extension

    class Autoencoder(Extension):
        uid = "autoencoder"
        name = "Autoencoder"

        @classmethod
        def get_config(cls):
            from .config import AutoencoderConfig
            return AutoencoderConfig

        @classmethod
        def get_process(cls):
            from .process import AutoencoderProcess
            return AutoencoderProcess

    AI_TOOLKIT_EXTENSIONS = [Autoencoder]
"""

CONFIG = '''
    from typing import ClassVar

    from toolkit.config.sections.trainer import DatasetsSection, TrainerConfig
    from toolkit.data.scan.items import scan_items
    from toolkit.data.batches.epoch_order import count_batches
    from toolkit.data.streams.counts import optimizer_steps
    from toolkit.plan.run_plan import RunPlan, folder_plans


    class AutoencoderConfig(DatasetsSection, TrainerConfig):
        """`type: autoencoder`: it has neither a model nor a network."""

        code: int = 4
        """Numbers of the code of a picture."""

        on_resume: ClassVar = {"code": "impossible"}

        def plan(self, job):
            return self.plan_of(job.name, *scan_items(self, 32))

        def plan_of(self, name, scan, items):
            batches, train = count_batches(items, self.train.batch_size), self.train
            return RunPlan(
                type=self.type,
                name=name,
                datasets=folder_plans(scan.folders, items),
                samples_per_epoch=len(items),
                micro_batches_per_epoch=batches,
                optimizer_steps=optimizer_steps(train.steps, train.epochs, batches, train.gradient_accumulation),
                accumulation=train.gradient_accumulation,
                notes=scan.notes,
            )
'''

PROCESS = '''
    from dataclasses import dataclass
    from functools import partial

    import torch
    from torch import nn

    from jobs.process.trainer import Trainer
    from toolkit.contracts.data import BatchSpec
    from toolkit.contracts.training import StepLosses, TrainStep
    from toolkit.data.scan.fingerprint import fingerprint
    from toolkit.data.pixels.images import open_image, resize_cover_crop, to_tensor
    from toolkit.data.scan.items import scan_items
    from toolkit.data.batches.epoch_order import EpochSource, epoch_batches
    from toolkit.networks.save import write_safetensors_verified
    from toolkit.files.run_files import step_stem
    from toolkit.train.loop import train
    from toolkit.train.roles import build_role

    SIDE = 32


    @dataclass(frozen=True)
    class Pictures:
        """A batch that has neither latents nor prompts."""

        pixels_BCHW: torch.Tensor
        spec: BatchSpec
        names: tuple

        def __len__(self):
            return len(self.names)

        def halves(self):
            return (self,)

        def describe(self):
            return f"pixels {tuple(self.pixels_BCHW.shape)}"


    class Reconstruction(TrainStep):
        def __init__(self, model):
            self.model = model

        def __call__(self, batch, step):
            x_BD = batch.pixels_BCHW.flatten(1)
            return StepLosses({"autoencoder": (self.model(x_BD) - x_BD).square().mean(1)})


    class AutoencoderProcess(Trainer):
        """Trains a linear code of small pictures."""

        def scan(self):
            return scan_items(self.section, SIDE)

        def fingerprint(self):
            return fingerprint(self.data[0].samples)

        def make_plan(self):
            return self.section.plan_of(self.job.name, *self.data)

        def open_model(self):
            torch.manual_seed(self.seed)
            width, code = 3 * SIDE * SIDE, self.section.code
            self.model = nn.Sequential(nn.Linear(width, code), nn.Dropout(0.2), nn.Linear(code, width))

        def attach(self):
            steps, parameters = self.plan.optimizer_steps, dict(self.model.named_parameters())
            settings = self.section.train
            role = build_role(settings, parameters, steps, self.seed, self.process_group, settings.ema_config)
            self.roles = {"autoencoder": role}

        def weights_writer(self):
            def prepare(run, step):
                stem = {None: run.name, "best": f"{run.name}_best"}.get(step) or step_stem(run.name, step)
                file, info = run.folder / f"{stem}.safetensors", {"training_info": f'{{"step": {run.state.step}}}'}
                weights = {name: value.clone() for name, value in run.roles["autoencoder"].eval_weights().items()}

                def write():
                    write_safetensors_verified(file, weights, info)
                    return [file]

                return write

            return prepare

        def fit(self, run):
            items = self.data[1]

            def load(specs):
                for spec in specs:
                    samples = [items[index] for index in spec.items]
                    pixels = [to_tensor(resize_cover_crop(open_image(s.sample.image), s.crop)) for s in samples]
                    pixels_BCHW = nn.functional.interpolate(torch.stack(pixels), (SIDE, SIDE))
                    yield Pictures(pixels_BCHW, spec, tuple(item.sample.image for item in samples))

            batches = partial(epoch_batches, items, self.section.train.batch_size, run.seed)
            train(run, EpochSource(batches, load), Reconstruction(self.model))
'''


@pytest.fixture
def start(
    write_extension: Callable[..., Path],
    make_pictures: Callable[..., Path],
    write_job: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Path]:
    """Runs a job of the second trainer in this process, under this name; returns the
    run's folder."""
    monkeypatch.chdir(tmp_path)
    write_extension("autoencoder", INIT, config=CONFIG, process=PROCESS)
    pictures = make_pictures(tmp_path / "pictures", "a", "b", "c", "d", "e")
    table = discover([tmp_path / "drop_ins"])

    def start(
        name: str = "job",
        plan_only: bool = False,
        train: dict | None = None,
        options: JobOptions | None = None,
        **keys: object,
    ) -> Path:
        settings = {
            "steps": 6,
            "batch_size": 2,
            "lr": 0.0001,
            "ema_config": {"use_ema": True, "ema_decay": 0.5},
        }
        section = {
            "type": "autoencoder",
            "device": "cpu",
            "training_seed": 3,
            "datasets": [{"folder_path": str(pictures), "resolution": 64}],
            "save": {"dtype": "float32", "save_every": 2, "max_states_to_keep": 0},
            "train": {**settings, **(train or {})},
            **keys,
        }
        config = load_job(write_job(section, name=name), table.find_config)
        if plan_only:
            print(plan_job(config).render())
        else:
            with shown():
                ExtensionJob(config, table, options or JobOptions()).run()
        return tmp_path / "output" / name

    return start


@pytest.mark.slow
def test_a_run_records_the_file_that_it_was_started_from(start, tmp_path: Path) -> None:
    """Also where its saved copy goes on; a job that the command line changed is in no
    file."""
    folder = start(train={"steps": 1}, save={"max_states_to_keep": 0})
    origin = {"file": str(tmp_path / "job.yaml"), "cwd": str(tmp_path)}

    assert json.loads((folder / "run.json").read_text())["origin"] == origin
    table = discover([tmp_path / "drop_ins"])
    for steps, file, options, expected in (
        (2, folder / "config.yaml", {}, origin),
        (3, tmp_path / "job.yaml", {"name": "job"}, {}),
    ):
        text = re.sub(r"\bsteps(\W+)1\b", rf"steps\g<1>{steps}", file.read_text())
        file.write_text(text)
        with shown():
            config = load_job(file, table.find_config, **options)
            ExtensionJob(config, table, JobOptions()).run()
        assert json.loads((folder / "run.json").read_text())["origin"] == expected


def test_it_trains_saves_and_tells_as_every_trainer_does(start, tmp_path: Path) -> None:
    folder = start()
    assert len(set(losses(folder))) == 6
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert [line["event"] for line in lines(folder / "events.jsonl")].count("save") >= 3
    assert "training_seed 3" in (folder / "log.txt").read_text()
    kept = load_file(folder / "job.safetensors")
    averages = load_file(folder / "state" / "step_000000006" / "ema.safetensors")
    raw = load_file(folder / "state" / "step_000000006" / "weights.safetensors")
    assert all(
        torch.equal(tensor, averages[f"autoencoder/{name}"])
        for name, tensor in kept.items()
    )
    assert not any(
        torch.equal(tensor, raw[f"autoencoder/{name}"]) for name, tensor in kept.items()
    )


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_bit_for_bit(start, tmp_path: Path) -> None:
    whole = start("whole")
    stopped = tmp_path / "output" / "stopped"
    (stopped / "control").mkdir(parents=True)
    (stopped / "control" / "stop").touch()
    with suppress(Interrupted):
        start("stopped")
    assert len(losses(stopped)) < 6
    assert start("stopped") == stopped
    assert losses(stopped) == losses(whole)
    shown = [
        re.findall(r"step 6 of 6 .* (avg [0-9.]+)", (run / "log.txt").read_text())[-1]
        for run in (stopped, whole)
    ]
    assert shown[0] == shown[1], (
        "the mean of the loss is that of the run, not of this start"
    )
    assert same_tensors(stopped / "stopped.safetensors", whole / "whole.safetensors")
    for file in ("weights", "ema", "optimizer"):
        state = f"state/step_000000006/{file}.safetensors"
        assert same_tensors(stopped / state, whole / state), file


def test_a_resume_with_another_number_of_threads_says_so(start, capsys) -> None:
    start(train={"steps": 2})
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        start(train={"steps": 4})
    finally:
        torch.set_num_threads(threads)
    line = f"changed since the last run: threads of the CPU: {threads} -> {threads + 1}. Results differ by rounding\n"
    assert line in capsys.readouterr().out


@pytest.mark.slow
def test_what_the_machine_is_short_of_is_one_line(start, monkeypatch) -> None:
    for number, (error, said) in enumerate(
        (
            (MemoryError(), MEMORY),
            (RuntimeError("can't start new thread"), THREADS),
            (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/dev/null"), FILES),
            (
                RuntimeError("CUDA error: out of memory\nfor developers"),
                "CUDA error: out of memory. ",
            ),
        )
    ):

        def train(self, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(Trainer, "train", train)
        with pytest.raises(RunError) as caught:
            start(f"run_{number}")
            pytest.fail(f"{error!r} is lost")
        assert str(caught.value) == f"{said}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "told"),
    [
        # by the trial of the optimizer, while the model is made, in the loop
        ({"train": {"optimizer": "torch.optim.SparseAdam"}}, "step 0 of 6: UserError"),
        ({"code": -1}, "step 0 of 6: RuntimeError"),
        ({"train": {"optimizer": "sgd", "lr": 900}}, "step 5 of 6: RunError"),
    ],
)
def test_callbacks_are_told_once_of_a_failure_also_before_the_first_step(
    start, tmp_path: Path, monkeypatch, keys: dict, told: str
) -> None:
    monkeypatch.setenv("ATELIER_COMMANDS", "1")
    command = "cat >> told; echo >> told"
    keys["train"] = {"max_grad_norm": 0, **keys.get("train", {})}
    with pytest.raises((UserError, RuntimeError, RunError)):
        start(callbacks=[{"type": "run", "command": command}], **keys)
    (error,) = [
        one for one in lines(tmp_path / "told") if one["event"] in ("end", "error")
    ]
    assert f"failed at {told}" in error["text"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "None, without what saves the run"),
        ([], r"\[\], without what saves the run"),
    ],
)
def test_an_extension_cannot_forget_the_callbacks_that_save(
    start, tmp_path: Path, monkeypatch, given: object, told: str
) -> None:
    monkeypatch.setattr(Trainer, "build_callbacks", lambda self: given)
    message = rf"AutoencoderProcess\.build_callbacks returns {told}: return \[\*super"
    with pytest.raises(RunError, match=message):
        start()


def test_what_its_steps_have_made_is_gone_once_it_has_run(start, monkeypatch) -> None:
    """A job keeps its processes, and the next one needs the memory."""
    jobs = []

    class KeptJob(ExtensionJob):
        def run(self):
            jobs.append((self, dict(vars(self.process[0]))))
            super().run()

    monkeypatch.setattr(sys.modules[__name__], "ExtensionJob", KeptJob)
    assert (start() / "job.safetensors").is_file()
    job, before = jobs[0]
    assert vars(job.process[0]) == before


@pytest.mark.slow
def test_its_own_section_says_which_keys_may_change(start) -> None:
    start(train={"steps": 2})
    with pytest.raises(UserError, match=r"^code: 4 -> 5\nthis cannot change: "):
        start(code=5)
    with pytest.raises(UserError, match=r"--allow-change"):
        start(train={"lr": 0.02})
    assert len(losses(start(save={"dtype": "float32"}))) == 6


def test_a_folder_in_which_a_run_is_going_on_is_refused(start, tmp_path: Path) -> None:
    with (
        run_lock(tmp_path / "output" / "job"),
        pytest.raises(RunError, match="process"),
    ):
        start()


STOP = {"metric": "loss", "below": 100, "smooth": 2}


def test_it_ends_by_a_number_and_is_complete_then(
    start, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_every(monkeypatch, 1)
    folder = start(stop_when=STOP)
    assert len(losses(folder)) == 2
    start(stop_when=STOP)
    assert "complete at step 2: nothing to do" in capsys.readouterr().out
    assert len(losses(folder)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("stop", [None, STOP])
def test_a_run_without_states_is_complete_too_and_begins_anew_with_more_steps(
    start, capsys, stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_every(monkeypatch, 1)
    keys = {
        "save": {"dtype": "float32", "states": "never"},
        **({"stop_when": stop} if stop else {}),
    }
    folder = start(**keys)
    done = 2 if stop else 6
    assert not list(folder.glob("state/step_*"))
    start(**keys)
    assert f"complete at step {done}: nothing to do" in capsys.readouterr().out
    assert len(losses(folder)) == done
    start(train={"steps": 8}, save=keys["save"])
    assert (
        len(losses(folder)) == 8
        and (folder / "superseded" / "1" / "job.safetensors").is_file()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("states", "change"), [("always", "settings"), ("never", "dataset")]
)
def test_a_complete_run_of_another_job_is_neither_complete_nor_touched(
    start, make_pictures, tmp_path: Path, capsys, states: str, change: str
) -> None:
    """As a copied job whose name was not changed: it is refused, and each remedy that
    is named works."""
    save = {"dtype": "float32", "states": states}
    folder = start(save=save)
    if change == "dataset":
        (tmp_path / "pictures" / "a.txt").write_text("another caption")
        make_pictures(tmp_path / "pictures", "f")
    keys = {"save": save, "train": {"lr": 0.02} if change == "settings" else {}}
    said = (
        r"train\.lr: 0\.0001 -> 0\.02"
        if change == "settings"
        else r"1 added \(\S+f\.png\); 1 edited \("
    )
    with pytest.raises(
        UserError, match=rf"(?s){said}.*another name.*--restart"
    ) as refused:
        start(**keys)
    assert "--allow-change" in str(refused.value) and str(Path("output/job")) in str(
        refused.value
    )
    assert "nothing to do" not in capsys.readouterr().out
    start(**keys, options=JobOptions(allow_change=True))
    assert "complete at step 6: nothing to do" in capsys.readouterr().out
    before = (folder / "job.safetensors").read_bytes()
    start(**keys, options=JobOptions(restart=True))
    assert "moved the old run to" in capsys.readouterr().out
    assert (
        tmp_path / "output" / "job.old-1" / "job.safetensors"
    ).read_bytes() == before
    assert len(losses(folder)) == 6
    start(**keys)
    assert "complete at step 6: nothing to do" in capsys.readouterr().out
    start(**keys, options=JobOptions(restart=True))
    assert "moved the old run to" in capsys.readouterr().out
    assert (tmp_path / "output" / "job.old-2").is_dir() and len(losses(folder)) == 6


def test_a_dry_run_shows_its_plan_and_writes_nothing(
    start, tmp_path: Path, capsys
) -> None:
    folder = start(plan_only=True)
    assert "6 steps = 2 epochs" in capsys.readouterr().out
    assert not folder.exists()


@pytest.mark.slow
def test_what_is_in_the_way_in_its_folder_is_named_in_one_line(
    start, tmp_path: Path
) -> None:
    """A file where a folder belongs, or the other way round."""
    files = ("metrics.jsonl", "events.jsonl", "run.json", "config.yaml")
    for number, name in enumerate(("state", "control", *files)):
        place = tmp_path / "output" / f"run_{number}" / name
        place.parent.mkdir(parents=True)
        place.mkdir() if name in files else place.touch()
        with pytest.raises(RunError) as caught:
            start(f"run_{number}")
            pytest.fail(f"{name} is not in the way")
        line = str(caught.value)
        assert f"output/run_{number}/{name}" in line, name
        assert ": cannot be " in line and "\n" not in line, line


@pytest.mark.slow
def test_records_that_are_nested_too_deeply_to_be_read_count_as_damaged(start) -> None:
    folder = start(train={"steps": 2})
    deep = "[" * 100_000
    (folder / "run.json").write_text(deep)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f"{deep}\n")
    assert len(losses(start())) == 6


@needs_part("hooks")
@pytest.mark.slow
def test_a_callback_that_changes_the_working_directory_moves_nothing(
    start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from extensions.hooks.config import ALLOWED
    from extensions.hooks.notices import CommandCallback

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv(ALLOWED, "1")
    monkeypatch.setattr(CommandCallback, "on_save", lambda *_: os.chdir(elsewhere))
    monkeypatch.chdir(tmp_path)  # and back at the end
    before = {path.name for path in start("plain").iterdir()}
    folder = start("moved", callbacks=[{"type": "run", "command": "true"}])
    assert [*elsewhere.iterdir()] == []
    after = {path.name.replace("moved", "plain") for path in folder.iterdir()}
    assert after == before
