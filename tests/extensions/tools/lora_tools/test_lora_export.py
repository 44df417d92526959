"""Files written for other programs: every form to every other, without loss where the
target can hold it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from extensions.tools.lora_tools.lora_export import (
    FORMATS,
    export,
    kept_metadata,
    read_adapter,
    why_not_exported,
)
from tests.golden_tables import golden
from toolkit.errors import UserError
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.qwen_image21.family import FAMILY as FAMILY_21

GOLDEN = Path(__file__).parents[3] / "golden"
LAYERS = {
    f"transformer_blocks.{index}.{name}": s
    for index in range(2)
    for name, s in FAMILY.block_linears(128, {}).items()
}
NAME = "transformer_blocks.0.attn.to_q"
FILES = sorted(path.name for path in (GOLDEN / "lora_files").glob("*.safetensors"))


def read(path: Path):
    return read_adapter(path, [LAYERS])


@pytest.mark.parametrize("name", FILES)
def test_a_file_keeps_its_meaning_in_every_form_that_can_hold_it(
    name: str, tmp_path: Path
) -> None:
    file = read(GOLDEN / "lora_files" / name)
    for to, form in FORMATS.items():
        if reasons := why_not_exported(file, form):
            assert file.kinds[0] in ("loha", "lokr") and form.title in reasons[0], to
            with pytest.raises(UserError, match="does not read a Lo"):
                export(file, form)
            continue
        save_file(export(file, form), tmp_path / f"{to}.safetensors")
        again = read(tmp_path / f"{to}.safetensors").changes
        assert again.keys() == file.changes.keys(), to
        for module, change in file.changes.items():
            torch.testing.assert_close(
                again[module].delta(), change.delta(), rtol=1e-6, atol=0
            )


def lora(tmp_path: Path, alpha: float, dtype: torch.dtype, **more: Tensor) -> Path:
    torch.manual_seed(0)
    stem = f"diffusion_model.{NAME}"
    tensors = {
        f"{stem}.lora_A.weight": torch.randn(3, 128).to(dtype),
        f"{stem}.lora_B.weight": torch.randn(128, 3).to(dtype),
        f"{stem}.alpha": torch.tensor(alpha),
        **{f"{stem}.{name}": tensor for name, tensor in more.items()},
    }
    save_file(
        tensors,
        tmp_path / "lora.safetensors",
        {"trigger": "ohwx", "lora_adapter_metadata": "{}"},
    )
    return tmp_path / "lora.safetensors"


@pytest.mark.parametrize(
    ("alpha", "dtype"),
    [(1.5, torch.bfloat16), (1.0, torch.float32), (6.0, torch.float16)],
)
def test_the_scale_goes_into_the_up_matrix_in_a_dtype_that_holds_it(
    tmp_path: Path, alpha: float, dtype
) -> None:
    """1.5 / 3 is a power of two, and 1 / 3 is none: in 16 bits that would round the
    matrix."""
    file = read(lora(tmp_path, alpha, dtype))
    tensors = export(file, FORMATS["diffusers"])
    assert set(tensors) == {
        f"transformer.{NAME}.lora_A.weight",
        f"transformer.{NAME}.lora_B.weight",
    }
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    rounded = export(read(lora(tmp_path, 1.0, torch.bfloat16)), FORMATS["diffusers"])
    assert {tensor.dtype for tensor in rounded.values()} == {torch.float32}


def test_metadata_that_would_scale_twice_is_not_kept(tmp_path: Path) -> None:
    assert kept_metadata(read(lora(tmp_path, 1.0, torch.float32))) == {
        "trigger": "ohwx"
    }


@pytest.mark.parametrize(
    ("shape", "reads"),
    [
        ((1, 128), {"comfyui", "comfyui-fused", "kohya"}),
        ((128, 1), {"diffusers", "kohya"}),
    ],
)
def test_a_dora_goes_where_its_norms_are_read_as_they_are_meant(
    tmp_path: Path, shape, reads: set[str]
) -> None:
    file = read(lora(tmp_path, 3.0, torch.float32, dora_scale=torch.rand(shape) + 1))
    assert file.kinds == ("dora",)
    assert {
        name for name, target in FORMATS.items() if not why_not_exported(file, target)
    } == reads
    weight = torch.randn(128, 128)
    for name in reads:
        save_file(export(file, FORMATS[name]), tmp_path / "out.safetensors")
        again = read(tmp_path / "out.safetensors").changes[NAME]
        torch.testing.assert_close(
            again.applied_to(weight), file.changes[NAME].applied_to(weight)
        )


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    save_file(
        {"lora_te1_text_model.lora_down.weight": torch.ones(1, 2)},
        tmp_path / "other.safetensors",
    )
    with pytest.raises(
        UserError, match="1 keys are of a text encoder or of embeddings"
    ):
        read(tmp_path / "other.safetensors")


# ---------------------------------------------------------------- musubi-tuner's
# converter

CASES = golden("lora_key_convert")
PUBLISHED = FAMILY.every_linear_layer(Path("a model that is not here"))


def target_of(case: dict) -> str:
    """Which of our forms has the keys of musubi's."""
    if case["target"] == "default":
        return "musubi"
    return "diffusers" if case["diffusers_prefix"] == "transformer" else "comfyui"


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if "file" in c],
    ids=lambda c: f"{c['file']}-{c['target']}",
)
def test_files_converted_by_musubi_tuner(case: dict) -> None:
    """Keys and norms are equal, with two differences on purpose: where it drops alpha
    it folds the square root of alpha / rank into both matrices, and ours keeps alpha;
    and it reads nothing of a file that peft saved."""
    ours = export(read(GOLDEN / "lora_files" / case["file"]), FORMATS[target_of(case)])
    if not case["result_key_count"]:
        assert ours
        return
    for module in case["modules_of_block_0"]:
        theirs = {
            key: float(norm)
            for key, norm in module["output_frobenius"].items()
            if not key.endswith(".alpha")
        }
        assert theirs.keys() <= ours.keys()
        stem = (
            next(iter(theirs)).split(".lora_")[0].split(".hada_")[0].split(".lokr_")[0]
        )
        norms = {key: float(ours[key].float().norm()) for key in theirs}
        folded = case["target"] == "other" and ".lora_" in next(iter(theirs))
        scale = (
            float(ours[f"{stem}.alpha"]) / len(ours[f"{stem}.lora_A.weight"])
            if folded
            else 1.0
        )
        for key, norm in norms.items():
            assert norm * scale**0.5 == pytest.approx(theirs[key], rel=2e-3)
        alpha = module["output_frobenius"].get(f"{stem}.alpha")
        # alpha means nothing then
        has_full_factors = {
            f"{stem}.lokr_w1",
            f"{stem}.lokr_w2",
        } <= ours.keys()
        if alpha is not None and not has_full_factors:
            assert float(ours[f"{stem}.alpha"]) == pytest.approx(float(alpha))


@pytest.mark.parametrize(
    "case", [c for c in CASES if "synthetic" in c], ids=lambda c: f"{c['outputs'][0]}"
)
def test_matrices_of_ones_converted_by_musubi_tuner(case: dict, tmp_path: Path) -> None:
    """Of every kind of layer: the change is equal, however the scale is shared by the
    matrices."""
    stem = next(key for key in case["inputs"] if ".lora_" in key).partition(".lora_")[0]
    module = next(
        name
        for name in PUBLISHED
        if stem.endswith((f".{name}", f"lora_unet_{name.replace('.', '_')}"))
    )
    inputs, outputs = 8, 6
    shapes = {
        ".alpha": (),
        "lora_A": (2, inputs),
        "lora_down": (2, inputs),
        "lora_B": (outputs, 2),
        "lora_up": (outputs, 2),
    }
    tensors = {
        key: torch.ones(
            next((shape for part, shape in shapes.items() if part in key), ())
        )
        for key in case["inputs"]
    }
    save_file(tensors, tmp_path / "ones.safetensors")
    file = read_adapter(tmp_path / "ones.safetensors", [{module: (inputs, outputs)}])
    ours = export(file, FORMATS[target_of(case)])
    assert set(case["outputs"]) <= set(ours)
    of_alpha = {
        key: float(tensor) for key, tensor in ours.items() if key.endswith(".alpha")
    }
    of_matrices = {
        key: float(tensor.flatten()[0])
        for key, tensor in ours.items()
        if key not in of_alpha
    }

    def change(values: dict[str, float]) -> float:
        down, up = (
            value for key, value in sorted(values.items()) if not key.endswith(".alpha")
        )
        alpha = next(
            (value for key, value in values.items() if key.endswith(".alpha")), 2.0
        )
        return alpha / 2 * down * up

    assert change(of_matrices | of_alpha) == pytest.approx(
        change(case["values"]), rel=1e-6
    )


def test_numbers_of_real_files_keep_their_bits(tmp_path: Path) -> None:
    name = "musubi_lora_r4_a2.safetensors"
    written = export(read(GOLDEN / "lora_files" / name), FORMATS["musubi"])
    given = load_file(GOLDEN / "lora_files" / name)
    assert written.keys() == given.keys()
    assert all(
        torch.equal(tensor, given[key].to(tensor.dtype))
        for key, tensor in written.items()
    )
    assert math.isclose(
        float(next(t for k, t in written.items() if k.endswith("alpha"))), 2.0
    )


# ---------------------------------------------------------------- layers that ComfyUI's
# weights hold as one

LAYERS_21 = {
    f"transformer_blocks.{index}.{name}": s
    for index in range(2)
    for name, s in FAMILY_21.block_linears(64, {}).items()
}
GATE, PROJ, OUT = (
    f"transformer_blocks.0.img_mlp.{name}" for name in ("gate_layer", "proj", "out")
)
GATE_UP = "diffusion_model.transformer_blocks.0.img_mlp.gate_up"


def file_21(tmp_path: Path, kind: str, modules: dict[str, int]) -> Path:
    """A file of Qwen-Image-2.1 with these modules and their ranks."""
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name, rank in modules.items():
        inputs, outputs = LAYERS_21[name]
        shapes = {
            "lora": {"lora_A.weight": (rank, inputs), "lora_B.weight": (outputs, rank)},
            "loha": {
                f"hada_w{n}_{m}": (outputs, rank) if m == "a" else (rank, inputs)
                for n in "12"
                for m in "ab"
            },
            "lokr": {
                "lokr_w1": (4, 4),
                "lokr_w2_a": (outputs // 4, rank),
                "lokr_w2_b": (rank, inputs // 4),
            },
        }[kind]
        stem = f"diffusion_model.{name}"
        tensors |= {
            f"{stem}.{part}": torch.randn(shape, generator=generator)
            for part, shape in shapes.items()
        }
        tensors[f"{stem}.alpha"] = torch.tensor(rank / 2 if name != PROJ else rank / 4)
    save_file(tensors, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize(
    "modules",
    [{GATE: 2, PROJ: 3, OUT: 2}, {PROJ: 3}, {GATE: 4}],
    ids=["both", "proj", "gate"],
)
@pytest.mark.parametrize("kind", ["lora", "loha"])
def test_layers_are_joined_as_comfyui_has_them_and_split_again(
    tmp_path: Path, kind: str, modules
) -> None:
    """The gate's rows come first; a half that is not changed is zero; nothing is lost
    either way."""
    file = read_adapter(file_21(tmp_path, kind, modules), [LAYERS_21])
    tensors = export(file, FORMATS["comfyui-fused"])
    assert not [key for key in tensors if "gate_layer" in key or ".proj" in key]
    save_file(tensors, tmp_path / "fused.safetensors")
    whole = read_adapter(
        tmp_path / "fused.safetensors",
        [{GATE_UP.partition(".")[2]: (64, 384), OUT: (192, 64)}],
    )
    zero = torch.zeros(192, 64)
    halves = [
        file.changes[name].delta() if name in modules else zero for name in (GATE, PROJ)
    ]
    torch.testing.assert_close(
        whole.changes[GATE_UP.partition(".")[2]].delta(), torch.cat(halves)
    )
    again = read_adapter(tmp_path / "fused.safetensors", [LAYERS_21])
    assert set(again.changes) == {GATE, PROJ} | set(modules)
    save_file(export(again, FORMATS["musubi"]), tmp_path / "apart.safetensors")
    again = read_adapter(tmp_path / "apart.safetensors", [LAYERS_21])
    for name, change in file.changes.items():
        torch.testing.assert_close(again.changes[name].delta(), change.delta())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("lokr", "written of a LoKr"), ("dora", "of a DoRA and a LoRA")],
)
def test_what_cannot_be_joined_is_refused(
    tmp_path: Path, kind: str, reason: str
) -> None:
    path = file_21(tmp_path, "lora" if kind == "dora" else kind, {GATE: 2, PROJ: 2})
    if kind == "dora":
        save_file(
            {
                **load_file(path),
                f"diffusion_model.{GATE}.dora_scale": torch.ones(1, 64),
            },
            path,
        )
    with pytest.raises(UserError, match=reason):
        export(read_adapter(path, [LAYERS_21]), FORMATS["comfyui-fused"])


@pytest.mark.parametrize(("axis", "splits"), [((384, 1), True), ((1, 64), False)])
def test_a_joined_dora_is_split_where_its_norms_are_of_rows(
    tmp_path: Path, axis, splits: bool
) -> None:
    torch.manual_seed(0)
    shapes = {"lora_A.weight": (2, 64), "lora_B.weight": (384, 2), "dora_scale": axis}
    save_file(
        {f"{GATE_UP}.{part}": torch.rand(shape) for part, shape in shapes.items()},
        tmp_path / "a.safetensors",
    )
    if not splits:
        with pytest.raises(
            UserError,
            match=r"gate_up is gate_layer and proj of this model in one, and this kind",
        ):
            read_adapter(tmp_path / "a.safetensors", [LAYERS_21])
        return
    weight = torch.randn(384, 64)
    whole = read_adapter(
        tmp_path / "a.safetensors", [{GATE_UP.partition(".")[2]: (64, 384)}]
    )
    made = [
        read_adapter(tmp_path / "a.safetensors", [LAYERS_21]).changes[name]
        for name in (GATE, PROJ)
    ]
    halves = [
        change.applied_to(half)
        for change, half in zip(made, weight.chunk(2), strict=True)
    ]
    torch.testing.assert_close(
        torch.cat(halves), whole.changes[GATE_UP.partition(".")[2]].applied_to(weight)
    )


def test_a_joined_lokr_is_split_and_a_layer_is_not_changed_twice(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    tensors = {
        f"{GATE_UP}.lokr_w1": torch.randn(4, 4),
        f"{GATE_UP}.lokr_w2": torch.randn(96, 16),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    halves = [
        read_adapter(tmp_path / "a.safetensors", [LAYERS_21]).changes[name].delta()
        for name in (GATE, PROJ)
    ]
    torch.testing.assert_close(torch.cat(halves), torch.kron(*tensors.values()))
    own = {
        f"diffusion_model.{PROJ}.lokr_w1": torch.ones(4, 4),
        f"diffusion_model.{PROJ}.lokr_w2": torch.ones(48, 16),
    }
    save_file({**tensors, **own}, tmp_path / "a.safetensors")
    with pytest.raises(
        UserError,
        match=r"img_mlp.proj is changed twice, by itself and as a part of .*gate_up",
    ):
        read_adapter(tmp_path / "a.safetensors", [LAYERS_21])
