"""Every network, optimizer, schedule and dtype with every other that claims to work with it.

Each row trains 4 steps with a save after 2, goes on once more from that save, ends in the same bytes, and loads.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from jobs.job import ExtensionJob
from tests.pairwise import Row, pairwise
from toolkit.config import load_job
from toolkit.extension import discover
from toolkit.models.qwen_image.family import FAMILY
from toolkit.networks.kinds import KINDS
from toolkit.networks.lora_formats import load_adapter_file
from toolkit.number_types import QTYPES
from toolkit.optim.optimizer_args import OPTIMIZERS, is_schedule_free
from toolkit.optim.schedules import SCHEDULES

AXES = {
    "network": [*KINDS],
    "optimizer": [*OPTIMIZERS, "torch.optim.NAdam"],
    "schedule": list(SCHEDULES),
    "base": ["16 bit", *QTYPES, "int8 matmul"],
}

SCHEDULE_PARAMS = {
    "step": {"step_size": 2},
    "exponential": {"gamma": 0.5},
    "piecewise_constant": {"step_rules": "1:2,0.5"},
}

LEARNING_RATES = {"prodigy": 1.0, "sgd": 1.0}


def goes_together(row: Row) -> bool:
    """What the config refuses is left out, and tested where it is refused."""
    if row["network"] == "full" and row["base"] != "16 bit":
        return False
    return not is_schedule_free(row["optimizer"]) or row["schedule"] == "constant"


ROWS = pairwise(AXES, goes_together)


def section_of(row: Row, trainer: Callable[..., dict], photos: Path) -> dict:
    optimizer = row["optimizer"]
    section = trainer(
        photos,
        network={"type": row["network"], **({} if row["network"] == "full" else {"linear": 2, "linear_alpha": 2})},
        save={"dtype": "float32", "save_every": 2},
        train={
            "steps": 4,
            "dtype": "bf16",
            "optimizer": optimizer,
            "lr": LEARNING_RATES.get(optimizer, 0.01),
            "lr_scheduler": row["schedule"],
            "lr_scheduler_params": SCHEDULE_PARAMS.get(row["schedule"], {}),
            **({} if is_schedule_free(optimizer) else {"lr_warmup_steps": 1}),
        },
    )
    if row["base"] != "16 bit":
        qtype, _, matmul = row["base"].partition(" ")
        section["model"] |= {"quantize": True, "qtype": qtype, "int8_matmul": bool(matmul)}
    return section


def run_job(path: Path) -> None:
    extensions = discover()
    job = ExtensionJob(load_job(path, extensions.find_config), extensions)
    job.run()
    job.cleanup()


def what_is_saved(run: Path, name: str) -> dict[str, bytes]:
    """A network file, or the files of a model folder."""
    found = run / name
    files = [found] if found.is_file() else sorted(p for p in found.rglob("*") if p.is_file())
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def loads(run: Path, name: str, kind: str, model: Path) -> bool:
    """Whether the file holds a change of every layer, or the folder a model that draws finite numbers."""
    if kind != "full":
        changes = load_adapter_file(run / name, FAMILY.linear_layers(model))
        return len(changes) == 28 and all(bool(change.delta().isfinite().all()) for change in changes.values())
    loaded = QwenImageTransformer2DModel.from_pretrained(run / name / "transformer", torch_dtype=torch.float32)
    return all(bool(parameter.isfinite().all()) for parameter in loaded.parameters())


def test_every_two_values_that_go_together_meet() -> None:
    for one, other in combinations(AXES, 2):
        met = {(row[one], row[other]) for row in ROWS}
        possible = {
            (row[one], row[other])
            for values in product(*AXES.values())
            if goes_together(row := dict(zip(AXES, values, strict=True)))
        }
        assert met == possible


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(str(value).replace(" ", "_") for value in row.values()))
def test_it_trains_saves_goes_on_and_loads(
    row: Row, tiny_model: Path, trainer, write_job, make_pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = make_pictures(tmp_path / "photos", "a", "b")
    section = section_of(row, trainer, photos)
    run_job(write_job(section))
    run = tmp_path / "output" / "job"
    name = "job" if row["network"] == "full" else "job.safetensors"
    whole = what_is_saved(run, name)
    assert whole and loads(run, name, row["network"], tiny_model)
    run_job(write_job({**section, "resume": 2}))
    assert what_is_saved(run, name) == whole
