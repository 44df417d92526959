"""The examples that begin from nothing, or on a model with random weights: each can be
planned, and those that run anywhere really learn."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from extensions.from_scratch import AI_TOOLKIT_EXTENSIONS
from tests.config.test_examples import CONFIG, examples_with, plans_of
from tests.running import lines

Run = Callable[..., subprocess.CompletedProcess]

TYPES = {extension.uid for extension in AI_TOOLKIT_EXTENSIONS}
EXAMPLES = examples_with(lambda types: bool(types & TYPES))
FROM_SCRATCH = [example for example in EXAMPLES if "/from_scratch/" in example]
"""One for each entry of the table of cards in docs/from_scratch.md."""


@pytest.mark.slow
def test_they_can_be_planned_without_torch_network_or_a_trace(tmp_path: Path) -> None:
    assert "config/examples/own_pictures.yaml" in EXAMPLES and len(FROM_SCRATCH) == 10
    assert all(plan["processes"] for plan in plans_of(EXAMPLES, tmp_path).values())


@pytest.mark.slow
def test_the_example_of_photographs_ends_with_a_lora_that_has_learned_and_with_samples(
    run_py: Run, examples_alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half of its steps, at half of its sides."""
    job = examples_alone / "config" / "examples" / "photos.yaml"
    text = job.read_text(encoding="utf-8")
    for whole, half in (
        ("every: 100", "every: 50"),
        ("steps: 200", "steps: 100"),
        ("resolution: 128", "resolution: 64"),
        ("width: 128", "width: 64"),
        ("height: 128", "height: 64"),
        ("sample_steps: 8", "sample_steps: 2"),
    ):
        assert whole in text, whole
        text = text.replace(whole, half)
    job.write_text(text, encoding="utf-8")
    result = run_py("config/examples/photos.yaml", "-v", cwd=examples_alone)
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), (
        result.stderr
    )
    assert "2 x 20 + 3 x 40 = 160 samples per epoch" in result.stdout
    folder = examples_alone / "output" / "photos"
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        "photos.safetensors",
        "photos_000000050.safetensors",
        "photos_000000100.safetensors",
    ]
    pictures = sorted(
        re.sub(r"^\d+__", "", path.name) for path in (folder / "samples").iterdir()
    )
    assert pictures == [
        f"{step:09d}_{index}.jpg" for step in (0, 50, 100) for index in (0, 1)
    ]
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"

    monkeypatch.chdir(examples_alone)
    untrained, trained = losses()
    assert trained <= 0.8 * untrained, (
        f"mean loss over 16 fixed draws: {untrained:.4f} before, {trained:.4f} after"
    )


@pytest.mark.slow
def test_the_example_of_pairs_trains_with_its_control_images_and_learns(
    run_py: Run, examples_alone: Path
) -> None:
    result = run_py("config/examples/edit_pairs.yaml", "-v", cwd=examples_alone)
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), (
        result.stderr
    )
    assert "control images: 3 with 1" in result.stdout
    folder = examples_alone / "output" / "edit_pairs"
    assert (folder / "edit_pairs.safetensors").is_file()
    assert len(list((folder / "samples").iterdir())) == 3
    course = [line["loss"] for line in lines(folder / "metrics.jsonl")]
    first, last = sum(course[:20]) / 20, sum(course[-20:]) / 20
    assert last < 0.9 * first, (
        f"mean loss of the first 20 steps {first:.3f}, of the last 20 {last:.3f}"
    )


def losses() -> tuple[float, float]:
    """Mean loss over 16 fixed (image, noise, t) draws: of the model alone, and with the
    trained LoRA folded in.

    The LoRA is added by hand, W + B A, from what its file holds: alpha / rank is in its
    matrices.
    """
    from toolkit.config import load_job
    from toolkit.contracts.data import BatchSpec
    from toolkit.data.batches.dataloader import BatchLoader
    from toolkit.data.batches.latent_cache import CacheStores, encode_items
    from toolkit.data.scan.items import scan_items
    from toolkit.extension import discover
    from toolkit.memory.quantization import quantizer
    from toolkit.models.loading import load_model
    from toolkit.train.flow_step import NETWORK, FlowMatchingStep

    job = load_job(Path("config/examples/photos.yaml"), discover().find_config)
    section = job.processes[1].section
    model = load_model(section.model, torch.device("cpu"), torch.float32, quantizer)
    _, items = scan_items(section, 32)
    stores = CacheStores(Path("output"))
    dataset = encode_items(items, model, stores.of_samples(section), torch.float32)
    draws = range(16)
    spec = BatchSpec(
        epoch=10**6, items=tuple(n % len(items) for n in draws), positions=tuple(draws)
    )
    batch = BatchLoader(dataset, seed=1).load(spec)
    step = FlowMatchingStep(model, seed=1, timestep_type=section.train.timestep_type)

    @torch.no_grad()
    def mean_loss() -> float:
        return float(step(batch).by_role[NETWORK].mean())

    untrained = mean_loss()
    fold_in(load_file("output/photos/photos.safetensors"), model.network_module)
    return untrained, mean_loss()


@torch.no_grad()
def fold_in(lora: dict[str, torch.Tensor], model: torch.nn.Module) -> None:
    lora = {
        name.removeprefix("diffusion_model."): tensor.float()
        for name, tensor in lora.items()
    }
    targets = [
        name.removesuffix(".lora_A.weight")
        for name in lora
        if name.endswith(".lora_A.weight")
    ]
    assert targets
    for target in targets:
        down_RI, up_OR = (
            lora[f"{target}.lora_A.weight"],
            lora[f"{target}.lora_B.weight"],
        )
        assert f"{target}.alpha" not in lora
        model.get_submodule(target).weight += up_OR @ down_RI


# ------------------------------------------------------------ autoencoders from nothing


def test_there_is_one_for_each_entry_of_the_table_of_cards() -> None:
    sizes = [
        f"vae_{card}gb{way}" for card in (8, 12, 16, 24, 48) for way in ("", "_max")
    ]
    assert {Path(example).stem for example in FROM_SCRATCH} == set(sizes)
    guide = (CONFIG.parent / "docs" / "from_scratch.md").read_text(encoding="utf-8")
    for example in FROM_SCRATCH:
        peak = re.search(
            r"Planned peak ([\d.]+) GB",
            (CONFIG.parent / example).read_text(encoding="utf-8"),
        )
        assert peak and re.search(
            rf"`{Path(example).stem}`[^|]*\|[^\n]*\| {peak[1]} GB \|", guide
        ), example
