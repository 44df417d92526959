"""What every model family promises, and one in the tests that is as unlike the first as
can be."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from jobs.dry_run import plan_job
from tests.running import run_job
from tests.unlike_family import write_unlike_model
from toolkit.config import load_job
from toolkit.config.sections.model_files import family_named
from toolkit.contracts.data import EMBEDS, PromptEmbeds, Size
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.network_kinds import KINDS
from toolkit.errors import UserError
from toolkit.extension import discover
from toolkit.models.families import ModelFamily, ModelLoadOptions
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.registry import FAMILIES, part_of

WRITERS = {"unlike": write_unlike_model}
"""How a test gets a tiny model of a family; the first family's is the fixture
`tiny_model`. A part that has families runs these tests too, with its own `arch` and
`written`."""


@pytest.fixture(
    params=[*(arch for arch in FAMILIES if not part_of(FAMILIES[arch])), "unlike"]
)
def arch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(FAMILIES, "unlike", "tests.unlike_family:FAMILY")
    return request.param


@pytest.fixture(scope="module")
def written(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A tiny model of a family, written once. Read only."""

    @cache
    def write(arch: str) -> Path:
        folder = tmp_path_factory.mktemp("families") / arch
        if arch in WRITERS:
            return WRITERS[arch](folder)
        write_tiny_model(folder, TinySpec(arch=arch))
        return folder

    return lambda arch: tiny_model if arch == "qwen_image_edit_plus" else write(arch)


@pytest.fixture
def folder(arch: str, written: Callable[[str], Path]) -> Path:
    return written(arch)


@pytest.fixture
def family(arch: str, folder: Path) -> ModelFamily:
    return family_named(arch).of_folder(folder)


def opened(family: ModelFamily, folder: Path) -> DiffusionModel:
    return family.open(
        ModelLoadOptions(folder=folder, device=torch.device("cpu"), dtype=torch.float32)
    )


@pytest.fixture(scope="module")
def models() -> dict[Path, DiffusionModel]:
    """Those of `adapter`, by their folder."""
    return {}


@pytest.fixture
def adapter(
    family: ModelFamily, folder: Path, models: dict[Path, DiffusionModel]
) -> DiffusionModel:
    """Opened once for all tests, which change nothing of it."""
    if folder not in models:
        models[folder] = opened(family, folder)
    return models[folder]


def encoded(model: DiffusionModel, *prompts: str) -> PromptEmbeds:
    return PromptEmbeds.stack([model.encode_prompt(prompt, ()) for prompt in prompts])


def latents(family: ModelFamily, count: int, size: Size, seed: int = 1) -> torch.Tensor:
    width, height = family.latent_size(size)
    random = torch.Generator().manual_seed(seed)
    return torch.randn((count, family.latent_channels, height, width), generator=random)


def references(
    family: ModelFamily, count: int, size: Size
) -> list[tuple[torch.Tensor, ...]]:
    """The fewest control images that each of so many items can have: of a picture with
    layers, that picture."""
    return [
        (latents(family, 1, size, seed=2)[0],) if family.stacks_layers else ()
    ] * count


def test_the_layers_and_modules_are_those_of_the_loaded_model(
    family: ModelFamily, folder: Path, adapter: DiffusionModel
) -> None:
    model = adapter.network_module
    linears = {
        name: (m.in_features, m.out_features)
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear)
    }
    assert family.every_linear_layer(folder) == linears
    assert family.adapter_layers(folder) == {
        name: linears[name] for name in adapter.lora_targets()
    }
    assert family.linear_layers(folder).items() <= linears.items()
    own = {
        name: sum(p.numel() for p in m.parameters(recurse=False))
        for name, m in model.named_modules()
    }
    assert family.modules(folder) == {
        name: count for name, count in own.items() if count
    }
    facts, blocks = family.footprint(folder), adapter.blocks()
    assert facts.blocks == family.block_count(folder) == len(blocks)
    assert facts.linear_params + facts.other_params == sum(
        p.numel() for p in model.parameters()
    )
    assert facts.linear_params == sum(
        m.weight.numel()
        for block in blocks
        for m in block.modules()
        if type(m) is nn.Linear
    )
    assert (facts.width, facts.pixels_per_token) == (
        adapter.hidden_size,
        family.token_side**2,
    )


def test_latents_have_the_declared_scale_and_channels(
    family: ModelFamily, adapter: DiffusionModel
) -> None:
    size = Size(2 * family.size_multiple, family.size_multiple)
    pixels_BCHW = torch.rand(1, family.pixel_channels, size.height, size.width) * 2 - 1
    with torch.no_grad():
        latents_BCHW = adapter.encode_images(pixels_BCHW)
        again_BCHW = adapter.encode_images(pixels_BCHW)
        decoded_BCHW = adapter.decode_latents(latents_BCHW)
    width, height = family.latent_size(size)
    assert latents_BCHW.shape == (1, family.latent_channels, height, width)
    assert torch.equal(latents_BCHW, again_BCHW)
    assert (
        decoded_BCHW.shape == pixels_BCHW.shape and decoded_BCHW.dtype == torch.float32
    )
    assert decoded_BCHW.abs().max() <= 1
    assert (
        family.drawable(Size(size.width + 1, size.height + family.token_side - 1))
        == size
    )
    assert family.size_multiple % family.token_side == 0


def test_unlike_items_of_a_batch_are_predicted_as_each_alone(
    family: ModelFamily, adapter: DiffusionModel
) -> None:
    prompts = encoded(adapter, "a cat", "a very long caption, with many words", "")
    x_BCHW, t_B = latents(family, 3, Size(64, 96)), torch.tensor([0.9, 0.5, 0.1])
    slots = references(family, 3, Size(64, 96))
    with torch.no_grad():
        together = adapter.predict_velocity(x_BCHW, t_B, prompts, slots)
        alone = [
            adapter.predict_velocity(
                x_BCHW[[row]], t_B[[row]], prompts.select([row]), slots[:1]
            )[0]
            for row in range(3)
        ]
    assert together.shape == x_BCHW.shape and together.dtype == torch.float32
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-5)
    assert not torch.equal(together[0], together[1])


def test_references_are_taken_up_to_the_declared_number(
    family: ModelFamily, adapter: DiffusionModel
) -> None:
    target = Size(64, 64)
    picture = Image.new("RGB", target, "red")
    if family.max_references:
        assert (
            family.drawable(size := adapter.reference_size(Size(64, 48), target))
            == size
        )
    for count in sorted({min(2, family.max_references), family.max_references} - {0}):
        prompt = adapter.encode_prompt("a cat", [picture] * count)
        reference = latents(family, 1, target, seed=2)[0]
        with torch.no_grad():
            velocity = adapter.predict_velocity(
                latents(family, 1, target),
                torch.tensor([0.5]),
                PromptEmbeds.stack([prompt]),
                [[reference] * count],
            )
        assert velocity.isfinite().all()


def test_guidance_is_embedded_or_refused(
    family: ModelFamily, adapter: DiffusionModel
) -> None:
    arguments = (
        latents(family, 1, Size(64, 64)),
        torch.tensor([0.5]),
        encoded(adapter, "a cat"),
        references(family, 1, Size(64, 64)),
    )
    if not family.embeds_guidance:
        with pytest.raises(ValueError, match="guidance"):
            adapter.predict_velocity(*arguments, torch.tensor([3.5]))
        return
    with torch.no_grad():
        weak, strong = (
            adapter.predict_velocity(*arguments, torch.tensor([scale]))
            for scale in (1.0, 3.5)
        )
    assert not torch.equal(weak, strong)


def test_dropped_encoders_are_loaded_again_and_kept_ones_stay(
    family: ModelFamily, folder: Path
) -> None:
    adapter = opened(family, folder)
    before = encoded(adapter, "a cat")
    for keep in ((), family.encoder_parts["text_encoder"]):
        adapter.unload_encoders(keep)
        after = encoded(adapter, "a cat")
        assert torch.equal(before.embeds_BLD, after.embeds_BLD)
        assert all(
            torch.equal(tensor, after.extra[name])
            for name, tensor in before.extra.items()
        )
    assert {"vae", "text_encoder"} == set(family.encoder_parts)
    assert all(
        adapter.cache_key(part) == adapter.cache_key(part)
        for part in family.encoder_parts
    )


def test_blocks_run_within_the_wrappers_in_order(
    family: ModelFamily, folder: Path
) -> None:
    adapter = opened(family, folder)
    seen: list[nn.Module] = []

    def watching(run):
        def run_block(block, *tensors):
            seen.append(block)
            return run(block, *tensors)

        return run_block

    arguments = (
        latents(family, 1, Size(64, 64)),
        torch.tensor([0.5]),
        encoded(adapter, "a cat"),
        references(family, 1, Size(64, 64)),
    )
    with torch.no_grad():
        plain = adapter.predict_velocity(*arguments)
        adapter.wrap_blocks([watching])
        watched = adapter.predict_velocity(*arguments)
    assert seen == list(adapter.blocks())
    assert torch.equal(plain, watched)


@pytest.mark.parametrize("tokens", [16, 256])
def test_the_time_shift_is_a_number_for_every_size_and_length(
    family: ModelFamily, adapter: DiffusionModel, tokens: int
) -> None:
    shift = adapter.dynamic_shift
    assert all(isinstance(shift.mu(tokens, steps), float) for steps in (1, 4, 1000))
    assert shift.shift_terminal is None or 0 < shift.shift_terminal < 1
    assert (
        family.tokens(family.latent_size(Size(64, 96)))
        == 64 * 96 // family.token_side**2
    )


def test_the_gradients_reach_what_is_trained_and_a_new_lora_changes_nothing(
    family: ModelFamily, folder: Path
) -> None:
    adapter = opened(family, folder)
    from toolkit.config.sections.network import NetworkConfig

    prompts, slots = encoded(adapter, "a", "b"), references(family, 2, Size(64, 64))
    arguments = (
        latents(family, 2, Size(64, 64)),
        torch.tensor([0.5, 0.7]),
        prompts,
        slots,
    )
    with torch.no_grad():
        before = adapter.predict_velocity(*arguments)
    network = (
        KINDS["lora"]
        .load()
        .from_config(NetworkConfig(linear=2), adapter.lora_targets(), 1)
    )
    network.attach(adapter.network_module)
    network.fuse_projections(adapter.fused_projection_groups())
    after = adapter.predict_velocity(*arguments)
    assert torch.equal(before, after)
    after.square().mean().backward()
    # The last block of some families hands on the image alone: what only its text goes
    # through learns nothing.
    reached = [
        name
        for name, p in network.parameters().items()
        if "lora_B" in name and p.grad is not None
    ]
    layers = {name.partition(".lora_")[0] for name in reached}
    assert len(layers) >= 0.8 * len(network.targets)
    assert any(network.parameters()[name].grad.any() for name in reached)


# ------------------------------------------------------------ more references than a
# family takes


@pytest.fixture
def unlike_job(
    write_job, trainer, make_pictures, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A job on the unlike family."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(FAMILIES, "unlike", "tests.unlike_family:FAMILY")
    write_unlike_model(tmp_path / "unlike")

    def write(file: str, **changes: object) -> Path:
        folder = make_pictures(tmp_path / "2_photos", "a", "b", "c")
        section = trainer(
            folder, model={"name_or_path": str(tmp_path / "unlike")}, **changes
        )
        path = write_job(section)
        return path.rename(path.with_name(f"{file}.yaml"))

    return write


def test_a_prompt_of_several_tensors_is_cached_and_stacked(tmp_path: Path) -> None:
    one, other = (
        {
            EMBEDS: torch.full((length, 3), float(length)),
            "pooled": torch.ones(2) * length,
        }
        for length in (2, 4)
    )
    prompts = PromptEmbeds.stack([one, other])
    assert prompts.extra["pooled"].tolist() == [[2, 2], [4, 4]]
    chosen = prompts.select([1])
    assert chosen.extra["pooled"].tolist() == [[4, 4]] and chosen.lengths == (4,)
    assert prompts.cpu().extra.keys() == {"pooled"}
    with pytest.raises(ValueError, match="unlike extra tensors"):
        PromptEmbeds.stack([one, torch.ones(2, 3)])


def test_references_are_refused_where_the_family_takes_none(
    unlike_job, make_pictures, tmp_path: Path
) -> None:
    """Before anything is loaded, with the place: of a dataset, of the validation, of a
    sample."""
    controls = str(make_pictures(tmp_path / "controls", "a", "b", "c"))
    photos = str(make_pictures(tmp_path / "2_photos", "a", "b", "c"))
    with_references = {
        "folder_path": photos,
        "control_path": controls,
        "resolution": 64,
    }
    picture = str(tmp_path / "controls" / "a.png")
    unlike_job("dataset", datasets=[with_references])
    sample = {
        "samples": [{"prompt": "a cat", "ctrl_img": picture}],
        "sample_every": 1,
        "width": 64,
        "height": 64,
    }
    unlike_job("sample", sample=sample)
    unlike_job(
        "held_out",
        validation={"folder_path": photos, "control_path": controls, "every": 1},
    )
    takes = "has 1 control image, and Unlike-1 takes none. Leave"
    for name, said in {
        "dataset": rf"datasets\[0\]\.control_path: {takes} control_path out\.",
        "held_out": rf"a\.png: {takes} control_path out\.",
        "sample": rf"sample\.samples\[0\]\.ctrl_img: {takes} ctrl_img out\.",
    }.items():
        with pytest.raises(UserError, match=said):
            plan_job(load_job(tmp_path / f"{name}.yaml", discover().find_config))


@pytest.mark.slow
def test_a_whole_job_of_the_unlike_family_trains_samples_saves_and_resumes(
    unlike_job, tmp_path: Path
) -> None:
    sample = {
        "prompts": ["a cat"],
        "sample_every": 2,
        "width": 70,
        "height": 64,
        "sample_steps": 2,
    }
    sample["guidance_scale"] = 3
    for run, steps in (("parts", 2), ("whole", 4), ("more", 4)):
        folder = "parts" if run == "more" else run
        train = {
            "steps": steps,
            "timestep_type": "qwen_shift",
            "ema_config": {"use_ema": True},
        }
        save = {"dtype": "float32", "save_every": 2}
        unlike_job(run, training_folder=folder, train=train, sample=sample, save=save)
    for name in ("parts", "more", "whole"):
        run_job(tmp_path / f"{name}.yaml")
    parts, whole = (
        load_file(tmp_path / run / "job" / "job.safetensors")
        for run in ("parts", "whole")
    )
    assert parts.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in parts.items())
    assert any(
        tensor.any() for name, tensor in whole.items() if name.endswith("lora_B.weight")
    )
    pictures = sorted((tmp_path / "whole" / "job" / "samples").glob("*.*"))
    assert pictures and all(
        Image.open(path).size == (64, 64)
        for path in pictures
        if path.suffix in (".png", ".jpg")
    )
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "whole/job/metrics.jsonl").read_text().splitlines()
    ]
    assert len(losses) == 4 and os.path.getsize(tmp_path / "whole/job/job.safetensors")
