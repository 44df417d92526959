"""What training and sampling compute equals what diffusers' own pipeline computes, from
photographs to images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from diffusers.pipelines.qwenimage21.pipeline_qwenimage21 import calculate_dimensions
from PIL import Image
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.diffusers_21 import (
    ImageProcessor,
    drawn_by_pipeline,
    load_pipeline,
    open_21,
    pack,
    side_of,
)
from tests.diffusers_reference import (
    REFERENCES,
    encode_photos,
    memory_stores,
    photo_item,
    pictures_of,
    psnr,
    recording,
    relative,
    write_unit_gain,
)
from tests.golden_tables import golden
from tests.measured import at_least, at_most
from toolkit.config.sections.model_files import INDEX, model_fault
from toolkit.config.sections.output import SamplePicture
from toolkit.contracts.data import EMBEDS, BatchSpec, BucketedSample, Size
from toolkit.data.batches.dataloader import BatchLoader
from toolkit.data.batches.latent_cache import ItemEncoder
from toolkit.data.pixels.images import over_white
from toolkit.errors import UserError
from toolkit.models.folder_family import reference_size
from toolkit.models.qwen_image21.family import FAMILY
from toolkit.models.qwen_image21.model import QwenImage21Model
from toolkit.models.qwen_image21.prompts import SLOTS, dropped_tokens, token_ids
from toolkit.models.vl_prompts import load_tokenizer
from toolkit.train.flow_step import FlowMatchingStep
from toolkit.train.sampling import SamplePrompt, Sampler, sample_prompts

PORTRAIT, LANDSCAPE = Size(96, 160), Size(192, 128)
PROMPT = "a cup of coffee, natural light"


def photo(size: Size, references: int) -> BucketedSample:
    return photo_item(
        size, tuple(islice(cycle(REFERENCES), references)), caption=PROMPT
    )


def training_call(model: QwenImage21Model, *items: BucketedSample) -> tuple:
    """One training step on cached items: (t_B, x_t_BCHW, velocity_BCHW) as the model
    got and gave them."""
    dataset = encode_photos(model, *items)
    rows = tuple(range(len(items)))
    batch = BatchLoader(dataset, seed=5).load(
        BatchSpec(epoch=0, items=rows, positions=rows)
    )
    predict, calls = model.predict_velocity, []

    def spy(x_t_BCHW, t_B, prompts, references):
        velocity_BCHW = predict(x_t_BCHW, t_B, prompts, references)
        calls.append((t_B, x_t_BCHW, velocity_BCHW.detach()))
        return velocity_BCHW

    model.predict_velocity = spy
    FlowMatchingStep(model, seed=5, timestep_type="sigmoid")(batch)
    (call,) = calls
    return call


def pipeline_velocity(
    pipeline, item: BucketedSample, t: torch.Tensor, x_t_CHW: torch.Tensor
) -> torch.Tensor:
    """The transformer's output inside the pipeline's own call, for the target's
    tokens."""
    tokens_BNC, bucket = pack(x_t_CHW[None]), item.crop.bucket
    with recording(pipeline.transformer) as seen:
        pipeline(
            image=pictures_of(item) or None,
            prompt=item.sample.caption,
            width=bucket.width,
            height=bucket.height,
            output_resolution=side_of(bucket),
            sigmas=[float(t)],
            latents=tokens_BNC,
            output_type="latent",
        )
    (output_BSC,) = seen.outputs
    torch.testing.assert_close(seen.inputs[0]["timestep"], t[None], rtol=0, atol=1e-6)
    return output_BSC[:, -tokens_BNC.shape[1] :]


@pytest.fixture
def at_any_time(pipeline_21, monkeypatch: pytest.MonkeyPatch):
    """The pipeline with a scheduler that takes a noise level as it is given, so that
    its one step is at training's."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    monkeypatch.setattr(pipeline_21, "scheduler", scheduler)
    return pipeline_21


BATCHES = {
    **{
        f"{n} references": [(size, n)]
        for n, size in ((0, PORTRAIT), (1, LANDSCAPE), (3, PORTRAIT), (10, LANDSCAPE))
    },
    "a batch with 2, 0, 2 and 1 references": [
        (LANDSCAPE, 2),
        (LANDSCAPE, 0),
        (LANDSCAPE, 2),
        (LANDSCAPE, 1),
    ],
}


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(
            name, marks=[pytest.mark.slow] * (name in ("1 references", "3 references"))
        )
        for name in BATCHES
    ],
)
def test_velocity_equals_the_pipelines(
    at_any_time, unit_gain_21: Path, batch: str
) -> None:
    items = [photo(*one) for one in BATCHES[batch]]
    t_B, x_t_BCHW, velocity_BCHW = training_call(
        open_21(unit_gain_21, reference_area=0), *items
    )
    errors = []
    for item, t, x_t_CHW, ours_CHW in zip(
        items, t_B, x_t_BCHW, velocity_BCHW, strict=True
    ):
        theirs_BNC = pipeline_velocity(at_any_time, item, t, x_t_CHW)
        errors.append(
            float((pack(ours_CHW[None]) - theirs_BNC).abs().max() / theirs_BNC.std())
        )
    at_most(f"velocity, {batch}", max(errors), 1e-5)


OTHER_TEXT = {
    "hidden_size": 48,
    "intermediate_size": 120,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "max_position_embeddings": 8192,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [2, 2, 2],
        "mrope_interleaved": True,
    },
}
OTHER_VISION = {
    "depth": 3,
    "hidden_size": 48,
    "num_heads": 4,
    "out_hidden_size": 48,
    "deepstack_visual_indexes": [0, 2],
}


@pytest.fixture(scope="module")
def other_model(tiny_21: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of other numbers of everything, a VAE of patches, one shift for every size; saved
    by the pipeline itself."""
    folder = tmp_path_factory.mktemp("other")
    ids = json.loads((tiny_21 / "text_encoder" / "config.json").read_text())
    sizes = {"vocab_size": ids["text_config"]["vocab_size"]}
    tokens = {key: value for key, value in ids.items() if key.endswith("_token_id")}
    text = Qwen3VLConfig(
        text_config=OTHER_TEXT | sizes,
        vision_config=OTHER_VISION,
        tie_word_embeddings=True,
        **tokens,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        QwenImage21Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
            vae=AutoencoderKLQwenImage21(
                base_dim=8,
                decoder_base_dim=12,
                z_dim=12,
                dim_mult=[1, 2, 4, 4],
                num_res_blocks=1,
                temperal_downsample=[False, True, True],
                in_channels=16,
                out_channels=16,
                patch_size=2,
                latents_mean=[0.1] * 12,
                latents_std=[0.5] * 12,
            ),
            text_encoder=Qwen3VLForConditionalGeneration(text),
            processor=ImageProcessor.of_folder(tiny_21 / "processor"),
            transformer=QwenImage21Transformer2DModel(
                in_channels=12,
                out_channels=None,
                num_layers=3,
                attention_head_dim=20,
                num_attention_heads=3,
                context_in_dim=48,
                mlp_ratio=2,
                axes_dims_rope=(4, 6, 10),
            ),
        ).save_pretrained(folder / "plain")
    write_unit_gain(folder / "unit_gain", folder / "plain")
    return folder / "unit_gain"


@pytest.mark.slow
def test_a_model_of_other_sizes_that_the_pipeline_saved_computes_the_same(
    other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not model_fault(str(other_model), None)
    pipeline = load_pipeline(other_model)
    prompt = SamplePrompt(PROMPT, "blurry", PORTRAIT, 42, 3.0, 4, REFERENCES[:2])
    model = open_21(other_model, reference_area=0)
    image = Sampler(
        model, [prompt], ItemEncoder(model, torch.float32), memory_stores()
    ).generate(0)
    (theirs,) = drawn_by_pipeline(pipeline, prompt)
    at_least("sample of a model of other sizes, dB", psnr(image, theirs), 60)
    monkeypatch.setattr(pipeline, "scheduler", FlowMatchEulerDiscreteScheduler())
    items = [photo(LANDSCAPE, references) for references in (3, 0, 1)]
    for item, t, x_t_CHW, ours_CHW in zip(
        items, *training_call(model, *items), strict=True
    ):
        theirs_BNC = pipeline_velocity(pipeline, item, t, x_t_CHW)
        error = float(
            (pack(ours_CHW[None]) - theirs_BNC).abs().max() / theirs_BNC.std()
        )
        at_most("velocity of a model of other sizes", error, 1e-5)


@pytest.fixture
def cut_out(tmp_path: Path) -> Path:
    """A reference that is clear on the left, half clear in the middle and opaque on the
    right."""
    path = tmp_path / "cut out.png"
    with Image.open(REFERENCES[0]) as image:
        cut = image.convert("RGB")
    cut.putalpha(
        Image.linear_gradient("L")
        .rotate(90)
        .point(lambda v: max(0, min(255, 2 * v - 128)))
        .resize(cut.size)
    )
    cut.save(path)
    return path


@pytest.mark.slow
def test_a_transparent_reference_gives_the_image_of_the_pipeline(
    pipeline_21, unit_gain_21: Path, cut_out: Path
) -> None:
    """To the text encoder it is as if laid over white, to the VAE it is not."""
    model, opaque = (
        open_21(unit_gain_21, reference_area=0),
        cut_out.with_name("opaque.png"),
    )
    over_white(Image.open(cut_out)).save(opaque)
    images, given = {}, {}
    for path in (cut_out, opaque):
        prompt = SamplePrompt(PROMPT, "", Size(64, 64), 42, 1.0, 4, (path,))
        sampler = Sampler(
            model, [prompt], ItemEncoder(model, torch.float32), memory_stores()
        )
        images[path], (theirs,) = (
            sampler.generate(0),
            drawn_by_pipeline(pipeline_21, prompt),
        )
        assert images[path].mode == theirs.mode == "RGBA"
        at_least(
            f"sample with the reference {path.stem}, dB", psnr(images[path], theirs), 60
        )
        given[path] = [entry.tensors()[EMBEDS] for entry in sampler.entries()]
    (text, latents), (text_of_opaque, latents_of_opaque) = given[cut_out], given[opaque]
    assert relative(latents, latents_of_opaque) > 0.01 > relative(text, text_of_opaque)
    assert psnr(*images.values()) < 50


SAMPLES = {
    "0 references": (0, Size(96, 64), 1.0),
    "0 references, guided": (0, Size(96, 64), 4.0),
    "1 reference, wide": (1, Size(128, 64), 1.0),
    "3 references, guided, tall": (3, Size(64, 96), 4.0),
}


@pytest.mark.parametrize(
    ("case", "use_kv_cache"),
    [
        *((case, True) for case in SAMPLES if not case.startswith("3")),
        *(
            pytest.param("3 references, guided, tall", cache, marks=pytest.mark.slow)
            for cache in (True, False)
        ),
    ],
)
def test_a_seed_gives_the_image_of_the_pipeline(
    pipeline_21, unit_gain_21: Path, case: str, use_kv_cache: bool
) -> None:
    """The 8-bit images, the noise levels, and the latents beside what another prompt
    changes of them."""
    references, size, guidance = SAMPLES[case]
    prompt = SamplePrompt(
        PROMPT, "blurry", size, 42, guidance, 4, REFERENCES[:references]
    )
    model = open_21(unit_gain_21, reference_area=0)

    def sampler(wanted: SamplePrompt) -> Sampler:
        return Sampler(
            model, [wanted], ItemEncoder(model, torch.float32), memory_stores()
        )

    ours, other = (
        sampler(prompt),
        sampler(replace(prompt, prompt="a rocket before launch")),
    )
    (theirs,) = drawn_by_pipeline(pipeline_21, prompt, use_kv_cache=use_kv_cache)
    image = ours.generate(0)
    at_least(f"sample, {case}, dB", psnr(image, theirs.convert(image.mode)), 60)
    torch.testing.assert_close(
        ours._sigmas(prompt), pipeline_21.scheduler.sigmas, rtol=0, atol=1e-6
    )
    tokens_BNC = pack(ours.latents(0))
    error_BNC = tokens_BNC - drawn_by_pipeline(
        pipeline_21, prompt, use_kv_cache=use_kv_cache, output_type="latent"
    )
    share = float(error_BNC.norm() / (tokens_BNC - pack(other.latents(0))).norm())
    at_most(f"sample, {case}, error of what another prompt changes", share, 1e-3)


# ------------------------------------------------------------ noise levels


@pytest.fixture
def with_levels(unit_gain_21: Path, tmp_path: Path) -> Callable[[object], Path]:
    """The model with these `sample_sigmas`."""

    def make(found: object) -> Path:
        folder = tmp_path / "with_levels"
        folder.mkdir()
        for part in unit_gain_21.iterdir():
            (folder / part.name).symlink_to(part)
        index = json.loads((unit_gain_21 / INDEX).read_text())
        (folder / INDEX).unlink()
        (folder / INDEX).write_text(json.dumps(index | {"sample_sigmas": found}))
        return folder

    return make


@pytest.mark.slow
@pytest.mark.parametrize("own_shift", [True, False])
def test_levels_of_the_model_are_those_of_the_pipeline(
    with_levels, own_shift: bool
) -> None:
    """Those of the model where no steps are given, or as many; else resampled, as the
    pipeline is given them then, which ignores `num_inference_steps`. With a shift by
    size, and with none, as the published Turbo has it."""
    folder = with_levels([1.0, 0.9, 0.5, 0.2])
    if not own_shift:
        config = json.loads(
            (folder / "scheduler" / "scheduler_config.json").read_text()
        )
        (folder / "scheduler").unlink()
        (folder / "scheduler").mkdir()
        config |= {"use_dynamic_shifting": False, "shift": 1.0, "shift_terminal": None}
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    pipeline = load_pipeline(folder)
    pipeline.register_to_config(
        sample_sigmas=json.loads((folder / INDEX).read_text())["sample_sigmas"]
    )
    given = {
        "prompt": PROMPT,
        "width": 64,
        "height": 64,
        "neg": "",
        "seed": 42,
        "guidance_scale": None,
    }
    model, family = open_21(folder), FAMILY.of_folder(folder)
    images = []
    for steps, options in (
        (None, {}),
        (4, {}),
        (7, {"sigmas": [1.0, 0.95, 0.9, 0.7, 0.5, 0.35, 0.2]}),
    ):
        (prompt,) = sample_prompts(
            [SamplePicture(**given, sample_steps=steps)], "", family
        )
        assert (prompt.steps, prompt.guidance_scale) == (steps or 4, 1.0)
        sampler = Sampler(
            model, [prompt], ItemEncoder(model, torch.float32), memory_stores()
        )
        images.append(sampler.generate(0))
        (theirs,) = drawn_by_pipeline(pipeline, prompt, **options)
        torch.testing.assert_close(
            sampler._sigmas(prompt), pipeline.scheduler.sigmas, rtol=0, atol=1e-6
        )
        at_least(
            f"sample with {steps or 'the'} noise levels of the model, dB",
            psnr(images[-1], theirs),
            60,
        )
        if not own_shift:
            assert sampler._sigmas(prompt)[-2] == pytest.approx(0.2)
    assert psnr(*images[:2]) == math.inf and psnr(*images[1:]) < 50


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ("1, 0.5", "has to be a list of numbers"),
        ([1.0, None], "list of numbers"),
        ([True], "list of numbers"),
    ]
    + [
        (wrong, "have to fall")
        for wrong in ([0.5, 1.0], [1.5, 0.5], [1.0, 0.0], [1.0, 1.0], [1.0, math.nan])
    ],
)
def test_levels_that_are_none_are_refused(
    with_levels, found: object, told: str
) -> None:
    with pytest.raises(UserError, match=rf"model_index.json: sample_sigmas: .*{told}"):
        FAMILY.of_folder(with_levels(found))


# ------------------------------------------------------------ text


def seen_by_pipeline(
    pipeline, prompt: str, images: list[Image.Image]
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Features [L, D] of the kept tokens, whether each is of an image, and all token
    ids."""
    ids: list[list[int]] = []
    handle = pipeline.text_encoder.register_forward_pre_hook(
        lambda _, given, named: ids.append(named["input_ids"][0].tolist()),
        with_kwargs=True,
    )
    embeds_BLD, mask, is_image_BL = pipeline.encode_prompt(prompt, image=images or None)
    handle.remove()
    assert mask is None
    return embeds_BLD[0], is_image_BL[0], ids[0]


def images_of(count: int) -> list[Image.Image]:
    """References in sizes that no processor changes."""
    sizes = [(96, 64), (64, 128), (96, 96)]
    return [
        Image.open(path).convert("RGB").resize(size)
        for path, size in zip(REFERENCES[:count], sizes, strict=False)
    ]


@pytest.mark.parametrize("references", [0, 1, 3])
@pytest.mark.parametrize("prompt", [PROMPT, ""])
@torch.no_grad()
def test_text_features_and_places_of_references_are_the_pipelines(
    pipeline_21, unit_gain_21: Path, prompt: str, references: int
) -> None:
    model, images = open_21(unit_gain_21), images_of(references)
    theirs_LD, is_image_L, ids = seen_by_pipeline(pipeline_21, prompt, images)
    ours = model.encode_prompt(prompt, images)
    at_most("text features", relative(ours[EMBEDS], theirs_LD[~is_image_L]), 1e-6)
    text_before_L = (~is_image_L).cumsum(0)
    begins = [
        i for i in range(1, len(is_image_L)) if is_image_L[i] and not is_image_L[i - 1]
    ]
    assert [slot for slot in ours[SLOTS].tolist() if slot >= 0] == [
        int(text_before_L[i]) for i in begins
    ]
    counts = [image.width * image.height // 32**2 for image in images]
    assert token_ids(prompt, counts, model.part("processor")[0]) == ids


CASES = golden("prompt_templates_21")


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_the_text_is_the_one_diffusers_hands_to_its_processor(
    unit_gain_21: Path, case: dict
) -> None:
    tokenizer = load_tokenizer(unit_gain_21 / "processor")
    ids = token_ids(case["prompt"], [1] * case["num_images"], tokenizer)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == case["text"]
    special = [
        token
        for token in tokenizer.convert_ids_to_tokens(ids)
        if token in tokenizer.all_special_tokens
    ]
    assert special == case["special_tokens"]


def test_the_tokens_of_the_system_turn_are_counted_by_the_tokenizer(
    pipeline_21, unit_gain_21
) -> None:
    tokenizer = load_tokenizer(unit_gain_21 / "processor")
    assert dropped_tokens(tokenizer) == pipeline_21._drop_idx
    tokenizer.add_tokens(["Comprehend and analyze"])
    assert dropped_tokens(tokenizer) < pipeline_21._drop_idx


# ------------------------------------------------------------ sizes

SIZES = [
    Size(*sides)
    for sides in (
        (1024, 1024),
        (1344, 768),
        (640, 480),
        (333, 1000),
        (3000, 200),
        (97, 101),
    )
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_references_have_the_pipelines_sizes(size: Size) -> None:
    for target, given, area in (
        (PORTRAIT, 1024**2, 1024**2),
        (PORTRAIT, 0, 96 * 160),
        (LANDSCAPE, 0, 192 * 128),
    ):
        theirs = calculate_dimensions(area, size.width / size.height)[:2]
        assert tuple(reference_size(size, target, given)) == theirs
