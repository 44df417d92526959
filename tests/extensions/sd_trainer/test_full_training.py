"""Training the model itself, each way of doing it against the plain one: float32
masters and whole steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.setup import attach_network, build_block_runner, build_roles
from tests.diffusers_reference import REFERENCES, encode_photos, open_tiny, photo_item
from tests.measured import at_most
from tests.running import run_job
from toolkit.contracts.data import BatchSpec, Size
from toolkit.contracts.training import TrainStep
from toolkit.data.batches.dataloader import BatchLoader
from toolkit.data.batches.epoch_order import EpochSource
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.system.device import DTYPES
from toolkit.system.distributed import ProcessGroup
from toolkit.train.flow_step import NETWORK, FlowMatchingStep
from toolkit.train.loop import train
from toolkit.train.run import Run

PLAIN = {"optimizer": "adafactor", "lr": 2e-3, "dtype": "bf16", "max_grad_norm": 0}
FUSED = {"fused_backward_pass": True}
BF16 = {"full_bf16": True}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loader(tiny_model: Path) -> BatchLoader:
    """Two small images, one with a reference."""
    items = [
        photo_item(Size(64, 64), refs, text)
        for refs, text in [((), "a face"), (REFERENCES[:1], "a smile")]
    ]
    return BatchLoader(
        encode_photos(open_tiny(tiny_model, reference_area=0), *items), seed=3
    )


@pytest.fixture(scope="module")
def four_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder, TinySpec(layers=4))
    return folder


@pytest.fixture
def losses(
    tiny_model: Path, loader: BatchLoader, tmp_path: Path
) -> Callable[..., torch.Tensor]:
    """The losses of the first steps of a job, and how far each weight has moved in
    them."""

    def run(
        steps: int, folder: Path = tiny_model, swapped: int = 0, **changes
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        settings = {"steps": steps, "gradient_checkpointing": True, **PLAIN, **changes}
        section = SdTrainerConfig(
            type="sd_trainer",
            model={"name_or_path": str(folder), "blocks_to_swap": swapped},
            network={"type": "full"},
            datasets=[{"folder_path": "photos"}],
            train=settings,
        )
        weights_dtype = DTYPES[section.weights_dtype()]
        model = open_tiny(
            folder,
            DTYPES[section.train.dtype],
            reference_area=0,
            weights_dtype=weights_dtype,
        )
        network = attach_network(section, model, 3, None)
        start = {
            name: p.detach().float().clone() for name, p in network.parameters().items()
        }
        if swapped:
            build_block_runner(section, model, CPU)
        roles = build_roles(section, network, steps, 3, ProcessGroup())
        run = Run(
            "full",
            tmp_path,
            steps,
            section.train.gradient_accumulation,
            seed=3,
            roles=roles,
        )
        seen = []
        step = FlowMatchingStep(model, seed=3, timestep_type="sigmoid")

        class Watched(TrainStep):
            def __call__(self, batch, number: int):
                found = step(batch, number)
                seen.append(found.by_role[NETWORK].detach().mean())
                return found

        source = EpochSource(
            lambda epoch: [BatchSpec(epoch, (0, 1), (0, 1))],
            lambda specs: map(loader.load, specs),
        )
        train(run, source, Watched())
        return torch.stack(seen), {
            name: p.detach().float() - start[name]
            for name, p in network.parameters().items()
        }

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(
            {"optimizer": "sgd", "gradient_accumulation": 2}, marks=pytest.mark.slow
        ),
        pytest.param(BF16, marks=pytest.mark.slow),
    ],
)
def test_a_fused_step_is_a_whole_step_bit_for_bit(losses, changes: dict) -> None:
    (whole, of_whole), (fused, of_fused) = (
        losses(4, **changes),
        losses(4, **changes, **FUSED),
    )
    assert torch.equal(whole, fused)
    assert all(torch.equal(move, of_fused[name]) for name, move in of_whole.items())


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        ("adamw", {}),
        pytest.param("sgd", {}, marks=pytest.mark.slow),
        pytest.param("adafactor", BF16, marks=pytest.mark.slow),
    ],
)
def test_trained_blocks_that_are_swapped_learn_the_same_bits(
    losses, four_blocks: Path, optimizer: str, changes: dict
) -> None:
    """Three of four blocks take turns in two buffers; the average is made of what comes
    back."""
    keys = {
        "optimizer": optimizer,
        "ema_config": {"use_ema": True},
        "gradient_checkpointing": False,
    }
    (here, of_here), (away, of_away) = (
        losses(3, four_blocks, swapped, **changes, **FUSED, **keys)
        for swapped in (0, 3)
    )
    assert torch.equal(here, away)
    assert all(torch.equal(move, of_away[name]) for name, move in of_here.items())


@pytest.mark.slow
def test_bf16_weights_learn_as_float32_ones_do(losses) -> None:
    """30 steps whose updates are too small for bf16: rounded to the nearest number,
    hardly a weight would move."""
    (plain, moves), (rounded, of_rounded) = (
        losses(30, lr=3e-5, gradient_checkpointing=False, **changes)
        for changes in ({}, BF16)
    )
    at_most(
        "full_bf16 against float32 masters, losses of 30 steps",
        ((rounded - plain) / plain).abs().max(),
        0.005,
    )
    ours, theirs = (
        torch.cat([move.flatten() for move in of.values()])
        for of in (of_rounded, moves)
    )
    share = (ours @ theirs / (theirs @ theirs)).item()
    at_most(
        "full_bf16 against float32 masters, way of the weights missing",
        abs(1 - share),
        0.05,
    )


@pytest.mark.slow
def test_a_job_stops_goes_on_and_leaves_a_model_that_the_next_job_trains(
    write_job,
    trainer,
    make_pictures,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
) -> None:
    """One step and another against 2 at once, with samples, an average, and one folder
    kept."""
    monkeypatch.chdir(tmp_path)
    pictures = make_pictures(tmp_path / "2_photos", "a", "b")

    def run(folder: str, steps: int, model: Path = tiny_model) -> Path:
        section = trainer(
            pictures,
            training_folder=folder,
            network={"type": "full"},
            save={"save_every": 1, "max_step_saves_to_keep": 1, "mem_eff_save": True},
            train={
                **PLAIN,
                **BF16,
                **FUSED,
                "gradient_accumulation": 2,
                "steps": steps,
                "ema_config": {"use_ema": True},
            },
            sample={
                "prompts": ["a"],
                "width": 64,
                "height": 64,
                "sample_steps": 1,
                "sample_every": 2,
            },
        )
        section["model"]["name_or_path"] = str(model)
        run_job(write_job(section))
        return tmp_path / folder / "job"

    run("parts", 1)
    parts, whole = run("parts", 2), run("whole", 2)
    counted = sum(p.numel() for p in open_tiny(tiny_model).network_module.parameters())
    told = f"layers, {counted:,} trainable parameters"
    assert any(told in line for line in said), said
    models = sorted(path.parent.name for path in whole.glob("*/model_index.json"))
    assert models == ["job", "job_000000002"]
    files = [
        path.relative_to(whole)
        for model in models
        for path in (whole / model).rglob("*")
        if path.is_file()
    ]
    files += [
        Path(f"state/step_000000002/{name}.safetensors")
        for name in ("weights", "ema", "optimizer")
    ]
    for file in files:
        assert (parts / file).read_bytes() == (whole / file).read_bytes(), file
    stored = load_file(
        whole / "job" / "transformer" / "diffusion_pytorch_model.safetensors"
    )
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert json.loads((whole / "run.json").read_text())["status"] == "finished"
    run("next", 1, model=whole / "job")
