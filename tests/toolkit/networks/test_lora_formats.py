"""The meaning of other programs' files, against the numbers those programs computed
(tests/golden/lora_files)."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from toolkit.contracts.model import ROWS_OF
from toolkit.errors import UserError
from toolkit.models.qwen_image.family import FAMILY
from toolkit.networks.adapter_health import health
from toolkit.networks.lora_formats import (
    BROKEN,
    OTHER,
    load_adapter_file,
    parse_adapter_tensors,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "lora_files"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))["files"]
MODULES = [
    f"transformer_blocks.{index}.{name}"
    for index in range(2)
    for name in FAMILY.block_linears(1, {})
]
TO_Q = "transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_means_what_its_writer_computed(name: str) -> None:
    changes = load_adapter_file(GOLDEN / name, MODULES)
    expected = EXPECTED[name]["modules"]
    assert (
        changes.keys() == expected.keys()
        and len(changes) == EXPECTED[name]["module_count"]
    )
    for module, numbers in expected.items():
        delta_OI = changes[module].delta()
        assert list(delta_OI.shape) == numbers["shape"]
        assert float(delta_OI.norm()) == pytest.approx(numbers["frobenius"], rel=1e-5)
        tolerance = 1e-4 * numbers["frobenius"] * delta_OI.numel() ** 0.5
        assert float(delta_OI.sum()) == pytest.approx(numbers["sum"], abs=tolerance)


@pytest.mark.parametrize(
    "stem",
    [
        f"diffusion_model.{TO_Q}",
        f"transformer.{TO_Q}",
        f"base_model.model.{TO_Q}",
        f"base_model.model.transformer.{TO_Q}",
        f"pipe.dit.{TO_Q}",
        f"lora_transformer_{TO_Q.replace('.', '_')}",
        f"lora_unet_{TO_Q.replace('.', '_')}",
        f"lycoris_{TO_Q.replace('.', '_')}",
        TO_Q,
    ],
)
@pytest.mark.parametrize(
    "suffixes",
    [
        ("lora_A", "lora_B"),
        ("lora_down", "lora_up"),
        ("lora_A.default", "lora_B.default"),
    ],
)
def test_every_prefix_and_suffix_names_the_same_layer(
    tmp_path: Path, stem: str, suffixes: tuple[str, str]
) -> None:
    down, up = torch.randn(2, 6), torch.randn(5, 2)
    tensors = {
        f"{stem}.{suffixes[0]}.weight": down,
        f"{stem}.{suffixes[1]}.weight": up,
        f"{stem}.alpha": torch.tensor(1.0),
    }
    changes = load_adapter_file(_written(tmp_path, tensors), MODULES)
    assert changes.keys() == {TO_Q}
    torch.testing.assert_close(changes[TO_Q].delta(), 0.5 * up @ down)


def test_header_metadata_scales_a_file_without_alpha(tmp_path: Path) -> None:
    down, up = torch.randn(2, 6), torch.randn(5, 2)
    header = {
        "transformer.r": 2,
        "transformer.lora_alpha": 8,
        "transformer.rank_pattern": {},
    }
    path = tmp_path / "x.safetensors"
    save_file(
        {
            f"transformer.{TO_Q}.lora_A.weight": down,
            f"transformer.{TO_Q}.lora_B.weight": up,
        },
        path,
        metadata={"lora_adapter_metadata": json.dumps(header)},
    )
    torch.testing.assert_close(
        load_adapter_file(path, MODULES)[TO_Q].delta(), 4 * up @ down
    )


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (".lora_A.weight", ".lora_B.weight"),
        (".lora_A", ".lora_B"),
        (".lora.down.weight", ".lora.up.weight"),
        ("_lora.down.weight", "_lora.up.weight"),
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ],
)
def test_without_alpha_the_scale_is_one_under_any_name_of_the_two_matrices(
    tmp_path: Path, down: str, up: str
) -> None:
    a, b = torch.randn(2, 6), torch.randn(5, 2)
    path = _written(
        tmp_path, {f"transformer.{TO_Q}{down}": a, f"transformer.{TO_Q}{up}": b}
    )
    torch.testing.assert_close(load_adapter_file(path, MODULES)[TO_Q].delta(), b @ a)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
@pytest.mark.parametrize(
    "alpha",
    [torch.tensor(3), torch.tensor([3.0]), torch.tensor(3.0, dtype=torch.bfloat16)],
)
def test_every_number_type_is_read(
    tmp_path: Path, dtype: torch.dtype, alpha: torch.Tensor
) -> None:
    down, up = torch.randn(2, 6).to(dtype), torch.randn(5, 2).to(dtype)
    path = _written(
        tmp_path,
        {
            f"{TO_Q}.lora_A.weight": down,
            f"{TO_Q}.lora_B.weight": up,
            f"{TO_Q}.alpha": alpha,
        },
    )
    change = load_adapter_file(path, MODULES)[TO_Q]
    assert all(part.dtype == torch.float32 for part in change.parts.values())
    torch.testing.assert_close(change.delta(), 1.5 * up.float() @ down.float())


def kron_of(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    whole = {
        n: parts[n] if n in parts else parts[f"{n}_a"] @ parts[f"{n}_b"]
        for n in ("lokr_w1", "lokr_w2")
    }
    return torch.kron(whole["lokr_w1"], whole["lokr_w2"])


W1, W2 = {"lokr_w1": (2, 3)}, {"lokr_w2": (4, 5)}
W1_LOW, W2_LOW = (
    {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 3)},
    {"lokr_w2_a": (4, 2), "lokr_w2_b": (2, 5)},
)


@pytest.mark.parametrize(
    "prefix", ["diffusion_model.", "transformer.", "lora_unet_", "lycoris_", ""]
)
@pytest.mark.parametrize(
    ("shapes", "scale"),
    [(W1 | W2, 1.0), (W1 | W2_LOW, 3.0), (W1_LOW | W2, 6.0), (W1_LOW | W2_LOW, 3.0)],
    ids=["whole", "second low", "first low", "both low"],
)
def test_every_form_of_a_lokr(
    tmp_path: Path, prefix: str, shapes: dict, scale: float
) -> None:
    """With alpha 6: divided by the rank of the second factor, or of the first where
    only that is low-rank."""
    stem = prefix + (TO_Q.replace(".", "_") if prefix.endswith("_") else TO_Q)
    parts = {name: torch.randn(shape) for name, shape in shapes.items()}
    tensors = {f"{stem}.{name}": part for name, part in parts.items()} | {
        f"{stem}.alpha": torch.tensor(6.0)
    }
    change = load_adapter_file(_written(tmp_path, tensors), {TO_Q: (15, 8)})[TO_Q]
    torch.testing.assert_close(change.delta(), scale * kron_of(parts))


@pytest.mark.parametrize("prefix", ["diffusion_model.", "lycoris_"])
@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (5.0, 2.5)])
def test_every_form_of_a_loha(
    tmp_path: Path, prefix: str, alpha: float | None, scale: float
) -> None:
    stem = prefix + (TO_Q.replace(".", "_") if prefix.endswith("_") else TO_Q)
    w1_a, w1_b, w2_a, w2_b = (
        torch.randn(5, 2),
        torch.randn(2, 6),
        torch.randn(5, 2),
        torch.randn(2, 6),
    )
    matrices = {"w1_a": w1_a, "w1_b": w1_b, "w2_a": w2_a, "w2_b": w2_b}
    tensors = {f"{stem}.hada_{name}": matrix for name, matrix in matrices.items()}
    if alpha:
        tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    change = load_adapter_file(_written(tmp_path, tensors), {TO_Q: (6, 5)})[TO_Q]
    torch.testing.assert_close(change.delta(), scale * (w1_a @ w1_b) * (w2_a @ w2_b))


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
@pytest.mark.parametrize(("shape", "axis"), [((1, 15), 0), ((8, 1), 1)])
def test_a_dora_scales_columns_or_rows_of_any_kind(
    tmp_path: Path, kind: str, shape, axis: int
) -> None:
    kinds = {
        "lora": {"lora_A.weight": (2, 15), "lora_B.weight": (8, 2)},
        "loha": {
            "hada_w1_a": (8, 2),
            "hada_w1_b": (2, 15),
            "hada_w2_a": (8, 2),
            "hada_w2_b": (2, 15),
        },
        "lokr": W1 | W2,
    }
    magnitude, weight_OI = torch.rand(shape) + 0.5, torch.randn(8, 15)
    tensors = {
        f"{TO_Q}.{name}": torch.randn(size) for name, size in kinds[kind].items()
    }
    path = _written(tmp_path, tensors | {f"{TO_Q}.dora_scale": magnitude})
    change = load_adapter_file(path, {TO_Q: (15, 8)})[TO_Q]
    changed_OI = weight_OI + change.delta()
    expected = magnitude * changed_OI / changed_OI.norm(dim=axis, keepdim=True)
    torch.testing.assert_close(change.applied_to(weight_OI), expected)
    torch.testing.assert_close(change.delta_for(weight_OI), expected - weight_OI)


@torch.no_grad()
def test_a_saved_peft_adapter_means_what_peft_computes(tmp_path: Path) -> None:
    """Its alpha stands in adapter_config.json, its DoRA scales output rows."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("layer", torch.nn.Linear(6, 5))
    weight_OI = model.layer.weight.clone()
    adapter = get_peft_model(
        model, LoraConfig(r=2, lora_alpha=5, target_modules=["layer"], use_dora=True)
    )
    for name, parameter in adapter.named_parameters():
        if "lora_" in name:
            parameter += 0.3 * torch.rand_like(parameter)
    adapter.save_pretrained(tmp_path)
    change = load_adapter_file(
        tmp_path / "adapter_model.safetensors", {"layer": (6, 5)}
    )["layer"]
    merged = adapter.merge_and_unload().layer.weight
    torch.testing.assert_close(change.applied_to(weight_OI), merged)
    assert change.scale == 2.5


def test_changes_of_biases_stand_beside_matrices_or_alone(tmp_path: Path) -> None:
    """As ComfyUI's extraction writes them; zeros are ignored, of norms too. No alpha
    scales them."""
    other = TO_Q.replace("to_q", "to_k")
    tensors = {
        f"{TO_Q}.lora_A.weight": torch.ones(2, 6),
        f"{TO_Q}.lora_B.weight": torch.ones(5, 2),
    }
    tensors |= {f"{TO_Q}.alpha": torch.tensor(1.0), f"{TO_Q}.diff_b": torch.arange(5.0)}
    tensors |= {
        f"{other}.diff_b": torch.ones(4),
        f"{TO_Q.replace('to_q', 'to_v')}.diff_b": torch.zeros(5),
    }
    tensors |= {
        f"{TO_Q.replace('to_q', 'norm_q')}.{end}": torch.zeros(3)
        for end in ("diff", "diff_b")
    }
    path = _written(tmp_path, tensors)
    for layers in (MODULES, {name: (6, 5 if name == TO_Q else 4) for name in MODULES}):
        changes = load_adapter_file(path, layers)
        assert changes.keys() == {TO_Q, other}
        assert (
            torch.equal(changes[TO_Q].bias, torch.arange(5.0))
            and changes[TO_Q].scale == 0.5
        )
        assert (
            torch.equal(changes[other].bias, torch.ones(4))
            and not changes[other].has_weight
        )
        assert not changes[other].delta().any() and not changes[other].is_zero
    with pytest.raises(
        UserError,
        match=f"{other} has 6 inputs and 4 outputs there, 6 and 5 in this model",
    ):
        load_adapter_file(path, dict.fromkeys(MODULES, (6, 5)))
    for wrong, words in (
        (torch.ones(4), "not the layer's"),
        (torch.full((5,), torch.nan), "not finite"),
    ):
        with pytest.raises(UserError, match=words):
            load_adapter_file(
                _written(tmp_path, tensors | {f"{TO_Q}.diff_b": wrong}), MODULES
            )


def test_the_bias_alone_of_a_layer_that_comfyui_has_in_one_is_that_of_its_parts(
    tmp_path: Path,
) -> None:
    parts = [f"blocks.0.{part}" for part in ROWS_OF["img_mlp.gate_up"]]
    path = _written(
        tmp_path,
        {"diffusion_model.blocks.0.img_mlp.gate_up.diff_b": torch.arange(1.0, 11)},
    )
    changes = load_adapter_file(path, dict.fromkeys(parts, (6, 5)))
    assert [change.bias.tolist() for change in changes.values()] == [
        [1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10],
    ]
    assert [*changes] == parts and {change.shape for change in changes.values()} == {
        (5, 6)
    }


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        ("diff", "mixes several kinds of change: a whole change and down, up"),
        ("w_norm", "holds changes of norms"),
        ("oft_diag", "holds an old OFT"),
        ("on_input", "lacks a matrix"),
        ("lora_mid.weight", "holds a convolution's LoRA"),
        ("lokr_t2", "holds a convolution's LoKr"),
        ("hada_t1", "holds a convolution's LoHa"),
        ("scale_weight", "holds scaled float8 weights"),
        ("magnitude", "holds a DoRA of ai-toolkit"),
        ("lora_A.anna.weight", r"holds an adapter with a name \(anna\)"),
        ("oft_R.weight", "An OFT of OneTrainer has none, and is not read"),
        ("anything", "1 keys are of no known form"),
    ],
)
def test_other_forms_are_refused_by_name(
    tmp_path: Path, suffix: str, words: str
) -> None:
    tensors = {
        f"{TO_Q}.lora_A.weight": torch.ones(2, 6),
        f"{TO_Q}.lora_B.weight": torch.ones(5, 2),
    }
    path = _written(
        tmp_path, {**tensors, f"diffusion_model.{TO_Q}.{suffix}": torch.ones(5)}
    )
    with pytest.raises(UserError, match=words):
        load_adapter_file(path, MODULES)


@pytest.mark.parametrize(
    "dims", [{"lora_A.weight": (2, 6), "lora_B.weight": (5, 2)}, W1 | W2]
)
def test_a_layer_of_another_shape_is_refused(
    tmp_path: Path, dims: dict[str, tuple[int, int]]
) -> None:
    path = _written(
        tmp_path, {f"{TO_Q}.{name}": torch.ones(shape) for name, shape in dims.items()}
    )
    with pytest.raises(
        UserError,
        match=rf"{TO_Q} has \d+ inputs and \d outputs there, 7 and 9 in this model",
    ):
        load_adapter_file(path, {TO_Q: (7, 9)})


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{TO_Q}.lora_A.weight": torch.ones(2, 6)}, "lacks a matrix"),
        (
            {
                f"{TO_Q}.lora_A.weight": torch.ones(2, 6),
                f"{TO_Q}.lora_B.weight": torch.ones(5, 3),
            },
            "do not fit together",
        ),
        (
            {
                f"{TO_Q}.lora_A.weight": torch.ones(2, 6, 1, 1),
                f"{TO_Q}.lora_B.weight": torch.ones(5, 2, 1, 1),
            },
            r"has the shape \[2, 6, 1, 1\]; it is not a matrix",
        ),
        (
            {
                f"{TO_Q}.lora_A.weight": torch.ones(0, 6),
                f"{TO_Q}.lora_B.weight": torch.ones(5, 0),
            },
            "it is not a matrix",
        ),
        (
            {
                f"{TO_Q}.{name}": torch.ones(shape)
                for name, shape in {
                    "hada_w1_a": (5, 2),
                    "hada_w1_b": (2, 6),
                    "hada_w2_a": (4, 2),
                    "hada_w2_b": (2, 6),
                }.items()
            },
            "do not fit together",
        ),
        (
            {
                f"{TO_Q}.lora_A.weight": torch.ones(2, 6),
                f"{TO_Q}.lora_B.weight": torch.ones(5, 2),
                f"{TO_Q}.dora_scale": torch.ones(1, 5),
            },
            r"dora_scale of .* has the shape \[1, 5\], not \[1, 6\] or \[5, 1\]",
        ),
        (
            {
                f"{TO_Q}.lora_A.weight": torch.ones(2, 6),
                f"{TO_Q}.lora_B.weight": torch.ones(5, 2),
                f"{TO_Q}.alpha": torch.ones(2),
            },
            "alpha of .* is .* numbers, not one",
        ),
        (
            {
                f"{TO_Q}.lora_A.weight": torch.ones(2, 6),
                f"{TO_Q}.lora_B.weight": torch.ones(5, 2),
                f"{TO_Q}.lokr_w1": torch.ones(2, 6),
            },
            "mixes several kinds",
        ),
        (
            {
                f"{TO_Q}.lora_A.weight": torch.ones(2, 6),
                f"{TO_Q}.lora_B.weight": torch.ones(5, 2),
                f"transformer.{TO_Q}.lora_A.weight": torch.ones(2, 6),
            },
            "is changed twice, by .* and ",
        ),
        ({"text_encoder.layer.lora_A.weight": torch.ones(2, 6)}, "text_encoder.layer"),
        ({f"{TO_Q}.dora_scale": torch.ones(1, 6)}, "dora_scale"),
        (
            {
                f"{TO_Q}.lora_A.weight": torch.full((2, 6), torch.nan),
                f"{TO_Q}.lora_B.weight": torch.ones(5, 2),
            },
            "finite",
        ),
        (
            {
                f"{TO_Q}.lora_A.weight": torch.ones(2, 6),
                f"{TO_Q}.lora_B.weight": torch.ones(5, 2),
                f"{TO_Q}.alpha": torch.tensor(torch.inf),
            },
            "alpha",
        ),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        load_adapter_file(_written(tmp_path, tensors), MODULES)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a safetensors file at all", None],
    ids=["empty", "text", "truncated"],
)
def test_a_file_of_another_kind_is_refused_with_a_remedy(
    tmp_path: Path, content: bytes | None
) -> None:
    path = _written(tmp_path, {"x": torch.zeros(9)})
    path.write_bytes(path.read_bytes()[:-4] if content is None else content)
    with pytest.raises(
        UserError,
        match=r"x\.safetensors: cannot be read .*\. Download or copy it again",
    ):
        load_adapter_file(path, MODULES)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_pickle_is_named_as_one(tmp_path: Path, is_old: bool) -> None:
    path = tmp_path / "lora.bin"
    torch.save({"a": torch.ones(300)}, path, _use_new_zipfile_serialization=not is_old)
    with pytest.raises(UserError, match=r"it is a pickle of torch.*Put the safetens"):
        load_adapter_file(path, MODULES)


def _written(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path = folder / "x.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("tensors", "remedy"),
    [
        ({f"{TO_Q}.lora_A.weight": torch.ones(2, 6)}, BROKEN),
        (
            {
                f"{TO_Q}.lora_A.weight": torch.full((2, 6), torch.inf),
                f"{TO_Q}.lora_B.weight": torch.ones(5, 2),
            },
            BROKEN,
        ),
        (
            {
                "other.lora_A.weight": torch.ones(2, 6),
                "other.lora_B.weight": torch.ones(5, 2),
            },
            OTHER,
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_a_remedy(
    tmp_path: Path, tensors: dict, remedy: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_adapter_file(_written(tmp_path, tensors), [TO_Q])
    assert str(caught.value).endswith(f". {remedy}")


BESIDE = (
    "text_encoder.model.language_model.layers.0.self_attn.q_proj.lora_down.weight",
    "lora_te_model_layers_0_self_attn_q_proj.alpha",
    "lora_te1_model_layers_0_self_attn_q_proj.lora_up.weight",
    "bundle_emb.anna.text_encoder",
)


@pytest.mark.slow
@pytest.mark.parametrize("key", BESIDE)
def test_a_text_encoder_beside_is_left_out_by_the_command_that_is_told(
    tmp_path: Path, key: str
) -> None:
    """As OneTrainer puts it into a LoRA's file."""
    source = tmp_path / "my lora.safetensors"
    own = {
        "to_q.lora_A.weight": torch.ones(2, 8),
        "to_q.lora_B.weight": torch.ones(8, 2),
    }
    save_file({**own, key: torch.ones(4)}, source)
    with pytest.raises(UserError) as caught:
        load_adapter_file(source, {"to_q": (8, 8)})
    command = shlex.split(str(caught.value).rpartition("A file without them: ")[2])
    subprocess.run(command, check=True)
    left = tmp_path / "my lora.transformer.safetensors"
    assert list(load_adapter_file(left, {"to_q": (8, 8)})) == ["to_q"]


@pytest.mark.parametrize("shape", [(256, 256), (256, 1024), (1024, 256)])
def test_a_whole_matrix_as_lora_a_is_fullrank_and_no_damage(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    tensors = {"to_q.lora_A.weight": torch.ones(shape)}
    with pytest.raises(UserError, match=r"fullrank of ai-toolkit.* Train it as lora"):
        parse_adapter_tensors(tensors, {"to_q": shape[::-1]}, "a")
    (found,) = health(tensors, {})
    assert (found.check, found.remedy) == (
        "fullrank",
        "Train it as lora or lokr there.",
    )
