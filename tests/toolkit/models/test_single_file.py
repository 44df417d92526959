"""`model.transformer_path` and its like: a part in one file has the weights of its
folder, or one line says why not."""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from safetensors.torch import load_file, save_file
from torch import nn

from tests.diffusers_reference import relative
from tests.measured import at_most
from toolkit.config.reading.process import JobContext
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import single_files
from toolkit.contracts.data import PromptEmbeds
from toolkit.memory.quantization import QuantizedLinear, quantizer
from toolkit.models.families import family_for, single_file_faults
from toolkit.models.folder_family import with_single_files
from toolkit.models.loading import ShardReader, base_hashes, load_model
from toolkit.rotation import regular_hadamard, rotate

Weights = dict[str, torch.Tensor]
PREFIX = "model.diffusion_model."
FULL_DEPTH = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
LINEAR = "transformer_blocks.1.attn.to_k.weight"


def weights_of(folder: Path) -> Weights:
    with ExitStack() as stack:
        reader = ShardReader(folder / "transformer", stack)
        return {name: reader.take(name).clone() for name in sorted(reader.names)}


def as_comfyui(weights: Weights) -> Weights:
    """With its prefix, and with gate and up in one where the model has them."""
    named = {}
    for name, weight in weights.items():
        if ".img_mlp.gate_layer." in name:
            weight = torch.cat([weight, weights[name.replace("gate_layer", "proj")]])
            name = name.replace("gate_layer", "gate_up")
        if ".img_mlp.proj." not in name:
            named[PREFIX + name] = weight.contiguous()
    return named


def in_a_checkpoint(weights: Weights) -> Weights:
    """With a VAE and a text encoder in the same file, which are not read."""
    of_text = "text_encoders.qwen.proj"  # in a number format that is not read
    others = {
        "vae.decoder.conv1.weight": torch.zeros(2),
        f"{of_text}.weight_scale_2": torch.zeros(2),
    }
    others |= {f"{of_text}.weight": torch.zeros(2, dtype=torch.uint8)}
    others |= {f"{of_text}.comfy_quant": text_tensor({"format": "nvfp4"})}
    return as_comfyui(weights) | others


def loaded(folder: Path, file: Path | None = None) -> Weights:
    section = ModelConfig(name_or_path=str(folder), transformer_path=file and str(file))
    model = load_model(section, torch.device("cpu"), torch.bfloat16, quantizer)
    return dict(model.network_module.state_dict())


def fault_of(folder: Path, **files: Path) -> str:
    section = ModelConfig(
        name_or_path=str(folder), **{key: str(file) for key, file in files.items()}
    )
    return ", ".join(fault for _, fault in single_file_faults(section, folder))


def assert_equal(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        ("qwen_image", dict),
        ("qwen_image_edit", in_a_checkpoint),
        ("qwen_image_edit_plus", as_comfyui),
        ("qwen_image_2", as_comfyui),
        ("qwen_image_2", in_a_checkpoint),
    ],
)
def test_a_bf16_file_gives_the_bits_of_its_folder(
    arch: str,
    names: Callable[[Weights], Weights],
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    file = tmp_path / "t.safetensors"
    save_file(
        names(
            {
                name: weight.bfloat16()
                for name, weight in weights_of(folders[arch]).items()
            }
        ),
        file,
    )
    assert_equal(loaded(folders[arch], file), loaded(folders[arch]))


def in_fp8(
    weights: Weights,
    scaled: str,
    ends: tuple[str, str] = (".scale_weight", ".scale_input"),
) -> list[Weights]:
    """What a file in fp8 holds, with these scales and these ends of their names, and
    the numbers that it means."""
    stored, expected = {"scaled_fp8": torch.zeros(0)}, {}
    for name, weight in weights.items():
        expected[name] = stored[PREFIX + name] = weight.bfloat16()
        if weight.ndim != 2 or "transformer_blocks" not in name:
            continue
        count = {"": 1, "tensor": 1, "rows": len(weight), "blocks": 2 * len(weight)}[
            scaled
        ]
        parts = weight.view(count, -1).float()
        scale = parts.abs().amax(1, keepdim=True) / 448 if scaled else torch.ones(1, 1)
        rounded = (parts / scale).to(torch.float8_e4m3fn)
        expected[name] = (rounded.float() * scale).view(weight.shape).bfloat16()
        stored[PREFIX + name] = rounded.view(weight.shape)
        if scaled:
            shape = {"tensor": (), "rows": (-1, 1), "blocks": (len(weight), 2, 1)}[
                scaled
            ]
            stored[PREFIX + name.removesuffix(".weight") + ends[0]] = scale.view(shape)
            stored[PREFIX + name.removesuffix(".weight") + ends[1]] = torch.ones(())
            said = json.dumps({"format": "float8_e4m3fn"}).encode()
            stored[PREFIX + name.removesuffix(".weight") + ".comfy_quant"] = (
                torch.tensor(list(said), dtype=torch.uint8)
            )
    return [stored, expected]


@pytest.mark.parametrize(
    ("scaled", "ends"),
    [
        ("", (".scale_weight", ".scale_input")),
        ("tensor", (".weight_scale", ".input_scale")),
        ("rows", (".scale_weight", ".scale_input")),
        ("blocks", (".weight_scale", ".input_scale")),
    ],
)
def test_fp8_weights_are_multiplied_by_their_scales(
    scaled: str, ends: tuple[str, str], folders: dict[str, Path], tmp_path: Path
) -> None:
    stored, expected = in_fp8(weights_of(folders["qwen_image_edit_plus"]), scaled, ends)
    save_file(stored, tmp_path / "t.safetensors")
    assert_equal(
        loaded(folders["qwen_image_edit_plus"], tmp_path / "t.safetensors"), expected
    )


def as_base(folder: Path, file: Path, **keys: object) -> dict[str, nn.Module]:
    section = ModelConfig(
        name_or_path=str(folder), transformer_path=str(file), quantize=True, **keys
    )
    model = load_model(section, torch.device("cpu"), torch.bfloat16, quantizer)
    layers = dict(model.network_module.named_modules())
    return {
        name: layer
        for name, layer in layers.items()
        if isinstance(layer, QuantizedLinear)
    }


@pytest.mark.parametrize(
    ("arch", "scaled", "qtype"),
    [
        ("qwen_image_edit_plus", "", "float8"),
        ("qwen_image_edit_plus", "tensor", "fp8_scaled"),
        ("qwen_image_edit_plus", "blocks", "float8"),
        ("qwen_image_2", "", "fp8_scaled"),
        ("qwen_image_2", "tensor", "float8"),
        ("qwen_image_2", "rows", "float8"),
        ("qwen_image_2", "blocks", "fp8_scaled"),
    ],
)
def test_an_fp8_base_has_the_codes_and_scales_of_the_file(
    arch: str, scaled: str, qtype: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Not their product rounded and quantized anew; fused layers are halves of
    theirs."""
    named = {
        name.removeprefix(PREFIX): weight
        for name, weight in as_comfyui(weights_of(folders[arch])).items()
    }
    stored, expected = in_fp8(named, scaled)
    for name in [name for name in expected if ".gate_up." in name]:
        for part, half in zip(
            ("gate_layer", "proj"), expected.pop(name).chunk(2), strict=True
        ):
            expected[name.replace("gate_up", part)] = half
    save_file(stored, tmp_path / "t.safetensors")
    layers = as_base(folders[arch], tmp_path / "t.safetensors", qtype=qtype)
    assert len(layers) == len(
        family_for(ModelConfig(name_or_path=str(folders[arch]))).linear_layers(
            folders[arch]
        )
    )
    for name, layer in layers.items():
        assert torch.equal(layer.weight.dequantize(), expected[f"{name}.weight"])
        if scaled != "blocks":  # nor are the scales rounded before they multiply
            ones = torch.eye(layer.in_features, dtype=torch.bfloat16)
            assert torch.equal(
                layer.weight.matmul(ones, None).t(), expected[f"{name}.weight"]
            )


def test_fp8_that_cannot_stay_is_quantized_anew_and_told(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, file = folders["qwen_image_edit_plus"], tmp_path / "t.safetensors"
    stored, _ = in_fp8(weights_of(folder), "tensor")
    save_file(stored, file)
    with caplog.at_level("INFO"):
        kept = as_base(folder, file, qtype="float8")
    assert (
        f"{file}: {len(kept)} layers keep its fp8 (e4m3fn) codes and scales"
        in caplog.messages
    )
    is_code = torch.float8_e4m3fn
    save_file(
        {
            n: t.float().to(torch.float8_e5m2) if t.dtype == is_code else t
            for n, t in stored.items()
        },
        file,
    )
    with caplog.at_level("INFO"):
        as_base(folder, file, qtype="float8")
    assert (
        f"{file}: its 8-bit weights are quantized again, since they are not in fp8 (e4m3fn)"
        in caplog.messages
    )


@pytest.mark.parametrize("arch", ["qwen_image_edit_plus", "qwen_image_2"])
def test_an_fp8_text_encoder_stays_as_it_is_stored(
    arch: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, file, stored, expected = (
        folders[arch],
        tmp_path / "text.safetensors",
        {},
        {},
    )
    for name, weight in part_weights(folder, "text_encoder").items():
        stored[name] = weight
        if ".layers." in name and weight.ndim == 2:
            stored[name] = (weight * 1000).to(torch.float8_e4m3fn)
            stored[name.removesuffix("weight") + "scale_weight"] = torch.tensor(1.37e-3)
            expected[name.removesuffix(".weight")] = (
                stored[name].float() * torch.tensor(1.37e-3)
            ).bfloat16()
    save_file(stored, file)
    keys = {"text_encoder_path": str(file), "quantize_te": True, "qtype_te": "float8"}
    model = load_model(
        ModelConfig(name_or_path=str(folder), **keys),
        torch.device("cpu"),
        torch.bfloat16,
        quantizer,
    )
    layers = dict(model.part("text_encoder").named_modules())
    assert expected
    for name, weight in expected.items():
        found = layers[
            name.replace("model.language_model.", "model.").replace(
                "model.", "language_model.", 1
            )
        ]
        assert torch.equal(found.weight.dequantize(), weight)
    assert model.cache_key("text_encoder").endswith("float8-as-stored")


ROTATED = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}


def text_tensor(said: object) -> torch.Tensor:
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


def in_convrot(weights: Weights, said: dict[str, object] = ROTATED) -> list[Weights]:
    """What a file in int8_convrot holds, its layers in what the file says of them, and
    the numbers that it means, in float32. The rule is compared with comfy-kitchen's in
    test_quantization_quantize.py."""
    stored, expected = {}, {}
    for name, weight in weights.items():
        expected[name] = stored[name] = weight.float()
        if weight.ndim == 2 and "blocks" in name:
            matrix = regular_hadamard(16) if said.get("convrot") else torch.eye(16)
            rotated = rotate(weight.float(), matrix)
            scale = rotated.abs().amax(1, keepdim=True) / 127
            codes = (rotated / scale).round()
            expected[name] = rotate(codes * scale, matrix)
            layer = name.removesuffix(".weight")
            stored[name] = codes.to(torch.int8)
            stored |= {
                f"{layer}.weight_scale": scale,
                f"{layer}.comfy_quant": text_tensor(said),
            }
    return [stored, expected]


def velocity(folder: Path, **keys: object) -> torch.Tensor:
    """[1, C, 4, 4] at one level, in float32."""
    section = ModelConfig(name_or_path=str(folder), **keys)
    model = load_model(section, torch.device("cpu"), torch.float32, quantizer)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, model.family.latent_channels, 4, 4, generator=generator)
    prompts = PromptEmbeds.stack([model.encode_prompt("a pipo", ())])
    with torch.no_grad():
        return model.predict_velocity(latents, torch.tensor([0.6]), prompts, [()])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("qwen_image_edit_plus", ROTATED),
        ("qwen_image_2", ROTATED),
        ("qwen_image_2", {"format": "int8_tensorwise"}),
    ],
    ids=["plus-convrot", "2-convrot", "2-plain"],
)
def test_an_int8_base_has_the_codes_the_scales_and_the_rotation_of_the_file(
    arch: str,
    said: dict[str, object],
    folders: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And the velocity of a float file with these numbers; converted without
    `quantize`, fused layers halved."""
    folder, file, plain = (
        folders[arch],
        tmp_path / "t.safetensors",
        tmp_path / "plain.safetensors",
    )
    stored, expected = in_convrot(as_comfyui(weights_of(folder)), said)
    save_file(stored, file)
    save_file(expected, plain)
    assert_equal(loaded(folder, file), loaded(folder, plain))
    as_one = ModelConfig(name_or_path=str(folder), transformer_path=str(plain))
    numbers = load_model(
        as_one, torch.device("cpu"), torch.float32, quantizer
    ).network_module.state_dict()
    with caplog.at_level("INFO"):
        layers = as_base(folder, file, qtype="int8")
    assert (
        f"{file}: {len(layers)} layers keep its int8 codes and scales"
        in caplog.messages
    )
    for name, layer in layers.items():
        assert torch.equal(
            layer.weight.dequantize(), numbers[f"{name}.weight"].bfloat16()
        )
    as_stored = velocity(
        folder, transformer_path=str(file), quantize=True, qtype="int8"
    )
    of_numbers = velocity(folder, transformer_path=str(plain))
    at_most(
        f"velocity of int8 as stored, {arch}, {said}",
        relative(as_stored, of_numbers),
        1e-5,
    )
    # which the quantization has moved
    assert relative(velocity(folder), of_numbers) > 1e-4
    with caplog.at_level("INFO"):
        as_base(folder, file, qtype="float8")
    assert (
        caplog.messages[-1]
        == f"{file}: its 8-bit weights are quantized again, since they are not in fp8 (e4m3fn)"
    )


def test_a_text_encoder_in_int8_convrot_is_read(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, file = folders["qwen_image_2"], tmp_path / "text.safetensors"
    weights = {
        name.replace("layers.", "blocks.layers."): w
        for name, w in part_weights(folder, "text_encoder").items()
    }
    stored, expected = (
        {k.replace("blocks.layers.", "layers."): w for k, w in one.items()}
        for one in in_convrot(weights)
    )
    save_file(stored, file)
    found = encoders_of(folder, text_encoder_path=file)["text_encoder"]
    save_file(expected, file)
    assert_equal(found, encoders_of(folder, text_encoder_path=file)["text_encoder"])
    assert any(weight.dtype == torch.int8 for weight in stored.values())


def test_the_formats_of_layers_may_stand_in_the_metadata(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, file = folders["qwen_image_2"], tmp_path / "t.safetensors"
    stored, _ = in_convrot(as_comfyui(weights_of(folder)))
    save_file(stored, file)
    expected = loaded(folder, file)
    said = {
        name.removesuffix(".comfy_quant"): ROTATED
        for name in stored
        if name.endswith(".comfy_quant")
    }
    bare = {
        name: weight
        for name, weight in stored.items()
        if not name.endswith(".comfy_quant")
    }
    save_file(
        bare,
        file,
        metadata={
            "_quantization_metadata": json.dumps(
                {"format_version": "1.0", "layers": said}
            )
        },
    )
    assert_equal(loaded(folder, file), expected)
    save_file(bare, file)
    assert "has weights in I8, which is not read" in fault_of(
        folder, transformer_path=file
    )


def convrot(**changes: object) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        said = {
            LINEAR: weights[LINEAR].to(torch.int8),
            f"{LINEAR[:-7]}.comfy_quant": text_tensor(ROTATED | changes),
        }
        weights |= {**said, f"{LINEAR}_scale": torch.ones(len(weights[LINEAR]), 1)}

    return change


def without_scale(weights: Weights) -> None:
    convrot()(weights)
    del weights[f"{LINEAR}_scale"]


def other_format(weights: Weights) -> None:
    weights["img_in.comfy_quant"] = text_tensor({"format": "nvfp4"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop(LINEAR), f"missing weights: {LINEAR}. Give the whole"),
        (
            lambda w: w.update({"more.weight": torch.zeros(2)}),
            "a Qwen-Image-Edit-2509 does not have: more",
        ),
        (
            lambda w: w.update({LINEAR: torch.zeros(3, 3)}),
            f"{LINEAR} is (3, 3), this model has (",
        ),
        (
            lambda w: w.update({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2)}),
            "this is FLUX.1. Give a file of",
        ),
        (
            lambda w: w.update({"__index_timestep_zero__": torch.zeros(0)}),
            "this is Qwen-Image-Edit-2511. Give a",
        ),
        (
            lambda w: w.update({LINEAR: w[LINEAR].to(torch.uint8)}),
            "has weights in U8, which is not read. Give",
        ),
        (
            lambda w: w.update({"img_in.weight.absmax": torch.zeros(2)}),
            "is in nf4 or another type of bitsandbytes",
        ),
        (
            lambda w: w.update({"img_in.scale_weight": torch.zeros(3)}),
            "img_in.scale_weight is (3,), which is not a scale",
        ),
        (
            lambda w: w.update(
                {"img_in.comfy_quant": torch.zeros(1, dtype=torch.uint8)}
            ),
            "img_in is in '\\x00', which",
        ),
        (other_format, "img_in is in 'nvfp4', which is not read"),
        (
            convrot(format="int8_blockwise"),
            f"{LINEAR[:-7]} is in 'int8_blockwise', which is not read",
        ),
        (
            convrot(convrot_groupsize=32),
            "is rotated in groups of 32, which is not a power of 4 that divides it",
        ),
        (
            convrot(convrot_groupsize=256),
            "is rotated in groups of 256, which is not a power of 4 that divides it",
        ),
        (convrot(convrot_groupsize="16"), "is rotated in groups of '16', which"),
        (convrot(convrot_groupsize=0), "is rotated in groups of 0, which"),
        (
            convrot(format="float8_e4m3fn"),
            "is in 'float8_e4m3fn' by what the file says, and its weight is I8",
        ),
        (
            lambda w: [convrot()(w), w.pop(LINEAR)],
            f"missing weights: {LINEAR}. Give the whole",
        ),
        (without_scale, f"{LINEAR[:-7]} is in int8 without a scale"),
    ],
)
def test_another_file_is_answered_in_one_line(
    change: Callable[[Weights], object],
    said: str,
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    folder, file = folders["qwen_image_edit_plus"], tmp_path / "t.safetensors"
    weights = weights_of(folder)
    change(weights)
    save_file(weights, file)
    fault = fault_of(folder, transformer_path=file)
    assert said in fault and "\n" not in fault


@pytest.mark.parametrize(
    ("names", "title"),
    [
        ("double_blocks.0.img_attn.qkv single_blocks.0.linear1 img_in", "FLUX.1"),
        ("double_blocks.0.img_attn.qkv single_stream_modulation.lin img_in", "FLUX.2"),
        (
            "double_blocks.0.img_attn.qkv distilled_guidance_layer.in_proj img_in",
            "Chroma",
        ),
        (
            "double_blocks.0.img_attn.qkv txt_in.individual_token_refiner.blocks.0.norm1",
            "HunyuanVideo",
        ),
        (
            "layers.0.attention.qkv layers.0.adaLN_modulation.0 cap_embedder.1",
            "Z-Image",
        ),
        (
            "layers.0.attention.qkv layers.0.adaLN_modulation.1 cap_embedder.1",
            "Lumina 2",
        ),
        (
            "input_blocks.0.0 label_emb.0.0 middle_block.1.proj_in",
            "Stable Diffusion XL",
        ),
        ("input_blocks.0.0 middle_block.1.proj_in", "Stable Diffusion 1 or 2"),
        ("blocks.0.self_attn.q blocks.0.cross_attn.k patch_embedding", "Wan"),
        (
            "double_stream_blocks.0.block.adaLN_modulation.1 caption_projection.0.linear",
            "HiDream",
        ),
    ],
)
def test_a_file_of_another_model_is_told_by_name(
    names: str, title: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "t.safetensors"
    for prefix in ("", PREFIX):
        keys = [f"{prefix}{name}.weight" for name in names.split()]
        save_file({key: torch.zeros(2) for key in keys}, file)
        fault = fault_of(folders["qwen_image"], transformer_path=file)
        assert fault == f"{file}: this is {title}. Give a file of Qwen-Image.", prefix


def in_shards(weights: Weights, file: Path) -> list[Path]:
    names = sorted(weights)
    paths = [
        file.with_name(f"{file.stem}-{at:05d}-of-00003.safetensors") for at in (1, 2, 3)
    ]
    for at, path in enumerate(paths):
        save_file({name: weights[name] for name in names[at::3]}, path)
    return paths


@pytest.mark.slow
def test_the_first_of_several_shards_stands_for_all(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders["qwen_image_2"]
    shards = in_shards(weights_of(folder), tmp_path / "t.safetensors")
    text = in_shards(
        part_weights(folder, "text_encoder"), tmp_path / "text.safetensors"
    )
    assert_equal(loaded(folder, shards[0]), loaded(folder))
    expected = encoders_of(folder)["text_encoder"]
    assert_equal(
        encoders_of(folder, text_encoder_path=text[0])["text_encoder"], expected
    )
    section = ModelConfig(name_or_path=str(folder), transformer_path=str(shards[0]))
    before = base_hashes(section)
    save_file(
        {name: weight + 1 for name, weight in load_file(shards[2]).items()}, shards[2]
    )
    assert base_hashes(section)["transformer"] != before["transformer"]
    shards[1].unlink()
    assert fault_of(folder, transformer_path=shards[0]).startswith(
        f"{shards[1]} does not exist"
    )


def test_a_file_of_something_else_is_told_as_that(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, file = folders["qwen_image"], tmp_path / "t.safetensors"
    for part, words in (
        ("vae", "a VAE: that is model.vae_path"),
        ("text_encoder", "a text encoder with its vision"),
    ):
        save_file(part_weights(folder, part), file)
        assert fault_of(folder, transformer_path=file).startswith(
            f"{file}: this is {words}"
        )
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}, file)
    assert fault_of(folder, transformer_path=file).startswith(
        f"{file} is not a transformer. It is a LoRA: give the model"
    )


def test_what_is_no_safetensors_file_is_told_by_its_first_bytes(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, file = folders["qwen_image"], tmp_path / "t.safetensors"
    file.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9\n"
    )
    assert "what Git LFS has in the place of a file" in fault_of(
        folder, transformer_path=file
    )
    file.write_bytes(b"GGUF" + bytes(100))
    fault = fault_of(folder, transformer_path=file)
    assert (
        fault
        == f"{file} is a GGUF file, which is not read. Give the bf16 file, or one in fp8 (e4m3fn) or int8_convrot."
    )


def test_the_file_counts_for_the_hash_of_the_transformer_alone(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, file = folders["qwen_image"], tmp_path / "t.safetensors"
    section = ModelConfig(name_or_path=str(folder), transformer_path=str(file))
    weights = weights_of(folder)
    save_file(weights, file)
    before = base_hashes(section)
    save_file(weights | {LINEAR: weights[LINEAR] + 1}, file)
    after = base_hashes(section)
    assert [part for part in before if before[part] != after[part]] == ["transformer"]


def encoders_of(folder: Path, **files: Path) -> dict[str, Weights]:
    section = ModelConfig(
        name_or_path=str(folder), **{key: str(file) for key, file in files.items()}
    )
    model = load_model(section, torch.device("cpu"), torch.bfloat16, quantizer)
    return {
        part: dict(model.part(part).state_dict()) for part in ("vae", "text_encoder")
    }


def part_weights(folder: Path, part: str) -> Weights:
    weights: Weights = {}
    for path in sorted((folder / part).glob("*.safetensors")):
        weights |= load_file(path)
    return weights


def comfyui_text_name(name: str) -> str:
    return name.replace("model.language_model.", "model.").replace(
        "model.visual.", "visual."
    )


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        ("qwen_image", comfyui_text_name),
        ("qwen_image_2", comfyui_text_name),
        ("qwen_image_edit_plus", str),
    ],
)
def test_encoders_in_one_file_have_the_bits_of_their_folders(
    arch: str, names: Callable[[str], str], folders: dict[str, Path], tmp_path: Path
) -> None:
    vae, text = tmp_path / "vae.safetensors", tmp_path / "text.safetensors"
    save_file(part_weights(folders[arch], "vae"), vae)
    save_file(
        {
            names(name): weight
            for name, weight in part_weights(folders[arch], "text_encoder").items()
        },
        text,
    )
    found = encoders_of(folders[arch], vae_path=vae, text_encoder_path=text)
    for part, weights in encoders_of(folders[arch]).items():
        assert_equal(found[part], weights)


BLOCK_OF_WAN = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
}


def wan_name(name: str) -> str:
    """The name of a weight in Wan's own VAE, whose decoder has three blocks and an
    upsampler at each size."""
    for new, old in {"quant_conv": "conv1", "post_quant_conv": "conv2"}.items():
        if name.startswith(f"{new}."):
            return name.replace(new, old)
    name = re.sub(
        r"mid_block\.resnets\.(\d)", lambda at: f"middle.{2 * int(at[1])}", name
    )
    name = name.replace("mid_block.attentions.0", "middle.1").replace(
        "encoder.down_blocks", "encoder.downsamples"
    )
    block = r"up_blocks\.(\d)\.(?:resnets\.(\d)|upsamplers\.0)"
    name = re.sub(
        block, lambda at: f"upsamples.{4 * int(at[1]) + int(at[2] or 3)}", name
    )
    for new, old in (
        BLOCK_OF_WAN
        | {"conv_shortcut": "shortcut", "norm_out": "head.0", "conv_out": "head.2"}
    ).items():
        name = name.replace(f".{new}.", f".{old}.")
    return name.replace("conv_in", "conv1")


@pytest.mark.slow
def test_the_names_of_the_vae_of_wan_are_read(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, file = tmp_path / "model", tmp_path / "vae.safetensors"
    shutil.copytree(folders["qwen_image"], folder)
    vae = AutoencoderKLQwenImage(**FULL_DEPTH)
    vae.save_pretrained(folder / "vae")
    save_file(
        {wan_name(name): weight for name, weight in vae.state_dict().items()}, file
    )
    assert "decoder.upsamples.14.residual.6.weight" in load_file(file)
    assert_equal(encoders_of(folder, vae_path=file)["vae"], encoders_of(folder)["vae"])


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_the_file_of_another_part_is_answered_in_one_line(
    part: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "t.safetensors"
    save_file(weights_of(folders["qwen_image"]), file)
    fault = fault_of(folders["qwen_image"], **{f"{part}_path": file})
    assert (
        "has no " in fault
        and fault.endswith("Give another file.")
        and "\n" not in fault
    )


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
@pytest.mark.parametrize("arch", ["qwen_image", "qwen_image_2"])
def test_a_weight_that_is_missing_or_in_excess_is_named_before_it_is_read(
    arch: str, part: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, file = folders[arch], tmp_path / "t.safetensors"
    weights = part_weights(folder, part)
    name = sorted(weights)[-3]
    save_file(weights | {"more": torch.zeros(2)}, file)
    fault = f"{file}: weights that this model does not have: more. Give a file of this model."
    assert fault_of(folder, **{f"{part}_path": file}) == fault
    del weights[name]
    save_file(weights, file)
    fault = (
        f"{file}: missing weights: {name.removeprefix('model.')}. Give the whole file."
    )
    assert fault_of(folder, **{f"{part}_path": file}) == fault


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_file_of_an_encoder_counts_for_its_cache(
    part: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, file = folders["qwen_image"], tmp_path / "t.safetensors"
    weights, keys = part_weights(folder, part), []
    section = ModelConfig(name_or_path=str(folder), **{f"{part}_path": str(file)})
    for factor in (1, 2):
        save_file({name: weight * factor for name, weight in weights.items()}, file)
        model = load_model(section, torch.device("cpu"), torch.bfloat16, quantizer)
        keys.append([model.cache_key("vae"), model.cache_key("text_encoder")])
    assert [one != two for one, two in zip(*keys, strict=True)] == [
        part == "vae",
        part == "text_encoder",
    ]


def test_a_folder_needs_no_weights_of_parts_that_are_given(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, files, bare = folders["qwen_image_2"], {}, tmp_path / "model"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.safetensors*"))
    for part in ("transformer", "vae", "text_encoder"):
        files[f"{part}_path"] = tmp_path / f"{part}.safetensors"
        save_file(part_weights(folder, part), files[f"{part}_path"])
    section = ModelConfig(
        name_or_path=str(bare), **{key: str(file) for key, file in files.items()}
    )
    assert not list(section.check(JobContext("job")))
    for part, weights in encoders_of(folder).items():
        assert_equal(encoders_of(bare, **files)[part], weights)
    family = family_for(section)
    assert family.footprint(bare) != family.footprint(folder)
    assert with_single_files(
        family.footprint(bare), single_files(section)
    ) == family.footprint(folder)
    without = section.model_copy(update={"vae_path": None})
    assert (
        f"{bare / 'vae'}: has no weights"
        in next(iter(without.check(JobContext("job")))).message
    )
