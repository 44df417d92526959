"""Steps on fake tensors take what real ones do, operation by operation; what is on a
device and what is not."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from benchmarks import simulation
from benchmarks.live_bytes import LiveBytes, Peak
from benchmarks.random_weights import write_folder
from benchmarks.synthetic import (
    PUBLISHED,
    ModelSize,
    load_model,
    make_batch,
    write_model,
)
from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.setup import attach_network, build_block_runner
from toolkit.contracts.data import BatchSpec
from toolkit.contracts.model import DiffusionModel
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.models.qwen_image import forward
from toolkit.system.device import DTYPES

SIZE = ModelSize(heads=2, layers=2, **PUBLISHED)


def section(
    folder: Path, model: dict[str, Any] | None = None, rank: int = 16, **train: Any
) -> SdTrainerConfig:
    settings = {
        "type": "sd_trainer",
        "network": {"type": "lora", "linear": rank},
        "datasets": [{"folder_path": "pictures"}],
        "train": {"optimizer": "adamw"} | train,
        "model": {"name_or_path": str(folder), "modulation_table": False}
        | (model or {}),
    }
    return SdTrainerConfig.model_validate(settings)


def trained_with(
    model: DiffusionModel, settings: SdTrainerConfig
) -> list[torch.nn.Parameter]:
    network = attach_network(settings, model, 1, None)
    build_block_runner(settings, model, simulation.DEVICE)
    return list(network.parameters().values())


def velocity(model: DiffusionModel, batch: LatentBatch) -> torch.Tensor:
    return model.predict_velocity(
        batch.latents_BCHW.float(),
        torch.tensor([0.5]),
        batch.prompts,
        batch.control_latents,
    )


def most_allocated(work: Callable[[], object]) -> int:
    """Bytes of all real tensors at once, above those that were there."""
    gc.collect()  # what earlier tests left must not be freed meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [
        event
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


def of_real_tensors(folder: Path, settings: SdTrainerConfig) -> tuple[int, int]:
    """Bytes of a step, and of a pass without gradients."""
    dtype = DTYPES[settings.train.dtype]
    model = load_model(folder, SIZE, dtype)
    trained_with(model, settings)
    batch = make_batch(SIZE, BatchSpec(0, (0,), (0,)), dtype)
    velocity(model, batch)  # fills the tables of positions
    step = most_allocated(lambda: velocity(model, batch).square().mean().backward())
    with torch.no_grad():
        return step, most_allocated(lambda: velocity(model, batch))


def of_fake_tensors(settings: SdTrainerConfig) -> tuple[int, int]:
    live = LiveBytes(simulation.FOLLOWED)  # without the workspaces of CUDA's kernels
    with (
        simulation.as_on_a_device(live),
        FakeTensorMode(allow_non_fake_inputs=True),
        live,
    ):
        model = simulation.load_model(settings, SIZE)
        parameters = trained_with(model, settings)
        batch = simulation.batch_of(SIZE, 1, DTYPES[settings.train.dtype])
        velocity(model, batch)
        before = live.device
        live.phase("step")
        velocity(model, batch).square().mean().backward()
        step = live.phases["step"].device - before
        for parameter in parameters:
            parameter.grad = None
        live.phase("pass")
        with torch.no_grad():
            velocity(model, batch)
    return step, live.phases["pass"].device - before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "dtype"),
    [("cheap", "bf16"), ("none", "fp32"), ("full", "bf16")],
)
def test_fake_tensors_take_what_real_ones_do(
    tmp_path: Path, monkeypatch, level: str, dtype: str
) -> None:
    write_model(tmp_path, SIZE)
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "QwenImageEditPlusPipeline"}', encoding="utf-8"
    )
    settings = section(tmp_path, gradient_checkpointing=level, dtype=dtype)
    monkeypatch.setattr(forward, "rms_norm", simulation.norm_of_a_gpu)
    step, no_gradients = of_real_tensors(tmp_path, settings)
    fake_step, fake_no_gradients = of_fake_tensors(settings)
    assert fake_step == pytest.approx(step, rel=0.01)
    assert fake_no_gradients == pytest.approx(no_gradients, rel=0.02)


def simulated(
    folder: Path, model: dict[str, Any], level: str = "full", **parts: Any
) -> dict[str, Peak]:
    write_folder(folder, SIZE)
    return simulation.simulate(
        section(folder, model, gradient_checkpointing=level, **parts),
        SIZE,
        references=1,
    )


OF_MODULATION = 2 * 2 * 6 * 256**2
"""Bytes of a block's two layers in bfloat16."""


@pytest.mark.slow
def test_the_weights_of_the_table_are_in_the_main_memory(tmp_path: Path) -> None:
    plain, with_table = (
        simulated(tmp_path / str(table), {"modulation_table": table})["at rest"]
        for table in (False, True)
    )
    assert plain.host < 10**5
    assert with_table.host == pytest.approx(SIZE.layers * OF_MODULATION, rel=0.05)
    rows = simulation.LEVELS * SIZE.layers * 12 * 256 * 2
    buffers = 2 * OF_MODULATION / 2  # of a layer each, through which they are streamed
    assert plain.device - with_table.device == pytest.approx(
        SIZE.layers * OF_MODULATION - rows - buffers, rel=0.05
    )
