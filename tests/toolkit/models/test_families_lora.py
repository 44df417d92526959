"""A LoRA of each member of the family opens in diffusers' own pipeline of that member,
and means the same there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import diffusers_21
from tests.diffusers_reference import (
    CPU,
    REFERENCES,
    load_pipeline,
    load_without_a_word,
    memory_stores,
    psnr,
    relative,
    write_unit_gain,
)
from tests.measured import at_least, at_most
from tests.network_files import save_network
from tests.parts import needs_part
from toolkit.config.sections.network import NetworkConfig
from toolkit.contracts.data import PromptEmbeds, Size
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.network_kinds import KINDS
from toolkit.data.batches.latent_cache import ItemEncoder
from toolkit.models.families import ModelFamily, ModelLoadOptions
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.networks.adapter import LinearAdapterNetwork
from toolkit.networks.lora_formats import load_adapter_file
from toolkit.registry import FAMILIES
from toolkit.train.sampling import SamplePrompt, Sampler

MEMBERS = {
    arch: TinySpec(arch=arch) for arch in FAMILIES if FAMILIES.load(arch).published
}
MEMBERS["2511"] = TinySpec(zero_cond_t=True)
LOADERS = {"qwen_image_2": diffusers_21.load_pipeline}


@pytest.fixture(scope="module", params=MEMBERS)
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp("member")
    write_tiny_model(root / "tiny", MEMBERS[request.param])
    write_unit_gain(root / "model", root / "tiny")
    return root / "model"


def opened(folder: Path) -> tuple[ModelFamily, DiffusionModel]:
    options = ModelLoadOptions(folder=folder, device=CPU, dtype=torch.float32)
    arch = next(
        arch
        for arch in FAMILIES
        if FAMILIES.load(arch).pipelines[0] in (folder / "model_index.json").read_text()
    )
    return FAMILIES.load(arch).of_folder(folder), FAMILIES.load(arch).open(options)


def trained(model: DiffusionModel, kind: str = "lora") -> LinearAdapterNetwork:
    """A network of all layers of the blocks with matrices as training could have made
    them."""
    settings = NetworkConfig(type=kind, linear=3, linear_alpha=2)
    network = KINDS[kind].load().from_config(settings, model.lora_targets(), 1)
    network.attach(model.network_module)
    generator = torch.Generator().manual_seed(11)
    for parameter in network.parameters().values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network


def velocity(family: ModelFamily, model: DiffusionModel) -> torch.Tensor:
    size = family.latent_size(Size(96, 64))
    x_BCHW = torch.randn(
        1,
        family.latent_channels,
        size.height,
        size.width,
        generator=torch.Generator().manual_seed(0),
    )
    prompts = PromptEmbeds.stack([model.encode_prompt("a cup of coffee", ())])
    with torch.no_grad():
        return model.predict_velocity(
            x_BCHW,
            torch.tensor([0.6]),
            prompts,
            [(x_BCHW[0],) if family.stacks_layers else ()],
        )


def loaded_by_diffusers(
    family: ModelFamily, folder: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> Any:
    """The transformer after the pipeline's own loader has read the file."""
    pipeline = LOADERS.get(family.arch, load_pipeline)(folder)
    assert type(pipeline).__name__ in family.pipelines
    load_without_a_word(pipeline, file, caplog)
    return pipeline.transformer


@pytest.mark.parametrize(
    "form",
    [
        "as it is saved",
        pytest.param(
            "diffusers", marks=[pytest.mark.slow, needs_part("tools.lora_tools")]
        ),
    ],
)
def test_a_lora_means_the_same_in_diffusers_own_pipeline(
    folder: Path, form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family, model = opened(folder)
    base = velocity(family, model)
    network, file = trained(model), tmp_path / "lora.safetensors"
    save_network(file, network.export(network.parameters()), "float32", {})
    ours = velocity(family, model)
    if form != "as it is saved":
        from extensions.tools.lora_tools.lora_export import (
            FORMATS,
            export,
            read_adapter,
        )

        save_file(
            export(
                read_adapter(file, [family.every_linear_layer(folder)]), FORMATS[form]
            ),
            file,
        )
    _, theirs_model = opened(folder)
    theirs_model._parts["transformer"] = loaded_by_diffusers(
        family, folder, file, caplog
    )
    theirs = velocity(family, theirs_model)
    assert relative(theirs, base) > 1e-2
    at_most(
        f"LoRA of {family.title} in diffusers, {form}",
        relative(ours - base, theirs - base),
        1e-4,
    )


@needs_part("tools.lora_tools")
@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        *(
            ("qwen_image_edit_plus", name)
            for name, kind in KINDS.items()
            if not kind.trains_model and not kind.library_class
        ),
        ("qwen_image_2", "lora"),
        ("qwen_image_2", "lokr"),
    ],
    indirect=["folder"],
)
def test_every_kind_of_file_is_read_back_in_every_form_that_holds_it(
    folder: Path, kind: str, tmp_path: Path
) -> None:
    from extensions.tools.lora_tools.lora_export import (
        FORMATS,
        export,
        read_adapter,
        why_not_exported,
    )

    family, model = opened(folder)
    network, file = trained(model, kind), tmp_path / "file.safetensors"
    save_network(file, network.export(network.parameters()), "float32", {})
    assert all(
        key.startswith("diffusion_model.transformer_blocks.") for key in load_file(file)
    )
    layers, weights = (
        family.every_linear_layer(folder),
        dict(model.network_module.named_modules()),
    )
    saved = load_adapter_file(file, layers)
    assert saved.keys() == set(model.lora_targets())
    for target in FORMATS.values():
        read = read_adapter(file, [layers])
        if why_not_exported(read, target):
            continue
        save_file(export(read, target), tmp_path / "other.safetensors")
        again = load_adapter_file(tmp_path / "other.safetensors", layers)
        assert again.keys() == saved.keys()
        for name, change in saved.items():
            weight_OI = weights[name].base_layer.weight.detach()
            torch.testing.assert_close(
                again[name].delta_for(weight_OI),
                change.delta_for(weight_OI),
                rtol=1e-4,
                atol=1e-6,
            )


@pytest.mark.slow
def test_an_image_with_a_lora_of_2_1_equals_the_pipelines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_model(tmp_path / "tiny", MEMBERS["qwen_image_2"])
    write_unit_gain(tmp_path / "model", tmp_path / "tiny")
    model = diffusers_21.open_21(tmp_path / "model", reference_area=0)
    prompt = SamplePrompt(
        "a cat",
        "",
        Size(96, 64),
        seed=4,
        guidance_scale=1.0,
        steps=4,
        references=REFERENCES[:1],
    )
    sampler = Sampler(
        model, [prompt], ItemEncoder(model, torch.float32), memory_stores()
    )
    without = sampler.generate(0)
    network, file = trained(model), tmp_path / "lora.safetensors"
    save_network(file, network.export(network.parameters()), "float32", {})
    with network.inference():
        ours = sampler.generate(0)
    pipeline = diffusers_21.load_pipeline(tmp_path / "model")
    pipeline.load_lora_weights(file)
    theirs = diffusers_21.drawn_by_pipeline(pipeline, prompt)[0]
    assert psnr(ours, without) < 45, "the LoRA must be seen in the image"
    at_least(
        "image with a LoRA of 2.1, dB",
        psnr(ours.convert("RGBA"), theirs.convert("RGBA")),
        50,
    )
