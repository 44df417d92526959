"""What a model family on `DiffusersFamily` promises in addition to
`test_families_contract`: a module of tests, run for each such family.

A family has a test file that imports all of this, and a fixture `row`:

    from tests.extensions.family_contract import *  # noqa: F403 - its tests and its fixtures

    @pytest.fixture(scope="module")
    def row() -> Row:
        return Row("z_image", write_z_image, ...)
"""

from __future__ import annotations

import ast
import copy
import inspect
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks import bench_memory, family_units
from extensions.tools.lora_tools.lora_export import FORMATS, export, read_adapter
from extensions.tools.publish.card import model_card
from extensions.tools.publish.card import section_of as card_section
from extensions.tools.shared.examples import all_models, written_job
from jobs.dry_run import plan_job
from tests.conftest import ROOT
from tests.diffusers_reference import (
    CPU,
    encode_photos,
    memory_stores,
    photo_item,
    psnr,
    relative,
    write_unit_gain,
)
from tests.faults.conftest import (
    KILL,
    STEP,
    Job,
    draw_pictures,
    pictures_of,
    section_of,
)
from tests.faults.nursery import Nursery
from tests.measured import at_least, at_most
from tests.network_files import save_network
from tests.parts import needs_stand_in
from tests.running import lines, run_job, run_tool
from tests.stand_in_cuda import built
from tests.toolkit.memory.conftest import fresh_compiler  # noqa: F401 - a fixture
from tests.toolkit.models.test_families_contract import *  # noqa: F403 - its tests and its fixtures
from toolkit.config import load_job
from toolkit.config.sections.model_files import (
    family_named,
    model_fault,
    named_elsewhere,
)
from toolkit.config.sections.network import NetworkConfig
from toolkit.config.sections.train import CompileConfig
from toolkit.contracts.data import BatchSpec, PromptEmbeds, Size
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.network_kinds import KINDS
from toolkit.data.batches.dataloader import BatchLoader
from toolkit.data.batches.latent_cache import ItemEncoder
from toolkit.errors import ConfigErrors, UserError
from toolkit.extension import discover
from toolkit.memory.block_runner import BlockRunner
from toolkit.memory.estimate import step_peak
from toolkit.memory.quantization import quantizer
from toolkit.models.families import ModelLoadOptions
from toolkit.models.folder_family import DiffusersFamily, published_shapes
from toolkit.networks.lora_formats import load_adapter_file
from toolkit.networks.spelling import SPELLINGS, spelled
from toolkit.networks.targets import select_target_modules
from toolkit.train.flow_step import NETWORK, FlowMatchingStep
from toolkit.train.run_reader import list_network_files, read_run
from toolkit.train.sampling import SamplePrompt, Sampler

SIZES = (Size(96, 160), Size(192, 128), Size(128, 128))
SMALL = Size(96, 64)
PHOTOS = ROOT / "config" / "examples" / "photos" / "40_photo"
CAPTIONS = ("a cup of coffee, natural light", "a cat", "a photo of a rocket " * 5)


@dataclass(frozen=True)
class Row:
    """A family, as the contract needs it."""

    arch: str
    write: Callable[..., object]
    """Writes a small model with random weights into a folder that is not there yet. It
    has four blocks or more: three of them are swapped."""

    pipeline: type
    """diffusers' class."""

    predict: Callable[[Any, Tensor, Tensor, Sequence[str], Sequence[Tensor]], Tensor]
    """(pipeline, x_t_BCHW, t_B, prompts, latents of control images) -> the velocity, as
    the pipeline calls its transformer."""

    encode: Callable[[Any, Tensor], Tensor]
    """(pipeline, pixels_BPHW) -> the latents that its transformer is trained on."""

    draw: Callable[[Any, SamplePrompt], Image.Image]
    """The picture of the pipeline for a sample of ours."""

    sizes: Mapping[str, Mapping[str, Any]]
    """Entry of the family's `shapes_file` -> arguments of the transformer's class."""

    wide: Mapping[str, Any] | None = None
    """Arguments of `write` for a model of a width above 500, with heads of the published
    size, whose blocks take far more memory than what is around them. None: the memory of
    its blocks is not counted."""

    programs: int = 1
    """Compiled programs of a training step: one for each kind of block."""

    other_names: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    """Program -> from the name of a layer to the beginning of its keys there, which the
    parts of a fused layer share. Of ai-toolkit, diffusers and musubi-tuner at least."""

    references: Sequence[Path] = ()
    """Files of control images, where the family takes any."""


@pytest.fixture
def arch(row: Row) -> str:
    return row.arch


@pytest.fixture(scope="module")
def plain(row: Row, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model. Read only."""
    folder = tmp_path_factory.mktemp("family") / row.arch
    row.write(folder)
    return folder


@pytest.fixture(scope="module")
def written(plain: Path) -> Callable[[str], Path]:
    return lambda arch: plain


@pytest.fixture(scope="module")
def unit_gain(plain: Path) -> Path:
    """The same with weights in which every input is plainly seen (`write_unit_gain`).
    Read only."""
    folder = plain.parent / "unit_gain"
    write_unit_gain(folder, plain)
    return folder


@pytest.fixture(scope="module")
def pipeline(row: Row, unit_gain: Path) -> Any:
    """diffusers' own, float32."""
    return load_pipeline(row, unit_gain)


def load_pipeline(row: Row, folder: Path) -> Any:
    pipeline = row.pipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def open_model(row: Row, folder: Path, **options: Any) -> Any:
    options = {"dtype": torch.float32, **options}
    return family_named(row.arch).open(
        ModelLoadOptions(folder=folder, device=CPU, **options)
    )


@pytest.fixture
def model(row: Row, unit_gain: Path) -> Any:
    return open_model(row, unit_gain)


def lora_of(model: DiffusionModel, rank: int = 3, spread: float = 0.05) -> Any:
    """A LoRA of the usual layers, attached, with matrices as training could have made
    them."""
    settings = NetworkConfig(linear=rank, linear_alpha=2)
    targets = select_target_modules(
        settings, model.lora_targets(), model.family.lora_layers
    )
    network = KINDS["lora"].load().from_config(settings, targets, 1)
    network.attach(model.network_module)
    generator = torch.Generator().manual_seed(11)
    for parameter in network.parameters().values():
        parameter.data += spread * torch.randn(parameter.shape, generator=generator)
    return network


def batches_of(model: DiffusionModel, references: Sequence[Path]) -> list[Any]:
    """Three photographs of unlike size and caption as training steps get them, with
    none, one and two of the control images."""
    photos = [
        photo_item(size, references[:count], caption=caption)
        for count, (size, caption) in enumerate(zip(SIZES, CAPTIONS, strict=True))
    ]
    loader = BatchLoader(encode_photos(model, *photos), seed=5)
    return [
        loader.load(BatchSpec(epoch=0, items=(at,), positions=(at,)))
        for at in range(len(photos))
    ]


def draw_from_zero(pipeline: Any, prompt: SamplePrompt) -> Image.Image:
    """`Row.draw` of a pipeline whose guidance counts from 0."""
    return pipeline(
        prompt.prompt,
        negative_prompt=prompt.negative,
        guidance_scale=prompt.guidance_scale - 1,
        width=prompt.size.width,
        height=prompt.size.height,
        num_inference_steps=prompt.steps,
        generator=torch.Generator().manual_seed(prompt.seed),
    ).images[0]


# ------------------------------------------------------------ before the download


def test_the_published_shapes_are_those_of_diffusers_class(row: Row) -> None:
    family = family_named(row.arch)
    for size, arguments in row.sizes.items():
        with torch.device("meta"):
            module = getattr(diffusers, family.classes["transformer"])(**arguments)
        shapes = {name: tuple(w.shape) for name, w in module.state_dict().items()}
        assert published_shapes(family.shapes_file, size) == shapes


def test_a_model_on_the_disk_has_no_fault(row: Row, plain: Path) -> None:
    assert model_fault(str(plain), None) == ""


def test_the_text_encoder_keeps_what_is_planned(model: Any) -> None:
    """Without the layers behind the last one that is used, and without a vision tower
    that sees nothing."""
    planned = model.family.footprint(model.options.folder).text
    kept = sum(one.numel() for one in model.part("text_encoder").parameters())
    both = planned.linear_params + planned.other_params
    assert kept == pytest.approx(both, rel=0.02)


# ------------------------------------------------------------ equal to diffusers


def latents_of(family: DiffusersFamily, count: int, size: Size = SMALL) -> Tensor:
    width, height = family.latent_size(size)
    return torch.randn(count, family.latent_channels, height, width)


def test_velocity_equals_that_of_diffusers_transformer(
    row: Row, pipeline: Any, model: Any
) -> None:
    """Of a batch of unlike texts and numbers of control images, in one pass and the
    other."""
    family: DiffusersFamily = model.family
    x_t_BCHW = latents_of(family, 3)
    t_B = torch.tensor([0.9, 0.5, 0.1])
    prompts = PromptEmbeds.stack([model.encode_prompt(one, ()) for one in CAPTIONS])
    given = [latents_of(family, 1, size) for size in (Size(64, 64), Size(32, 96))]
    references = [given[: min(count, family.max_references)] for count in (0, 2, 1)]
    with torch.no_grad():
        ours = model.predict_velocity(
            x_t_BCHW, t_B, prompts, [[one[0] for one in each] for each in references]
        )
        theirs = torch.cat(
            [
                row.predict(
                    pipeline, x_t_BCHW[[at]], t_B[[at]], [caption], references[at]
                )
                for at, caption in enumerate(CAPTIONS)
            ]
        )
    at_most("velocity", relative(ours, theirs), 1e-5)


def test_latents_equal_those_of_diffusers_autoencoder(
    row: Row, pipeline: Any, model: Any
) -> None:
    pixels_BPHW = torch.rand(2, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        theirs = row.encode(pipeline, pixels_BPHW)
    at_most("latents", relative(model.encode_images(pixels_BPHW), theirs), 1e-5)


def test_a_seed_gives_the_image_of_the_pipeline(
    row: Row, pipeline: Any, model: Any
) -> None:
    for guidance, images in {(1.0, ()), (3.0, ()), (3.0, tuple(row.references))}:
        prompt = SamplePrompt(
            CAPTIONS[0], "blurry", Size(128, 64), 42, guidance, 4, references=images
        )
        sampler = Sampler(
            model, [prompt], ItemEncoder(model, torch.float32), memory_stores()
        )
        theirs = row.draw(pipeline, prompt)
        name = f"sample at {guidance:g}, {len(images)} control images, dB"
        at_least(name, psnr(sampler.generate(0), theirs), 60)


def test_losses_equal_those_of_a_loop_with_peft(row: Row, unit_gain: Path) -> None:
    """Three steps of AdamW: losses, and the matrices after them."""
    model, pipeline = open_model(row, unit_gain), load_pipeline(row, unit_gain)
    network = lora_of(model)
    transformer = pipeline.transformer
    transformer.requires_grad_(False)
    transformer.add_adapter(
        peft.LoraConfig(r=3, lora_alpha=2, target_modules=list(network.targets))
    )
    theirs = {
        name.replace(".default.", "."): parameter
        for name, parameter in transformer.named_parameters()
        if parameter.requires_grad
    }
    ours = network.parameters()
    assert theirs.keys() == ours.keys()
    for name, parameter in ours.items():
        theirs[name].data.copy_(parameter.data)
    optimizers = [torch.optim.AdamW(each.values(), 1e-2) for each in (ours, theirs)]
    step = FlowMatchingStep(model, seed=5, timestep_type="sigmoid")
    batches = batches_of(model, row.references)
    for batch, caption in zip(batches, CAPTIONS, strict=True):
        latents_BCHW = batch.latents_BCHW
        noise_BCHW, t_B = step.sample_noise_and_t(batch.spec, latents_BCHW.shape[1:])
        x_t_BCHW = torch.lerp(latents_BCHW, noise_BCHW, t_B.view(-1, 1, 1, 1))
        given = [one_CHW[None] for one_CHW in batch.control_latents[0]]
        velocity_BCHW = row.predict(pipeline, x_t_BCHW, t_B, [caption], given)
        losses = (
            step(batch).by_role[NETWORK].mean(),
            (velocity_BCHW - (noise_BCHW - latents_BCHW)).square().mean(),
        )
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found, wanted = (loss.item() for loss in losses)
        at_most("loss", abs(found / wanted - 1), 1e-5)
    changed = (
        torch.cat([each[name].flatten() for name in ours]) for each in (ours, theirs)
    )
    at_most("matrices after three steps", relative(*changed), 1e-3)


# ------------------------------------------------------------ LoRA files


def test_a_lora_loads_in_diffusers_with_all_layers_and_means_the_same(
    row: Row, unit_gain: Path, model: Any, tmp_path: Path
) -> None:
    prompts = PromptEmbeds.stack([model.encode_prompt(CAPTIONS[0], ())])
    x_t_BCHW = latents_of(model.family, 1)
    t_B = torch.tensor([0.6])
    with torch.no_grad():
        base = model.predict_velocity(x_t_BCHW, t_B, prompts, [()])
        network = lora_of(model)
        ours = model.predict_velocity(x_t_BCHW, t_B, prompts, [()])
    file = tmp_path / "lora.safetensors"
    spelling = SPELLINGS[model.family.lora_spelling]
    tensors = spelled(network.export(network.parameters()), spelling)
    save_network(file, tensors, "float32", {})
    pipeline = load_pipeline(row, unit_gain)
    if hasattr(pipeline, "load_lora_weights"):
        pipeline.load_lora_weights(file)
    else:
        prefix = spelling.prefix.removesuffix(".") or None
        pipeline.transformer.load_lora_adapter(load_file(file), prefix=prefix)
    adapted = {
        name
        for name, module in pipeline.transformer.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert adapted == set(network.targets)
    with torch.no_grad():
        theirs = row.predict(pipeline, x_t_BCHW, t_B, CAPTIONS[:1], ())
    assert relative(theirs, base) > 1e-2
    at_most("LoRA in diffusers", relative(ours - base, theirs - base), 1e-4)


def test_files_of_other_programs_are_read(
    row: Row, model: Any, plain: Path, tmp_path: Path
) -> None:
    layers = model.family.every_linear_layer(plain)
    usual = lora_of(model).targets
    torch.manual_seed(1)
    ends = {
        "ai-toolkit": (".lora_A.weight", ".lora_B.weight"),
        "diffusers": (".lora_A.weight", ".lora_B.weight"),
        "musubi-tuner": (".lora_down.weight", ".lora_up.weight"),
    }
    assert row.other_names.keys() >= ends.keys()
    for program, stem_of in row.other_names.items():
        down, up = ends.get(program, ends["musubi-tuner"])
        tensors: dict[str, Tensor] = {}
        for name in usual:
            inputs, outputs = layers[name]
            rows = tensors.get(stem_of(name) + up, torch.empty(0, 4))
            tensors[stem_of(name) + down] = torch.randn(4, inputs)
            tensors[stem_of(name) + up] = torch.cat([rows, torch.randn(outputs, 4)])
        file = tmp_path / f"{program}.safetensors"
        save_file(tensors, file)
        assert load_adapter_file(file, layers).keys() == set(usual), program


def test_a_file_with_the_names_of_the_models_authors_means_the_same(
    row: Row, model: Any, plain: Path, tmp_path: Path
) -> None:
    """The rows of a fused layer go to its parts in order."""
    layers = model.family.every_linear_layer(plain)
    elsewhere = named_elsewhere(layers)
    assert bool(elsewhere) == bool(model.family.layer_names)
    torch.manual_seed(1)
    tensors: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    for name, parts in elsewhere.items():
        inputs = layers[parts[0]][0]
        rows = [layers[part][1] for part in parts]
        down, up = torch.randn(4, inputs), torch.randn(sum(rows), 4)
        tensors[f"diffusion_model.{name}.lora_A.weight"] = down
        tensors[f"diffusion_model.{name}.lora_B.weight"] = up
        wanted |= zip(parts, (up @ down).split(rows), strict=True)
    file = tmp_path / "lora.safetensors"
    save_file(tensors, file)
    changes = load_adapter_file(file, layers)
    assert changes.keys() == wanted.keys()
    for name, change in changes.items():
        at_most(name, relative(change.delta(), wanted[name]), 1e-6)


def test_files_are_converted_to_the_names_that_other_programs_have(
    row: Row, model: Any, plain: Path, tmp_path: Path
) -> None:
    """With the same change of each layer, also where a program joins layers."""
    layers = model.family.every_linear_layer(plain)
    network = lora_of(model)
    file = tmp_path / "lora.safetensors"
    save_network(file, network.export(network.parameters()), "float32", {})
    given = read_adapter(file, [layers])
    prefix = SPELLINGS[model.family.lora_spelling].prefix
    stems = {
        "comfyui": lambda layer: prefix + layer,
        "aitk": row.other_names["ai-toolkit"],
        "musubi": row.other_names["musubi-tuner"],
        "kohya": row.other_names["musubi-tuner"],
    }
    for program, stem_of in stems.items():
        tensors = export(given, FORMATS[program])
        found = {re.split(r"\.(?:lora_|alpha)", key)[0] for key in tensors}
        assert found == set(map(stem_of, given.changes)), program
        save_file(tensors, file)
        again = read_adapter(file, [layers]).changes
        for name, change in given.changes.items():
            at_most(
                f"{program} {name}", relative(again[name].delta(), change.delta()), 1e-6
            )


def test_a_resized_file_is_spelled_as_that_of_a_run(
    model: Any, plain: Path, tmp_path: Path
) -> None:
    network = lora_of(model)
    spelling = SPELLINGS[model.family.lora_spelling]
    tensors = spelled(network.export(network.parameters()), spelling)
    file, resized = tmp_path / "lora.safetensors", tmp_path / "resized.safetensors"
    save_network(file, tensors, "float32", {})
    run_tool("resize", [file, resized, "--rank", "2", "--model", plain])
    assert load_file(resized).keys() == tensors.keys()


def test_no_file_for_comfyui_is_written_with_names_of_two_programs(
    model: Any, plain: Path, section: dict[str, Any], tmp_path: Path
) -> None:
    """Where the names of the layers there are all that is known."""
    if not model.family.layer_names:
        pytest.skip("ComfyUI has the names of diffusers")
    section |= {"network": {"type": "full"}, "sample": None}
    section["save"]["layout"] = "single_file"
    config = {"name": "job", "process": [section]}
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"job": "extension", "config": config}))
    with pytest.raises(
        ConfigErrors, match=r"save\.layout: no single file is made of a"
    ):
        load_job(job, discover().find_config)
    network = lora_of(model)
    file, output = tmp_path / "lora.safetensors", tmp_path / "merged.safetensors"
    save_network(file, network.export(network.parameters()), "float32", {})
    with pytest.raises(UserError, match=r"output: no single file .* Give a folder: "):
        run_tool("merge", ["--base", plain, "--lora", file, "--output", output])


# ------------------------------------------------------------ whole jobs


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images with captions of two lengths. Read only."""
    folder = draw_pictures(tmp_path_factory.mktemp("pictures"), "a", "b", "c")
    (folder / "b.txt").write_text("a photo of b with a longer caption " * 3)
    return folder


@pytest.fixture
def section(plain: Path, pictures: Path) -> dict[str, Any]:
    section = section_of(plain, pictures)
    section["train"]["steps"] = 4
    section["sample"]["guidance_scale"] = 2
    return section


@pytest.fixture
def job(nursery: Nursery, tmp_path: Path, section: dict[str, Any]) -> Iterator[Job]:
    made = Job(nursery, tmp_path, section)
    yield made
    made.end()


@pytest.mark.slow
def test_a_killed_run_comes_to_the_same_end(job: Job) -> None:
    """Quantized, with weights that wait in main memory, and checkpointing."""
    job.change(model__quantize=True, model__qtype="int8", model__blocks_to_swap=3)
    job.change(train__gradient_checkpointing="cheap", save__save_every=1)
    # The save of step 2 has waited until the one of step 1 was on the disk.
    in_step_3 = 1 + 2 * 2 + 1
    assert job.start(faults=[("kill_self", STEP, in_step_3, KILL)]).wait() == -KILL
    assert "resuming from" in job.run()
    gone_on = job.result()
    assert job.steps() == [1, 2, 3, 4]
    shutil.rmtree(job.folder)
    job.run()
    expected = job.result()
    assert any(name.startswith("0") for name in expected)  # samples
    assert [name for name in expected if gone_on[name] != expected[name]] == []


EXACT = 1e-6
WAYS: dict[str, tuple[dict[str, Any], float]] = {
    **{
        f"checkpointing: {level}": ({"train__gradient_checkpointing": level}, EXACT)
        for level in ("full", "cheap", "keep_attention", "block_offload")
    },
    "swapped": ({"model__blocks_to_swap": 3}, EXACT),
    "offloaded, as ai-toolkit says it": ({"model__layer_offloading": True}, EXACT),
    **{
        qtype: ({"model__quantize": True, "model__qtype": qtype}, 0.05)
        for qtype in ("int8", "int4", "float8", "fp8_scaled", "uint3")
    },
    "text encoder in int8": ({"model__quantize_te": True}, 0.05),
    "low_vram": ({"model__low_vram": True}, EXACT),
}
"""What a job changes, and by how much a loss may differ."""


@pytest.fixture(scope="module")
def losses_of(
    row: Row, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[dict[str, Any]], list[float]]:
    """The losses of a short run of a section. What was encoded is shared."""

    def run(section: dict[str, Any]) -> list[float]:
        folder = tmp_path_factory.mktemp("run")
        process = {**section, "training_folder": str(folder)}
        config = {"name": "job", "process": [process]}
        (folder / "job.yaml").write_text(
            json.dumps({"job": "extension", "config": config})
        )
        run_job(folder / "job.yaml")
        return [line["loss"] for line in lines(folder / "job" / "metrics.jsonl")]

    return run


@pytest.mark.slow
def test_each_way_to_save_memory_trains_to_the_same_losses(
    section: dict[str, Any], losses_of: Callable[[dict[str, Any]], list[float]]
) -> None:
    section["sample"] = None
    section["train"] |= {"steps": 2, "gradient_accumulation": 1}
    section["network"]["dropout"] = 0
    plain = losses_of(section)
    for way, (changes, tolerance) in WAYS.items():
        changed = copy.deepcopy(section)
        for path, value in changes.items():
            part, key = path.split("__")
            changed[part][key] = value
        assert losses_of(changed) == pytest.approx(plain, rel=tolerance), way


@pytest.mark.slow
def test_the_model_itself_trains_and_is_saved_as_a_folder(
    row: Row,
    section: dict[str, Any],
    losses_of: Callable[..., list[float]],
    tmp_path: Path,
) -> None:
    section["network"] = {"type": "full"}
    section["sample"] = None
    section["train"] |= {"steps": 2, "lr": 1e-4}
    assert len(losses_of(section)) == 2


@pytest.fixture(scope="module")
def wide(row: Row, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a usual width. Read only."""
    if row.wide is None:
        pytest.skip("the memory of its blocks is not counted: it has no measured units")
    folder = tmp_path_factory.mktemp("wide") / row.arch
    row.write(folder, **row.wide)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_step_takes_what_is_planned(dtype: str, wide: Path) -> None:
    """Tensors alive, counted on fake ones."""
    for level in ("none", "cheap", "keep_attention", "full", "block_offload"):
        found = family_units.taken(family_units.job(wide, level, "lora", dtype))
        planned = sum(step_peak(found.work, level, gaps=lambda activations: 0))
        at_most(f"{dtype}, {level}, taken / planned", found.step / planned, 1.05)
        at_least(f"{dtype}, {level}, taken / planned", found.step / planned, 0.9)
    forward = found.forward / found.work.forward()
    at_most(f"{dtype}, forward, taken / planned", forward, 1.05)


@pytest.mark.slow
def test_steps_of_other_networks_take_about_what_is_planned(wide: Path) -> None:
    for kind in ("dora", "lokr", "full"):
        found = family_units.taken(family_units.job(wide, "none", kind, "bf16"))
        planned = sum(step_peak(found.work, "none", gaps=lambda activations: 0))
        at_most(f"{kind}, taken / planned", found.step / planned, 1.1)
        at_least(f"{kind}, taken / planned", found.step / planned, 0.8)


@pytest.mark.slow
def test_a_whole_job_takes_what_its_plan_says(row: Row, tmp_path: Path) -> None:
    """Of main memory, on a CPU. The program itself is the larger part."""
    wide = row.wide or {}
    bench_memory.prepare(tmp_path, lambda folder: row.write(folder, **wide))
    name = "lora fp32"
    found = bench_memory.measure(tmp_path, name, bench_memory.JOBS[name])
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.1)


# ------------------------------------------------------------ tools


def test_a_new_job_fits_the_gpu_it_is_written_for(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each published model, on the smallest GPU and two others."""
    monkeypatch.chdir(tmp_path)
    for model in (one for one in all_models() if one.arch == row.arch):
        for gpu in {min(model.cards), 24, 80}:
            text = written_job("zuzu", str(PHOTOS), "zuzu", model.id, gpu)
            Path("zuzu.yaml").write_text(text, encoding="utf-8")
            planned = plan_job(load_job("zuzu.yaml", discover().find_config))
            memory, plan = planned.processes[0].memory, planned.render()
            assert memory and min(memory.fitting()) <= gpu
            assert f": fits its {gpu:.1f} GB" in plan
            assert model.title in plan
            assert "Qwen-Image" not in text + plan


@pytest.mark.slow
def test_the_tools_know_the_family(
    row: Row,
    section: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    section["training_folder"] = "output"
    section["train"] |= {"steps": 2, "gradient_accumulation": 1}
    config = {"name": "mine", "process": [section]}
    Path("job.json").write_text(json.dumps({"job": "extension", "config": config}))
    plan = plan_job(load_job("job.json", discover().find_config)).render()
    run_job("job.json")
    run, file = "output/mine", "output/mine/mine.safetensors"
    model, picture = (
        section["model"]["name_or_path"],
        "--width 64 --height 64 --steps 2",
    )
    for command in (
        f"generate --lora {file} --prompt a {picture}",
        f"grid --lora {file} --strength 0.5 1 --prompt a {picture} --output grid",
        f"doctor {file}",
        f"report {run}",
        f"convert {file} --to comfyui --output comfyui.safetensors",
        f"convert {file} --to diffusers --output diffusers.safetensors",
        f"merge --base {model} --lora {file} --output merged",
    ):
        uid, *flags = command.split()
        run_tool(uid, flags)
    title = family_named(row.arch).title
    told = plan + "".join(capsys.readouterr()) + caplog.text
    assert f"a LoRA of {title}" in told and "nothing wrong was found" in told
    record = read_run(Path(run))
    card = model_card(
        record, card_section(record), "me/mine", list_network_files(Path(run)), (), ""
    )
    assert row.pipeline.__name__ in card
    assert "Qwen-Image" not in told + card
    (call,) = re.findall(r"images = (pipe\(.*\))\.images", card)
    arguments = {one.arg for one in ast.parse(call, mode="eval").body.keywords}
    assert arguments <= inspect.signature(row.pipeline.__call__).parameters.keys()


# ------------------------------------------------------------ compiled, and on a device


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_sizes_and_captions_share_programs_without_breaks(
    row: Row, unit_gain: Path
) -> None:
    model = open_model(
        row, unit_gain, dtype=torch.bfloat16, transform_block=quantizer("int8")
    )
    lora_of(model).cast_by_block(model.blocks())
    compiling = CompileConfig(enabled=True, backend="eager", fullgraph=True)
    settings = compiling.for_sizes(several=True)
    BlockRunner(model, CPU, torch.bfloat16, "full", compile_settings=settings)
    prompts = [
        PromptEmbeds.stack([model.encode_prompt(caption, ())]) for caption in CAPTIONS
    ]

    def programs() -> int:
        """Programs that are made for these sizes and captions."""
        begun = counters["stats"]["unique_graphs"]
        for size, prompt in zip(SIZES, prompts, strict=True):
            x_t_BCHW = latents_of(model.family, 1, size)
            model.predict_velocity(x_t_BCHW, torch.tensor([0.5]), prompt, [()])
        return counters["stats"]["unique_graphs"] - begun

    assert programs() == row.programs
    with torch.no_grad():
        assert programs() == row.programs
    assert not counters["graph_break"]


THERE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fp32, swapped, what a block saves too": (
        {},
        {
            "model__blocks_to_swap": 3,
            "train__gradient_checkpointing": "block_offload",
        },
    ),
    "int8 and bf16, compiled": (
        {
            "model__quantize": True,
            "train__dtype": "bf16",
            "network__network_kwargs": {"only_if_contains": ["to_q"]},
        },
        {"train__compile": {"enabled": True, "backend": "aot_eager"}},
    ),
}
"""What a job computes, and how it does on the device."""


@pytest.mark.slow
@needs_stand_in
@pytest.mark.parametrize("way", THERE)
def test_no_step_waits_for_the_device_and_it_learns_as_on_the_cpu(
    way: str, section: dict[str, Any], nursery: Nursery, tmp_path: Path
) -> None:
    """The second of three steps; see `test_no_step_waits_for_the_device`."""
    numbers, place = THERE[way]
    section["train"] |= {"steps": 3, "gradient_accumulation": 1}
    section["train"]["ema_config"] = {"use_ema": False}
    section["save"]["save_every"] = 0
    section["sample"] |= {"sample_every": 3, "sample_at_first": False}
    jobs = {}
    for device in ("cpu", "cuda:0"):
        (tmp_path / device[:4]).mkdir()
        jobs[device] = Job(nursery, tmp_path / device[:4], copy.deepcopy(section))
        jobs[device].change(device=device, **numbers)
    jobs["cuda:0"].change(**place)
    jobs["cpu"].run()
    waits = tmp_path / "waits.json"
    jobs["cuda:0"].run(
        faults=[
            ("cuda", str(built())),
            ("fetch_by_steps_only", 3),
            ("note_waits", STEP, [1 + 2, 1 + 3], str(waits)),
        ]
    )
    precision = 2e-3 if "bf16" in way else 1e-5
    for ours, theirs in zip(*(job.metrics() for job in jobs.values()), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=precision)
    drawn = zip(*map(pictures_of, jobs.values()), strict=True)
    for ours, theirs in drawn:
        assert np.abs(ours - theirs).mean() < 255 * max(1e-3, 10 * precision)
    before, after = json.loads(waits.read_text())
    assert before == after
