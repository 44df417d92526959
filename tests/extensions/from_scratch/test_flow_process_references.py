"""A flow model that is trained with references: what it learns of them, what it leaves,
and that it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from extensions.from_scratch.flow_process import FlowStep
from tests.extensions.from_scratch.conftest import write_measured_vae
from toolkit.contracts.training import StepLosses
from toolkit.data.batches.dataloader import LatentBatch

pytestmark = pytest.mark.slow

QWEN = "QwenImageTransformer2DModel"
ALONG = {"discriminator": {"channels": 4, "layers": 1}}


@pytest.fixture
def pairs(make_pictures: Callable[..., Path], tmp_path: Path) -> dict:
    """A dataset with one to three references of each image, of other sizes than it."""
    for slot, (stems, size) in enumerate(
        (("abcde", (64, 30)), ("bcd", (24, 40)), ("d", (40, 72)))
    ):
        make_pictures(tmp_path / f"r{slot}", *stems, size=size, captions=False)
    folder = make_pictures(tmp_path / "data", *"abcde", size=(20, 36))
    references = [str(tmp_path / f"r{slot}") for slot in range(3)]
    return {
        "folder_path": str(folder),
        "resolution": 32,
        "control_path": references,
        "control_optional": True,
    }


def job(flow_job: Callable[..., dict], pairs: dict, **changes: object) -> dict:
    validation = {"fraction": 0.3, "every": 2}
    drawn = [f"{path}/d.png" for path in pairs["control_path"]]
    pictures = {
        "width": 64,
        "height": 72,
        "sample_steps": 2,
        "samples": [{"prompt": "d", "ctrl_img": drawn}],
    }
    keys = {
        "sample": {"sample_every": 2, "overview": True, **pictures},
        "save": {"save_every": 2},
        **changes,
    }
    keys |= {} if "autoencoder" in changes else {"validation": validation}
    return flow_job(Path(), QWEN, datasets=[pairs], **keys)


@pytest.mark.parametrize("keys", [{}, {"autoencoder": ALONG}])
def test_a_run_with_references_goes_on_to_the_same_bytes(
    start: Callable[..., Path],
    flow_job: Callable[..., dict],
    pairs: dict,
    tmp_path: Path,
    keys: dict,
) -> None:
    train = {"batch_size": 3}
    whole = start(job(flow_job, pairs, train=train, **keys)).rename(tmp_path / "whole")
    start(job(flow_job, pairs, train={**train, "steps": 2}, **keys))
    again = start(job(flow_job, pairs, train=train, **keys))
    files = [
        f"state/step_000000004/{name}.safetensors" for name in ("weights", "optimizer")
    ]
    files += ["samples/000000000_0.jpg", "samples/000000004_0.jpg"]
    files += [] if keys else ["validation.jsonl"]
    assert [
        file
        for file in files
        if (whole / file).read_bytes() != (again / file).read_bytes()
    ] == []
    assert Image.open(whole / files[3]).size == (64, 72)
    # references on the left
    assert Image.open(whole / "samples" / "overview.png").width == 6 + (29 + 6) + 3 * (
        64 + 6
    )


def test_the_largest_batch_is_the_one_with_the_most_references(
    start: Callable[..., Path],
    flow_job: Callable[..., dict],
    pairs: dict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[LatentBatch] = []
    call = FlowStep.__call__
    monkeypatch.setattr(
        FlowStep,
        "__call__",
        lambda self, batch, step=0: (seen.append(batch), call(self, batch, step))[1],
    )
    section = job(flow_job, pairs, train={"batch_size": 1, "steps": 5}, sample=None)
    del section["validation"]
    section["training_seed"] = 5  # another image comes first
    start(section)
    assert (
        len(seen[0].control_latents[0])
        == max(len(batch.control_latents[0]) for batch in seen)
        == 3
    )


def test_it_learns_what_is_in_the_reference(
    start: Callable[..., Path],
    flow_job: Callable[..., dict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Walls of one colour whose captions are the same: only the reference says
    which."""
    for stem, colour in (("red", (230, 20, 20)), ("blue", (20, 20, 230))):
        for folder, size in (("walls", (32, 32)), ("before", (24, 40))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("RGB", size, colour).save(tmp_path / folder / f"{stem}.png")
        (tmp_path / "walls" / f"{stem}.txt").write_text("a wall")
    right, wrong = [], []
    call = FlowStep.__call__

    def compared(self: FlowStep, batch: LatentBatch, step: int = 0) -> StepLosses:
        losses = call(self, batch, step)
        right.append(losses.by_role["flow"].mean().item())
        if len(right) > 30:
            swapped = replace(batch, control_latents=batch.control_latents[::-1])
            with torch.no_grad():
                wrong.append(call(self, swapped, step).by_role["flow"].mean().item())
        return losses

    monkeypatch.setattr(FlowStep, "__call__", compared)
    dataset = {
        "folder_path": str(tmp_path / "walls"),
        "control_path": str(tmp_path / "before"),
        "resolution": 32,
    }
    train = {"steps": 50, "batch_size": 2, "lr": 5e-3, "timestep_type": "uniform"}
    vae = write_measured_vae(
        tmp_path / "vae", sorted((tmp_path / "walls").glob("*.png"))
    )
    start(
        flow_job(Path(), QWEN, model={"vae": str(vae)}, datasets=[dataset], train=train)
    )
    assert sum(right[-len(wrong) :]) < 0.8 * sum(wrong)
