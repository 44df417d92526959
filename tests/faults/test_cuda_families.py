"""A job of every family on the device that stands in for CUDA: it trains, validates and
samples there, with the CPU's numbers, compiled too, and no step waits for the device."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.faults.conftest import Job, draw_pictures
from tests.faults.nursery import Nursery
from tests.stand_in_cuda import COMPILER, built
from toolkit.models.tiny import TinySpec, write_tiny_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        COMPILER is None,
        reason="compiles the device that stands in for CUDA, and finds no c++",
    ),
    pytest.mark.skipif(
        torch.backends.cuda.is_built(), reason="this PyTorch has a CUDA of its own"
    ),
]
BF16 = {"train": {"dtype": "bf16"}}
JOBS: dict[str, tuple[str, dict[str, dict]]] = {
    "qwen_image": ("qwen_image", BF16),
    "qwen_image_edit": ("qwen_image_edit", {"model": {"quantize": True}}),
    "qwen_image_edit_plus": ("qwen_image_edit_plus", BF16),
    "qwen_image_2": ("qwen_image_2", BF16),
    "qwen_image_2, four noise levels": (
        "qwen_image_2",
        {"train": {"dtype": "bf16", "noise_levels_per_sample": 4}},
    ),
}
STEPS = 4


@pytest.fixture
def start(
    nursery: Nursery, small_section: dict, tmp_path: Path
) -> Callable[..., tuple[Job, dict[str, int]]]:
    """A small job of one of `JOBS`, on the CPU or the stand-in device, and what the
    host waited for there."""
    photos, before = (
        draw_pictures(tmp_path / name, "a", "b", "c") for name in ("photos", "before")
    )
    (photos / "b.txt").write_text("a photo of b with a longer caption")

    def run(name: str, device: str, **changes: object) -> tuple[Job, dict[str, int]]:
        arch, settings = JOBS[name]
        folder = tmp_path / arch
        if not folder.exists():
            write_tiny_model(folder, TinySpec(arch=arch))
        section = copy.deepcopy(small_section)
        section |= {"device": device, "model": {"name_or_path": str(folder)}}
        section["datasets"] = [{"folder_path": str(photos), "resolution": 64}]
        if arch != "qwen_image":
            section["datasets"][0]["control_path"] = str(before)
        for part, values in settings.items():
            section[part] |= values
        cwd = tmp_path / f"job_{len([*tmp_path.iterdir()])}"
        cwd.mkdir()
        job = Job(nursery, cwd, section)
        job.change(train__steps=STEPS, sample__sample_every=0, **changes)
        report = cwd / "report.json"
        faults = [
            ("cuda", str(built()), str(report)),
            ("fetch_by_steps_only", STEPS),
        ]
        job.run(faults=faults if device != "cpu" else [])
        return job, json.loads(report.read_text())["waited"] if device != "cpu" else {}

    return run


@pytest.mark.parametrize("name", JOBS)
def test_a_job_of_a_family_learns_there_what_it_learns_on_the_cpu(
    name: str, start: Callable[..., tuple[Job, dict[str, int]]]
) -> None:
    here, _ = start(name, "cpu")
    there, many = start(name, "cuda:0")
    _, few = start(name, "cuda:0", train__steps=STEPS // 2)
    compiled, _ = start(
        name,
        "cuda:0",
        train__compile={"enabled": True, "backend": "aot_eager"},
        sample__sample_every=STEPS,
    )
    for job in (there, compiled):
        assert [line["loss"] for line in job.metrics()] == pytest.approx(
            [line["loss"] for line in here.metrics()], rel=2e-3
        )
    print(name, few, many)
