"""SPADE: nothing at first, then what the paper's formula says; saved beside the
autoencoder and read back."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import conv2d, interpolate, relu

from extensions.from_scratch.autoencoder_config import AutoencoderConfig
from extensions.from_scratch.autoencoders import (
    Autoencoder,
    load_autoencoder,
    make_autoencoder,
    write_autoencoder,
)
from extensions.from_scratch.spade import PREFIX, attach_spade
from tests.extensions.from_scratch.conftest import SMALL
from toolkit.errors import RunError, UserError

CPU = torch.device("cpu")
WITH_NORMS = ("AutoencoderKL", "AutoencoderKLQwenImage")


def made(kind: str, spade: bool | None = True, learned: bool = False) -> Autoencoder:
    """learned: with random modulations."""
    model = make_autoencoder(
        AutoencoderConfig(class_name=kind, config=SMALL[kind], spade=spade), 0, CPU
    )
    if learned:
        torch.manual_seed(5)
        for weight in model.module.spade.parameters():
            torch.nn.init.normal_(weight, std=0.1)
    return model


def latents(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(
        2, 4, 6, 5, generator=torch.Generator().manual_seed(1), dtype=dtype
    )


def written(folder: Path, model: Autoencoder) -> Path:
    folder.mkdir()
    write_autoencoder(folder, model.module.state_dict(), model.config())
    return folder


@pytest.mark.parametrize("kind", WITH_NORMS)
def test_it_changes_nothing_at_first_and_begins_to_learn(kind: str) -> None:
    plain, model = made(kind, spade=None), made(kind)
    output = model.decode(latents())
    assert torch.equal(output, plain.decode(latents()))
    output.square().mean().backward()
    norms = dict(model.module.spade.of_norm.named_children())
    assert {"mid_block_resnets_0_norm1", "up_blocks_1_resnets_1_norm2"} <= norms.keys()
    assert norms.keys() & {"conv_norm_out", "norm_out"}
    assert all(
        norm.gamma.weight.grad.abs().sum() > 0 < norm.beta.bias.grad.abs().sum()
        for norm in norms.values()
    )
    for name, p in plain.module.named_parameters():
        assert torch.equal(p, model.module.get_parameter(name)), name


@pytest.mark.parametrize("kind", WITH_NORMS)
def test_a_norm_is_modulated_by_convolutions_of_the_resized_latent(kind: str) -> None:
    """Park et al., eq. 1, at the decoder's last norm, written out; the norm's own input
    is recorded."""
    model = made(kind, learned=True)
    name = "conv_norm_out" if kind == "AutoencoderKL" else "norm_out"
    norm, m = model.module.decoder.get_submodule(name), model.module.spade.of_norm[name]
    model.decode(latents() + 1)  # nothing of an earlier image is left
    seen = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    outputs = []
    norm.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    model.decode(latents())
    frames = latents() if kind == "AutoencoderKL" else latents()[:, :, None]
    z = model.module.post_quant_conv(frames).view_as(latents())
    z = interpolate(z, size=seen[0].shape[-2:], mode="nearest")
    hidden = relu(conv2d(z, m.hidden.weight, m.hidden.bias, padding=1))
    gamma, beta = (
        conv2d(hidden, layer.weight, layer.bias, padding=1)
        for layer in (m.gamma, m.beta)
    )
    normalised = type(norm).forward(norm, seen[0]).view_as(gamma)
    torch.testing.assert_close(
        outputs[0].view_as(gamma), normalised * (1 + gamma) + beta, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", WITH_NORMS)
def test_it_is_saved_beside_and_diffusers_reads_the_rest(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = made(kind, learned=True)
    folder = written(tmp_path / "vae", model)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "spade.safetensors",
    }
    theirs = getattr(diffusers, kind).from_pretrained(folder)
    assert not [record for record in caplog.records if "not expected" in record.message]
    plain = make_autoencoder(
        AutoencoderConfig(name_or_path=str(folder), spade=False), 0, CPU
    )
    assert not plain.has_spade() and "_spade" not in plain.config()
    assert all(
        torch.equal(p, theirs.get_parameter(name))
        for name, p in plain.module.named_parameters()
    )
    again, output = load_autoencoder(folder), model.decode(latents())
    assert again.has_spade()
    torch.testing.assert_close(again.decode(latents()), output)
    assert float((plain.decode(latents()) - output).detach().abs().max()) > 0.1
    continued = make_autoencoder(AutoencoderConfig(name_or_path=str(folder)), 0, CPU)
    assert torch.equal(continued.decode(latents()), again.decode(latents()))


def test_it_can_be_added_to_a_folder_without_it(tmp_path: Path) -> None:
    folder = written(tmp_path / "vae", made("AutoencoderKL", spade=None))
    plain = load_autoencoder(folder)
    section = AutoencoderConfig(name_or_path=str(folder), spade=True)
    added = make_autoencoder(section, 0, CPU)
    assert section.uses_spade() and added.has_spade() and not plain.has_spade()
    assert torch.equal(added.decode(latents()), plain.decode(latents()))


def test_the_vae_of_an_image_model_decodes_with_it(tmp_path: Path) -> None:
    from toolkit.models.qwen_image.loading import load_vae

    model = made("AutoencoderKLQwenImage", learned=True)
    written(tmp_path / "vae", model)
    output = (
        load_vae(tmp_path / "vae", torch.float32)
        .decode(latents()[:, :, None])
        .sample[:, :, 0]
    )
    torch.testing.assert_close(output, model.decode(latents()).clamp(-1, 1))
    assert (
        next(load_vae(tmp_path / "vae", torch.bfloat16).spade.parameters()).dtype
        == torch.bfloat16
    )


def test_an_autoencoder_without_norms_is_refused() -> None:
    section = AutoencoderConfig(
        class_name="AutoencoderTiny", config=SMALL["AutoencoderTiny"]
    )
    with pytest.raises(
        UserError, match=r"model\.spade: AutoencoderTiny has no norms in its decoder"
    ):
        attach_spade(make_autoencoder(section, 0, CPU).module, 0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "says that the decoder has it. Restore the file"),
        (lambda file: file.write_bytes(file.read_bytes()[:99]), "cannot be read"),
        (
            lambda file: save_file({"x": torch.zeros(1)}, file),
            "not of the autoencoder beside it",
        ),
        (
            lambda file: save_file(
                {k: v * float("nan") for k, v in load_file(file).items()}, file
            ),
            "not finite",
        ),
    ],
)
def test_a_damaged_file_is_named(damage, message: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "vae", made("AutoencoderKL"))
    damage(folder / "spade.safetensors")
    with pytest.raises(RunError, match=message) as found:
        load_autoencoder(folder)
    assert "spade.safetensors" in str(found.value)


def test_its_weights_are_named_apart() -> None:
    plain, model = (
        made("AutoencoderKL", spade=None).module.state_dict(),
        made("AutoencoderKL").module.state_dict(),
    )
    assert plain.keys() == {name for name in model if not name.startswith(PREFIX)}
