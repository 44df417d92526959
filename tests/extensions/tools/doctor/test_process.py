"""`run.py doctor` on files of real jobs and conversions, sound ones and ones that are
damaged in a known way."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import ROOT, heard
from tests.running import run_job, run_tool, section_of
from toolkit.errors import ConfigErrors, RunError
from toolkit.files.safetensors_io import read_metadata
from toolkit.models.tiny import TinySpec, write_tiny_model

GOLDEN = ROOT / "tests" / "golden" / "lora_files"
NAN = float("nan")

Tensors = dict[str, Tensor]


class Place(NamedTuple):
    """A folder of files that real jobs and conversions have made."""

    folder: Path
    models: dict[str, Path]
    said: dict[str, list[str]]
    """Name of a job -> what it logs."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Place:
    """Jobs of five kinds, and what the tools for LoRA files make of theirs."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("doctor")
    write_tiny_model(folder / "model21", TinySpec(arch="qwen_image_2"))
    golden = shutil.copytree(tiny_model, folder / "golden")
    shutil.copy(GOLDEN / "config.json", golden / "transformer" / "config.json")
    models = {"own": tiny_model, "2.1": folder / "model21", "golden": golden}
    (folder / "images").mkdir()
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(
        folder / "images" / "a.png"
    )
    (folder / "images" / "a.txt").write_text("a photo")
    said: dict[str, list[str]] = {}
    jobs = {kind: (kind, "own", 0.01) for kind in ("lora", "dora", "loha", "lokr")}
    for name, (kind, model, lr) in {
        **jobs,
        "2.1": ("lora", "2.1", 0.01),
        "still": ("lora", "own", 1e-12),
    }.items():
        section = {
            "type": "sd_trainer", "training_folder": str(folder), "device": "cpu",
            "network": {"type": kind, "linear": 4, "linear_alpha": 2}, "save": {"dtype": "float32", "save_every": 0},
            "datasets": [{"folder_path": str(folder / "images"), "resolution": 64}],
            "train": {"steps": 3, "lr": lr, "optimizer": "adamw", "dtype": "fp32", "max_grad_norm": 0},
            "model": {"name_or_path": str(models[model])},
        }  # fmt: skip
        config = {
            "job": "extension",
            "config": {"name": f"job_{name}", "process": [section]},
        }
        (folder / f"{name}.json").write_text(json.dumps(config))
        with heard() as said[name]:
            run_job(folder / f"{name}.json")
        saved = folder / f"job_{name}" / f"job_{name}.safetensors"
        shutil.copy(saved, folder / f"{name}_saved.safetensors")
        shutil.copy(saved, folder / f"{name}.safetensors")
        if kind == "lora":
            spell_as_before(saved, folder / f"{name}.safetensors")
    file = partial(lambda name: str(folder / f"{name}.safetensors"))
    converted = {
        "comfyui": "lora", "diffusers": "lora", "kohya": "lora", "musubi": "lora", "aitk": "lora",
        "comfyui_lokr": "lokr", "kohya_loha": "loha", "musubi_lokr": "lokr", "kohya_dora": "dora",
        "comfyui-fused_2.1": "2.1", "comfyui_2.1": "2.1", "diffusers_2.1": "2.1", "musubi_2.1": "2.1",
    }  # fmt: skip
    for name, source in converted.items():
        model = models["2.1" if source == "2.1" else "own"]
        to = ["--to", name.partition("_")[0], "--model", model]
        run_tool("convert", [file(source), file(f"to_{name}"), *to])
    base, of_model = ["--base", tiny_model], ["--model", tiny_model]
    loras = ["--lora", file("lora"), f"{file('resized')}:0.5"]
    merged = folder / "merged"
    for uid, flags in (
        ("resize", [file("lokr"), file("resized"), "--rank", 3, *of_model]),
        ("merge", [*loras, "--output", file("both"), *of_model]),
        ("merge", [*base, "--lora", file("lora"), "--output", merged]),
        ("extract", [file("extracted"), *base, "--tuned", merged, "--rank", 4]),
    ):
        run_tool(uid, flags)
    return Place(folder, models, said)


def spell_as_before(file: Path, output: Path) -> None:
    """Writes a LoRA as runs did up to 0.2.0: `diffusion_model.`, and an alpha for each
    layer."""
    tensors = {}
    for key, tensor in load_file(file).items():
        name = f"diffusion_model.{key.removeprefix('diffusion_model.').replace('.default.', '.')}"
        if B in name:
            tensors[f"{name.partition(f'.{B}')[0]}.alpha"] = torch.tensor(2.0)
            tensor = tensor * 2  # rank 4, alpha 2
        tensors[name] = tensor
    save_file(tensors, output, {**read_metadata(file), "ss_network_alpha": "2.0"})


def examine(
    place: Place, file: Path, capsys: pytest.CaptureFixture[str], *flags: object
) -> dict:
    """The JSON of a file, and whether the exit is that of what it says."""
    capsys.readouterr()
    raised = False
    try:
        run_tool("doctor", [file, "--json", *flags])
    except RunError:
        raised = True
    told = json.loads(capsys.readouterr().out)
    assert raised != told["sound"]
    return told


def checks(told: dict) -> set[str]:
    return {finding["check"] for finding in told["findings"] if finding["is_wrong"]}


# ------------------------------------------------------------ sound files

SOUND = {
    "lora": "own", "dora": "own", "loha": "own", "lokr": "own",
    "2.1": "2.1", "to_comfyui": "own", "to_diffusers": "own", "to_kohya": "own",
    "to_musubi": "own", "to_aitk": "own", "to_comfyui_lokr": "own",
    "to_kohya_loha": "own", "to_musubi_lokr": "own", "to_kohya_dora": "own",
    "to_comfyui-fused_2.1": "2.1", "to_diffusers_2.1": "2.1", "resized": "own",
    "both": "own", "extracted": "own",
    "lora_saved": "own", "2.1_saved": "2.1", "dora_saved": "own",
    **{path.stem: "golden" for path in GOLDEN.glob("*.safetensors")},
}  # fmt: skip
"""File -> its model."""


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_file_is_not_accused(
    place: Place, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model = SOUND[name]
    folder = GOLDEN if model == "golden" else place.folder
    file = folder / f"{name}.safetensors"
    told = examine(place, file, capsys, "--model", place.models[model])
    assert told["sound"] and checks(told) == set(), told["findings"]


def test_a_lora_of_layers_is_told_by_its_metadata(
    place: Place, tmp_path: Path, capsys
) -> None:
    """Its layers are those of the other members of 20 B."""
    tensors, file = (
        load_file(place.folder / "lora_saved.safetensors"),
        tmp_path / "layers.safetensors",
    )
    save_file(tensors, file, {"modelspec.architecture": "Qwen-Image-Layered/lora"})
    assert examine(place, file, capsys)["model"] == "Qwen-Image-Layered"
    write_tiny_model(tmp_path / "layered", TinySpec(arch="qwen_image_layered"))
    told = examine(place, file, capsys, "--model", tmp_path / "layered")
    assert (told["model"], told["findings"]) == ("Qwen-Image-Layered", [])
    told = examine(place, file, capsys, "--model", place.models["own"])
    assert [
        finding["message"]
        for finding in told["findings"]
        if finding["check"] == "other_base"
    ] == [
        f"{file} was trained on Qwen-Image-Layered, and this model is Qwen-Image-Edit-Plus. Its layers fit."
    ]


# ------------------------------------------------------------ broken files


def scaled(
    part: str, factor: float, where: str = "", count: int = 10**6
) -> Callable[[Tensors], None]:
    """Multiplies tensors; by zero also those that are not finite."""
    zero = torch.zeros_like
    return mapped(part, lambda t: t * factor if factor else zero(t), count, where)


def one_value(part: str, value: float) -> Callable[[Tensors], None]:
    def changed(tensor: Tensor) -> Tensor:
        _, *others = tensor.flatten()
        return torch.stack([torch.tensor(value), *others]).view(tensor.shape)

    return mapped(part, changed, count=1)


def without(
    part: str, where: str = "", count: int = 10**6
) -> Callable[[Tensors], None]:
    return mapped(part, lambda _: None, count, where)


def renamed(*pairs: tuple[str, str], only: str = "") -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        for key in [key for key in tensors if only in key]:
            name = key
            for old, new in pairs:
                name = name.replace(old, new)
            tensors[name] = tensors.pop(key)

    return damage


def mapped(
    part: str,
    change: Callable[[Tensor], Tensor | None],
    count: int = 10**6,
    where: str = "",
) -> Callable[[Tensors], None]:
    """Changes the first `count` tensors whose keys hold these texts; to None: they are
    lost."""

    def damage(tensors: Tensors) -> None:
        keys = [key for key in sorted(tensors) if part in key and where in key][:count]
        assert keys
        for key in keys:
            changed = change(tensors.pop(key))
            if changed is not None:
                tensors[key] = changed.contiguous()

    return damage


def both(*damages: Callable[[Tensors], None]) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        for one in damages:
            one(tensors)

    return damage


def doubled(tensors: Tensors) -> None:
    for key in list(tensors)[:6]:
        tensors[key.replace("diffusion_model.", "transformer.")] = tensors[key].clone()


def exchanged(where: str) -> Callable[[Tensors], None]:
    """lora_A and lora_B of the layers whose names hold the text."""

    def damage(tensors: Tensors) -> None:
        for key in [key for key in tensors if where in key and A in key]:
            other = key.replace(A, B)
            tensors[key], tensors[other] = tensors[other], tensors[key]

    return damage


def with_text_encoder(tensors: Tensors) -> None:
    for index in range(40):
        for part, shape in (("lora_down", (4, 8)), ("lora_up", (8, 4))):
            tensors[
                f"lora_te_text_model_encoder_layers_{index}_mlp_fc1.{part}.weight"
            ] = torch.ones(shape)
        tensors[f"lora_te_text_model_encoder_layers_{index}_mlp_fc1.alpha"] = (
            torch.tensor(2.0)
        )


def with_bias(
    value: float, more: int = 0, where: str = "attn.to_q"
) -> Callable[[Tensors], None]:
    """Adds a change of the bias of a layer, of its outputs and so many more."""

    def damage(tensors: Tensors) -> None:
        key = next(key for key in sorted(tensors) if where in key and B in key)
        bias = torch.full((len(tensors[key]) + more,), value)
        tensors[key.replace(f".{B}.weight", ".diff_b")] = bias

    return damage


def zeros_of_norms(tensors: Tensors) -> None:
    for end in ("diff", "diff_b"):
        name = f"diffusion_model.transformer_blocks.0.attn.norm_q.{end}"
        tensors[name] = torch.zeros(4)


class Broken(NamedTuple):
    """A change of a file, and what it is to be called: "" where the file stays sound."""

    check: str
    source: str
    damage: Callable[[Tensors], None] = lambda tensors: None
    flags: str = "--model own"
    metadata: dict[str, str] = {}  # noqa: RUF012 - a tuple's default, never changed
    said: str = ""


A, B = "lora_A", "lora_B"
FLUX = (("transformer_blocks", "double_blocks"), ("attn.to_q", "img_attn.qkv"))
OF_21 = {"modelspec.architecture": "Qwen-Image-2.1/lora"}
TO_SD = (
    ("transformer_blocks", "down_blocks.1.attentions.0.transformer_blocks"),
    (".attn.", ".attn1."),
)
TO_WAN = ("transformer_blocks", "blocks"), ("attn.to", "self_attn"), ("_q", ".q")
BROKEN = {
    "up zero": Broken("untrained", "lora", scaled(B, 0)),
    "down zero": Broken("untrained", "lora", scaled(A, 0)),
    "loha zero": Broken("untrained", "loha", scaled("hada_w2_a", 0)),
    "lokr zero": Broken("untrained", "lokr", scaled("lokr_w2", 0)),
    "rate of 1e-12": Broken("nearly_zero", "still"),
    "faded": Broken("nearly_zero", "lora", scaled(B, 1e-7)),
    "one layer zero": Broken("partly_untrained", "lora", scaled(B, 0, "blocks.0.attn.to_q")),
    "first block zero": Broken("partly_untrained", "lora", scaled(B, 0, "blocks.0.")),
    "block of the image zero": Broken("partly_untrained", "lora", scaled(B, 0, "blocks.1.img_mlp")),
    "dora without its ups": Broken("untrained", "dora", scaled(B, 0)),
    "loha faded": Broken("nearly_zero", "loha", scaled("hada_w2_a", 1e-7)),
    "exploded": Broken("exploded", "lora", scaled(B, 1e5)),
    "nan": Broken("not_finite", "lora", one_value(B, NAN)),
    "infinity": Broken("not_finite", "lora", one_value(A, float("inf"))),
    "nan alpha": Broken("not_finite", "lora", scaled("alpha", NAN, count=1)),
    "nan bias": Broken("not_finite", "lora", with_bias(NAN)),
    "bias of another size": Broken("misfit", "lora", with_bias(1, more=1)),
    "bias on 2.1": Broken("other_layers", "2.1", with_bias(1), "--model 2.1"),
    "rank zero": Broken("rank_zero", "lora", both(mapped(A, lambda t: t[:0]), mapped(B, lambda t: t[:, :0]))),
    "up lost": Broken("incomplete", "lora", without(B, count=1)),
    "down lost": Broken("incomplete", "lora", without(A, "blocks.0.")),
    "transposed": Broken("misfit", "lora", mapped(B, torch.t)),
    "another rank": Broken("misfit", "lora", mapped(A, lambda t: t[:3], 2)),
    "exchanged in square layers": Broken("misfit", "to_diffusers", exchanged("attn.to_q")),
    "exchanged": Broken("misfit", "lora", exchanged("blocks")),
    "alpha zero": Broken("alpha_zero", "lora", scaled("alpha", 0)),
    "one alpha zero": Broken("alpha_zero", "lora", scaled("alpha", 0, count=1)),
    "alpha huge": Broken("alpha_absurd", "lora", scaled("alpha", 1e5)),
    "alpha negative": Broken("alpha_absurd", "lora", scaled("alpha", -1)),
    "alpha tiny": Broken("alpha_absurd", "to_kohya", scaled("alpha", 1e-5)),
    "alphas unlike": Broken("alpha_unlike", "lora", scaled("alpha", 16, count=3)),
    "some alphas lost": Broken("alpha_lost", "lora", without("alpha", "blocks.1.")),
    "all alphas lost": Broken("alpha_lost", "to_kohya", without("alpha")),
    "alphas of two numbers": Broken("alpha_absurd", "lora", mapped("alpha", lambda t: t.repeat(2))),
    "first block lost": Broken("missing", "lora", without("", "blocks.0.")),
    "a layer lost": Broken("missing", "dora", without("", "blocks.1.attn.to_v")),
    "prefix twice": Broken("prefix", "lora", renamed(("diffusion_model.", "diffusion_model.diffusion_model."))),
    "compiled": Broken("prefix", "to_diffusers", renamed(("transformer.", "transformer._orig_mod."))),
    "text encoder beside it": Broken("other_layers", "lora", with_text_encoder),
    "metadata of flux": Broken("other_base", "lora", metadata={"modelspec.architecture": "flux-1-dev/lora"}),
    "flux of the attention": Broken(
        "other_model", "lora", renamed(("transformer_blocks", "single_transformer_blocks"), only="blocks.0.attn.to_")
    ),
    "flux": Broken("other_model", "lora", renamed(*FLUX), said="a LoRA of FLUX.1;"),
    "flux as diffusers has it": Broken(
        "other_model", "lora", renamed(("transformer_blocks.1.attn.to_q", "single_transformer_blocks.1.proj_mlp")),
        said="a LoRA of FLUX.1;",
    ),
    "sdxl": Broken("other_model", "lora", renamed(*TO_SD), said="a LoRA of Stable Diffusion;"),
    "wan": Broken("other_model", "lora", renamed(*TO_WAN), said="a LoRA of Wan;"),
    "2.1 on 20B": Broken("other_model", "2.1"),
    "20B on 2.1": Broken("other_model", "lora", flags="--model 2.1"),
    "a layer that is not there": Broken("other_layers", "lora", renamed(("to_q", "to_z"), only="blocks.1.attn.to_q")),
    "another width": Broken("size", "golden"),
    "tiny on the published": Broken("size", "lora", flags=""),
    "metadata of 2.1": Broken("other_base", "lora", flags="", metadata=OF_21),
    "twice": Broken("twice", "lora", doubled),
    "changes of norms": Broken("unknown_keys", "lora", renamed(("lora_B.weight", "w_norm"), only="0.attn.to_q.lora_B")),
    "empty": Broken("empty", "lora", lambda tensors: tensors.clear()),
    "header that is not valid JSON": Broken("bad_header", "to_diffusers", metadata={"lora_adapter_metadata": "{"}),
    "alpha as a text": Broken(
        "bad_header", "to_diffusers", metadata={"lora_adapter_metadata": '{"r": 4, "lora_alpha": "8"}'}
    ),
    "biases and zeros that comfyui extracts": Broken("", "lora", both(with_bias(1), zeros_of_norms)),
    # their strengths differ by a factor of 8, and alpha is 4 in all
    "layers of several ranks with one alpha": Broken("", "lora", both(
        mapped(A, lambda t: t.repeat(8, 1), where="_mlp"), mapped(B, lambda t: t.repeat(1, 8), where="_mlp")
    )),
}  # fmt: skip
ALSO = {
    "tiny on the published": set(), "metadata of 2.1": {"size"}, "changes of norms": {"incomplete"},
    "twice": set(), "flux": set(),
}  # fmt: skip
"""What the same damage is told beside its own name, rightly."""


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_rightly(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    case = BROKEN[name]
    source = (
        GOLDEN / "musubi_lora_r4_a2.safetensors"
        if case.source == "golden"
        else place.folder / f"{case.source}.safetensors"
    )
    tensors = load_file(source)
    case.damage(tensors)
    metadata = (
        {}
        if case.flags == ""
        else {k: str(v) for k, v in read_metadata(source).items()}
    )
    save_file(tensors, tmp_path / "a.safetensors", {**metadata, **case.metadata})
    flags = [place.models.get(flag, flag) for flag in case.flags.split()]
    told = examine(place, tmp_path / "a.safetensors", capsys, *flags)
    if not case.check:
        assert told["findings"] == []
        return
    assert checks(told) == {case.check} | ALSO.get(name, set()), told["findings"]
    assert case.said in told["findings"][0]["message"]


def test_the_end_of_a_run_and_inspect_say_the_first_line(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, told in (("still", True), ("lora", False)):
        start = f"job_{name}.safetensors: "
        lines = [line for line in place.said[name] if start in line]
        assert any("nearly zero" in line for line in lines) == told
        capsys.readouterr()
        run_tool("inspect", [place.folder / f"{name}.safetensors"])
        wrong = "wrong: All 28 layers are nearly zero"
        assert (wrong in capsys.readouterr().out) == told


def test_a_hole_among_the_blocks_of_any_trainer_is_told(
    tmp_path: Path, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the published 60 blocks one lacks a layer; the blocks from 20 to 39, or all
    but the first, may be meant so."""
    for blocks, is_whole in (
        (set(range(60)) - {17}, False),
        (set(range(20, 40)), True),
        (set(range(1, 60)), True),
    ):
        stems = [
            f"transformer.transformer_blocks.{block}.attn.to_q"
            for block in sorted(blocks)
        ]
        save_file(
            {f"{stem}.lora_{side}.weight": torch.ones(*shape) / 99
             for stem in stems for side, shape in (("A", (1, 3072)), ("B", (3072, 1)))},
            tmp_path / "a.safetensors",
        )  # fmt: skip
        told = examine(place, tmp_path / "a.safetensors", capsys)
        assert checks(told) == (set() if is_whole else {"missing"}), told["findings"]


def test_bad_input_is_refused_before_anything_is_read(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    Path("text.safetensors").write_text("no tensors")
    for flags, message in (
        (["no.safetensors"], "'no.safetensors' is not a file"),
        (["text.safetensors"], "'text.safetensors' cannot be read as a safetensors"),
        (["lora.safetensors", "--model", "."], "'.' holds no model_index.json"),
    ):
        with pytest.raises(ConfigErrors, match=re.escape(message)):
            section_of("doctor", flags)
