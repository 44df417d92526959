"""What the settings of peft and diffusers mean, against the changes that peft and
diffusers themselves make."""

import dataclasses
import json
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from peft import (
    BOFTConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
)
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.parts import needs_part
from tests.running import run_tool
from toolkit.errors import RunError, UserError
from toolkit.networks import adapter_settings
from toolkit.networks.adapter_settings import (
    CONFIG_FILE,
    FIELDS,
    HEADER_METADATA,
    Patterns,
    Refused,
)
from toolkit.networks.lora_formats import load_adapter_file, read_tensors

TARGETS = ["to_q", "to_k", "net.2"]
LAYERS = [
    f"transformer_blocks.{index}.{name}"
    for index in range(2)
    for name in ("attn.to_q", "attn.to_k", "mlp.net.2")
]
SIZES = {"to_q": (24, 16), "to_k": (16, 16), "2": (16, 48)}
"""Last part of a layer's name -> inputs, outputs."""


class Model(nn.Module):
    """Linear layers with the names of a transformer's, the same weights each time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in LAYERS:
            parent: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            parent.add_module(last, nn.Linear(*SIZES[last]))


def saved_by_peft(config: PeftConfig, folder: Path) -> dict[str, Tensor]:
    """Saves an adapter with random numbers; returns the change of each weight in peft,
    read back from the folder."""
    adapted = get_peft_model(Model(), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "hada_" in name or "lokr_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(folder)
    merged = PeftModel.from_pretrained(Model(), folder).merge_and_unload()
    before = Model()
    return {
        name: merged.get_submodule(name).weight - before.get_submodule(name).weight
        for name in LAYERS
    }


def assert_same_changes(file: Path, expected: dict[str, Tensor]) -> None:
    before = Model()
    for name, change in load_adapter_file(file, LAYERS).items():
        delta_OI = change.delta_for(before.get_submodule(name).weight.detach())
        torch.testing.assert_close(delta_OI, expected[name].detach(), rtol=0, atol=1e-6)


# ------------------------------------------------------------ fields


@pytest.mark.parametrize(
    "config", [LoraConfig, LoHaConfig, LoKrConfig, OFTConfig, BOFTConfig]
)
def test_every_field_of_the_installed_peft_has_a_row(config: type[PeftConfig]) -> None:
    fields = {field.name for field in dataclasses.fields(config)}
    kind = config().peft_type.value
    assert FIELDS[kind].keys() == fields


def test_a_setting_that_is_not_in_the_table_is_refused(tmp_path: Path) -> None:
    saved_by_peft(LoraConfig(r=4, target_modules=TARGETS), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    put_settings(tmp_path, unheard_of=None)
    assert load_adapter_file(file, LAYERS)
    put_settings(tmp_path, unheard_of=2)
    with pytest.raises(
        UserError,
        match=r"adapter_config\.json says unheard_of: 2: this setting is not known",
    ):
        load_adapter_file(file, LAYERS)


def put_settings(folder: Path, **values: object) -> None:
    config = folder / CONFIG_FILE
    config.write_text(
        json.dumps({**json.loads(config.read_text(encoding="utf-8")), **values}),
        encoding="utf-8",
    )


# ------------------------------------------------------------ files of peft

LORA = partial(LoraConfig, r=4, lora_alpha=2)
CONFIGS: dict[str, Callable[..., PeftConfig]] = {
    "lora": LORA,
    "lora, rslora": partial(LORA, use_rslora=True),
    "lora, names as patterns": partial(
        LORA,
        rank_pattern={"to_q": 2},
        alpha_pattern={"to_q": 8, "0.attn.to_k": 3},
    ),
    "lora, expressions as patterns": partial(
        LORA,
        rank_pattern={"to_[qk]": 2, r"^transformer_blocks\.1.*2": 8},
        alpha_pattern={
            r".*to_q": 8,
            r"transformer_blocks\.\d+\.attn\.to_k": 3,
            "^transformer_blocks.0.mlp.net.2": 5,
        },
    ),
    "lora, mica": partial(LORA, init_lora_weights="mica"),
    "lora, orthogonal": partial(LORA, init_lora_weights="orthogonal"),
    "lora, gaussian": partial(LORA, init_lora_weights="gaussian"),
    "lora, started at random": partial(LORA, init_lora_weights=False),
    "dora": partial(LORA, use_dora=True),
    "loha": partial(LoHaConfig, r=4, alpha=2),
    "loha, patterns": partial(
        LoHaConfig,
        r=4,
        alpha=2,
        rank_pattern={"to_.": 2},
        alpha_pattern={".*to_q": 6},
    ),
    "lokr": partial(LoKrConfig, r=2, alpha=3),
    "lokr, both decomposed": partial(LoKrConfig, r=1, alpha=3, decompose_both=True),
    "lokr, whole factors": partial(LoKrConfig, r=64, alpha=2),
    "lokr, whole factors, patterns": partial(
        LoKrConfig,
        r=64,
        alpha=2,
        rank_pattern={"to_q": 32},
        alpha_pattern={"to_[qk]": 5},
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_of_peft_means_what_it_means_in_peft(name: str, tmp_path: Path) -> None:
    expected = saved_by_peft(CONFIGS[name](target_modules=TARGETS), tmp_path)
    assert all(change.abs().max() > 1e-4 for change in expected.values())
    assert_same_changes(tmp_path / "adapter_model.safetensors", expected)


BIASED = {
    "alpha": {"lora_alpha": 2},
    "rslora": {"lora_alpha": 3, "use_rslora": True},
    "patterns": {
        "lora_alpha": 2,
        "alpha_pattern": {"to_[qk]": 6},
        "rank_pattern": {"net.2": 2},
    },
}


@pytest.mark.parametrize(
    ("name", "adapter"), [("alpha", ""), ("rslora", ".default"), ("patterns", "")]
)
def test_a_lora_bias_counts_by_the_strength_of_its_layer(
    name: str, adapter: str, tmp_path: Path
) -> None:
    config = LoraConfig(r=4, lora_bias=True, target_modules=TARGETS, **BIASED[name])
    expected = saved_by_peft(config, tmp_path)
    merged = PeftModel.from_pretrained(Model(), tmp_path).merge_and_unload()
    file = tmp_path / "adapter_model.safetensors"
    if adapter:
        tensors = load_file(file)
        save_file(
            {
                key.replace(".lora_B.bias", ".lora_B.default.bias"): one
                for key, one in tensors.items()
            },
            file,
        )
    assert_same_changes(file, expected)
    before = Model()
    for layer, change in load_adapter_file(file, LAYERS).items():
        bias_O = merged.get_submodule(layer).bias - before.get_submodule(layer).bias
        assert bias_O.norm() > 0.05
        torch.testing.assert_close(change.bias, bias_O.detach(), rtol=0, atol=1e-6)


def test_a_lora_bias_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    saved_by_peft(LoraConfig(r=4, lora_bias=True, target_modules=["to_q"]), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("lora_B.bias"))
    stem = key.removesuffix(".lora_B.bias")
    with pytest.raises(
        UserError,
        match=r"adapter_model\.safetensors: the bias of transformer_blocks\.0\.attn"
        r"\.to_q is changed\. This model has none",
    ):
        load_adapter_file(file, LAYERS, weights=["proj_out.weight"])
    for changed, words in (
        ({key: torch.ones(3)}, "the change of the bias of .* has the shape \\[3\\]"),
        ({key: torch.full((16,), torch.nan)}, "not finite"),
        (
            {f"{stem}.diff_b": torch.ones(16)},
            "is changed twice, by diff_b and by lora_B.bias",
        ),
        (
            {f"{stem}.lora_magnitude_vector": torch.ones(16)},
            "mixes several kinds of change: .*lora_bias",
        ),
    ):
        save_file(tensors | changed, file)
        with pytest.raises(UserError, match=words):
            load_adapter_file(file, LAYERS)
    save_file(
        {
            name: one
            for name, one in tensors.items()
            if not name.startswith(stem) or name == key
        },
        file,
    )
    with pytest.raises(UserError, match="lacks a matrix; it holds only up_bias"):
        load_adapter_file(file, LAYERS)
    save_file(
        {
            name: 0 * one if name.endswith("bias") else one
            for name, one in tensors.items()
        },
        file,
    )
    assert [change.bias for change in load_adapter_file(file, LAYERS).values()] == [
        None,
        None,
    ]


def test_the_rank_is_the_size_of_the_matrix_whatever_the_settings_say(
    tmp_path: Path,
) -> None:
    expected = saved_by_peft(
        LoraConfig(r=4, lora_alpha=2, target_modules=TARGETS), tmp_path
    )
    put_settings(tmp_path, r=64, rank_pattern={"to_q": 128})
    assert_same_changes(tmp_path / "adapter_model.safetensors", expected)


def test_the_settings_beside_a_renamed_file_are_read(tmp_path: Path) -> None:
    expected = saved_by_peft(
        LoraConfig(r=4, lora_alpha=2, target_modules=TARGETS), tmp_path
    )
    renamed = (tmp_path / "adapter_model.safetensors").rename(
        tmp_path / "my_char.safetensors"
    )
    assert_same_changes(renamed, expected)


def test_a_file_of_peft_without_its_settings_is_refused(tmp_path: Path) -> None:
    saved_by_peft(LoraConfig(r=4, lora_alpha=2, target_modules=TARGETS), tmp_path)
    (tmp_path / CONFIG_FILE).unlink()
    with pytest.raises(
        UserError,
        match=r"keys are peft's, such as 'base_model\.model\..*in adapter_config\.json",
    ):
        load_adapter_file(tmp_path / "adapter_model.safetensors", LAYERS)


def test_an_alpha_in_a_file_with_names_of_peft_is_enough(tmp_path: Path) -> None:
    saved_by_peft(LoraConfig(r=4, lora_alpha=2, target_modules=TARGETS), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    alphas = {
        f"{key.removesuffix('.lora_A.weight')}.alpha": torch.tensor(2.0)
        for key in tensors
        if "lora_A" in key
    }
    (tmp_path / CONFIG_FILE).unlink()
    save_file(tensors | alphas, tmp_path / "with_alpha.safetensors")
    changes = load_adapter_file(tmp_path / "with_alpha.safetensors", LAYERS)
    assert {change.scale for change in changes.values()} == {0.5}


def test_the_settings_of_another_file_in_the_folder_are_not_read(
    tmp_path: Path,
) -> None:
    saved_by_peft(LoraConfig(r=4, lora_alpha=2, target_modules=TARGETS), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    own = {
        f"diffusion_model.{key.removeprefix('base_model.model.')}": tensor
        for key, tensor in tensors.items()
    }
    save_file(own, tmp_path / "ours.safetensors")
    assert CONFIG_FILE not in read_tensors(tmp_path / "ours.safetensors")[1]


# ------------------------------------------------------------ refused

CHANGED_MEANING = {
    **{
        f"init {name}": {"init_lora_weights": name}
        for name in ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga")
    },
    "init loftq": {"init_lora_weights": "loftq"},
    "init of a newer peft": {"init_lora_weights": "unheard_of"},
    "bdlora": {"use_bdlora": {"nblocks": 2}},
    "arrow": {"arrow_config": {"top_k": 2}},
    "layer replication": {"layer_replication": [[0, 2]]},
    "alora": {"alora_invocation_tokens": [1, 2]},
    "kasa": {"kasa_config": {"beta": 1}},
    "velora": {"velora_config": {"scale": 1}},
    "monteclora": {"monteclora_config": {"sigma": 1}},
    "modules to save": {"modules_to_save": ["proj_out"]},
    "biases": {"bias": "lora_only"},
    "another kind": {"peft_type": "RANDLORA"},
}


@pytest.mark.parametrize("name", CHANGED_MEANING)
def test_a_setting_that_changes_what_the_matrices_mean_is_refused_by_name(
    name: str, tmp_path: Path
) -> None:
    saved_by_peft(LoraConfig(r=4, target_modules=TARGETS), tmp_path)
    put_settings(tmp_path, **CHANGED_MEANING[name])
    ((key, value),) = CHANGED_MEANING[name].items()
    shown = value if isinstance(value, str) else ""
    with pytest.raises(
        UserError,
        match=rf"adapter_model\.safetensors: adapter_config\.json says {key}.*{shown}",
    ):
        load_adapter_file(tmp_path / "adapter_model.safetensors", LAYERS)


def test_each_refusal_has_a_reason_and_a_remedy() -> None:
    refused = [
        one
        for fields in FIELDS.values()
        for one in fields.values()
        if isinstance(one, Refused)
    ]
    assert len(refused) >= 10 and all(
        one.reason and one.remedy.endswith(".") for one in refused
    )


# ------------------------------------------------------------ patterns


def test_a_pattern_matches_the_names_that_it_matches_in_peft() -> None:
    draw = random.Random(0)
    parts = ["a", "b", "to_q", "to_k", "0", "1", "attn"]
    made = [".".join(draw.choices(parts, k=draw.randint(1, 4))) for _ in range(60)]
    patterns = {
        draw.choice(["", "^", ".*"]) + name: float(index)
        for index, name in enumerate(made)
    }
    patterns |= {"a.b": -1.0, "to.q": -2.0, "(to_q|to_k)": -3.0, r"\d": -4.0}
    names = [
        ".".join(draw.choices([*parts, "to-q", "c"], k=draw.randint(1, 5)))
        for _ in range(500)
    ]
    ours = Patterns(patterns, "x")
    expected = [patterns.get(get_pattern_key(patterns.keys(), name)) for name in names]
    assert [ours.value_for(name) for name in names] == expected
    assert None in expected and len(set(expected)) > 15


# ------------------------------------------------------------ files of diffusers

TINY = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 16,
    "in_channels": 16,
    "out_channels": 4,
    "axes_dims_rope": (4, 6, 6),
}
QWEN_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "img_mlp.net.2"]


def _transformer() -> QwenImageTransformer2DModel:
    torch.manual_seed(0)
    return QwenImageTransformer2DModel(**TINY)


def _linears(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: layer.weight.detach().clone()
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear
    }


def _adapted(
    config: LoraConfig,
) -> tuple[QwenImageTransformer2DModel, dict[str, Tensor]]:
    """A transformer with a LoRA, and the change that it fuses into each weight."""
    transformer = _transformer()
    before = _linears(transformer)
    transformer.add_adapter(config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    transformer.fuse_lora()
    fused = {
        name.removesuffix(".base_layer"): weight
        for name, weight in _linears(transformer).items()
    }
    transformer.unfuse_lora()
    return transformer, {name: fused[name] - weight for name, weight in before.items()}


DIFFUSERS_CONFIGS = {
    "one alpha": {"lora_alpha": 2},
    "rslora": {"lora_alpha": 2, "use_rslora": True},
    "several ranks and alphas": {
        "lora_alpha": 2,
        "rank_pattern": {"^transformer_blocks.0.attn.to_v": 8, "to_q": 2},
        "alpha_pattern": {"transformer_blocks.0.attn.to_v": 1, ".*to_out.0": 6},
    },
    "alphas alone": {"lora_alpha": 4, "alpha_pattern": {"to_k": 8}},
    "biases": {"lora_alpha": 2, "lora_bias": True},
}


@pytest.mark.parametrize(
    ("name", "saver"),
    [
        ("one alpha", "save_lora_weights"),
        ("rslora", "save_lora_adapter"),
        ("rslora", "saved again"),
        ("several ranks and alphas", "save_lora_weights"),
        ("several ranks and alphas", "save_lora_adapter"),
        ("several ranks and alphas", "saved again"),
        ("alphas alone", "saved again"),
        ("biases", "save_lora_weights"),
        ("biases", "save_lora_adapter"),
    ],
)
def test_a_file_that_diffusers_saves_means_what_it_fuses(
    name: str, saver: str, tmp_path: Path
) -> None:
    config = LoraConfig(r=4, target_modules=QWEN_TARGETS, **DIFFUSERS_CONFIGS[name])
    transformer, expected = _adapted(config)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    if saver == "save_lora_adapter":
        transformer.save_lora_adapter(tmp_path)
    else:
        _save_weights(transformer, tmp_path)
    # as loaded, diffusers writes rank_pattern with ^ and alpha_pattern without
    if saver == "saved again":
        _save_weights(_loaded(tmp_path), tmp_path)
    changes = load_adapter_file(file, list(expected))
    assert len(changes) == 10
    for layer, change in changes.items():
        torch.testing.assert_close(change.delta(), expected[layer], rtol=0, atol=1e-6)


def _loaded(folder: Path) -> QwenImageTransformer2DModel:
    """A transformer with the LoRA of the folder, as the pipeline loads it."""
    transformer = _transformer()
    tensors, metadata = QwenImagePipeline.lora_state_dict(
        folder, return_lora_metadata=True
    )
    QwenImagePipeline.load_lora_into_transformer(
        tensors, transformer, metadata=metadata
    )
    return transformer


def _save_weights(transformer: QwenImageTransformer2DModel, folder: Path) -> None:
    from peft.utils import get_peft_model_state_dict

    name = next(iter(transformer.peft_config))
    QwenImagePipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(
            transformer, adapter_name=name
        ),
        transformer_lora_adapter_metadata=transformer.peft_config[name].to_dict(),
    )


# ------------------------------------------------------------ every reader


@needs_part("tools.lora_tools")
@pytest.mark.parametrize("tool", ["inspect", "convert", "resize"])
def test_every_tool_names_the_setting_that_the_training_refuses(
    tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_by_peft(LoraConfig(r=4, target_modules=TARGETS), tmp_path)
    put_settings(tmp_path, init_lora_weights="pissa")
    output = tmp_path / "out.safetensors"
    flags = {
        "inspect": [],
        "convert": [output, "--to", "comfyui"],
        "resize": [output, "--rank", 2],
    }
    with pytest.raises((UserError, RunError)) as error:
        run_tool(tool, [tmp_path / "adapter_model.safetensors", *flags[tool]])
    said = f"{error.value} {capsys.readouterr().out}"
    assert (
        'adapter_config.json says init_lora_weights: "pissa": the start of this adapter was subtracted'
        in said
    )
    assert not output.exists()


# ------------------------------------------------------------ settings that no writer
# means


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_alpha": 10**400}, r"holds 1000+\.\.\. where a number has to be"),
        ({"lora_alpha": math.nan}, "holds NaN where a number has to be"),
        (
            {"alpha_pattern": {"to_q": 10**400}},
            r"holds 1000+\.\.\. where a number has to be",
        ),
        (
            {"alpha_pattern": {"(" + "k" * 20_000: 1}},
            r"'\(kkk.*'\.\.\. is longer than 10000 characters",
        ),
        ({"alpha_pattern": {"to_(q": 8}}, r"'to_\(q' is not a regular expression"),
        ({"rank_pattern": {"to_q": 0}}, "holds a rank of 0, which no adapter has"),
        ({"peft_type": "LOKR", "r": 0}, "holds a rank of 0, which no adapter has"),
        ({"peft_type": "k" * 3000}, 'says peft_type "KKKK'),
        ({"new\nline": 3}, r'says "new\\nline": 3: this setting is not known'),
    ],
)
def test_impossible_settings_are_refused_in_one_short_line(
    values: dict[str, object], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.safetensors"
    tensors = {
        f"{LAYERS[0]}.{name}": torch.ones(4, 4) for name in ("lokr_w1", "lokr_w2")
    }
    save_file(tensors, file, metadata={HEADER_METADATA: json.dumps({"r": 4, **values})})
    with pytest.raises(UserError, match=message) as caught:
        load_adapter_file(file, LAYERS)
    assert str(caught.value).startswith(f"{file}: {HEADER_METADATA} in its header")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_the_time_for_all_patterns_together_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_settings, "MATCH_SECONDS", 0.0)
    file = tmp_path / "x.safetensors"
    tensors = {f"{LAYERS[0]}.lora_{matrix}.weight": torch.ones(1, 1) for matrix in "AB"}
    patterns = {f".*x{index}": 3 for index in range(5)}
    save_file(
        tensors,
        file,
        metadata={HEADER_METADATA: json.dumps({"r": 1, "alpha_pattern": patterns})},
    )
    with pytest.raises(
        UserError, match="its 5 patterns are not done with the names of the layers"
    ) as caught:
        load_adapter_file(file, LAYERS)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_header_of_other_parts_alone_says_nothing_of_the_transformer(
    tmp_path: Path,
) -> None:
    file = tmp_path / "x.safetensors"
    tensors = {f"{LAYERS[0]}.lora_{matrix}.weight": torch.ones(1, 1) for matrix in "AB"}
    save_file(
        tensors,
        file,
        metadata={HEADER_METADATA: json.dumps({"text_encoder.lora_alpha": 32})},
    )
    assert load_adapter_file(file, LAYERS)[LAYERS[0]].scale == 1


# ------------------------------------------------------------ peft 0.13 and older

OLD = {"auto_mapping": None, "inference_mode": True}
"""Of the fields that every version of peft saves. `exclude_modules` came with 0.14."""


def _strengths(folder: Path, kind: str, config: dict[str, object]) -> dict[str, float]:
    names = (
        ("lora_A.weight", "lora_B.weight")
        if kind == "LORA"
        else ("lokr_w1", "lokr_w2_a", "lokr_w2_b")
    )
    tensors = {
        f"base_model.model.{layer}.{name}": torch.ones(4, 4)
        for layer in LAYERS
        for name in names
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / CONFIG_FILE).write_text(
        json.dumps({"peft_type": kind, "r": 4, **config}), encoding="utf-8"
    )
    changes = load_adapter_file(folder / "adapter_model.safetensors", LAYERS)
    return {name: change.scale for name, change in changes.items()}


def test_a_lokr_of_peft_013_has_no_strength(tmp_path: Path) -> None:
    """Golden: peft 0.9.0 and 0.12.0 apply kron(w1, w2) as it is; 0.14.0 and later
    multiply it by alpha / r."""
    assert set(_strengths(tmp_path, "LOKR", {**OLD, "alpha": 3}).values()) == {1.0}
    assert set(
        _strengths(
            tmp_path, "LOKR", {**OLD, "alpha": 3, "exclude_modules": None}
        ).values()
    ) == {0.75}


def test_peft_013_takes_the_first_key_of_both_patterns(tmp_path: Path) -> None:
    """Golden: peft 0.12.0 gives to_q the alpha of all layers, since `to_q` of
    rank_pattern comes first."""
    patterns = {
        "lora_alpha": 2,
        "rank_pattern": {"to_q": 4},
        "alpha_pattern": {"attn.to_q": 16, "to_k": 8},
    }
    before = _strengths(tmp_path, "LORA", {**OLD, **patterns})
    assert (before[LAYERS[0]], before[LAYERS[1]], before[LAYERS[2]]) == (0.5, 2.0, 0.5)
    since = _strengths(tmp_path, "LORA", {**OLD, **patterns, "exclude_modules": None})
    assert (since[LAYERS[0]], since[LAYERS[1]], since[LAYERS[2]]) == (4.0, 2.0, 0.5)


def test_only_the_settings_named_for_the_transformer_count_where_there_are_some(
    tmp_path: Path,
) -> None:
    """As diffusers 0.42.1 filters them, loaders/peft.py."""
    file = tmp_path / "x.safetensors"
    tensors = {f"{LAYERS[0]}.lora_{matrix}.weight": torch.ones(1, 1) for matrix in "AB"}
    settings = {
        "transformer.lora_alpha": 3,
        "lora_alpha": 7,
        "use_rslora": True,
        "written_by": "someone",
    }
    save_file(tensors, file, metadata={HEADER_METADATA: json.dumps(settings)})
    assert load_adapter_file(file, LAYERS)[LAYERS[0]].scale == 3


def test_a_config_that_is_no_text_is_named(tmp_path: Path) -> None:
    saved_by_peft(LoraConfig(r=4, target_modules=TARGETS), tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(
        UserError, match=r"adapter_config\.json: cannot be read \(.*Copy it again"
    ):
        load_adapter_file(tmp_path / "adapter_model.safetensors", LAYERS)


@needs_part("tools.lora_tools")
@pytest.mark.parametrize("form", ["comfyui", "kohya", "aitk"])
def test_convert_keeps_the_strength_that_peft_gives_two_whole_factors(
    form: str, tmp_path: Path
) -> None:
    from extensions.tools.lora_tools.lora_export import FORMATS, export, read_adapter

    expected = saved_by_peft(
        CONFIGS["lokr, whole factors, patterns"](target_modules=TARGETS), tmp_path
    )
    converted = tmp_path / "converted.safetensors"
    file = read_adapter(tmp_path / "adapter_model.safetensors", [LAYERS])
    save_file(export(file, FORMATS[form]), converted)
    assert_same_changes(converted, expected)


def test_a_dora_whose_magnitudes_were_lost_is_refused(tmp_path: Path) -> None:
    """peft would begin them at the norms of the weight: another change."""
    saved_by_peft(LoraConfig(r=4, target_modules=TARGETS), tmp_path)
    put_settings(tmp_path, use_dora=True)
    with pytest.raises(
        UserError,
        match=r"adapter_config\.json says use_dora, and .*to_. has no magnitude: it was lost",
    ):
        load_adapter_file(tmp_path / "adapter_model.safetensors", LAYERS)
