"""The tools for LoRA files, on files and folders of the tiny model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs import ExtensionJob
from tests.conftest import ROOT
from tests.quantized import mark
from tests.running import run_job, run_tool, section_of
from toolkit.config import load_job
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import weight_files
from toolkit.errors import ConfigErrors, UserError
from toolkit.extension import discover
from toolkit.files.safetensors_io import read_metadata
from toolkit.files.writing import is_own_folder
from toolkit.models.families import family_for
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.networks.lora_formats import load_adapter_file

TO_Q, TO_V = "transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_v"
MLP = "transformer_blocks.0.img_mlp"


@pytest.fixture
def layers(tiny_model: Path) -> dict[str, tuple[int, int]]:
    return family_for(ModelConfig(name_or_path=str(tiny_model))).every_linear_layer(
        tiny_model
    )


@pytest.fixture
def write_lora(tmp_path: Path, layers) -> Callable[..., Path]:
    """A LoRA of two layers with this seed."""

    def write(
        name: str, seed: int, rank: int = 3, alpha: float = 1.5, dtype=torch.float32
    ) -> Path:
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer in (TO_Q, TO_V):
            inputs, outputs = layers[layer]
            stem = f"diffusion_model.{layer}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(
                rank, inputs, generator=generator
            ).to(dtype)
            tensors[f"{stem}.lora_B.weight"] = torch.randn(
                outputs, rank, generator=generator
            ).to(dtype)
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
        save_file(tensors, tmp_path / name, {"ss_network_module": "networks.lora"})
        return tmp_path / name

    return write


@pytest.fixture
def run(
    write_job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., None]:
    """Runs a tool with these keys, as a job in this process."""
    monkeypatch.chdir(tmp_path)

    def run(uid: str, **keys: object) -> None:
        run_job(write_job({"type": uid, **keys}))

    return run


def transformer(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted((folder / "transformer").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_what_is_merged_is_extracted_again(
    run, write_lora, tiny_model: Path, layers, tmp_path: Path
) -> None:
    file = write_lora("a.safetensors", 1)
    run(
        "merge",
        base=str(tiny_model),
        lora=f"{file}:0.5",
        output="merged",
        dtype="float32",
    )
    before, after = transformer(tiny_model), transformer(tmp_path / "merged")
    changes = load_adapter_file(file, layers)
    for name, weight in after.items():
        change = changes.get(name.removesuffix(".weight"))
        expected = before[name].float() + (0.5 * change.delta() if change else 0)
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-6)
    for part in tiny_model.glob("*/*"):
        assert (tmp_path / "merged" / part.relative_to(tiny_model)).exists(), part
    run(
        "extract",
        base=str(tiny_model),
        tuned="merged",
        rank=3,
        dtype="float32",
        output="again.safetensors",
    )
    again = load_adapter_file(tmp_path / "again.safetensors", layers)
    assert again.keys() == changes.keys()
    for name, change in changes.items():
        error = (again[name].delta() - 0.5 * change.delta()).norm() / (
            0.5 * change.delta()
        ).norm()
        assert error < 1e-3


def test_what_is_merged_into_2_1_is_extracted_again(run, tmp_path: Path) -> None:
    """Layers that ComfyUI has in one are extracted each by itself; nothing is found
    where nothing was changed."""
    write_tiny_model(tmp_path / "base", TinySpec(arch="qwen_image_2"))
    family = family_for(ModelConfig(name_or_path=str(tmp_path / "base")))
    layers, tensors = family.every_linear_layer(tmp_path / "base"), {}
    for name in (f"{MLP}.gate_layer", f"{MLP}.proj", TO_V):
        inputs, outputs = layers[name]
        tensors[f"{name}.lora_A.weight"] = torch.randn(2, inputs)
        tensors[f"{name}.lora_B.weight"] = torch.randn(outputs, 2)
    save_file(tensors, tmp_path / "a.safetensors")
    exact = {"base": "base", "dtype": "float32"}
    run("merge", lora="a.safetensors", output="merged", **exact)
    run("extract", tuned="merged", rank=2, output="again.safetensors", **exact)
    changes, again = (
        load_adapter_file(tmp_path / f"{name}.safetensors", layers)
        for name in ("a", "again")
    )
    assert again.keys() == changes.keys()
    for name, change in changes.items():
        error = (again[name].delta() - change.delta()).norm()
        assert error < 1e-3 * change.delta().norm(), name


def test_a_model_is_merged_into_the_file_that_comfyui_loads(
    run, tmp_path: Path
) -> None:
    """Of a model whose feed-forward ComfyUI has in one; the rest as the merged folder
    has it."""
    write_tiny_model(tmp_path / "base", TinySpec(arch="qwen_image_2"))
    block = "transformer_blocks.1.img_mlp"
    lora = {"lora_A.weight": torch.randn(2, 64), "lora_B.weight": torch.randn(192, 2)}
    save_file(
        {f"{block}.proj.{part}": tensor for part, tensor in lora.items()},
        tmp_path / "a.safetensors",
    )
    for output in ("folder", "file.safetensors"):
        run("merge", base="base", lora="a.safetensors", output=output)
    expected, made = (
        transformer(tmp_path / "folder"),
        load_file(tmp_path / "file.safetensors"),
    )
    for index in range(2):
        stem = f"transformer_blocks.{index}.img_mlp"
        halves = [
            expected.pop(f"{stem}.{name}.weight") for name in ("gate_layer", "proj")
        ]
        assert torch.equal(made.pop(f"{stem}.gate_up.weight"), torch.cat(halves))
    assert_same(made, expected)


@pytest.mark.parametrize("in_fp8", [False, True])
def test_a_file_is_merged_into_as_its_folder_is(
    run, write_lora, tiny_model: Path, tmp_path: Path, in_fp8: bool
) -> None:
    """Nothing else of the model is needed; what marks it for ComfyUI stays."""
    lora = str(write_lora("a.safetensors", 1))
    stored = {
        f"model.diffusion_model.{name}": weight.bfloat16()
        for name, weight in transformer(tiny_model).items()
    }
    if in_fp8:
        name = "model.diffusion_model.transformer_blocks.1.attn.to_k"
        stored[f"{name}.scale_weight"] = torch.tensor(0.5)
        stored[f"{name}.weight"] = stored[f"{name}.weight"].to(torch.float8_e4m3fn)
    stored |= {"__index_timestep_zero__": torch.zeros(0), "scaled_fp8": torch.zeros(2)}
    save_file(stored, tmp_path / "base.safetensors")
    keys = {"lora": lora, "layout": "single_file"}
    run(
        "merge",
        base="base.safetensors",
        **keys,
        output="merged.safetensors",
        dtype=None if in_fp8 else "float32",
    )
    made = load_file(tmp_path / "merged.safetensors")
    assert made.pop("__index_timestep_zero__").numel() == 0 and "scaled_fp8" not in made
    folder = tmp_path / "folder"
    shutil.copytree(tiny_model, folder)
    rounded = {
        name: weight.bfloat16() for name, weight in transformer(tiny_model).items()
    }
    if in_fp8:
        name = "transformer_blocks.1.attn.to_k.weight"
        rounded[name] = (rounded[name].to(torch.float8_e4m3fn).float() * 0.5).bfloat16()
    for path in weight_files(folder / "transformer"):
        save_file({name: rounded[name] for name in load_file(path)}, path)
    run(
        "merge",
        base="folder",
        **keys,
        output="expected.safetensors",
        dtype=None if in_fp8 else "float32",
    )
    assert_same(made, load_file(tmp_path / "expected.safetensors"))


def test_loras_add_up_to_one_without_loss_or_to_the_nearest_of_a_rank(
    run, write_lora, tiny_model: Path, layers, tmp_path: Path
) -> None:
    files = [
        write_lora("a.safetensors", 1),
        write_lora("b.safetensors", 2, rank=2, alpha=4.0),
    ]
    keys = {"lora": [f"{files[0]}:0.5", str(files[1])], "model": str(tiny_model)}
    run("merge", **keys, output="sum.safetensors")
    run("merge", **keys, output="small.safetensors", rank=4)
    first, second = (load_adapter_file(file, layers) for file in files)
    summed, small = (
        load_adapter_file(tmp_path / f"{name}.safetensors", layers)
        for name in ("sum", "small")
    )
    for name in (TO_Q, TO_V):
        expected = 0.5 * first[name].delta() + second[name].delta()
        torch.testing.assert_close(summed[name].delta(), expected, rtol=1e-5, atol=1e-5)
        u, s, vh = torch.linalg.svd(expected)
        nearest = (u[:, :4] * s[:4]) @ vh[:4]
        torch.testing.assert_close(small[name].delta(), nearest, rtol=1e-4, atol=1e-4)


@pytest.fixture
def biased(write_lora, layers, tmp_path: Path) -> Path:
    """A LoRA with changes of two biases, one of a layer whose weight stays."""
    tensors = load_file(write_lora("a.safetensors", 1))
    tensors[f"diffusion_model.{TO_Q}.diff_b"] = torch.arange(1.0, layers[TO_Q][1] + 1)
    tensors["diffusion_model.img_in.diff_b"] = torch.ones(layers["img_in"][1])
    save_file(tensors, tmp_path / "biased.safetensors")
    return tmp_path / "biased.safetensors"


def test_biases_are_kept_by_convert_and_resize_and_merged(
    run, biased: Path, write_lora, tiny_model: Path, tmp_path: Path, capsys
) -> None:
    given = load_file(biased)
    biases = {name: given[name] for name in given if name.endswith(".diff_b")}
    run("convert", input=str(biased), output="comfyui.safetensors", to="comfyui")
    assert_same(load_file(tmp_path / "comfyui.safetensors"), given)
    run("resize", input=str(biased), output="small.safetensors", rank=2)
    small = load_file(tmp_path / "small.safetensors")
    assert_same({name: small[name] for name in biases}, biases)
    alphas = [name for name in given if name.endswith(".alpha")]
    assert (
        len(small) == len(given) - len(alphas)
        and small[f"diffusion_model.{TO_Q}.lora_A.weight"].shape[0] == 2
    )
    run("merge", lora=[f"{biased}:0.5", f"{biased}:0.25"], output="two.safetensors")
    two = load_file(tmp_path / "two.safetensors")
    assert_same(
        {name: two[name] for name in biases},
        {name: 0.75 * bias for name, bias in biases.items()},
    )
    run(
        "merge",
        base=str(tiny_model),
        lora=f"{biased}:0.5",
        output="merged",
        dtype="float32",
    )
    before, after = transformer(tiny_model), transformer(tmp_path / "merged")
    changed = {
        name for name in before if not torch.equal(before[name].float(), after[name])
    }
    assert changed == {
        f"{TO_Q}.weight",
        f"{TO_Q}.bias",
        f"{TO_V}.weight",
        "img_in.bias",
    }
    name = "diffusion_model.img_in.diff_b"
    torch.testing.assert_close(
        after["img_in.bias"], before["img_in.bias"].float() + 0.5 * biases[name]
    )
    capsys.readouterr()
    run("inspect", file=str(biased), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["biases"], told["ranks"]) == (2, {"3": 2})
    run("inspect", file=str(biased))
    assert re.search(
        r"layers 3, parameters [0-9,]+, biases 2$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    assert told["readable_by"] == ["comfyui", "comfyui-fused"]
    with pytest.raises(UserError, match="diffusers does not read changes of biases"):
        run("convert", input=str(biased), output="x.safetensors", to="diffusers")
    write_tiny_model(tmp_path / "other", TinySpec(arch="qwen_image_2"))
    save_file(
        {"diffusion_model.img_in.diff_b": torch.ones(64)},
        tmp_path / "other.safetensors",
    )
    with pytest.raises(
        UserError, match=r"img_in\.bias is changed\. This model has none there"
    ):
        run(
            "merge",
            base=str(tmp_path / "other"),
            lora=str(tmp_path / "other.safetensors"),
            output="y",
        )


def assert_same(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_file_is_told_in_words_and_as_json(
    run, write_lora, tiny_model: Path, layers, capsys
) -> None:
    file = write_lora("a.safetensors", 1, dtype=torch.bfloat16)
    run("inspect", file=str(file), model=str(tiny_model), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["kinds"], found["dtype"], found["ranks"], found["alphas"]) == (
        ["lora"],
        "bfloat16",
        {"3": 2},
        {"1.5": 2},
    )
    assert found["written_by"] == "kohya's sd-scripts or musubi-tuner" and set(
        found["readable_by"]
    ) >= {
        "comfyui",
        "diffusers",
    }
    changes = load_adapter_file(file, layers)
    assert found["norm_by_block"] == {
        "transformer_blocks.0": pytest.approx(float(changes[TO_Q].delta().norm())),
        "transformer_blocks.1": pytest.approx(float(changes[TO_V].delta().norm())),
    }
    run("inspect", file=str(file), model=str(tiny_model))
    assert "layers 2, parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "norm"), [(1e30, None), (1e12, 1e26)], ids=["product", "square"]
)
def test_numbers_that_are_too_large_are_named(
    run, tiny_model: Path, tmp_path: Path, capsys, size: float, norm: float | None
) -> None:
    """The product of the matrices is not finite, or only its square in float32."""
    huge = torch.full((4, 64), size)
    tensors = {
        f"transformer.{layer}.lora_{end}.weight": matrix * factor
        for layer, factor in ((TO_Q, 1.0), (TO_V, 1 / size))
        for end, matrix in (("A", huge), ("B", huge.T.contiguous()))
    }
    save_file(tensors, tmp_path / "huge.safetensors")
    file = str(tmp_path / "huge.safetensors")
    run("inspect", file=file, model=str(tiny_model), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["not_finite"] == ([TO_Q] if norm is None else [])
    assert found["by_layer"][TO_Q]["norm"] == (
        norm and pytest.approx(4 * 64 * norm / 100)
    )
    assert found["by_layer"][TO_V]["norm"] == pytest.approx(4 * 64)
    run("inspect", file=file, model=str(tiny_model))
    said = capsys.readouterr().out
    assert (f"not finite: the change of {TO_Q}," in said) == (norm is None)
    assert "norm of the change" in said


def test_an_average_of_files_says_which_share_each_has(
    run, write_lora, tmp_path: Path, said
) -> None:
    files = [write_lora(f"run_{step:09d}.safetensors", step) for step in (30, 10, 20)]
    run(
        "post_hoc_ema", files=list(map(str, files)), beta=0.5, output="mean.safetensors"
    )
    tensors = {
        step: load_file(tmp_path / f"run_{step:09d}.safetensors")
        for step in (10, 20, 30)
    }
    for name, value in load_file(tmp_path / "mean.safetensors").items():
        expected = (
            0.25 * tensors[10][name]
            + 0.25 * tensors[20][name]
            + 0.5 * tensors[30][name]
        )
        torch.testing.assert_close(
            value, expected if "lora" in name else tensors[10][name]
        )
    assert [line.strip()[:6] for line in said[:3]] == ["25.00%", "25.00%", "50.00%"]


def test_commands_convert_and_refuse(
    write_lora, tiny_model: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lora("a.safetensors", 1)
    for name, content in (
        ("pickle.pt", b"\x80\x04K\x01."),
        ("photo.jpg", b"\xff\xd8\xff\xe0 photo"),
        ("job.yaml", b"job: extension\n"),
    ):
        Path(name).write_bytes(content)
    to_diffusers = ["--to", "diffusers", "--model", tiny_model]
    run_tool("convert", ["a.safetensors", "b.safetensors", *to_diffusers])
    assert f"transformer.{TO_Q}.lora_A.weight" in load_file("b.safetensors")
    with pytest.raises(ConfigErrors) as refused:
        section_of("convert", ["pickle.pt", "b.safetensors", "--to", "kohya"])
    no_file = "cannot be read as a safetensors file"
    said = [error.message for error in refused.value.errors]
    assert len(said) == 2 and "'b.safetensors' exists already" in " ".join(said)
    assert f"'pickle.pt' {no_file}" in " ".join(said)
    to_unknown = ["a.safetensors", "c.safetensors", "--to", "difusers"]
    for uid, flags, message in (
        ("inspect", ["photo.jpg"], f"{no_file} (it is an image)"),
        ("inspect", ["job.yaml"], f"{no_file} (it is a text file)"),
        ("convert", to_unknown, "'difusers' is unknown. Did you mean 'diffusers'?"),
    ):
        with pytest.raises(ConfigErrors, match=re.escape(message)):
            section_of(uid, flags)


def test_files_have_the_names_by_which_comfyui_finds_their_layers(
    run, tmp_path: Path
) -> None:
    """The halves of 2.1's fused layer are known without a prefix alone (comfy/lora.py
    at 17358c8f)."""
    for parts, prefix in (
        (("gate_layer", "proj", "out"), ""),
        (("net.2",), "diffusion_model."),
    ):
        tensors = {}
        for part in parts:
            stem = f"diffusion_model.{MLP}.{part}"
            tensors[f"{stem}.lora_A.weight"] = torch.ones(2, 64)
            tensors[f"{stem}.lora_B.weight"] = torch.ones(64, 2)
        save_file(tensors, file := tmp_path / f"{parts[0]}.safetensors")
        for tool, keys in (
            ("convert", {"input": str(file), "to": "comfyui"}),
            ("resize", {"input": str(file), "rank": 1}),
            ("merge", {"lora": [str(file)]}),
        ):
            run(tool, output=f"{tool}_{file.name}", **keys)
            written = load_file(tmp_path / f"{tool}_{file.name}")
            assert written, tool
            for key in written:
                assert key.startswith(f"{prefix}{MLP}."), (tool, key)


def test_a_strength_that_16_bits_would_round_stays_in_alpha(
    run, tmp_path: Path
) -> None:
    stem = f"diffusion_model.{TO_Q}"
    given = {
        f"{stem}.lora_A.weight": torch.rand(2, 8).bfloat16(),
        f"{stem}.lora_B.weight": torch.rand(8, 2).bfloat16(),
    }
    for alpha, is_kept in ((1.0, False), (0.7, True)):
        name = f"{alpha}.safetensors"
        save_file({**given, f"{stem}.alpha": torch.tensor(alpha)}, tmp_path / name)
        run("merge", lora=[name], output=f"merged_{name}")
        written = load_file(tmp_path / f"merged_{name}")
        up = written[f"{stem}.lora_B.weight"]
        assert (f"{stem}.alpha" in written) == is_kept, alpha
        strength = 1 if is_kept else 0.5
        assert up.dtype == torch.bfloat16, alpha
        assert torch.equal(up, given[f"{stem}.lora_B.weight"] * strength), alpha


def test_a_file_of_zeros_is_refused(run, tmp_path: Path) -> None:
    zeros = {f"diffusion_model.{TO_Q}.diff_b": torch.zeros(4)}
    save_file(zeros, tmp_path / "zero.safetensors")
    for tool, keys in (("convert", {"to": "comfyui"}), ("resize", {"rank": 2})):
        with pytest.raises(
            UserError, match=r"zero\.safetensors: changes nothing: all that it adds is"
        ):
            run(tool, input="zero.safetensors", output="y.safetensors", **keys)
    assert not (tmp_path / "y.safetensors").exists()


@pytest.mark.parametrize(
    ("uid", "keys", "message"),
    [
        (
            "merge",
            {"lora": "a.safetensors:much", "output": "x.safetensors"},
            "'much' is not a number",
        ),
        (
            "merge",
            {"lora": "a.safetensors", "output": "x", "base": "here"},
            "'here' holds no model_index.json",
        ),
        (
            "merge",
            {"lora": "a.safetensors", "output": "x.bin"},
            "must end in .safetensors",
        ),
        (
            "merge",
            {"lora": "a.safetensors", "output": "x", "base": "a.safetensors"},
            "is not a model. It is a LoRA",
        ),
        (
            "merge",
            {"lora": "a.safetensors", "output": "x", "base": "a.safetensors"},
            "'x' must end in .safetensors, because",
        ),
        (
            "merge",
            {
                "lora": "a.safetensors",
                "output": "x",
                "base": "here",
                "layout": "single_file",
            },
            "'x' must end in .safetensors with single_file",
        ),
        (
            "resize",
            {"input": "a.safetensors", "output": "x.safetensors"},
            "give the maximum rank of a layer",
        ),
        (
            "inspect",
            {"file": "nothing.safetensors"},
            "'nothing.safetensors' is not a file",
        ),
        (
            "post_hoc_ema",
            {
                "files": ["a.safetensors", "a.safetensors"],
                "sigma_rel": 0.3,
                "output": "x.safetensors",
            },
            "0.3 is out of range: the uniform mean",
        ),
        (
            "post_hoc_ema",
            {"files": ["a.safetensors"], "output": "x.safetensors"},
            "give at least two",
        ),
        (
            "post_hoc_ema",
            {"files": ".", "output": "x.safetensors"},
            "'.' is a folder",
        ),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_read(
    run, write_lora, uid: str, keys: dict, message: str
) -> None:
    write_lora("a.safetensors", 1)
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        run(uid, **keys)


def test_only_what_the_program_wrote_is_replaced(
    run, write_lora, tiny_model: Path, tmp_path: Path
) -> None:
    """Not even where the user asks for it; what it wrote, only then."""
    lora, (photo, theirs) = (
        write_lora("a.safetensors", 1),
        (tmp_path / "photos/photo.jpg", tmp_path / "b.safetensors"),
    )
    photo.parent.mkdir()
    photo.write_bytes(b"mine")
    theirs.write_bytes(write_lora("c.safetensors", 2).read_bytes())
    model = str(tiny_model)
    for uid, keys in (
        ("merge", {"base": model, "lora": str(lora), "output": "photos"}),
        ("merge", {"model": model, "lora": str(lora), "output": "b.safetensors"}),
        (
            "convert",
            {
                "model": model,
                "input": str(lora),
                "to": "kohya",
                "output": "b.safetensors",
            },
        ),
        ("new_model", {"base": model, "path": "photos"}),
    ):
        before = contents(tmp_path)
        with pytest.raises(
            UserError, match=r"'.*(photos|b\.safetensors)' was not made by this program"
        ):
            run(uid, **keys, overwrite=True)
        assert before.items() <= contents(tmp_path).items()
    theirs.unlink()
    for seed in (3, 4):
        again = {
            "model": model,
            "input": str(write_lora("a.safetensors", seed)),
            "to": "kohya",
            "output": "b.safetensors",
        }
        run("convert", **again, overwrite=True)
        with pytest.raises(UserError, match="exists already"):
            run("convert", **again)
    for _ in range(2):
        run("merge", base=model, lora=str(lora), output="merged", overwrite=True)
    assert (
        is_own_folder(tmp_path / "merged")
        and [path.name for path in tmp_path.glob(".*.tmp")] == []
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".jpg", ".safetensors")
    }


def test_a_file_of_another_model_is_named(
    run, write_lora, tiny_model: Path, tmp_path: Path
) -> None:
    write_lora("a.safetensors", 1)
    wide = {
        key: tensor.repeat(1, 2) if ".lora_A" in key else tensor
        for key, tensor in load_file("a.safetensors").items()
    }
    save_file(wide, "wide.safetensors")
    with pytest.raises(UserError, match=r"It is of another model\."):
        run("inspect", file="wide.safetensors", model=str(tiny_model))
    with pytest.raises(
        UserError,
        match=r"wide.safetensors: .* has another size than in the files before",
    ):
        run("merge", lora=["a.safetensors", "wide.safetensors"], output="x.safetensors")
    save_file(
        {
            key.replace("transformer_blocks", "single_blocks"): value
            for key, value in wide.items()
        },
        "flux.safetensors",
    )
    with pytest.raises(
        UserError,
        match=r"layers that this model does not have.* Give the folder of its model by 'model'",
    ):
        run("resize", input="flux.safetensors", rank=1, output="x.safetensors")


def test_a_file_of_a_model_with_more_blocks_is_read_with_its_model(
    run, write_lora, tmp_path: Path
) -> None:
    """One block more than the published models have."""
    write_tiny_model(tmp_path / "model", TinySpec(layers=61))
    write_lora("a.safetensors", 1)
    at_the_end = {
        key.replace("transformer_blocks.0.", "transformer_blocks.60."): tensor
        for key, tensor in load_file("a.safetensors").items()
    }
    save_file(at_the_end, "b.safetensors")
    keys = {"input": "b.safetensors", "rank": 1, "output": "x.safetensors"}
    with pytest.raises(UserError, match=r"Give the folder of its model by 'model'"):
        run("resize", **keys)
    run("resize", **keys, model=str(tmp_path / "model"))
    assert "transformer_blocks.60." in "".join(load_file("x.safetensors"))


@pytest.mark.parametrize(("module", "scale", "told"), [
    (TO_Q, 1.0, ""),
    ("double_blocks.0.img_attn.qkv", 1.0, ""),
    (TO_Q, 0.0, "wrong: lora_B (the up matrix) is all zero in all 1 layers"),
])  # fmt: skip
def test_inspect_needs_no_model(
    run, tmp_path: Path, capsys, module: str, scale: float, told: str
) -> None:
    tensors = {
        "lora_A.weight": torch.ones(2, 5),
        "lora_B.weight": scale * torch.ones(7, 2),
        "alpha": torch.tensor(2.0),
    }
    save_file(
        {
            f"diffusion_model.{module}.{part}": tensor
            for part, tensor in tensors.items()
        },
        "a.safetensors",
    )
    run("inspect", file="a.safetensors")
    shown = capsys.readouterr().out
    assert "layers 1, parameters 24\nrank 2; alpha 2" in shown
    assert told in shown and ("wrong:" in shown) == bool(told)


@pytest.mark.parametrize(("uid", "keys", "dtype", "most"), [
    ("resize", {"input": "a.safetensors", "rank": 2}, "bfloat16", 1.0),
    ("resize", {"input": "a.safetensors", "rank": 8}, "bfloat16", 0.0),  # alpha stays what it is
    ("resize", {"input": "a.safetensors", "rank": 2, "dtype": "float32"}, "float32", 1.0),
    ("resize", {"input": "a.safetensors", "share": 0.5}, "bfloat16", 0.5**0.5),
    ("resize", {"input": "a.safetensors", "share": 1.0}, "bfloat16", 5e-3),
    ("merge", {"lora": ["a.safetensors", "b.safetensors"]}, "bfloat16", 0.0),
    ("merge", {"lora": ["a.safetensors:0.3", "b.safetensors"]}, "bfloat16", 5e-3),
    ("merge", {"lora": ["a.safetensors:0.3", "b.safetensors"], "rank": 3}, "bfloat16", 1.0),
])  # fmt: skip
def test_the_error_that_is_told_is_that_of_the_file(
    run, write_lora, layers, said, uid: str, keys: dict, dtype: str, most: float
) -> None:
    files = [
        write_lora(name, seed, dtype=torch.bfloat16)
        for seed, name in enumerate(("a.safetensors", "b.safetensors"))
    ]
    run(uid, **keys, output="x.safetensors")
    told = float(re.search(r"relative error of the change (\S+)", said[-1])[1])
    tensors = load_file("x.safetensors")
    assert {str(t.dtype) for key, t in tensors.items() if "lora_" in key} == {
        f"torch.{dtype}"
    }
    written, (a, b) = (
        load_adapter_file(Path("x.safetensors"), layers),
        (load_adapter_file(f, layers) for f in files),
    )
    strength = 0.3 if "0.3" in str(keys) else 1.0
    meant = {
        name: strength * a[name].delta() + (b[name].delta() if uid == "merge" else 0)
        for name in a
    }
    lost = sum(
        float((written[name].delta() - meant[name]).double().square().sum())
        for name in meant
    )
    whole = sum(float(meant[name].double().square().sum()) for name in meant)
    assert (
        told == pytest.approx((lost / whole) ** 0.5, rel=0.01, abs=1e-6)
        and told <= most + 1e-6
    )


def test_what_merging_into_a_model_and_extracting_round_is_told(
    run, write_lora, tiny_model: Path, said
) -> None:
    """The tiny model is float32."""
    model, file = str(tiny_model), str(write_lora("a.safetensors", 1))
    run("merge", base=model, lora=file, output="rounded", dtype="bfloat16")
    run("merge", base=model, lora=file, output="merged")
    run(
        "extract",
        base=model,
        tuned="merged",
        rank=3,
        dtype="bfloat16",
        output="rounded.safetensors",
    )
    run("extract", base=model, tuned="merged", rank=3, output="extracted.safetensors")
    told = [
        float(re.search(r"relative error of the change ([^\s,]+)", line)[1])
        for line in said
    ]
    assert (
        all(1e-4 < error < 1e-2 for error in (told[0], told[2]))
        and max(told[1], told[3]) < 1e-5
    )


def test_extract_finds_the_base_by_the_run_and_tools_keep_what_is_still_true(
    run, write_lora, trainer, write_job, tiny_model: Path, tmp_path: Path
) -> None:
    write_lora("a.safetensors", 1)
    run("merge", base=str(tiny_model), lora="a.safetensors", output="output/run/run")
    write_job(trainer(tmp_path / "gone"), name="run").rename("output/run/config.yaml")
    Path("output/run/run.json").write_text(
        json.dumps({"name": "run", "status": "finished"})
    )
    run(
        "extract",
        base=str(tiny_model),
        tuned="output/run/run",
        rank=3,
        output="given.safetensors",
    )
    run("extract", tuned="output/run/run", rank=3, output="found.safetensors")
    assert (
        Path("found.safetensors").read_bytes() == Path("given.safetensors").read_bytes()
    )
    with pytest.raises(
        UserError, match=r"base: is required. elsewhere: its model is unknown"
    ):
        Path("output/run/run").rename("elsewhere")
        run("extract", tuned="elsewhere", rank=3, output="x.safetensors")

    save_file(
        load_file("found.safetensors"),
        "a.safetensors",
        {"ss_network_dim": "3", "rank": "3", "base_model": "tiny"},
    )
    run("resize", input="a.safetensors", rank=1, output="small.safetensors")
    run("merge", lora=["small.safetensors", "a.safetensors"], output="both.safetensors")
    small, both = (
        read_metadata(Path(f"{name}.safetensors")) for name in ("small", "both")
    )
    assert (small.keys(), small["base_model"]) == (
        {"format", "sha256", "base_model"},
        "tiny",
    )
    assert both["base_model"] == "tiny"


def test_a_job_is_a_chain_of_tools(
    run, write_lora, write_job, tiny_model: Path, said
) -> None:
    """What an earlier process writes is not missing; twice to one place is refused."""
    write_lora("a.safetensors", 1)
    chain = [
        {"type": "convert", "input": "a.safetensors", "to": "kohya", "output": "k.safetensors"},
        {"type": "resize", "input": "k.safetensors", "rank": 2, "output": "small.safetensors"},
        {"type": "inspect", "file": "small.safetensors"},
        {"type": "merge", "base": str(tiny_model), "lora": "small.safetensors", "output": "merged"},
        {"type": "extract", "base": str(tiny_model), "tuned": "merged", "rank": 4, "output": "again.safetensors"},
        {"type": "post_hoc_ema", "files": ["small.safetensors", "again.safetensors"], "output": "mean.safetensors"},
    ]  # fmt: skip
    extensions = discover()
    config = load_job(write_job(*chain[:-1]), extensions.find_config)
    load_job(write_job(*chain), extensions.find_config)
    ExtensionJob(config, extensions).run()
    written = Path("again.safetensors").stat().st_mtime_ns
    again = load_job(write_job(*chain[:-1]), extensions.find_config)
    ExtensionJob(again, extensions).run()
    assert Path("again.safetensors").stat().st_mtime_ns == written, (
        "a finished job does nothing"
    )
    with pytest.raises(UserError, match="exists already"):
        load_job(write_job(chain[1], name="another_job"), extensions.find_config)
    with pytest.raises(
        UserError,
        match=r"process\[1\]: writes '.*/new.safetensors', as an earlier process does",
    ):
        load_job(
            write_job(*[{**chain[0], "output": "new.safetensors"}] * 2),
            extensions.find_config,
        )


def test_the_commands_of_the_page_are_understood(
    write_lora, tiny_model: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("output", "my_char")
    run.mkdir(parents=True)
    of_run = [str(run / f"my_char_{step}.safetensors") for step in (10, 20)]
    files = ("my_char.safetensors", "a.safetensors", "b.safetensors")
    for seed, name in enumerate((*files, *of_run)):
        write_lora(name, seed)
    for name in ("MODEL", "TUNED"):
        Path(name).symlink_to(tiny_model)
    page = (ROOT / "extensions/tools/lora_tools/README.md").read_text(encoding="utf-8")
    commands = re.findall(r"`\.venv/bin/python run\.py (?!--without)([^`]*)`", page)
    assert len(commands) == 8
    for line in commands:
        several = line.replace(str(run / "my_char_*.safetensors"), shlex.join(of_run))
        uid, *flags = shlex.split(several)
        assert section_of(uid, flags), line


@pytest.mark.parametrize("key", ["base", "tuned"])
def test_models_that_another_program_quantized_are_refused_before_they_are_read(
    run, write_lora, tiny_model: Path, tmp_path: Path, key: str
) -> None:
    folders = {"base": str(tiny_model), "tuned": str(tiny_model)}
    model = shutil.copytree(tiny_model, tmp_path / "quantized")
    place = mark(model / "transformer" / "config.json")
    said = re.escape(
        f"{key}: {place}the transformer is quantized by sdnq (uint4), which is not read. Give the bf16 "
    )
    with pytest.raises(ConfigErrors, match=said):
        run("extract", **{**folders, key: str(model)}, output="x.safetensors", rank=2)
    if key == "base":
        write_lora("a.safetensors", 1)
        with pytest.raises(ConfigErrors, match=said):
            run("merge", base=str(model), lora="a.safetensors", output="merged")
    assert not (tmp_path / "x.safetensors").exists()
