"""What Qwen-Image-Layered computes equals what diffusers' own pipeline and a plain loop
of its parts compute."""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch._subclasses import FakeTensorMode

from benchmarks import simulation
from benchmarks.live_bytes import LiveBytes
from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.setup import attach_network, build_block_runner
from tests.diffusers_reference import (
    CPU,
    Member,
    encode_photos,
    memory_stores,
    psnr,
    relative,
    write_member,
)
from tests.layer_files import SIZE, write_layers
from tests.measured import at_least, at_most
from toolkit.contracts.data import (
    BatchSpec,
    BucketedSample,
    PromptEmbeds,
    ResizeCrop,
    Sample,
    Size,
)
from toolkit.data.batches.dataloader import BatchLoader
from toolkit.data.batches.latent_cache import ItemEncoder
from toolkit.memory.estimate import step_peak
from toolkit.models.families import ModelLoadOptions
from toolkit.models.qwen_image.family import FAMILY as EDIT_2509
from toolkit.models.qwen_image.family import QwenImageFamily
from toolkit.models.qwen_image.layered import FAMILY
from toolkit.models.qwen_image.model import QwenImageModel
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.plan.memory_inputs import (
    BatchSizes,
    count_trainable_params,
    group_items,
    step_shape,
)
from toolkit.train.flow_step import FlowMatchingStep
from toolkit.train.sampling import SamplePrompt, Sampler, layers_of

CAPTION = "a cup of coffee, natural light"


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> Member:
    return write_member(
        tmp_path_factory.mktemp("layered"), TinySpec(arch="qwen_image_layered")
    )


def open_layered(member: Member, **options: object) -> QwenImageModel:
    return FAMILY.open(
        ModelLoadOptions(
            folder=member.folder, device=CPU, dtype=torch.float32, **options
        )
    )


def section_of(folder: Path, arch: str, level: str) -> SdTrainerConfig:
    return SdTrainerConfig.model_validate(
        {
            "type": "sd_trainer",
            "network": {"type": "lora", "linear": 1, "linear_alpha": 1},
            "datasets": [{"folder_path": "images"}],
            "train": {
                "optimizer": "adamw",
                "dtype": "bf16",
                "gradient_checkpointing": level,
            },
            "model": {
                "name_or_path": str(folder),
                "arch": arch,
                "modulation_table": False,
            },
        }
    )


def item_of(
    paths: tuple[Path, ...], size: Size = SIZE, caption: str = CAPTION
) -> BucketedSample:
    picture, *layers = map(str, paths)
    sample = Sample(
        picture, caption, repeats=1, size=size, folder="", layers=tuple(layers)
    )
    return BucketedSample(sample, ResizeCrop(size, 0, 0, size))


def latents_by_hand(pipeline: object, paths: tuple[Path, ...]) -> torch.Tensor:
    """Normalised latents [N, C, H, W] of images, by the pipeline's own functions."""
    found = []
    for path in paths:
        pixels_BPHW = pipeline.image_processor.preprocess(
            Image.open(path), SIZE.height, SIZE.width
        )
        with torch.no_grad():
            found.append(
                pipeline._encode_vae_image(pixels_BPHW.unsqueeze(2), generator=None)[
                    :, :, 0
                ]
            )
    return torch.cat(found)


def _dimensions(own: Callable[..., Any], area: int, asked: int, aspect: float) -> Any:
    assert asked == 640 * 640
    return own(area, aspect)


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "guidance"), [(3, 4.0), (1, 1.0)])
def test_a_sample_equals_the_pipelines(
    layered: Member,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layers: int,
    guidance: float,
) -> None:
    """Of 128 x 128 pixels in both programs; the pipeline itself takes 640 x 640."""
    module = sys.modules[type(layered.pipeline).__module__]
    monkeypatch.setattr(
        module,
        "calculate_dimensions",
        partial(_dimensions, module.calculate_dimensions, 128 * 128),
    )
    picture, *_ = write_layers(tmp_path, 2, Size(50, 30))
    size = FAMILY.sample_size(Size(128, 128), Size(50, 30))
    assert FAMILY.sample_size(Size(640, 640), Size(50, 30)) == FAMILY.default_size(
        Size(50, 30)
    ), "generate and samples have one size"
    prompt = SamplePrompt(
        CAPTION,
        "blurry",
        size,
        7,
        guidance,
        steps=2,
        references=(picture,),
        layers=layers,
    )
    model = open_layered(layered)
    row = Sampler(
        model, [prompt], ItemEncoder(model, torch.float32), memory_stores()
    ).generate(0)
    theirs = layered.pipeline(
        Image.open(picture),
        prompt=CAPTION,
        negative_prompt="blurry",
        true_cfg_scale=guidance,
        layers=layers,
        num_inference_steps=2,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images
    # diffusers 0.42.1 slices by one image more than it decodes, so a batch of one is
    # whole
    assert [image.mode for image in theirs[0]] == ["RGBA"] * layers
    with pytest.raises(RuntimeError, match="to have 4 channels"):  # cards say RGBA
        layered.pipeline(Image.open(picture).convert("RGB"), prompt=CAPTION)
    found = [
        psnr(mine, other)
        for mine, other in zip(layers_of(row, layers), theirs[0], strict=True)
    ]
    at_least(
        f"Qwen-Image-Layered: sample, {layers} layers, guidance {guidance:g}, {size}, dB",
        min(found),
        60,
    )


@pytest.mark.parametrize(
    "composite", [True, False], ids=["with the picture", "layers alone"]
)
@pytest.mark.parametrize("count", [1, 3])
def test_loss_and_gradient_equal_those_of_a_plain_loop(
    layered: Member, tmp_path: Path, count: int, composite: bool
) -> None:
    """Targets as musubi-tuner 30c658c4 and DiffSynth 2.1.12 lay them out: the picture,
    then its layers; the picture is the condition too."""
    paths = write_layers(tmp_path, count)
    model = open_layered(layered, composite_target=composite)
    batch = BatchLoader(encode_photos(model, item_of(paths)), seed=5).load(
        BatchSpec(0, (0,), (0,))
    )
    step = FlowMatchingStep(model, seed=5, timestep_type="sigmoid")
    transformer = model.network_module.requires_grad_(True)
    losses = step(batch)
    (loss,) = losses.by_role["network"]
    loss.backward()

    pipeline = layered.pipeline
    theirs = copy.deepcopy(pipeline.transformer).requires_grad_(True)
    latents_NCHW = latents_by_hand(pipeline, paths)
    target_NCHW = latents_NCHW if composite else latents_NCHW[1:]
    images, channels, height, width = target_NCHW.shape
    noise_BCHW, t_B = step.sample_noise_and_t(
        batch.spec, batch.latents_BCHW.shape[1:], batch.stacked
    )
    noise_NCHW = noise_BCHW[0].unflatten(1, (images, height)).transpose(0, 1)
    x_t_NCHW = (1 - t_B) * target_NCHW + t_B * noise_NCHW
    tokens_BSP = pipeline._pack_latents(
        x_t_NCHW[None], 1, channels, height, width, images
    )
    condition_BSP = pipeline._pack_latents(
        latents_NCHW[None, :1], 1, channels, height, width, 1
    )
    embeds_BLD, mask = pipeline.encode_prompt(CAPTION)
    predicted_BSP = theirs(
        hidden_states=torch.cat([tokens_BSP, condition_BSP], dim=1),
        timestep=t_B,
        encoder_hidden_states=embeds_BLD.detach(),
        encoder_hidden_states_mask=mask,
        img_shapes=[[(1, height // 2, width // 2)] * (images + 1)],
        additional_t_cond=torch.zeros(1, dtype=torch.long),
        return_dict=False,
    )[0][:, : tokens_BSP.shape[1]]
    velocity_BSP = pipeline._pack_latents(
        (noise_NCHW - target_NCHW)[None], 1, channels, height, width, images
    )
    expected = (predicted_BSP - velocity_BSP).square().mean()
    expected.backward()

    name = f"Qwen-Image-Layered, {count} layers, {'with' if composite else 'without'} the picture"
    at_most(f"{name}: loss", abs(float((loss / expected).detach()) - 1), 1e-5)
    gradients = dict(theirs.named_parameters())
    found = [
        relative(parameter.grad, gradients[key].grad)
        for key, parameter in transformer.named_parameters()
        if key in gradients
        and gradients[key].grad is not None  # the last block's text leads nowhere
    ]
    assert len(found) > 40
    at_most(f"{name}: gradient", max(found), 1e-5)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each family, whose tensors are large beside those that the plan leaves
    out. Read only."""
    made = {}
    for family in (FAMILY, EDIT_2509):
        made[family.arch] = tmp_path_factory.mktemp("wide")
        spec = TinySpec(arch=family.arch, layers=4, heads=8)
        write_tiny_model(made[family.arch], spec)
    return made


def bytes_of_a_step(
    folder: Path, family: QwenImageFamily, level: str, count: int
) -> tuple[int, int]:
    """Bytes of the tensors alive at once in a step of so many layers, counted on fake
    ones, and the estimate of the plan for them. Another family gets the same tokens as
    one image that is as large."""
    section, side = section_of(folder, family.arch, level), Size(512, 512)
    model = family.open(
        ModelLoadOptions(folder=folder, device=CPU, dtype=torch.bfloat16)
    )
    network = attach_network(section, model, 1, None)
    build_block_runner(section, model, simulation.DEVICE)
    sample = Sample(
        "a.png",
        "",
        1,
        side,
        ".",
        layers=tuple(f"a_layer{index}.png" for index in range(count)),
    )
    groups, facts = (
        group_items([BucketedSample(sample, ResizeCrop(side, 0, 0, side))]),
        FAMILY.footprint(folder),
    )
    planned = BatchSizes(section, facts, groups).of_group(groups[0])
    prompts = PromptEmbeds.stack([torch.randn(planned.text_tokens, 64)])
    width, height = FAMILY.latent_size(side)
    x_BCHW, reference = (
        torch.randn(1, 16, (count + 1) * height, width),
        torch.randn(16, height, width),
    )
    assert model.num_tokens(x_BCHW, prompts, [[reference]]) == planned.tokens

    def step() -> None:
        model.predict_velocity(
            x_BCHW, torch.tensor([0.5]), prompts, [[reference]]
        ).square().mean().backward()
        for parameter in network.parameters().values():
            parameter.grad = None

    live = LiveBytes(simulation.FOLLOWED)
    with FakeTensorMode(allow_non_fake_inputs=True), live:
        with torch.no_grad():  # fills the tables of positions
            model.predict_velocity(x_BCHW, torch.tensor([0.5]), prompts, [[reference]])
        gc.collect()
        live.phase("step")
        before = live.device
        step()
    work = step_shape(
        section, facts, count_trainable_params(section), tokens=planned.tokens
    )
    return live.phases["step"].device - before, sum(
        step_peak(work, level, gaps=lambda activations: 0)
    )


@pytest.mark.slow
@pytest.mark.parametrize("level", ["none", "full"])
def test_layers_take_the_memory_that_is_planned(
    wide: dict[str, Path], level: str
) -> None:
    """Three layers more: what they take, against what the plan adds for them. A step
    takes what one of Edit-2509 takes, whose plan is held against a card."""
    (one, one_planned), (four, four_planned) = (
        bytes_of_a_step(wide[FAMILY.arch], FAMILY, level, count) for count in (1, 4)
    )
    growth = (four - one) / (four_planned - one_planned)
    at_most(
        f"Qwen-Image-Layered, {level}: three more layers, taken / planned", growth, 1.1
    )
    at_least(
        f"Qwen-Image-Layered, {level}: three more layers, taken / planned", growth, 1.0
    )
    like, _ = bytes_of_a_step(wide[EDIT_2509.arch], EDIT_2509, level, 4)
    at_most(
        f"Qwen-Image-Layered, {level}: a step against Edit-2509's",
        abs(four / like - 1),
        1e-3,
    )
