"""`generate` on the tiny models: pictures, what is written into them, and what is
refused."""

from __future__ import annotations

import io
import json
import math
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from extensions.tools.generate.config import GenerateConfig
from extensions.tools.shared import generation
from extensions.tools.shared.image_files import CHUNK, read_settings
from tests.conftest import ROOT, child_environment
from tests.diffusers_reference import (
    PIPELINE_MODULE,
    REFERENCES,
    drawn_by_pipeline,
    psnr,
)
from tests.findings import warnings
from tests.measured import at_least
from tests.parts import needs_stand_in
from tests.processes import output_of
from tests.running import run_tool, section_of
from toolkit.config import load_job
from toolkit.config.sections.model import ModelConfig
from toolkit.contracts.data import Size
from toolkit.errors import Interrupted, UserError
from toolkit.extension import discover
from toolkit.files.run_files import TINY_MODEL
from toolkit.models.families import family_for
from toolkit.models.qwen_image.model import QwenImageModel
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.train.sampling import SamplePrompt, Sampler

SMALL = "--width 64 --height 64 --steps 2 --dtype float32 --device cpu --match-target-res --output out"


@pytest.fixture
def generate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], list[Path]]:
    """Runs a command in `tmp_path` in this process; returns the pictures in `out`, the
    newest last."""
    monkeypatch.chdir(tmp_path)

    def generate(line: str) -> list[Path]:
        run_tool("generate", shlex.split(line))
        return sorted(
            (tmp_path / "out").glob("*"), key=lambda path: path.stat().st_mtime_ns
        )

    return generate


def write_lora(model: Path, path: Path, seed: int = 1) -> Path:
    """A LoRA that is plainly seen, for two layers of a model."""
    layers = family_for(ModelConfig(name_or_path=str(model))).linear_layers(model)
    tensors, random = {}, torch.Generator().manual_seed(seed)
    for name in [
        name
        for name in layers
        if name.endswith(("attn.to_q", "attn.to_v", "img_mod.1"))
    ]:
        inputs, outputs = layers[name]
        tensors[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(
            4, inputs, generator=random
        )
        tensors[f"diffusion_model.{name}.lora_B.weight"] = (
            torch.randn(outputs, 4, generator=random) / inputs**0.5
        )
    save_file(tensors, path)
    return path


@pytest.mark.slow
def test_a_picture_is_that_of_the_pipeline_and_is_made_again_from_itself(
    generate,
    unit_gain_model: Path,
    unit_gain_pipeline,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    said,
) -> None:
    monkeypatch.setattr(f"{PIPELINE_MODULE}.VAE_IMAGE_SIZE", 96 * 64)
    asked = (
        f"--model {unit_gain_model} --prompt 'a cup of coffee' --negative blurry --reference {REFERENCES[0]} "
        "--width 96 --height 64 --steps 3 --cfg 4 --seed 7 --dtype float32 --device cpu --match-target-res --output out"
    )
    (path,) = generate(asked)
    with Image.open(path) as ours:
        ours.load()
    same = SamplePrompt(
        "a cup of coffee", "blurry", Size(96, 64), 7, 4.0, 3, REFERENCES[:1]
    )
    theirs = drawn_by_pipeline(unit_gain_pipeline, same)
    at_least("generate, 1 reference, dB", psnr(ours, theirs), 60)
    assert re.fullmatch(r"a-cup-of-coffee_7_[0-9a-f]{10}\.png", path.name)

    prompt, negative, values = ours.text["parameters"].splitlines()
    assert (prompt, negative) == ("a cup of coffee", "Negative prompt: blurry")
    assert values.startswith(
        "Steps: 3, Sampler: Euler, CFG scale: 4, Seed: 7, Size: 96x64, Model hash: "
    )

    before = path.read_bytes()
    assert (
        generate(asked) == [path]
        and "1 of these images exist in out already" in said[-1]
    )
    # Elsewhere, from the picture alone; then with another seed.
    generate(f"--like {path} --output again")
    (again,) = (tmp_path / "again").iterdir()
    assert (again.name, again.read_bytes()) == (path.name, before)
    generate(f"--like {path} --output again --seed 8")
    assert [file.name[:18] for file in sorted((tmp_path / "again").iterdir())] == [
        "a-cup-of-coffee_7_",
        "a-cup-of-coffee_8_",
    ]
    path.write_bytes(b"")
    assert generate(asked + " --overwrite --metadata false") == [path]
    with Image.open(path) as bare:
        assert bare.text == {} and psnr(bare.convert("RGB"), ours) == math.inf


def test_a_size_that_the_model_cannot_draw_is_told(tiny_model: Path) -> None:
    """As a job's `sample` tells it."""
    model = {"name_or_path": str(tiny_model)}
    section = GenerateConfig(
        type="generate", model=model, prompt=("a", "b --w 100"), width=130, height=128
    )
    assert [(one.key[0], one.message) for one in warnings(section)][:2] == [
        (
            "width",
            "the model cannot generate 130 pixels; images will be generated at 128.",
        ),
        (
            "prompt",
            "the model cannot generate 100 pixels; images will be generated at 96.",
        ),
    ]


@pytest.mark.slow
def test_a_distilled_model_is_sampled_at_its_noise_levels(
    generate, tmp_path: Path
) -> None:
    """Other steps resample them, and are made again from the picture; both, and
    guidance, are warned of."""
    write_tiny_model(tmp_path / "model", TinySpec(arch="qwen_image_2"))
    index = tmp_path / "model" / "model_index.json"
    index.write_text(
        json.dumps(json.loads(index.read_text()) | {"sample_sigmas": [1.0, 0.7]})
    )
    asked = (
        "--model model --prompt coffee --width 64 --height 64 --device cpu --output out"
    )
    first = generate(asked)[-1]
    assert read_settings(first)["levels"] == [1.0, 0.7]
    assert generate(f"{asked} --steps 2")[-1] == first
    second = generate(f"{asked} --steps 3 --cfg 1.5")[-1]
    assert read_settings(second)["levels"] == pytest.approx([1.0, 0.85, 0.7])
    model = {"name_or_path": "model"}
    assert not warnings(
        GenerateConfig(
            type="generate", model=model, prompt=("a --s 2 --l 1",), steps=2, cfg=1
        )
    )
    told = warnings(
        GenerateConfig(
            type="generate", model=model, prompt=("a --s 4 --l 4",), steps=3, cfg=1.5
        )
    )
    assert [(one.key[0], one.message.partition(" for ")[0]) for one in told] == [
        ("steps", "3: Qwen-Image-2.1-Turbo is distilled"),
        ("cfg", "1.5: Qwen-Image-2.1-Turbo is distilled"),
        ("prompt", "steps 4: Qwen-Image-2.1-Turbo is distilled"),
        ("prompt", "guidance 4: Qwen-Image-2.1-Turbo is distilled"),
    ]
    assert Image.open(first).mode == "RGBA"
    generate(f"--like {second} --output again")
    (again,) = (tmp_path / "again").iterdir()
    assert (again.name, again.read_bytes()) == (second.name, second.read_bytes())


@pytest.mark.parametrize(
    "quantized",
    [
        pytest.param(False, id="whole"),
        pytest.param(
            True,
            id="int8, a swapped block, the modulation in a table",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_loras_change_the_picture_as_merged_ones_do(
    generate, unit_gain_model: Path, tmp_path: Path, quantized: bool
) -> None:
    a, b = (
        write_lora(unit_gain_model, tmp_path / f"{name}.safetensors", seed)
        for seed, name in ((1, "a"), (2, "b"))
    )
    how = "--quantize --blocks-to-swap 1 --modulation-table true" if quantized else ""
    keys = f"--model {unit_gain_model} --prompt coffee {SMALL} {how}"
    plain = Image.open(generate(keys)[-1])
    with_loras = Image.open(
        generate(f"{keys} --lora a.safetensors:0.5 b.safetensors:-1")[-1]
    )
    assert psnr(with_loras, plain) < 40
    assert with_loras.text["parameters"].startswith(
        "coffee <lora:a:0.5> <lora:b:-1>\nNegative prompt: \nSteps: 2, "
    )
    if not quantized:
        nothing = Image.open(generate(f"{keys} --lora a.safetensors:0")[-1])
        assert psnr(nothing, plain) == math.inf
    # The trainer's own way to use them: merged before the weights are quantized.
    model = ModelConfig.model_validate(
        {
            "name_or_path": str(unit_gain_model),
            "base_loras": [
                {"path": str(a), "multiplier": 0.5},
                {"path": str(b), "multiplier": -1},
            ],
            "model_kwargs": {"match_target_res": True},
            "quantize": quantized,
        }
    )
    config = GenerateConfig(
        type="generate",
        model=model,
        prompt=("coffee",),
        output="merged",
        width=64,
        height=64,
        steps=2,
        dtype="float32",
    )
    maker = generation.PictureMaker(config, [])
    maker.make([maker.picture(config.items()[0], 42, 4.0)])
    (merged,) = (tmp_path / "merged").iterdir()
    # Quantized, the change is in the rounding of the one and beside that of the other.
    least = 40 if quantized else 60
    at_least(
        f"LoRAs beside the model, quantized {quantized}, dB",
        psnr(with_loras, Image.open(merged)),
        least,
    )


@pytest.mark.slow
def test_prompts_of_a_file_and_of_standard_input_have_flags(
    generate, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said
) -> None:
    (tmp_path / "lines.txt").write_text(
        "# mine\n\na large one --w 96 --d 3\n-- not a flag --n dark --l 2\n"
    )
    (tmp_path / "sample.yaml").write_text(
        "samples: [{prompt: 'of [trigger]', seed: 5}]\nsample_steps: 1\nwidth: 80\n"
    )
    monkeypatch.setattr(
        "sys.stdin",
        io.StringIO(
            "typed in --d 9\n\n# nothing\nwrong --w wide\nx --ci no.png\n<lora:a:1> x\nlast -s 2 --w 80\n"
        ),
    )
    kept: list[tuple[str, ...]] = []
    unload = "toolkit.models.qwen_image.model.QwenImageModel.unload_encoders"
    monkeypatch.setattr(unload, lambda model, keep=(): kept.append(tuple(keep)))
    loads: list[str] = []
    load_part = QwenImageModel.load_part
    monkeypatch.setattr(
        QwenImageModel,
        "load_part",
        lambda model, name: loads.append(name) or load_part(model, name),
    )
    files = generate(
        f"--model {tiny_model} --prompts lines.txt --seed 1 2 --interactive {SMALL}"
    )
    found = list(map(read_settings, files))
    assert [(s["prompt"], s["seed"], s["width"], s["cfg"]) for s in found] == [
        ("-- not a flag", 1, 64, 2.0),
        ("-- not a flag", 2, 64, 2.0),
        ("a large one", 3, 96, 4.0),
        ("typed in", 9, 64, 4.0),
        ("last -s 2", 1, 80, 4.0),
        ("last -s 2", 2, 80, 4.0),
    ]
    assert found[0]["negative"] == "dark" and not kept
    assert loads.count("text_encoder") == 1, "it stays for what is typed in"
    assert any("'wide' is not a whole number" in line for line in said)
    assert any("'no.png' is not a file" in line for line in said)
    assert any("Write '--s 2'" in line for line in said)
    assert any("'<lora:a:1>' loads nothing" in line for line in said)
    generate(
        f"--model {tiny_model} --prompts sample.yaml --trigger-word yaml {SMALL.replace('--steps 2', '')}"
    )
    (of_yaml,) = [
        s
        for s in map(read_settings, (tmp_path / "out").iterdir())
        if s["prompt"] == "of yaml"
    ]
    assert (of_yaml["seed"], of_yaml["steps"], of_yaml["width"], of_yaml["height"]) == (
        5,
        1,
        80,
        64,
    )
    assert kept == [("vae",)], (
        "the text encoder is freed before the transformer is loaded"
    )
    assert loads.count("text_encoder") == 1, "it was not loaded whole"


@pytest.mark.slow
def test_a_stop_keeps_what_is_made_and_the_next_start_makes_the_rest(
    generate, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"--model {tiny_model} --prompt one two {SMALL}"
    draw = Sampler.latents

    def stopped(sampler: Sampler, index: int) -> Image.Image:
        if index:
            raise Interrupted(130)
        return draw(sampler, index)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "latents", stopped)
        with pytest.raises(Interrupted):
            generate(line)
    (first,) = (tmp_path / "out").iterdir()
    changed = first.stat().st_mtime_ns
    assert len(generate(line)) == 2 and first.stat().st_mtime_ns == changed


@pytest.mark.slow
@needs_stand_in
def test_a_gpu_gets_swapped_blocks_and_loras_where_it_computes(
    generate, tmp_path: Path, write_job
) -> None:
    model = tmp_path / "model"
    write_tiny_model(model, TinySpec(layers=4))
    write_lora(model, tmp_path / "lora.safetensors")
    line = f"--model {model} --prompt coffee --lora lora.safetensors {SMALL} --reference {REFERENCES[0]}"
    (here,) = generate(f"{line} --quantize --blocks-to-swap 3 --low-vram")
    keys = {
        key: value
        for key, value in read_settings(here).items()
        if key in ("prompt", "width", "height", "steps")
    }
    job = write_job(
        {
            "type": "generate",
            **keys,
            "model": {**read_settings(here)["model"], "modulation_table": True},
            "lora": "lora.safetensors",
            "reference": str(REFERENCES[0]),
            "dtype": "float32",
            "device": "cuda:0",
            "output": "there",
        }
    )
    command = [sys.executable, "-m", "tests.stand_in_cuda", job]
    environment = child_environment({"PYTHONPATH": str(ROOT)})
    output_of(*command, cwd=tmp_path, env=environment)
    (there,) = (tmp_path / "there").iterdir()
    at_least(
        "generate on the stand-in device, dB",
        psnr(Image.open(there), Image.open(here)),
        50,
    )


@pytest.mark.slow
def test_latents_are_kept_and_decoded_to_the_same_image(
    generate, tiny_model: Path, tmp_path: Path, said
) -> None:
    keys = f"--model {tiny_model} --prompt coffee {SMALL}"
    (plain,) = generate(keys)
    image, latents = generate(f"{keys} --output_type latent_images")
    if image != plain:
        image, latents = latents, image
    assert image == plain and latents.name == f"{plain.stem}.safetensors"
    before = latents.stat().st_mtime_ns
    generate(f"{keys} --output-type latent")
    assert (
        latents.stat().st_mtime_ns == before
        and "1 of these images exist in out already" in said[-1]
    )

    tensor = load_file(latents)["latent"]
    assert tensor.shape == (1, 16, 1, 8, 8) and tensor.dtype == torch.float32
    # As musubi-tuner writes them: bfloat16, no settings of ours, no batch.
    save_file(
        {"latent": tensor[0].bfloat16()},
        tmp_path / "theirs.safetensors",
        {"seeds": "42"},
    )
    generate(f"--model {tiny_model} --latent_path {latents} theirs.safetensors --output decoded --device cpu "
             "--dtype float32")  # fmt: skip
    decoded = tmp_path / "decoded"
    assert (decoded / plain.name).read_bytes() == plain.read_bytes(), (
        "with its settings"
    )
    assert psnr(Image.open(decoded / "theirs.png"), Image.open(plain)) > 35
    (decoded / "theirs.png").write_bytes(b"mine")
    generate(
        f"--model {tiny_model} --latent-path theirs.safetensors --output decoded --device cpu"
    )
    assert (
        decoded / "theirs.png"
    ).read_bytes() == b"mine" and "exists already" in said[-1]


@pytest.mark.slow
def test_compiled_blocks_give_the_same_image(generate, tiny_model: Path) -> None:
    keys = f"--model {tiny_model} --prompt coffee {SMALL}"
    (plain,) = generate(keys)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    whole = Image.open(plain).copy()
    generate(f"{keys} --overwrite --compile --compile_backend eager")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert psnr(Image.open(plain), whole) > 60
    with pytest.raises(
        UserError,
        match=r"^compile\.backend: PyTorch has no backend 'indcutor' on this machine\. Write inductor",
    ):
        generate(f"{keys} --overwrite --compile --compile-backend indcutor")


def maker_of(line: str) -> tuple[GenerateConfig, generation.PictureMaker]:
    section = section_of("generate", shlex.split(line))
    return section, generation.PictureMaker(section, [])


def test_sizes_and_lightning_are_the_publishers(
    tiny_model: Path, tmp_path: Path
) -> None:
    from extensions.tools.generate.process import pictures

    for part in tiny_model.iterdir():
        # nothing else says that it is none of the published ones
        if part.name != TINY_MODEL:
            (tmp_path / part.name).symlink_to(part)

    def prompt(more: str):
        section, maker = maker_of(f"--model {tmp_path} --prompt coffee {more}")
        return next(pictures(section, maker, section.items(), [])).prompt

    wide = REFERENCES[0]
    assert [prompt(f"--reference {file}").size for file in REFERENCES] == [
        (1584, 1056),
        (1104, 1472),
        (1328, 1328),
    ]
    assert prompt("").size == (1328, 1328) and prompt("--width 640").size == (640, 640)
    assert prompt(f"--reference {wide} --height 300").size == (448, 288)
    fast, usual = prompt("--lightning 4"), prompt("")
    assert (fast.steps, fast.guidance_scale, fast.flow_shift, fast.stretched) == (
        4,
        1.0,
        3.0,
        False,
    )
    assert (usual.steps, usual.guidance_scale, usual.flow_shift, usual.stretched) == (
        20,
        4.0,
        None,
        True,
    )
    own = prompt("--lightning 8 --cfg 2 --flow-shift 2 --steps 6")
    assert (own.steps, own.guidance_scale, own.flow_shift, own.stretched) == (
        6,
        2.0,
        2.0,
        False,
    )


@pytest.mark.parametrize(
    "typed",
    [
        "a.safetensors=0.8",
        "a.safetensors = 0.8",
        "a.safetensors@0.8",
        "a.safetensors*0.8",
        "a.safetensors(0.8)",
        "a.safetensors::0.8",
        "a.safetensors[0.8]",
        "a.safetensorsx0.8",
        "a.safetensors:0.8:0.6",
        "a.safetensors:0,8",
        "a.safetensors:80%",
        "a.safetensors:0.8x",
        "a.safetensors->0.8",
        "a.safetensors,0.8",
        "a.safetensors 0.8",
    ],
)
@pytest.mark.parametrize("is_split", [False, True])
def test_a_strength_behind_another_sign_gets_its_colon(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    is_split: bool,
) -> None:
    """In one word, and, with a space, in two."""
    monkeypatch.chdir(tmp_path)
    write_lora(tiny_model, tmp_path / "a.safetensors")
    rest = ["--model", str(tiny_model), "--prompt", "x"]
    rest = rest[2:] if is_split else rest  # also where the file names the model
    words = typed.split(" ") if is_split and "=" not in typed else [typed]
    with pytest.raises(UserError) as refused:
        section_of("generate", ["--lora", *words, *rest])
    (right,) = re.findall(r"Write '(.*)'\.$", str(refused.value))
    assert right == "a.safetensors:0.8"
    given = ["--lora", right, "--model", str(tiny_model), "--prompt", "x"]
    assert section_of("generate", given).lora == (right,)


@pytest.mark.parametrize(
    ("prompt", "lora", "right"),
    [
        ("<lora:a:0.6> a cat", "", "output/a/a.safetensors:0.6"),
        ("a cat <LORA:a:.6:0.8>", "", "output/a/a.safetensors:.6"),
        ("a cat, <lyco:b:1>", "b.safetensors", "b.safetensors:1"),
        ("a <lora:b> cat", "b.safetensors:0.3", "b.safetensors:0.3"),
        ("a cat --n <lora:b:1>", "b.safetensors", "b.safetensors:1"),
        ("<lora: b : 0,7 > cat", "b.safetensors", "b.safetensors:0.7"),
        ("<lora:b:70%> cat", "b.safetensors", "b.safetensors:0.7"),
        ("(lora:b:0.7) cat", "b.safetensors", "b.safetensors:0.7"),
        ("[lora:my\\b:0.7] cat", "b.safetensors", "b.safetensors:0.7"),
        ("<lora=b:0.7> cat", "b.safetensors", "b.safetensors:0.7"),
        ("lora:b:0.7, cat", "b.safetensors", "b.safetensors:0.7"),
        ("<lora:b:much> <hypernet:x:1>", "b.safetensors:0.3", "b.safetensors:0.3"),
        ("<lora:my/b.safetensors:0.7> x", "b.safetensors", "b.safetensors:0.7"),
        ("<lora:b:0.5:lbw=OUTS> cat", "b.safetensors:0.3", "b.safetensors:0.5"),
        (
            "<lora:a:0.6> a cat <lora:b:-0.2>",
            "b.safetensors",
            "b.safetensors:-0.2 output/a/a.safetensors:0.6",
        ),
        ("<lora:nosuch:0.6> cat", "b.safetensors", "b.safetensors FILE:0.6"),
    ],
)
def test_a_tag_of_a_lora_in_a_prompt_names_the_flag_that_loads_it(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompt: str,
    lora: str,
    right: str,
) -> None:
    """As AUTOMATIC1111's program has it; also before it is known which model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output" / "a").mkdir(parents=True)
    for name in ("output/a/a", "b"):
        write_lora(tiny_model, tmp_path / f"{name}.safetensors")
    (tmp_path / "prompts.txt").write_text(prompt)
    given = ["--lora", lora] if lora else []
    for key, text in (("--prompt", prompt), ("--prompts", "prompts.txt")):
        with pytest.raises(UserError) as refused:
            section_of("generate", [*given, key, text])
        (said,) = (line for line in str(refused.value).splitlines() if "tag" in line)
        _, flags = said.split("Leave the tag out of the prompt, and write: --lora ")
        assert said.startswith(f"run.py generate: {key}: ") and flags == right
    if "FILE" not in flags:
        again = ["--model", str(tiny_model), "--prompt", "a cat", "--lora"]
        assert section_of("generate", [*again, *shlex.split(flags)])


WRONG = (
    (
        "--prompt x",
        "run.py generate: --model: is required: a model folder or hub id; or give --lora FILE, which names",
    ),
    ("--model {m}", "run.py generate: --prompt: is required. Or give"),
    (
        "--model {m} --prompt x --lora none.safetensors",
        "--lora: 'none.safetensors' is not a file",
    ),
    (
        "--model {m} --prompt x --lora a.safetensors:strong",
        "'strong' is not a number. Write FILE, or FILE:STRENGT",
    ),
    ("--model {m} --prompt x --lora a.safetensors:nan", "'nan' is not a number"),
    (
        "--model {m} --prompt x --lora notes.txt",
        "'notes.txt' cannot be read as a safetensors file",
    ),
    (
        "--model {m} --latent-path notes.txt",
        "--latent-path: 'notes.txt' is not a .safetensors file",
    ),
    (
        "--model {m} --latent-path a.safetensors",
        "'a.safetensors' has no tensor 'latent'",
    ),
    (
        "--model {m} --latent-path wide.safetensors",
        "has latents [1, 8, 4, 4]; this model's have 16 channels",
    ),
    (
        "--model {m} --latent-path l.safetensors x/l.safetensors",
        "two files would become 'l.png'",
    ),
    ("--model {m} --prompt x --reference notes.txt", "notes.txt"),
    ("--model {m} --prompt x --reference {r} {r} {r} {r}", "--reference:"),
    ("--model {m} --prompt 'x --ci {r} --ci {r} --ci {r} --ci {r}'", "--prompt:"),
    ("--model {m} --prompt 'x --w 3'", "--prompt: --w: 3 is out of range"),
    (
        "--model {m} --prompts notes.txt --output notes.txt",
        "notes.txt' is a file. Give a folder.",
    ),
    ("--model {m} --prompts nothing.txt", "'nothing.txt' does not exist"),
    ("--model {m} --prompts 'a cat'", "If it is a prompt, write: --prompt 'a cat'"),
    ("--like notes.txt", "'notes.txt' cannot be read as an image"),
    ("--like {r}", "holds no settings of Atelier"),
    ("--like blocks.png", "Give --lora FILE:STRENGTH instead of --like"),
    ("--model {m} --prompt x --lightning 5", "--lightning: 5"),
    ("--model {m} --prompt x --qtype int3", "--qtype: 'int3' is unknown"),
    ("--model . --prompt x", "--model: '.' holds no model_index.json"),
    (
        "--model {m} --prompt x --setps 3",
        "unknown argument '--setps'. Did you mean '--steps'?",
    ),
)


def test_wrong_input_is_one_line_before_anything_is_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("a cat")
    text = PngInfo()
    text.add_text(CHUNK, '{"blocks": ["0-9:0.5"]}')
    Image.new("RGB", (8, 8)).save(tmp_path / "blocks.png", pnginfo=text)
    save_file({}, tmp_path / "a.safetensors")
    save_file({"latent": torch.zeros(1, 8, 4, 4)}, tmp_path / "wide.safetensors")
    for name in ("l", "x/l"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_file(
            {"latent": torch.zeros(1, 16, 4, 4)}, tmp_path / f"{name}.safetensors"
        )
    for line, message in WRONG:
        flags = shlex.split(line.format(m=tiny_model, r=REFERENCES[0]))
        with pytest.raises(UserError) as refused:
            section_of("generate", flags)
            pytest.fail(f"{line} is taken")
        said = str(refused.value)
        assert message in said and len(said.splitlines()) == 1, line


def test_what_looks_like_a_flag_is_told(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lines.txt").write_text("a cat\na dog --zz 3\n")
    flags = ["--prompt", "a cat -w 96", "--prompts", "lines.txt"]
    section = section_of("generate", ["--model", str(tiny_model), *flags])
    assert [f"{one.place}: {one.message}" for one in warnings(section)] == [
        "prompt: '-w 96' stays in the text. Write '--w 96'.",
        "prompts: lines.txt:2:1: '--zz': no flag of a sample prompt, so it stays in the text.",
    ]


@pytest.mark.parametrize(
    ("model", "given", "notes"),
    [("Edit", "", 1), ("Edit", f"--reference {REFERENCES[0]}", 0), ("2512", "", 0)],
)
def test_a_model_that_edits_one_image_says_where_none_is_given(
    model: str, given: str, notes: int
) -> None:
    section = section_of(
        "generate", shlex.split(f"--model Qwen/Qwen-Image-{model} --prompt x {given}")
    )
    found = [one.message for one in warnings(section)]
    assert (
        found
        == ["no control image, but Qwen-Image-Edit edits one. Give --reference."]
        * notes
    )


def test_a_model_of_layers_needs_an_image_to_take_apart() -> None:
    with pytest.raises(
        UserError,
        match=r"no control image, but Qwen-Image-Layered takes one apart\. Give --reference",
    ):
        section_of(
            "generate", shlex.split("--model Qwen/Qwen-Image-Layered --prompt x")
        )


@pytest.mark.slow
def test_layers_are_files_with_their_opacity_and_a_row(
    generate, tmp_path: Path
) -> None:
    """The area is that of --width times --height, the shape that of the image; latents
    are decoded to the same."""
    write_tiny_model(tmp_path / "m", TinySpec(arch="qwen_image_layered"))
    Image.effect_noise((96, 32), 99).save(tmp_path / "wide.png")
    small = "--model m --prompt x --reference wide.png --width 128 --height 128 --steps 1 --cfg 1 --output out"
    small += " --dtype float32 --device cpu"
    files = generate(f"{small} --layers 3")
    row = next(path for path in files if "_layer" not in path.stem)
    layers = [row.with_name(f"{row.stem}_layer{index}.png") for index in range(3)]
    assert {*files} == {row, *layers}
    drawn = Image.open(row)
    assert (drawn.mode, drawn.size) == ("RGBA", (3 * 224, 64)) and read_settings(row)[
        "layers"
    ] == 3
    for index, path in enumerate(layers):
        assert (
            Image.open(path).tobytes()
            == drawn.crop((index * 224, 0, (index + 1) * 224, 64)).tobytes()
        )


def test_a_lora_of_another_model_is_refused_before_the_model_is_loaded(
    generate, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        generation, "load_base_model", lambda *_: pytest.fail("the model is loaded")
    )
    other = {
        "diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(
            2, 5
        )
    }
    other["diffusion_model.transformer_blocks.0.attn.to_q.lora_B.weight"] = torch.zeros(
        7, 2
    )
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(
        UserError, match=r"other\.safetensors: .* It is of another model\."
    ):
        generate(f"--model {tiny_model} --prompt x --lora other.safetensors {SMALL}")
    monkeypatch.setattr(generation, "free_space", lambda _: 100)
    with pytest.raises(
        UserError, match=r"out: 1 images take up to 12\.3 kB, the disk has 100 B free"
    ):
        generate(f"--model {tiny_model} --prompt x {SMALL}")


def test_the_commands_of_the_page_are_understood(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pictures
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("MODEL").symlink_to(tiny_model)
    for name in ("my_char", "style", "lightning_4"):
        write_lora(tiny_model, tmp_path / f"{name}.safetensors")
    make_pictures(tmp_path, "photo", "coat", captions=False)
    Path("prompts.txt").write_text("a bird --d 3\n")
    save_file({"latent": torch.zeros(1, 16, 1, 8, 8)}, "latents.safetensors")
    page = (ROOT / "extensions/tools/generate/README.md").read_text(encoding="utf-8")
    commands = re.findall(r"python run\.py generate (--model[^`\n]*)", page)
    assert len(commands) >= 8
    for line in commands:
        words = line.replace("Qwen/Qwen-Image-Edit-2509", "MODEL")
        assert section_of("generate", shlex.split(words)), line


def test_model_and_size_come_with_the_lora(
    generate, tiny_model: Path, tmp_path: Path
) -> None:
    """Without a reference a tiny model makes 128 x 128: of the published sizes one
    would take minutes."""
    (tmp_path / "models").symlink_to(tiny_model.parent)
    tensors = load_file(write_lora(tiny_model, tmp_path / "models.safetensors"))
    save_file(tensors, "known.safetensors", {"base_model": f"models/{tiny_model.name}"})
    save_file(tensors, "unknown.safetensors")
    asked = "--prompt coffee --steps 1 --cfg 1 --device cpu --dtype float32 --output out --lora"
    (path,) = generate(f"{asked} known.safetensors:0.5")
    settings = read_settings(path)
    assert (settings["width"], settings["height"]) == (128, 128)
    assert settings["model"] == {"name_or_path": f"models/{tiny_model.name}"}
    with pytest.raises(
        UserError, match=r"--model: unknown.safetensors: its model is unknown"
    ):
        generate(f"{asked} unknown.safetensors")


def test_the_model_of_a_lora_that_is_still_to_come(
    trainer, write_job, tmp_path: Path, make_pictures
) -> None:
    """That of the run that writes it; for the file of another tool it has to be given,
    before anything is trained."""
    train = trainer(make_pictures(tmp_path / "photos", "a"))
    training = {**train, "training_folder": str(tmp_path / "output")}
    lora, small = (
        str(tmp_path / path)
        for path in ("output/job/job.safetensors", "small.safetensors")
    )
    resize = {"type": "resize", "input": lora, "rank": 2, "output": small}
    last = {"type": "generate", "prompt": "x", "output": str(tmp_path / "out")}
    find = discover().find_config
    assert load_job(write_job(training, {**last, "lora": lora}), find)
    assert load_job(
        write_job(training, resize, {**last, "lora": small, "model": train["model"]}),
        find,
    )
    with pytest.raises(
        UserError,
        match=r"process\[2\].model: .*small.safetensors: its model is unknown",
    ):
        load_job(write_job(training, resize, {**last, "lora": small}), find)
