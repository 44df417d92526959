"""OFT, BOFT, GLoRA and lora_bias on a whole model: what the tools make of files that
LyCORIS and peft write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import peft.tuners.boft.layer as boft_layer
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from lycoris import LycorisNetwork, create_lycoris
from peft import (
    BOFTConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.running import run_tool
from toolkit.config.sections.model import ModelConfig
from toolkit.errors import RunError, UserError
from toolkit.models.families import family_for
from toolkit.networks.lora_formats import load_adapter_file

LAYERS = [
    f"transformer_blocks.{index}.{name}"
    for index in range(2)
    for name in ("attn.to_q", "attn.add_v_proj", "img_mlp.net.2")
]
TARGETS = ["to_q", "add_v_proj", "img_mlp.net.2"]
ALGORITHMS = {
    "oft": {"algo": "diag-oft", "constraint": 0.01, "rescaled": True},
    "boft": {"algo": "boft", "rescaled": True},
    "glora": {"algo": "glora"},
}
CONFIGS: dict[str, Callable[[], PeftConfig]] = {
    "oft of peft": lambda: OFTConfig(oft_block_size=8, target_modules=TARGETS),
    "shared oft of peft": lambda: OFTConfig(
        oft_block_size=8, block_share=True, coft=True, eps=0.2, target_modules=TARGETS
    ),
    "boft of peft": lambda: BOFTConfig(target_modules=TARGETS),
    "lora_bias": lambda: LoraConfig(
        r=4, lora_alpha=2, lora_bias=True, target_modules=TARGETS
    ),
    "lora_bias, rslora": lambda: LoraConfig(
        r=4, lora_alpha=3, lora_bias=True, use_rslora=True, target_modules=TARGETS
    ),
}
KIND = {
    "oft of peft": "oft",
    "shared oft of peft": "oft",
    "boft of peft": "boft",
    "lora_bias": "lora",
    "lora_bias, rslora": "lora",
}
NAMES = [*ALGORITHMS, *CONFIGS]
MULTIPLIED = [name for name in NAMES if not name.startswith("lora_bias")]


def transformer_of(folder: Path) -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel.from_pretrained(
        folder / "transformer", torch_dtype=torch.float32
    )


def at_random(parameters: list[Tensor]) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn_like(parameter))


def written(name: str, base: Path, folder: Path) -> tuple[Path, nn.Module]:
    """A file of the library, and the transformer that the library makes of the base
    with it."""
    transformer = transformer_of(base)
    if name in ALGORITHMS:
        LycorisNetwork.apply_preset(
            {"target_module": [], "target_name": [f".*{target}" for target in TARGETS]}
        )
        network = create_lycoris(
            transformer, 1.0, linear_dim=8, linear_alpha=4.0, **ALGORITHMS[name]
        )
        network.apply_to()  # only then the modules are its own
        at_random(list(network.parameters()))
        file = folder / "lycoris.safetensors"
        network.save_weights(str(file), torch.float32, {})
        with torch.no_grad():
            for module in network.loras:
                module.org_module[0].weight += module.get_diff_weight()[0]
        return file, transformer
    adapted = get_peft_model(transformer, CONFIGS[name]())
    at_random(
        [
            one
            for key, one in adapted.named_parameters()
            if "oft_" in key or "lora_" in key
        ]
    )
    adapted.save_pretrained(folder)
    return folder / "adapter_model.safetensors", PeftModel.from_pretrained(
        transformer_of(base), folder
    ).merge_and_unload()


@pytest.fixture(autouse=True)
def _libraries_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """peft would compile one; LyCORIS' choice of layers is kept on its class."""
    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: None)
    for name in ("TARGET_REPLACE_MODULE", "TARGET_REPLACE_NAME"):
        monkeypatch.setattr(LycorisNetwork, name, getattr(LycorisNetwork, name))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=NAMES)
def case(
    request: pytest.FixtureRequest, unit_gain_model: Path, tmp_path: Path
) -> tuple[str, Path, nn.Module, Path]:
    file, expected = written(request.param, unit_gain_model, tmp_path)
    return request.param, file, expected, unit_gain_model


def weights(folder: Path) -> dict[str, Tensor]:
    return {
        key: tensor
        for file in (folder / "transformer").glob("*.safetensors")
        for key, tensor in load_file(file).items()
    }


def test_the_tools_do_what_the_library_does(
    case, capsys: pytest.CaptureFixture[str]
) -> None:
    name, file, expected, base = case
    kind = KIND.get(name, name)
    run_tool(
        "merge",
        ["--base", base, "--lora", file, "--output", "merged", "--dtype", "float32"],
    )
    run_tool(
        "merge",
        [
            "--base",
            base,
            "--lora",
            f"{file}:0.5",
            "--output",
            "half",
            "--dtype",
            "float32",
        ],
    )
    before, merged, half = weights(base), weights(Path("merged")), weights(Path("half"))
    changed = 0
    for key, tensor in expected.state_dict().items():
        torch.testing.assert_close(merged[key], tensor, rtol=1e-6, atol=1e-6)
        middle = (before[key].float() + tensor) / 2
        torch.testing.assert_close(half[key], middle, rtol=1e-6, atol=1e-6)
        changed += not torch.equal(before[key].float(), tensor)
    assert changed == (12 if kind == "lora" else 6)

    run_tool(
        "extract",
        [
            "again.safetensors",
            "--base",
            base,
            "--tuned",
            "merged",
            "--rank",
            64,
            "--dtype",
            "float32",
        ],
    )
    layers = family_for(ModelConfig(name_or_path=str(base))).every_linear_layer(base)
    again = load_adapter_file(Path("again.safetensors"), layers)
    assert sorted(again) == sorted(LAYERS)
    for layer, change in again.items():
        delta = (
            expected.state_dict()[f"{layer}.weight"] - before[f"{layer}.weight"].float()
        )
        assert (change.delta() - delta).norm() < 1e-3 * delta.norm()

    for flags in (["--model", base], []):
        capsys.readouterr()
        run_tool("inspect", [file, "--json", *flags])
        told = json.loads(capsys.readouterr().out)
        assert (
            told["kinds"] == [kind]
            and told["layers"] == 6
            and told["zero_layers"] == 0
            and told["wrong"] == []
        )
    run_tool("inspect", [file])
    assert ("6 layers multiply the model's weights" in capsys.readouterr().out) == (
        kind != "lora"
    )

    for flags in ([], ["--base-dtype", "int8"]):
        run_tool("doctor", [file, "--model", base, *flags])
        assert "sound: nothing wrong was found" in capsys.readouterr().out


@pytest.mark.parametrize("name", MULTIPLIED)
def test_what_would_lose_its_meaning_is_refused(
    name: str, unit_gain_model: Path, tmp_path: Path
) -> None:
    file, _ = written(name, unit_gain_model, tmp_path)
    title = {"oft": "an OFT", "boft": "a BOFT", "glora": "a GLoRA"}[
        KIND.get(name, name)
    ]
    model = ["--model", unit_gain_model]
    for flags in (
        [file, "a.safetensors", "--rank", 4, *model],
        [file, "a.safetensors", "--share", 0.9, *model],
    ):
        with pytest.raises(
            UserError, match=f"is {title}, whose change depends on the model's weights"
        ):
            run_tool("resize", flags)
    with pytest.raises(
        UserError, match=f"is {title}, whose change depends on the model's weights"
    ):
        run_tool("merge", ["--lora", file, "--output", "a.safetensors", *model])
    for program in ("comfyui", "diffusers"):
        with pytest.raises(UserError, match=f"does not read {title}"):
            run_tool("convert", [file, "a.safetensors", "--to", program, *model])
    assert not Path("a.safetensors").exists()


@pytest.mark.parametrize("name", ["lora_bias", "lora_bias, rslora"])
def test_a_lora_bias_is_converted_to_the_same_change(
    name: str, unit_gain_model: Path, tmp_path: Path
) -> None:
    file, expected = written(name, unit_gain_model, tmp_path)
    run_tool(
        "convert",
        [file, "comfyui.safetensors", "--to", "comfyui", "--model", unit_gain_model],
    )
    made = load_file("comfyui.safetensors")
    before = weights(unit_gain_model)
    for layer in LAYERS:
        bias_O = (
            expected.state_dict()[f"{layer}.bias"] - before[f"{layer}.bias"].float()
        )
        torch.testing.assert_close(
            made[f"diffusion_model.{layer}.diff_b"], bias_O, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (
            lambda tensors: {
                key: tensor * torch.nan for key, tensor in tensors.items()
            },
            "not_finite",
        ),
        (
            lambda tensors: {
                key: tensor
                for key, tensor in tensors.items()
                if not key.endswith("b2.weight")
            },
            "incomplete",
        ),
        (
            lambda tensors: {
                key: one.T if key.endswith("a1.weight") else one
                for key, one in tensors.items()
            },
            "misfit",
        ),
        (
            lambda tensors: {
                key: one * ("a1" not in key)
                for key, one in tensors.items()
                if "b1" not in key
            },
            "incomplete",
        ),
        (
            lambda tensors: {
                key: one * (key.endswith("alpha")) for key, one in tensors.items()
            },
            "untrained",
        ),
    ],
)
def test_doctor_names_what_is_wrong_with_a_glora(
    change: Callable,
    check: str,
    unit_gain_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, _ = written("glora", unit_gain_model, tmp_path)
    save_file(
        {key: one.contiguous() for key, one in change(load_file(file)).items()},
        tmp_path / "broken.safetensors",
    )
    with pytest.raises(RunError, match=check):
        run_tool("doctor", ["broken.safetensors", "--model", unit_gain_model])
    assert f"{check}: " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["oft", "boft", "oft of peft"])
def test_doctor_names_what_is_wrong_with_an_oft(
    kind: str, unit_gain_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _ = written(kind, unit_gain_model, tmp_path)
    tensors = load_file(file)
    broken = {
        "misfit": {
            key: one[..., : max(1, one.shape[-1] - 1)].contiguous()
            for key, one in tensors.items()
            if one.dim()
        },
        "untrained": {
            key: torch.ones_like(one) if "rescale" in key else 0 * one
            for key, one in tensors.items()
        },
        "not_finite": {key: one * torch.inf for key, one in tensors.items()},
    }
    for check, made in broken.items():
        save_file(made, file)
        with pytest.raises(RunError, match=check):
            run_tool("doctor", [file, "--model", unit_gain_model])
        assert f"{check}: " in capsys.readouterr().out


def test_an_oft_has_no_alpha_to_lose(
    unit_gain_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its alpha is a limit. LyCORIS writes one for each layer, others under the same
    names may not."""
    file, _ = written("boft", unit_gain_model, tmp_path)
    kept = {
        key.replace("lycoris_", "lora_unet_"): one
        for key, one in load_file(file).items()
        if "alpha" not in key
    }
    save_file(kept, file)
    run_tool("doctor", [file, "--model", unit_gain_model])
    assert "sound: nothing wrong was found" in capsys.readouterr().out


def test_what_is_rounded_away_is_predicted_for_layers_of_the_published_size(
    unit_gain_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One block for all inputs says nothing of the size of the layer."""
    file, _ = written("shared oft of peft", unit_gain_model, tmp_path)
    save_file(
        {key: one for key, one in load_file(file).items() if "0.attn.to_q" in key}, file
    )
    run_tool("doctor", [file, "--base-dtype", "int8", "--json"])
    told = json.loads(capsys.readouterr().out)
    (rounded,) = told["rounding"]["by_layer"].values()
    assert told["sound"] and 0 < rounded["noise"] < 1
