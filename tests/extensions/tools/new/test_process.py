"""`run.py new`: the job it writes fits the GPU, holds what was asked for, and
trains."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from PIL import Image

from extensions.tools.new.config import NewConfig
from extensions.tools.shared.examples import (
    MODELS,
    Model,
    all_models,
    example_text,
    left_out_in,
    written_job,
)
from extensions.tools.shared.pairs import found_pairs
from jobs.dry_run import plan_job
from jobs.job import ExtensionJob
from tests.conftest import ROOT
from tests.layer_files import write_layers
from tests.model_folders import write_header
from tests.running import run_tool
from toolkit.config import load_job
from toolkit.config.reading.process import JobConfig, JobContext
from toolkit.config.reading.tool import field_at, load_tool
from toolkit.config.sections.dataset import DatasetConfig
from toolkit.config.sections.model import ModelConfig
from toolkit.data.scan.folder import find_images
from toolkit.errors import RunError, UserError
from toolkit.extension import discover
from toolkit.models.families import family_for
from toolkit.models.recipes import RECIPES
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.plan.cards import ASSUMED
from toolkit.registry import FAMILIES
from toolkit.system.nvidia import Gpu, NvidiaFacts

PHOTOS = ROOT / "config" / "examples" / "photos" / "40_photo"
TINY = ROOT / "config" / "examples" / "tiny_mascots"


def job_text(gpu: int, **changes: str) -> str:
    asked = {
        "name": "zuzu",
        "folder": str(PHOTOS),
        "trigger": "zuzu",
        "model": "",
        **changes,
    }
    return written_job(gpu=gpu, **asked)


def loaded(text: str, folder: Path) -> JobConfig:
    """The job of this text, from a file in the folder."""
    path = folder / "zuzu.yaml"
    path.write_text(text, encoding="utf-8")
    return load_job(str(path), discover().find_config)


def plan_of(text: str, folder: Path) -> str:
    return plan_job(loaded(text, folder)).render()


def section_in(text: str, folder: Path) -> Any:
    return loaded(text, folder).processes[0].section


@pytest.fixture
def new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[tuple[object, ...]]]:
    """Runs the command in an empty folder, without its checks, which it returns; those
    of `lint` say `found`."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: object, found: int = 0) -> list[tuple[object, ...]]:
        checks: list[tuple[object, ...]] = []

        def checked(*arguments: object) -> int:
            checks.append(arguments)
            return found * (arguments[0] == "lint")

        monkeypatch.setattr("extensions.tools.new.process._run_py", checked)
        config = load_tool("new", NewConfig, [*map(str, flags)])
        ExtensionJob(config, discover()).run()
        return checks

    return run


UNLIKE = [MODELS[0], *(model for model in MODELS if "Edit" not in model.title)]
"""One model of each kind: those that edit have the cards of the first."""


def test_every_gpu_that_jobs_are_written_for_is_in_the_table_of_cards() -> None:
    assert {gpu for model in MODELS for gpu in model.cards} <= set(ASSUMED)


@pytest.mark.parametrize(
    ("model", "gpu"),
    [
        (model, gpu)
        for model in UNLIKE
        for gpu in ((11, 32) if model.references else (*model.cards, 11, 32))
        if gpu >= min(card.least_gb for card in model.cards.values())
    ],
    ids=lambda value: value.title if isinstance(value, Model) else str(value),
)
def test_the_job_fits_the_gpu_it_is_written_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model, gpu: int
) -> None:
    """On the images of its examples: four layers of one that has layers. Of models that
    take control images the pairs below need more."""
    monkeypatch.chdir(tmp_path)
    folder = str(PHOTOS if "photos" in model.folder else ROOT / model.folder)
    text = job_text(gpu, model="" if model == MODELS[0] else model.id, folder=folder)
    plan = plan_of(text, tmp_path)
    assert f": fits its {gpu:.1f} GB" in plan
    memory = plan_job(loaded(text, tmp_path)).processes[0].memory
    assert memory and min(memory.fitting()) <= gpu
    assert "zuzu (sd_trainer)" in plan and folder in plan and model.id in plan


@pytest.mark.parametrize(
    ("model", "gpu", "most_gb"),
    [
        ("Qwen/Qwen-Image-2.1", 4, 3.7),
        *((f"Qwen/{name}", 6, 5.6) for name in ("Qwen-Image-Edit-2509", "Qwen-Image")),
    ],
)
def test_the_smallest_gpus_have_room_for_large_images_in_all_phases(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    gpu: int,
    most_gb: float,
) -> None:
    """1024 x 1024 with a control image, and samples of that size too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs").mkdir()
    for side in (
        ("before", "after") if "Edit" in model or "2.1" in model else ("after",)
    ):
        Image.new("RGB", (1024, 1024)).save(tmp_path / "pairs" / f"a_{side}.png")
    (tmp_path / "pairs" / "a_after.txt").write_text(
        "a mascot drinks the coffee, " * 8, encoding="utf-8"
    )
    text = job_text(gpu, model=model, folder="pairs")
    assert "blocks_to_swap: 31" in text if gpu == 4 else "blocks_to_swap: 59" in text
    text = re.sub(r"(width|height): 768", r"\1: 1024", text)
    text = re.sub(r"resolution: \[768\]", "resolution: [1024]", text)
    memory = plan_job(loaded(text, tmp_path)).processes[0].memory
    assert (
        memory
        and [(p.name, p.total) for p in memory.phases if p.total > most_gb * 1e9] == []
    )
    assert {p.name for p in memory.phases} == {
        "encoding",
        "loading",
        "first step",
        "training",
        "sampling",
    }
    assert (memory.peak_bytes > 2.5e9) and memory.level == "block_offload"


@pytest.mark.parametrize(
    ("model", "gpu"),
    [(model, gpu) for model in UNLIKE if model.references for gpu in model.cards],
    ids=lambda value: value.title if isinstance(value, Model) else str(value),
)
def test_a_job_of_pairs_fits_the_gpu_it_is_written_for(
    model: Model, gpu: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its control images are as large as its images: fewer blocks stay, and the
    smallest GPUs have half the rank."""
    monkeypatch.chdir(tmp_path)
    for side in ("before", "after"):
        (tmp_path / side).mkdir()
        Image.new("RGB", (1024, 1024)).save(tmp_path / side / "a.png")
    pairs = found_pairs("after", control_path=["before"])
    text = written_job("zuzu", "after", "", model.id, gpu, pairs, "make it so")
    memory = plan_job(loaded(text, tmp_path)).processes[0].memory
    assert memory and min(memory.fitting()) <= model.cards[gpu].least_gb
    assert memory.peak_bytes <= gpu * 1e9


PUBLISHED = {
    name: title
    for family in map(FAMILIES.load, FAMILIES)
    for name, title in family.published.items()
}
"""Hub id -> name, of every member of the families."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_job_agrees_with_the_table_of_recipes(name: str) -> None:
    recipe = RECIPES[PUBLISHED[name]]
    (section,) = yaml.safe_load(job_text(24, model=name))["config"]["process"]
    train, network, (dataset,) = (
        section["train"],
        section["network"],
        section["datasets"],
    )
    assert (train["lr"], train["timestep_type"]) == (recipe.lr, recipe.timestep_type)
    assert (network["linear"], network["linear_alpha"]) == (recipe.rank, recipe.rank)
    assert dataset["resolution"] == [recipe.resolution]
    assert train.get("assistant") == (
        recipe.adapters[0].name if recipe.adapters else None
    )


def test_an_example_agrees_with_the_table_of_recipes() -> None:
    """What others found of characters: 2e-4 at rank 16 for Edit-2509, half of it for
    all others."""
    rates = {title: (recipe.lr, recipe.rank) for title, recipe in RECIPES.items()}
    assert rates == {
        title: (2e-4 if title == "Qwen-Image-Edit-2509" else 1e-4, 16)
        for title in PUBLISHED.values()
    }
    for model in MODELS:
        recipe = RECIPES[model.title]
        (section,) = yaml.safe_load(example_text(model, 24, "1.0"))["config"]["process"]
        assert (section["train"]["lr"], section["datasets"][0]["resolution"]) == (
            recipe.lr,
            [recipe.resolution],
        )


def test_the_training_adapter_is_on_and_the_plan_says_what_happens_without_it(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    name = RECIPES["Qwen-Image-2.1"].adapters[0].name
    text = job_text(24, model="Qwen/Qwen-Image-2.1")
    plan = plan_of(text, tmp_path)
    assert (
        f"train.assistant: {name} is not in the hub cache: the run downloads it first"
        in plan
    )
    assert (
        "training_adapter.safetensors times 1 is on in training, off in samples and validation"
        in plan
    )
    assert (
        'licence: what you publish of this training must display "Built with Qwen" and include'
        in plan
    )
    without = plan_of(text.replace(f"        assistant: {name}\n", ""), tmp_path)
    assert (
        "train.assistant: none. LoRAs of this model may collapse into texture while the loss falls"
        in without
    )
    assert f"others avoid this with {name} (docs/models.md)" in without
    for other in ("", "Qwen/Qwen-Image-2.1-Turbo"):
        text = job_text(24, model=other)
        plan = plan_of(text, tmp_path)
        assert "assistant:" not in text + plan and ("Built with Qwen" in plan) == bool(
            other
        )
    assert "sample_steps: 8\n" in text
    (warning,) = load_job(str(tmp_path / "zuzu.yaml"), discover().find_config).warnings
    assert "Qwen-Image-2.1-Turbo is distilled for 8 steps" in warning


def test_a_small_distilled_model_is_sampled_as_it_is_made_for(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "fast", TinySpec(arch="qwen_image_2"))
    index = tmp_path / "fast" / "model_index.json"
    index.write_text(
        json.dumps(json.loads(index.read_text()) | {"sample_sigmas": [1.0, 0.7, 0.4]})
    )
    text = job_text(24, model=str(tmp_path / "fast"))
    assert "sample_steps: 3\n" in text and "guidance_scale: 1\n" in text


def test_a_gpu_that_is_too_small_for_the_model_is_refused_and_nothing_is_written(
    tmp_path: Path, new
) -> None:
    with pytest.raises(UserError, match=r"2509 does not fit a GPU of 4 GB.*--gpu 6"):
        new("zuzu", PHOTOS, "--gpu", 4)
    assert not (tmp_path / "config").exists()
    with pytest.raises(UserError, match="Qwen-Image-Layered does not fit a GPU of 8"):
        job_text(8, model=LAYERED)
    assert job_text(4, model=str(TINY)), "a small model fits any"


@pytest.mark.parametrize(
    ("flags", "memory_gb", "line", "card"),
    [
        (["--gpu", "12"], 0, "for a GPU of 12 GB, such as an RTX 4070", "RTX 4070"),
        (["--gpu", "48"], 24, "for a GPU of 48 GB, such as an L40S", "L40S"),
        (
            [],
            0,
            "for a GPU of 24 GB, such as an RTX 4090 (none here; see --gpu)",
            "RTX 4090",
        ),
        (["--gpu", "20"], 24, "for a GPU of 20 GB", "GPU of 20 GB"),
        ([], 24, "for a GPU of 24 GB", "RTX 3090"),
        (["--model", str(TINY)], 0, "for a GPU of 24 GB (none here; see --gpu)", ""),
    ],
)
def test_the_card_that_the_plan_assumes_is_named(
    new,
    monkeypatch,
    said: list[str],
    flags: list[str],
    memory_gb: int,
    line: str,
    card: str,
) -> None:
    memory = memory_gb * 2**30
    monkeypatch.setattr("extensions.tools.new.config.least_memory", lambda: memory)
    gpu = Gpu("NVIDIA GeForce RTX 3090", 8, memory)
    monkeypatch.setattr(
        "extensions.tools.new.config.ask_nvml", lambda: (None, [gpu] if memory else [])
    )
    checks = new("zuzu", PHOTOS, *flags)
    assert f"config/zuzu.yaml: written {line}" in said
    text = Path("config/zuzu.yaml").read_text(encoding="utf-8")
    assert section_in(text, Path()).card == card, "the plan is for it on any machine"
    assumed = ("--card", card) if card and (flags or not memory) else ()
    assert checks[1] == (Path("config/zuzu.yaml"), "--dry-run", *assumed)


def test_the_first_command_of_a_user_makes_the_folder_of_jobs(
    new, tmp_path: Path
) -> None:
    """One of theirs too; in a folder that is there already another job is written."""
    assert not [*tmp_path.iterdir()]
    new("zuzu", PHOTOS)
    new("again", PHOTOS)
    new("zuzu", PHOTOS, "--output", "my/own/jobs/zuzu.yaml")
    written = ("config/zuzu.yaml", "config/again.yaml", "my/own/jobs/zuzu.yaml")
    names = [
        yaml.safe_load(Path(file).read_text())["config"]["name"] for file in written
    ]
    assert names == ["zuzu", "again", "zuzu"]


@pytest.mark.parametrize("found", [0, 1])
def test_the_end_says_what_to_do_where_the_job_cannot_start(
    new, monkeypatch, said: list[str], found: int
) -> None:
    """On a machine without a GPU: the command that tries the program, and where the job
    trains."""
    nothing = NvidiaFacts(torch_cuda="13.0", driver=None, devices=0)
    monkeypatch.setattr("toolkit.system.nvidia.read_facts", lambda: nothing)
    monkeypatch.setattr("extensions.tools.new.config.least_memory", lambda: 0)
    new("zuzu", PHOTOS, found=found)
    tried, to_train, last = said[-3:]
    assert not any("no such device" in line for line in said), "the plan says why"
    fixed = "fix what was found, " * found
    images = "copy config/zuzu.yaml and its images to a machine with a GPU of 24 GB"
    assert (
        to_train
        == f"to train it: check config/zuzu.html, {fixed}put your prompts into config/zuzu.yaml, {images}, and there"
    )
    assert last.endswith(" config/zuzu.yaml") and not [
        line for line in said if line.startswith("next:")
    ]
    _, words = tried.split("to try the program here: ")
    again = shlex.split(words)
    assert again[again.index("new") :] == [
        "new",
        "zuzu_try",
        str(PHOTOS),
        "--model",
        "config/examples/tiny_mascots",
    ]
    new(*again[again.index("new") + 1 :], found=found)
    assert (
        said[-2]
        == f"next: check config/zuzu_try.html, {fixed}put your prompts into config/zuzu_try.yaml, then"
    )


def test_the_help_names_the_smallest_gpu_of_each_model() -> None:
    about = " ".join(field_at(NewConfig, "gpu")[1].split())
    least = {
        model.title: min(card.least_gb for card in model.cards.values())
        for model in MODELS
    }
    others = {gb for title, gb in least.items() if title not in about}
    assert others == {6} and "6 for other Qwen-Image models" in about
    named = {title: gb for title, gb in least.items() if title in about}
    assert len(named) == 2 and all(
        f"{gb} for {title}" in about for title, gb in named.items()
    )
    known = {model.arch for model in MODELS}
    of_others = {
        min(card.least_gb for card in model.cards.values())
        for model in all_models()
        if model.arch not in known
    }
    assert of_others == {8} and "and 8 for other families" in about


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("'my char!' after", "job_name: 'my char!' cannot be the name of a run: letters, digits, "
         "'_', '-' and '.' only, no ending of a file. Write 'my_char'."),
        ("a after --model black-forest-labs/FLUX.1-dev", "--model: 'black-forest-labs/FLUX.1-dev' is another"
         " model (FLUX)"),
        ("a after --model me/finetune", "--model: 'me/finetune' is not on this disk, so its family "
         "is not known. Run 'hf"),
        ("a after --model Qwen/Qwen-Image-Edit-2508x", "Did you mean 'Qwen/Qwen-Image-Edit-2509'? Run 'hf"),
        (f"a 'my set.zip' --model '{TINY}'", "my set.zip' is a zip file, which jobs read and this tool does not. "
         "Unpack"),
        ("after zuzu", "folder: 'zuzu' is not a folder, and 'after' is one: the name comes first. "),
        ("after zuzu", " new zuzu after"),
        ("a after/1.png", "folder: 'after/1.png' is a file. Give its folder, 'after'."),
        ("a after --gpu 4090", "--gpu: 4090 is the name of a card. Write its GB, 24."),
        ("a after --gpu 'RTX 4060 Ti'", "--gpu: 'RTX 4060 Ti' is the name of a card. Write its GB, 16."),
        ("a after --control-path befor", "--control-path: 'befor' is not a folder"),
        ("a after --control-path other", "no image in 'after' has a control image of its name in other (there: "),
        ("a after --control-path before --model Qwen/Qwen-Image-2512", "takes none. Leave the folders"),
        ("a pairs --model Qwen/Qwen-Image-2512", " or black-forest-labs/FLUX.2-klein-base-4B or "),
    ],
)  # fmt: skip
def test_a_mistake_names_what_to_write_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    """Before the job is written."""
    monkeypatch.chdir(tmp_path)
    for folder, name in (("after", "1"), ("before", "1"), ("other", "one")):
        draw(tmp_path / folder, name)
    draw(tmp_path / "pairs", "1_start", "1_end")
    Path("my set.zip").write_bytes(b"PK")
    with pytest.raises(UserError) as refused:
        load_tool("new", NewConfig, shlex.split(line))
    assert said in str(refused.value) and "arch" not in str(refused.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("my_char.yaml", "my_char"),
        ("config/my_char.yaml", "my_char"),
        ("config/my_char", "my_char"),
        ("./my_char/", "my_char"),
        (r"config\my_char.YML", "my_char"),
        ("~/jobs/my_char.json", "my_char"),
        ("my_char.yaml.yaml", "my_char"),
        ("My Char.jsonc", "My_Char"),
        ("name=my_char", "my_char"),
        ("name: my_char", "my_char"),
        ("my_char.yaml ", "my_char"),
        ("my_char.safetensors", "my_char"),
        (".yaml", "my_char"),
    ],
)
def test_a_path_as_the_name_is_refused_with_the_name_that_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, meant: str
) -> None:
    """Else the ending would be a part of the trigger word. The remedies are pasted."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "after", "1")
    with pytest.raises(UserError) as refused:
        load_tool("new", NewConfig, [typed, "after"])
    (name,) = re.findall(r"Write '(.*)'\.$", str(refused.value))
    assert name == meant and load_tool("new", NewConfig, [name, "after"])
    with pytest.raises(UserError, match="the name comes first") as refused:
        load_tool("new", NewConfig, ["after", typed])
    _, words = str(refused.value).split(" new ")
    assert load_tool("new", NewConfig, shlex.split(words))


def test_what_was_asked_for_is_in_the_job_whatever_characters_it_has(
    tmp_path: Path,
) -> None:
    asked = {
        "folder": r'it\1 "is" mine: #1',
        "trigger": "ohwx 'a' \\g<0>",
        "model": str(TINY),
    }
    (tmp_path / asked["folder"]).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        section = section_in(job_text(24, **asked), tmp_path)
    assert section.datasets[0].folder_path == asked["folder"]
    assert (section.trigger_word, section.model.name_or_path) == (
        asked["trigger"],
        str(TINY),
    )
    assert all(
        "[trigger]" in sample.prompt and not sample.ctrl_img
        for sample in section.sample.samples
    )


def test_the_written_job_names_the_schema_for_editors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pictures
) -> None:
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path / "photos", "a")
    config = load_tool("new", NewConfig, ["zuzu", "photos", "--output", "jobs/a.yaml"])
    text = config.processes[0].section.job_text()
    (place,) = re.findall(
        r"^# yaml-language-server: \$schema=(\S+)$", text, re.MULTILINE
    )
    assert (tmp_path / "jobs" / place).resolve() == ROOT / "docs" / "job.schema.json"


@pytest.mark.parametrize("model", [str(TINY), "Qwen/Qwen-Image-Edit-2511"])
def test_regularisation_images_beside_the_character_are_a_dataset(
    tmp_path: Path, model: str
) -> None:
    for name in ("40_zuzu", "1_reg_dog"):
        (tmp_path / "my images" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), "red").save(tmp_path / "my images" / name / "a.png")
    text = job_text(24, folder=str(tmp_path / "my images"), model=model)
    character, regularisation = section_in(text, tmp_path).datasets
    assert (character.folder_path, character.is_reg) == (
        f"{tmp_path}/my images/40_zuzu",
        False,
    )
    assert (regularisation.folder_path, regularisation.is_reg) == (
        f"{tmp_path}/my images/1_reg_dog",
        True,
    )


@pytest.mark.parametrize("model", [str(TINY), "Qwen/Qwen-Image-Edit-2511"])
def test_folders_for_validation_and_test_are_left_out(
    tmp_path: Path, model: str
) -> None:
    for name in ("test", "train", "validation"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), "red").save(tmp_path / "set" / name / "a.png")
    (tmp_path / "set" / "metadata.jsonl").write_text(
        '{"file_name": "train/a.png", "text": "a cat"}\n'
    )
    text = job_text(24, folder=str(tmp_path / "set"), model=model)
    (dataset,) = section_in(text, tmp_path).datasets
    assert (dataset.folder_path, dataset.captions_file) == (
        f"{tmp_path}/set/train",
        f"{tmp_path}/set/metadata.jsonl",
    )
    assert [image.caption for image in find_images(dataset)[0]] == ["a cat"]
    assert left_out_in(str(tmp_path / "set")) == ["test", "validation"]


def test_pairs_as_other_programs_name_them_are_pairs_of_the_job(tmp_path: Path) -> None:
    for name in ("a_end", "a_start", "a_start2", "b_end", "b_start"):
        (tmp_path / "1_pairs").mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), "red").save(tmp_path / "1_pairs" / f"{name}.png")
    plan = plan_of(job_text(24, folder=str(tmp_path), model=str(TINY)), tmp_path)
    assert (
        f"{tmp_path}/1_pairs: 2 x 1 = 2 samples" in " ".join(plan.split())
        and "1 with 1, 1 with 2" in plan
    )


def draw(folder: Path, *names: str, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (96, 64), "red").save(folder / f"{name}{suffix}")


def pair_job(folder: Path, *flags: str) -> tuple[DatasetConfig, object, str]:
    """The dataset and the process of the job that `run.py new` writes, and the whole of
    it."""
    section = load_tool("new", NewConfig, ["zuzu", *flags]).processes[0].section
    text = section.job_text()
    process = section_in(text, folder)
    (dataset,) = process.datasets
    return dataset, process, text


@pytest.mark.parametrize("model", ["Qwen/Qwen-Image-Edit-2511", str(TINY)])
def test_two_folders_are_a_job_of_pairs_as_the_guide_describes_it(
    tmp_path: Path, model: str
) -> None:
    (
        draw(tmp_path / "after", "1", "2", "3"),
        draw(tmp_path / "before", "1", "2", "3", suffix=".jpg"),
    )
    (tmp_path / "after" / "1.txt").write_text("draw it")
    flags = ["--model", model, "--gpu", "24", "--default-caption", "a drawing: #1"]
    after, before = str(tmp_path / "after"), str(tmp_path / "before")
    dataset, process, text = pair_job(tmp_path, after, "--control-path", before, *flags)
    assert (dataset.folder_path, dataset.control_path, dataset.control_optional) == (
        after,
        (before,),
        False,
    )
    assert dataset.default_caption == "a drawing: #1" and process.trigger_word == ""
    rank, steps, rate = (16, 300, 0.003) if model == str(TINY) else (32, 3000, 0.0001)
    assert (process.network.linear, process.network.linear_alpha) == (rank, rank)
    assert (process.train.steps, process.train.lr) == (steps, rate)
    drawn = [
        (each.prompt, each.ctrl_img, each.width, each.height)
        for each in process.sample.samples
    ]
    assert drawn == [
        ("draw it", (f"{before}/1.jpg",), 96, 64),
        ("a drawing: #1", (f"{before}/3.jpg",), 96, 64),
    ]
    assert "docs/before_and_after_pairs.md" in text and "first_character" not in text
    assert "control images: 3 with 1" in plan_of(text, tmp_path)


def test_several_control_images_have_their_places(tmp_path: Path) -> None:
    for name in ("after", "persons", "clothes"):
        draw(tmp_path / name, "1")
    folders = [str(tmp_path / name) for name in ("persons", "clothes")]
    dataset, process, text = pair_job(
        tmp_path, str(tmp_path / "after"), "--control-path", *folders
    )
    assert dataset.control_path == tuple(folders)
    assert [each.ctrl_img for each in process.sample.samples] == [
        tuple(f"{each}/1.png" for each in folders)
    ]
    assert (
        '# default_caption: "turn the photo into a drawing"   # 1 have no caption'
        in text
    )


@pytest.mark.parametrize(
    ("names", "place", "keys"),
    [
        (
            ("a_start", "a_end", "b_start", "b_end"),
            "",
            {"image_suffix": "_end", "control_suffix": ("_start",)},
        ),
        (
            ("before_1", "after_1", "before_2", "after_2"),
            "",
            {"image_suffix": "after_*"},
        ),
        (
            ("before/a", "after/a", "after/b", "before/b"),
            "/after",
            {"control_path": ("{folder}/before",)},
        ),
        (("source/a", "target/a"), "/target", {"control_path": ("{folder}/source",)}),
        (("a AFTER", "a BEFORE"), "", {"image_suffix": " AFTER"}),
    ],
)
def test_names_of_pairs_make_a_job_of_pairs(
    tmp_path: Path, names: tuple[str, ...], place: str, keys: dict[str, object]
) -> None:
    for name in names:
        draw((tmp_path / "set" / name).parent, Path(name).name)
    dataset, process, _ = pair_job(tmp_path, str(tmp_path / "set"))
    assert (
        dataset.folder_path == f"{tmp_path}/set{place}" and process.trigger_word == ""
    )
    for key, value in keys.items():
        filled = (
            tuple(each.format(folder=tmp_path / "set") for each in value)
            if isinstance(value, tuple)
            else value
        )
        assert getattr(dataset, key) == filled
    assert all(sample.ctrl_img for sample in process.sample.samples)


TABLES = {
    "rows.csv": "file_name,source_image,instruction\nafter/1.png,before/1.png,draw it\nafter/2.png,before/2.png,\n",
    "rows.jsonl": '{"edited_image": "after/1.png", "original_image": "before/1.png", "edit_prompt": "draw it"}\n'
    '{"edited_image": "after/2.png", "original_image": "before/2.png", "edit_prompt": "draw it"}\n',
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_pairs_is_a_job_of_pairs(tmp_path: Path, table: str) -> None:
    (
        draw(tmp_path / "set" / "after", "1", "2"),
        draw(tmp_path / "set" / "before", "1", "2"),
    )
    (tmp_path / "set" / table).write_text(TABLES[table])
    dataset, process, text = pair_job(
        tmp_path, str(tmp_path / "set" / table), "--default-caption", "a drawing"
    )
    assert (
        dataset.captions_file == f"{tmp_path}/set/{table}" and not dataset.folder_path
    )
    assert process.trigger_word == "" and dataset.default_caption == "a drawing"
    assert process.sample.samples[0].prompt == "draw it"
    assert "control images: 2 with 1" in plan_of(text, tmp_path)


def test_a_table_in_the_folder_of_the_images_makes_pairs_too(tmp_path: Path) -> None:
    draw(tmp_path / "set", "1", "2", "1b", "2b")
    rows = [
        {"file_name": f"{n}b.png", "before_file_name": f"{n}.png", "text": "draw it"}
        for n in (1, 2)
    ]
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset, process, text = pair_job(tmp_path, str(tmp_path / "set"))
    assert dataset.folder_path == f"{tmp_path}/set" and process.trigger_word == ""
    assert "control images: 2 with 1" in plan_of(text, tmp_path)


def test_what_was_found_is_said_with_what_has_no_partner(
    tmp_path: Path, new, said: list[str]
) -> None:
    draw(tmp_path / "after", "1", "2", "a")
    draw(tmp_path / "before", "1", "2", "b")
    new("x", "after", "--control-path", "before")
    (line,) = (line for line in said if "partner" in line)
    assert line.startswith(
        "2 pairs in after; after/a.png, before/b.png have no partner: give each one of the same name"
    )
    (tmp_path / "before" / "b.png").rename(tmp_path / "before" / "a.png")
    pairs = found_pairs("after", ["before"])
    assert pairs and pairs.describe() == "3 pairs in after"
    draw(tmp_path / "both", "1_start", "1_end", "a")
    pairs = found_pairs("both")
    said_of_both = "1 pair in both (the control images of X_end are X_start); both/a.png has no partner"
    assert pairs and pairs.describe().startswith(said_of_both)


def test_the_small_model_says_what_it_cannot_draw(
    tmp_path: Path, new, said: list[str]
) -> None:
    for suffix, warns in ((".jpg", True), (".png", False)):
        draw(tmp_path / f"images{suffix}", "1", "2", suffix=suffix)
        said.clear()
        new(f"x{suffix}", f"images{suffix}", "--model", TINY)
        warned = "draws flat mascots only, and photographs become mush"
        assert any(warned in line for line in said) is warns


LAYERED = "Qwen/Qwen-Image-Layered"


@pytest.fixture(scope="module")
def tiny_layered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layered")
    write_tiny_model(folder, TinySpec(arch="qwen_image_layered"))
    return folder


def rename_layers(folder: Path, to: str) -> None:
    """to: place of a layer in the folder, as a pattern of its number."""
    for path in folder.glob("*_layer*.png"):
        stem, _, number = path.stem.rpartition("_layer")
        (folder / to.format(stem=stem, number=number)).parent.mkdir(exist_ok=True)
        path.rename(folder / to.format(stem=stem, number=number))


@pytest.mark.parametrize(
    ("named", "key", "small"),
    [
        ("{stem}_layer{number}.png", "layers_suffix: _layer", True),
        ("{stem}_layer{number}.png", "layers_suffix: _layer", False),
        ("{stem}_{number}.png", "layers_suffix: _", True),
    ],
)
def test_layers_are_learned_and_the_first_image_is_taken_apart(
    tmp_path: Path, tiny_layered: Path, named: str, key: str, small: bool
) -> None:
    write_layers(tmp_path / "posters", 3)
    write_layers(tmp_path / "posters", 2, stem="b")
    rename_layers(tmp_path / "posters", named)
    folder = tmp_path / "posters"
    text = job_text(
        24, folder=str(folder), model=str(tiny_layered) if small else LAYERED
    )
    assert f"          {key.format(folder=folder)} " in text
    assert not {"control_suffix", "match_target_res"} & {*re.findall(r"\w+", text)}
    (sample,) = section_in(text, tmp_path).sample_pictures()
    assert (sample.ctrl_img, sample.layers) == ((str(folder / "a.png"),), 3)
    plan = plan_of(text, tmp_path)
    assert (
        f"{folder}: 2 x 1 = 2 samples" in " ".join(plan.split())
        and "layers: 1 with 2, 1 with 3" in plan
    )


@pytest.mark.parametrize(
    "shape", ["plain", "a folder for each image", "numbers without a name", "elsewhere"]
)
def test_images_without_layers_are_refused_for_a_model_of_layers(
    tmp_path: Path, shape: str
) -> None:
    folder = tmp_path / "posters"
    _, *layers = write_layers(folder, 2)
    (folder / "a").mkdir()
    for number, layer in enumerate(layers):
        places = {
            "a folder for each image": f"a/layer{number}.png",
            "numbers without a name": f"layer{number}.png",
        }
        layer.unlink() if shape == "plain" else layer.rename(
            folder / places.get(shape, f"a/a_layer{number}.png")
        )
    section = NewConfig(type="new", job_name="zuzu", folder=str(folder), model=LAYERED)
    assert [finding.message for finding in section.check(JobContext("new"))] == [
        f"'{folder}': no image has layers, and Qwen-Image-Layered learns them. Save those of a.png, each with the "
        f"whole canvas, as a_layer0.png (the back), a_layer1.png and so on, beside it. "
        "See docs/datasets.md."
    ]
    other = NewConfig(type="new", job_name="zuzu", folder=str(folder), model=str(TINY))
    assert not list(other.check(JobContext("new")))


def test_layers_are_told_and_shown_by_the_check(
    tmp_path: Path, new, tiny_layered: Path, said: list[str]
) -> None:
    write_layers(tmp_path / "posters", 2)
    (uid, *flags), _ = new("zuzu", "posters", "--model", tiny_layered)
    told = "layers: 2 of posters/a.png (layers_suffix: _layer); docs/datasets.md"
    assert any(told in line for line in said)
    with suppress(RunError):
        run_tool(uid, flags)
    page = Path("config/zuzu.html").read_text(encoding="utf-8")
    assert re.findall(r"layer (\d)</figure>", page) == ["0", "1"]


@pytest.mark.slow
def test_the_file_of_a_transformer_is_the_model_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    family = family_for(ModelConfig(name_or_path="Qwen/Qwen-Image-Edit-2511"))
    file = tmp_path / "qwen_image_edit_2511_bf16.safetensors"
    write_header(family.weight_shapes(tmp_path), file)
    section = NewConfig(
        type="new", job_name="zuzu", folder=str(PHOTOS), model=str(file)
    )
    assert "Give model.vae_path" in next(iter(section.check(JobContext("new")))).message
    for part in ("vae", "text_encoder"):
        write_header(
            family.encoder_weights(part, tmp_path), tmp_path / f"{part}.safetensors"
        )
    plan = plan_of(job_text(24, model=str(file)), tmp_path)
    assert "Qwen-Image-Edit-2511 by its weights" in plan
    assert (
        "Qwen/Qwen-Image-Edit-2511: the run downloads its configs and tokenizer, and no weights"
        in plan
    )
    assert "download: 20 MB, to " in plan


@pytest.mark.slow
def test_a_job_is_written_checked_and_runs_by_the_printed_command(
    tmp_path: Path, run_py
) -> None:
    made = run_py("new", "zuzu", PHOTOS, "--model", TINY)
    assert made.returncode == 0, made.stderr
    job = tmp_path / "config" / "zuzu.yaml"
    assert (
        "zuzu (sd_trainer)" in made.stdout
        and (tmp_path / "config" / "zuzu.html").is_file()
    )
    job.write_text(
        job.read_text()
        .replace("steps: 240", "steps: 1")
        .replace("sample_steps: 8", "sample_steps: 1")
    )
    program, script, *words = shlex.split(made.stdout.splitlines()[-1])
    assert (program, Path(script).name) == (sys.executable, "run.py")
    trained = run_py(*words)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "output" / "zuzu" / "zuzu.safetensors").is_file()


def test_a_job_that_exists_is_not_replaced(
    tmp_path: Path, new, said: list[str]
) -> None:
    """The same command finds its own file, as where it was interrupted."""
    for _ in range(2):
        new("zuzu", PHOTOS)
    assert any("zuzu.yaml: is there as written before" in line for line in said)
    job = tmp_path / "config" / "zuzu.yaml"
    job.write_text("mine")
    exists = r"exists, with other contents, and is never replaced. Run it \("
    with pytest.raises(UserError, match=exists):
        new("zuzu", PHOTOS)
    assert job.read_text() == "mine"


@pytest.mark.slow
def test_images_that_a_start_refuses_are_not_called_errors_of_the_job(
    tmp_path: Path, run_py
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("no image")
    made = run_py("new", "zuzu", "photos", "--model", TINY)
    assert made.returncode == 1
    said = made.stderr.splitlines()
    assert (
        said[-3].startswith("config/zuzu.yaml:")
        and "datasets[0].folder_path: 1 file of 'photos' cannot" in said[-3]
    )
    assert said[-2].startswith("photos/a.png: is not a JPEG")
    assert said[-1].startswith(
        "config/zuzu.yaml was written, but a start would refuse what stands above."
    )


@pytest.mark.parametrize("model", ["", str(TINY)])
def test_numbers_that_are_probably_no_repeats_are_parts_of_names(
    tmp_path: Path, model: str
) -> None:
    """The job says so in its comment; other numbers are repeats as ever."""
    for number, name in enumerate(("anna", "bob", "carl"), 1):
        for place in (
            tmp_path / "counted" / f"{number:02}_{name}",
            tmp_path / "repeated" / f"{10 * number}_{name}",
        ):
            place.mkdir(parents=True)
            Image.new("RGB", (64, 64), (9 * number, 0, 0)).save(place / "a.png")
    text = job_text(24, folder=str(tmp_path / "counted"), model=model)
    assert "          num_repeats: 1 " in text
    assert "# the numbers of its folders count up; without this key: repeats" in text
    assert "num_repeats" not in job_text(
        24, folder=str(tmp_path / "repeated"), model=model
    )
    assert (
        "02_bob: 1 x 1" in (plan := plan_of(text, tmp_path))
        and "are the numbers of" not in plan
    )


def test_new_says_that_numbers_are_not_taken_for_repeats(
    tmp_path: Path, new, said: list[str]
) -> None:
    for name in ("2023_summer", "2024_winter"):
        draw(tmp_path / "photos" / name, "a")
    new("zuzu", "photos", "--model", TINY)
    dates = "the numbers of its folders look like dates, and are not taken for repeats"
    assert any(line.startswith(f"photos: {dates}") for line in said)
