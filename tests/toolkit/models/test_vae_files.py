"""A VAE is its encoder for what is cached and trained, and its decoder for the
samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from tests.toolkit.models.test_single_file import (
    Weights,
    encoders_of,
    fault_of,
    part_weights,
    wan_name,
)
from toolkit.config.reading.process import JobContext
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import whole_files
from toolkit.memory.quantization import quantizer
from toolkit.models.families import single_file_faults
from toolkit.models.loading import base_hashes, load_model
from toolkit.models.vae_files import encoder_hash


def is_of_decoder(name: str) -> bool:
    return name.startswith(("decoder.", "post_quant_conv."))


def scaled(weights: Weights, of_decoder: bool) -> Weights:
    return {
        name: weight * 1.1 if is_of_decoder(name) == of_decoder else weight
        for name, weight in weights.items()
    }


def decoder_of(weights: Weights) -> Weights:
    return {
        name: weight * 1.1 for name, weight in weights.items() if is_of_decoder(name)
    }


@pytest.fixture(params=["qwen_image", "qwen_image_2"])  # each has a VAE of its own
def folder(request, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def identities(folder: Path, **keys: object) -> tuple[str, str]:
    """What the cache and a run know the VAE by."""
    section = ModelConfig(
        name_or_path=str(folder), **{key: str(value) for key, value in keys.items()}
    )
    model = load_model(section, torch.device("cpu"), torch.bfloat16, quantizer)
    return model.cache_keys("vae")[0], base_hashes(section)["vae_encoder"]


@pytest.mark.slow
def test_another_decoder_is_the_same_vae_and_another_encoder_is_not(
    folder: Path, tmp_path: Path
) -> None:
    weights, file = part_weights(folder, "vae"), tmp_path / "vae.safetensors"
    own = identities(folder)
    save_file(scaled(weights, of_decoder=True), file)
    assert identities(folder, vae_path=file) == own
    save_file(decoder_of(weights), file)
    assert identities(folder, vae_path=file) == own
    save_file(scaled(weights, of_decoder=False), file)
    assert all(
        now != before
        for now, before in zip(identities(folder, vae_path=file), own, strict=True)
    )


def test_a_decoder_that_is_replaced_in_the_model_folder_is_the_same_vae(
    folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    (file,) = (copy / "vae").glob("*.safetensors")
    save_file(
        scaled(part_weights(folder, "vae"), of_decoder=True), file, {"format": "pt"}
    )
    assert identities(copy) == identities(folder)
    config = copy / "vae" / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"latents_mean": [1.0] * 16})
    )
    assert identities(copy) != identities(folder)


def test_the_names_of_wan_make_no_difference(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, file = folders["qwen_image"], tmp_path / "vae.safetensors"
    save_file(
        {
            wan_name(name): weight
            for name, weight in part_weights(folder, "vae").items()
        },
        file,
    )
    assert encoder_hash(folder / "vae", file) == encoder_hash(folder / "vae")


def test_a_decoder_alone_is_used_with_the_encoder_of_the_model(
    folder: Path, tmp_path: Path
) -> None:
    weights, file = part_weights(folder, "vae"), tmp_path / "vae.safetensors"
    save_file(decoder_of(weights), file)
    section = ModelConfig(name_or_path=str(folder), vae_path=str(file))
    assert not list(single_file_faults(section, folder)) and whole_files(section) == {}
    found, own = encoders_of(folder, vae_path=file)["vae"], encoders_of(folder)["vae"]
    changed = {name for name in own if not torch.equal(found[name], own[name])}
    assert changed and all(map(is_of_decoder, changed))
    assert found["decoder.conv_in.weight"].equal(
        (weights["decoder.conv_in.weight"] * 1.1).to(torch.bfloat16)
    )


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_decoder_for_samples_is_in_no_identity_and_of_a_whole_vae_the_decoder_alone_counts(
    folder: Path, tmp_path: Path, is_whole: bool
) -> None:
    weights, file = part_weights(folder, "vae"), tmp_path / "vae.safetensors"
    save_file(
        {name: weight * 1.1 for name, weight in weights.items()}
        if is_whole
        else decoder_of(weights),
        file,
    )
    section = ModelConfig(name_or_path=str(folder))
    device, dtype = torch.device("cpu"), torch.float32
    plain, other = (
        load_model(section, device, dtype, quantizer, decoder=one)
        for one in (None, file)
    )
    assert other.cache_keys("vae") == plain.cache_keys("vae")
    own, found = (model.part("vae").state_dict() for model in (plain, other))
    changed = {name for name in own if not torch.equal(found[name], own[name])}
    assert changed and all(map(is_of_decoder, changed)) and found.keys() == own.keys()
    image_BPHW = torch.rand(1, plain.family.pixel_channels, 64, 64)
    latents = [model.encode_images(image_BPHW) for model in (plain, other)]
    assert latents[0].equal(latents[1])
    assert not plain.decode_latents(latents[0]).equal(other.decode_latents(latents[0]))


def test_a_decoder_that_is_not_whole_or_of_another_size_is_named(
    folder: Path, tmp_path: Path
) -> None:
    weights, file = (
        decoder_of(part_weights(folder, "vae")),
        tmp_path / "vae.safetensors",
    )
    missing = weights.pop("decoder.conv_out.weight")
    save_file(weights, file)
    assert fault_of(folder, vae_path=file) == (
        f"{file}: missing weights: decoder.conv_out.weight. Give the whole file."
    )
    save_file(
        weights
        | {"decoder.conv_out.weight": missing, "quant_conv.bias": torch.zeros(2)},
        file,
    )
    assert "quant_conv.bias" in fault_of(folder, vae_path=file)
    weights |= {
        "decoder.conv_out.weight": missing,
        "decoder.conv_in.weight": weights["decoder.conv_in.weight"][:1],
    }
    save_file(weights, file)
    assert "decoder.conv_in.weight is (1, " in fault_of(folder, vae_path=file)


@pytest.mark.parametrize(
    ("inside", "name"),
    [
        ("", "texture_fix.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_folder_and_a_model_of_the_hub_name_their_file(
    folder: Path, tmp_path: Path, monkeypatch, inside: str, name: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    snapshot = tmp_path / "hub" / "models--owner--texture-fix" / "snapshots" / "c0ffee"
    place = snapshot / inside
    place.mkdir(parents=True)
    shutil.copy(folder / "vae" / "config.json", place)
    save_file(decoder_of(part_weights(folder, "vae")), place / name)
    for given in (str(snapshot), "owner/texture-fix"):
        section = ModelConfig(name_or_path=str(folder), vae_path=given)
        assert section.vae_path == str(place / name)
        assert not list(section.check(JobContext("job"))) and not list(
            single_file_faults(section, folder)
        )
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(
        json.dumps(config | {"latents_mean": [1.0], "_diffusers_version": "9"})
    )
    ((key, fault),) = single_file_faults(section, folder)
    expected = f"{place / 'config.json'}: latents_mean: not as in {folder / 'vae' / 'config.json'}."
    assert (key, fault) == ("vae_path", f"{expected} Give a VAE of this model.")


def test_what_names_no_file_is_answered_with_what_to_do(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()

    def faults(path: str) -> list[str]:
        section = ModelConfig(name_or_path=str(folder), vae_path=path)
        found = [
            f"{'.'.join(map(str, each.key))}: {each.message}"
            for each in section.check(JobContext("job"))
        ]
        return [
            *found,
            *(f"{key}: {fault}" for key, fault in single_file_faults(section, folder)),
        ]

    remedy = "Run 'hf download owner/texture-fix' first, or give a file."
    assert faults("owner/texture-fix") == [
        f"vae_path: 'owner/texture-fix' is not in the hub cache. {remedy}"
    ]
    assert faults("./empty") == [
        "vae_path: './empty' holds no file of one VAE. Give the safetensors file."
    ]
    assert len(faults("./none.safetensors")) == 1
