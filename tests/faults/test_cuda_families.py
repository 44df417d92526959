"""Families unlike the first one on the device that stands in for CUDA: they train there
with the CPU's numbers, compiled and sampling too, and no step waits for the device."""

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
FEW_LAYERS = {"network_kwargs": {"only_if_contains": ["to_q"]}}
"""Each takes seconds to be traced."""

JOBS: dict[str, tuple[TinySpec, dict[str, dict]]] = {
    "qwen_image_2, four noise levels": (
        TinySpec(arch="qwen_image_2"),
        {"train": {"noise_levels_per_sample": 4}, "network": FEW_LAYERS},
    ),
    "qwen_image": (TinySpec(arch="qwen_image"), {"network": FEW_LAYERS}),
    "qwen_image_edit_plus, 2511": (
        TinySpec(zero_cond_t=True),
        {"network": FEW_LAYERS},
    ),
}
"""Model and settings. `test_cuda` has the jobs of Qwen-Image-Edit-2509."""

STEPS = 3
SAMPLE = {"prompts": ["a photo"], "width": 64, "height": 64, "sample_steps": 2}


@pytest.fixture
def start(
    nursery: Nursery, small_section: dict, tmp_path: Path
) -> Callable[..., tuple[Job, dict[str, int]]]:
    """Trains one of `JOBS`, on the CPU or the stand-in device: the job, and what the
    host waited for there."""
    photos, before = (
        draw_pictures(tmp_path / name, "a", "b", "c") for name in ("photos", "before")
    )
    (photos / "b.txt").write_text("a photo of b with a longer caption")

    def train(
        name: str, device: str, steps: int = STEPS, **changes: object
    ) -> tuple[Job, dict[str, int]]:
        spec, settings = JOBS[name]
        model = tmp_path / spec.arch
        if not model.exists():
            write_tiny_model(model, spec)
        cwd = tmp_path / f"{device}_{steps}_{len(changes)}"
        cwd.mkdir()
        job = Job(nursery, cwd, copy.deepcopy(small_section))
        dataset = {"folder_path": str(photos)}
        if spec.arch != "qwen_image":
            dataset["control_path"] = str(before)
        job.section |= {
            "device": device,
            "datasets": [{**dataset, "resolution": 64}],
            "model": {
                "name_or_path": str(model),
                "model_kwargs": {"match_target_res": True},
            },
            "sample": None,
        }
        for part, values in settings.items():
            job.section[part] |= values
        job.change(train__steps=steps, save__save_every=0, **changes)
        if device == "cpu":
            job.run()
            return job, {}
        report = cwd / "report.json"
        job.run(
            faults=[
                ("cuda", str(built()), str(report)),
                ("fetch_by_steps_only", STEPS),
            ]
        )
        return job, json.loads(report.read_text())["waited"]

    return train


@pytest.mark.parametrize("name", JOBS)
def test_a_family_learns_there_what_it_learns_on_the_cpu_and_no_step_waits(
    name: str, start: Callable[..., tuple[Job, dict[str, int]]]
) -> None:
    """See `test_no_step_waits_for_the_device`."""
    here, _ = start(name, "cpu")
    there, few = start(name, "cuda:0")
    _, many = start(name, "cuda:0", 2 * STEPS)
    compiled, _ = start(
        name,
        "cuda:0",
        train__compile={"enabled": True, "backend": "aot_eager"},
        sample=SAMPLE,
    )
    for job in (there, compiled):
        assert [line["loss"] for line in job.metrics()] == pytest.approx(
            [line["loss"] for line in here.metrics()], rel=1e-5
        ), job.cwd
    waited = {what: many[what] - few.get(what, 0) for what in many}
    assert waited == dict.fromkeys(many, 0)


BEHIND = """
import bitsandbytes  # before the device, as it looks for a real one
import torch
from tests.stand_in_cuda import built, install

install(built())
from toolkit.models.qwen_image21.forward import _has_flash, _text_behind

query, key, value = (torch.randn(1, 2, length, 8) for length in (5, 12, 12))
there = [tensor.to("cuda") for tensor in (query, key, value)]
assert _has_flash(there[0].flatten(1, 2), 8) and not _has_flash(query.flatten(1, 2), 8)
here = _text_behind(query, key, value, has_flash=False)
for has_flash in (False, True):
    torch.testing.assert_close(_text_behind(*there, has_flash).cpu(), here)
"""


def test_text_behind_an_image_sees_what_is_before_it(
    nursery: Nursery, tmp_path: Path
) -> None:
    """With flash attention, whose `is_causal` ends with the last key, as with a mask."""
    nursery.fork([BEHIND], tmp_path, "program", main="tests.faults.faults").ends_with(0)
