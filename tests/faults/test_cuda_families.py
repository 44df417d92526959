"""Families unlike the first one on the device that stands in for CUDA: they train there
with the CPU's numbers in every precision, swapped, compiled and validated too, and no
step waits for the device."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.faults.conftest import STEP, Job, draw_pictures, pictures_of
from tests.faults.nursery import Nursery
from tests.layer_files import write_layers
from tests.parts import needs_stand_in
from tests.stand_in_cuda import built
from toolkit.models.tiny import TinySpec, write_tiny_model

pytestmark = [
    pytest.mark.slow,
    needs_stand_in,
]

FAMILIES = {
    "2511": TinySpec(layers=4, zero_cond_t=True),
    "text to image": TinySpec(layers=4, arch="qwen_image"),
    "2.1": TinySpec(layers=4, arch="qwen_image_2"),
    "layered": TinySpec(layers=4, arch="qwen_image_layered"),
}
"""`test_cuda` has the jobs of Qwen-Image-Edit-2509."""

STEPS = 3

SAMPLE = {"sample_every": STEPS, "sample_at_first": False}

Settings = dict[str, dict]

JOBS: dict[str, tuple[Settings, Settings]] = {
    "the model itself, in bf16, swapped": (
        {
            "network": {"type": "full"},
            "train": {
                "dtype": "bf16",
                "full_bf16": True,
                "optimizer": "adafactor",
                "fused_backward_pass": True,
                "max_grad_norm": 0,
                "lr": 1e-4,
            },
            "sample": SAMPLE,
        },
        {
            "model": {"blocks_to_swap": 3},
            "train": {"gradient_checkpointing": "full_offload"},
        },
    ),
    "int8 and bf16, compiled": (
        {
            "model": {"quantize": True, "qtype": "int8"},
            "train": {"dtype": "bf16"},
            # A tenth of the layers, as each takes seconds to be traced.
            "network": {"network_kwargs": {"only_if_contains": ["to_q"]}},
            "sample": {**SAMPLE, "guidance_scale": 4, "neg": "blurry"},
        },
        {
            "train": {
                "compile": {"enabled": True, "backend": "aot_eager"},
            }
        },
    ),
    "int4, swapped, what a block saves too": (
        {"model": {"quantize": True, "qtype": "int4"}},
        {
            "model": {"blocks_to_swap": 3, "modulation_table": False},
            "train": {"gradient_checkpointing": "block_offload"},
        },
    ),
    "fp8, table, batch of two, validation": (
        {
            "model": {"quantize": True, "qtype": "fp8_scaled"},
            "train": {"batch_size": 2},
            "validation": {"fraction": 0.3, "every": STEPS},
        },
        {
            "model": {"modulation_table": True},
            "train": {"gradient_checkpointing": "keep_attention"},
        },
    ),
}
"""What a job computes, and how it does on the device. Each family meets each precision,
swapping and offloading, the training of the model itself, validation and samples."""


@pytest.fixture(scope="module")
def section_of(
    small_section: dict, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict]:
    """The small job on one of `FAMILIES`, with partners or layers and captions of two
    lengths."""
    data = tmp_path_factory.mktemp("families")
    for name in ("photos", "before"):
        draw_pictures(data / name, "a", "b", "c")
    for count, stem in enumerate("abc", start=1):
        write_layers(data / "layers", count, stem=stem)
        (data / "layers" / f"{stem}.txt").write_text("a drawing")
    for name in ("photos", "layers"):
        (data / name / "b.txt").write_text("a photo of b with a longer caption")
    partners = {"control_path": str(data / "before")}

    def of(family: str) -> dict:
        model, section = data / family, copy.deepcopy(small_section)
        if not model.exists():
            write_tiny_model(model, FAMILIES[family])
        takes = {"text to image": {}, "layered": {"layers_suffix": "_layer"}}
        folder = data / ("layers" if family == "layered" else "photos")
        section["datasets"] = [
            {
                "folder_path": str(folder),
                "resolution": 64,
                **takes.get(family, partners),
            }
        ]
        sample = {
            "prompt": "a photo of a",
            "ctrl_img": [str(data / "before" / "a.png")],
        }
        if family == "text to image":
            del sample["ctrl_img"]
        del section["sample"]["prompts"]
        section["sample"] |= {"samples": [sample]}
        section["model"]["name_or_path"] = str(model)
        section["save"]["save_every"] = 0
        # The average of a swapped block that is trained is in main memory.
        section["train"] |= {"steps": STEPS, "gradient_accumulation": 1}
        section["train"]["ema_config"] = {"use_ema": False}
        return section

    return of


@pytest.fixture(scope="module")
def job_of(
    nursery: Nursery,
    section_of: Callable[[str], dict],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Job]:
    """Makes the job of a family with some settings for a device. The jobs of a family
    on one device share encoded images and texts."""
    caches = cache(lambda *_: tmp_path_factory.mktemp("cache"))

    def make(family: str, device: str, *settings: Settings) -> Job:
        section = {**section_of(family), "device": device}
        for part, values in (item for each in settings for item in each.items()):
            section[part] = {**section.get(part, {}), **values}
        if section["network"]["type"] == "full":
            section["network"] = {"type": "full"}
        if not any("sample" in each for each in settings):
            section["sample"] = None
        if family == "2.1":  # without modulation layers
            section["model"].pop("modulation_table", None)
        folder = tmp_path_factory.mktemp("job")
        (folder / "output").mkdir()
        (folder / "output" / "_cache").symlink_to(caches(family, device))
        return Job(nursery, folder, section)

    return make


@pytest.mark.parametrize("settings", JOBS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_there_what_it_learns_on_the_cpu_and_no_step_waits(
    family: str, settings: str, job_of: Callable[..., Job], tmp_path: Path
) -> None:
    """The second of three steps, which gives attention no mask either; see
    `test_no_step_waits_for_the_device`. Compiled, captions of all lengths share a
    program, and samples have another."""
    numbers, place = JOBS[settings]
    here = job_of(family, "cpu", numbers)
    there = job_of(family, "cuda:0", numbers, place)
    here.run()
    waits = tmp_path / "waits.json"
    output = there.run(
        faults=[
            ("cuda", str(built())),
            ("fetch_by_steps_only", STEPS),
            ("note_waits", STEP, [1 + 2, 1 + 3], str(waits)),
        ]
    )
    assert re.findall(r"compiled (\d+) programs", output) == ["2"] * (
        "compile" in str(place)
    )
    # 2.1 attends in several calls, each of which rounds
    precision = 5e-3 if family == "2.1" else 2e-3
    precision = precision if "bf16" in str(numbers) else 1e-5
    assert [line["step"] for line in there.metrics()] == [*range(1, STEPS + 1)]
    for ours, theirs in zip(there.metrics(), here.metrics(), strict=True):
        assert losses_of(ours) == pytest.approx(losses_of(theirs), rel=precision)
    drawn = [*zip(pictures_of(there), pictures_of(here), strict=True)]
    assert len(drawn) == ("sample" in numbers)
    for ours, theirs in drawn:
        assert np.abs(ours - theirs).mean() < 255 * max(1e-3, 10 * precision)
    before, after = json.loads(waits.read_text())
    assert before == after


def losses_of(line: dict) -> dict[str, float]:
    """Of a step and of the validation after it."""
    return {name: value for name, value in line.items() if "loss" in name}


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
