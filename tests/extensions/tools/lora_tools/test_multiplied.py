"""OFT, BOFT, GLoRA and lora_bias on a whole model: what the tools make of files that
LyCORIS and peft write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
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


@pytest.fixture(scope="module")
def made(
    unit_gain_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, dict[str, Tensor]]]:
    """The file of a name, and the weights that the library makes with it; each is made
    once."""

    @cache
    def make(name: str) -> tuple[Path, dict[str, Tensor]]:
        file, expected = written(name, unit_gain_model, tmp_path_factory.mktemp("of"))
        return file, expected.state_dict()

    return make


def weights(folder: Path) -> dict[str, Tensor]:
    return {
        key: tensor
        for file in (folder / "transformer").glob("*.safetensors")
        for key, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_half_of_it_is_merged_and_the_difference_extracted_again(
    name: str, made, unit_gain_model: Path
) -> None:
    base, (file, expected) = unit_gain_model, made(name)
    as_float32 = ["--base", base, "--dtype", "float32"]
    run_tool("merge", ["--lora", f"{file}:0.5", "--output", "half", *as_float32])
    before, half = weights(base), weights(Path("half"))
    for key, tensor in expected.items():
        middle = (before[key].float() + tensor) / 2
        torch.testing.assert_close(half[key], middle, rtol=1e-6, atol=1e-6)
    again = Path("again.safetensors")
    run_tool("extract", [again, "--tuned", "half", "--rank", 64, *as_float32])
    layers = family_for(ModelConfig(name_or_path=str(base))).every_linear_layer(base)
    changes = load_adapter_file(again, layers)
    assert sorted(changes) == sorted(LAYERS)
    for layer, change in changes.items():
        key = f"{layer}.weight"
        delta = (expected[key] - before[key].float()) / 2
        assert (change.delta() - delta).norm() < 1e-3 * delta.norm()


@pytest.mark.parametrize("name", ["boft", "glora", "oft of peft", "lora_bias"])
def test_it_is_inspected_and_found_sound(
    name: str, made, unit_gain_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file, _), kind = made(name), KIND.get(name, name)
    of_model = ["--model", unit_gain_model]
    capsys.readouterr()
    run_tool("inspect", [file, "--json", *of_model])
    told = json.loads(capsys.readouterr().out)
    assert (told["kinds"], told["layers"], told["zero_layers"]) == ([kind], 6, 0)
    assert told["wrong"] == []
    run_tool("inspect", [file])
    multiplies = "6 layers multiply the model's weights"
    assert (multiplies in capsys.readouterr().out) == (kind != "lora")
    run_tool("doctor", [file, *of_model])
    assert "sound: nothing wrong was found" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["oft", "boft of peft", "glora"])
def test_what_would_lose_its_meaning_is_refused(
    name: str, made, unit_gain_model: Path
) -> None:
    file, _ = made(name)
    kinds = {"oft": "an OFT", "boft": "a BOFT", "glora": "a GLoRA"}
    title = kinds[KIND.get(name, name)]
    depends = f"is {title}, whose change depends on the model's weights"
    output = Path("a.safetensors")
    for uid, flags, message in (
        ("resize", [file, output, "--rank", 4], depends),
        ("resize", [file, output, "--share", 0.9], depends),
        ("merge", ["--lora", file, "--output", output], depends),
        ("convert", [file, output, "--to", "comfyui"], f"does not read {title}"),
        ("convert", [file, output, "--to", "diffusers"], f"does not read {title}"),
    ):
        with pytest.raises(UserError, match=message):
            run_tool(uid, [*flags, "--model", unit_gain_model])
    assert not output.exists()


@pytest.mark.parametrize("name", ["lora_bias", "lora_bias, rslora"])
def test_a_lora_bias_is_converted_to_the_same_change(
    name: str, made, unit_gain_model: Path
) -> None:
    file, expected = made(name)
    output = Path("comfyui.safetensors")
    flags = [file, output, "--to", "comfyui", "--model", unit_gain_model]
    run_tool("convert", flags)
    converted, before = load_file(output), weights(unit_gain_model)
    for layer in LAYERS:
        key = f"{layer}.bias"
        bias_O = expected[key] - before[key].float()
        torch.testing.assert_close(
            converted[f"diffusion_model.{layer}.diff_b"], bias_O, rtol=1e-5, atol=1e-6
        )


def broken(kind: str, tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The checks that find a damage, and the damaged tensors."""
    if kind != "glora":
        narrower = {
            key: one[..., : max(1, one.shape[-1] - 1)] if one.dim() else one
            for key, one in tensors.items()
        }
        neutral = {key: 0 * one + ("rescale" in key) for key, one in tensors.items()}
        infinite = {key: one * torch.inf for key, one in tensors.items()}
        return {"misfit": narrower, "untrained": neutral, "not_finite": infinite}
    without = {key: one for key, one in tensors.items() if "b2" not in key}
    turned = {key: one.T if "a1" in key else one for key, one in tensors.items()}
    zero = {key: one * ("alpha" in key) for key, one in tensors.items()}
    nan = {key: one * torch.nan for key, one in tensors.items()}
    return {
        "incomplete": without,
        "misfit": turned,
        "untrained": zero,
        "not_finite": nan,
    }


@pytest.mark.parametrize("name", ["glora", "oft", "boft", "oft of peft"])
def test_doctor_names_what_is_wrong(
    name: str, made, unit_gain_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _ = made(name)
    for check, tensors in broken(name, load_file(file)).items():
        whole = {key: one.contiguous() for key, one in tensors.items()}
        save_file(whole, "broken.safetensors")
        shutil.copy(
            file.parent / "adapter_config.json", "."
        ) if "peft" in name else None
        with pytest.raises(RunError, match=check):
            run_tool("doctor", ["broken.safetensors", "--model", unit_gain_model])
        assert f"{check}: " in capsys.readouterr().out


def test_an_oft_has_no_alpha_to_lose(
    made, unit_gain_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its alpha is a limit. LyCORIS writes one for each layer, others under the same
    names may not."""
    kept = {
        key.replace("lycoris_", "lora_unet_"): one
        for key, one in load_file(made("boft")[0]).items()
        if "alpha" not in key
    }
    save_file(kept, "kept.safetensors")
    run_tool("doctor", ["kept.safetensors", "--model", unit_gain_model])
    assert "sound: nothing wrong was found" in capsys.readouterr().out
