"""The workflows of a LoRA: every node is one that ComfyUI has, filled as ComfyUI fills
it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions.sd_trainer import comfyui
from extensions.sd_trainer.comfyui import MARK, is_own, workflow, write_workflows
from extensions.sd_trainer.config import SdTrainerConfig
from tests.running import lines, run_job
from toolkit.config.sections.dataset import DatasetConfig
from toolkit.config.sections.lora_beside import LoraBeside
from toolkit.config.sections.model import BaseLora, ModelConfig, ModelKwargs
from toolkit.config.sections.model_files import published
from toolkit.config.sections.network import NetworkConfig
from toolkit.config.sections.output import SampleConfig, SampleItem, SaveConfig
from toolkit.config.sections.train import TrainConfig
from toolkit.flow.sampler import sigmas
from toolkit.models.comfyui import MODELS, WITHOUT
from toolkit.models.families import family_for, title_of
from toolkit.models.folder_family import dynamic_shift
from toolkit.models.tiny import TinySpec, write_tiny_model

NODES: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("comfyui_nodes.json").read_text(encoding="utf-8")
)["nodes"]
"""Recorded from ComfyUI: name of a node -> its inputs and outputs."""

WIDGETS = {
    "INT": int,
    "FLOAT": (int, float),
    "STRING": str,
    "COMBO": str,
    "FILE": str,
    "BOOLEAN": bool,
}
BEHIND = {"control_after_generate": ("fixed",), "image_upload": ("image",)}
ONLY_SHOWN = "MarkdownNote"

IDS = {title: f"Qwen/{title}" for title in MODELS}


def section(
    title: str, model: dict[str, Any] | None = None, **changes: Any
) -> SdTrainerConfig:
    given = {
        "type": "sd_trainer",
        "model": ModelConfig(name_or_path=IDS.get(title, title), **(model or {})),
        "network": NetworkConfig(linear=16),
        "save": SaveConfig(),
        "train": TrainConfig(),
        "datasets": (DatasetConfig(folder_path="photos"),),
        "trigger_word": "maya",
        "sample": SampleConfig(
            width=1216,
            height=832,
            seed=7,
            neg="blurry",
            samples=(
                SampleItem(prompt="[trigger] in a street"),
                SampleItem(
                    prompt="put a crown on it", ctrl_img=("in/a.png", "in/b.png")
                ),
                SampleItem(prompt="[trigger] on a boat"),
            ),
        ),
    }
    return SdTrainerConfig(**(given | changes))


def to_api(contents: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The nodes by id with their inputs by name, as ComfyUI's frontend sends them:
    links as (node, output), widgets in the order of the node's inputs. Asserts what
    ComfyUI asserts of each."""
    nodes = {node["id"]: node for node in contents["nodes"]}
    links = {link[0]: link for link in contents["links"]}
    assert len(nodes) == len(contents["nodes"]) == contents["last_node_id"]
    assert len(links) == len(contents["links"]) == contents["last_link_id"]
    for number, source, output, target, place, kind in contents["links"]:
        end = nodes[source]["outputs"][output]
        assert number in end["links"] and end["type"] == kind
        assert nodes[target]["inputs"][place] == {
            "name": nodes[target]["inputs"][place]["name"],
            "type": kind,
            "link": number,
        }
    prompt = {}
    for node in nodes.values():
        if node["type"] == ONLY_SHOWN:
            continue
        known = NODES[node["type"]]
        ends = [[end["name"], end["type"]] for end in node["outputs"]]
        assert ends == known["outputs"] or node["type"] == "SaveImage"
        linked = {
            slot["name"]: links[slot["link"]] for slot in node["inputs"] if slot["link"]
        }
        prompt[node["id"]] = {
            "class": node["type"],
            "inputs": _inputs(known, linked, list(node["widgets_values"])),
        }
    return prompt


def _inputs(
    known: dict[str, Any], linked: dict[str, list[Any]], widgets: list[Any]
) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for one in known["inputs"]:
        name, kind = one["name"], one["type"]
        if "names" in one:  # it grows with its links
            for each in one["names"]:
                full = name.replace("*", each)
                if full in linked:
                    inputs[full] = tuple(linked.pop(full)[1:3])
        elif kind in WIDGETS:
            if not widgets and one.get("optional"):
                continue
            value = inputs[name] = widgets.pop(0)
            assert isinstance(value, WIDGETS[kind]), (name, value)
            assert value in one.get("options", (value,)), (name, value)
            assert kind == "STRING" or one.get("min", value) <= value <= one.get(
                "max", value
            ), (name, value)
            assert kind != "INT" or value % one.get("step", 1) == 0, (name, value)
            if "then" in one:
                assert widgets.pop(0) in BEHIND[one["then"]]
        elif name in linked:
            link = linked.pop(name)
            assert link[5] == kind, (name, link)
            inputs[name] = tuple(link[1:3])
        else:
            assert one.get("optional"), f"{name} is not connected"
    assert not widgets and not linked, (widgets, linked)
    return inputs


def of_class(prompt: dict[int, dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [node["inputs"] for node in prompt.values() if node["class"] == name]


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize("title", MODELS)
def test_each_node_is_as_comfyui_has_it_and_the_sampler_gets_the_lora(
    title: str, with_images: bool
) -> None:
    prompt = to_api(
        workflow("maya.safetensors", section(title), title, with_images, 2.0)
    )
    [sampler], [lora] = (
        of_class(prompt, "KSampler"),
        of_class(prompt, "LoraLoaderModelOnly"),
    )
    assert (lora["lora_name"], lora["strength_model"]) == ("maya.safetensors", 1.0)
    passed, node = [], sampler["model"][0]
    while "model" in prompt[node]["inputs"]:
        passed.append(prompt[node]["class"])
        node = prompt[node]["inputs"]["model"][0]
    assert prompt[node]["class"] == "UNETLoader" and passed[-1] == "LoraLoaderModelOnly"
    assert prompt[node]["inputs"]["unet_name"] == MODELS[title].diffusion_model
    assert of_class(prompt, "CLIPLoader")[0]["type"] == "qwen_image"
    assert of_class(prompt, "SaveImage")[0]["filename_prefix"] == "maya"


def test_settings_are_those_of_the_first_sample_of_its_kind() -> None:
    text = to_api(
        workflow(
            "maya.safetensors",
            section("Qwen-Image-2512"),
            "Qwen-Image-2512",
            False,
            2.25,
        )
    )
    [sampler], [size] = (
        of_class(text, "KSampler"),
        of_class(text, "EmptySD3LatentImage"),
    )
    assert (sampler["seed"], sampler["steps"], sampler["cfg"]) == (7, 20, 4.0)
    assert (size["width"], size["height"]) == (1216, 832)
    assert [one["text"] for one in of_class(text, "CLIPTextEncode")] == [
        "maya in a street",
        "blurry",
    ]
    assert of_class(text, "ModelSamplingAuraFlow")[0]["shift"] == 2.25
    title = "Qwen-Image-Edit-2509"
    edit = to_api(workflow("maya.safetensors", section(title), title, True, 2.25))
    assert [one["image"] for one in of_class(edit, "LoadImage")] == ["a.png", "b.png"]
    prompts = of_class(edit, "TextEncodeQwenImageEditPlus")
    assert [one["prompt"] for one in prompts] == ["put a crown on it", "blurry"]
    assert all(
        {"vae", "image1", "image2"} <= set(one) and "image3" not in one
        for one in prompts
    )


def test_control_images_reach_each_model_by_its_own_way() -> None:
    first = to_api(
        workflow(
            "m.safetensors", section("Qwen-Image-Edit"), "Qwen-Image-Edit", True, 2
        )
    )
    assert (
        len(of_class(first, "LoadImage")) == 1
        and "image" in of_class(first, "TextEncodeQwenImageEdit")[0]
    )
    methods = of_class(
        to_api(
            workflow(
                "m.safetensors",
                section("Qwen-Image-Edit-2511"),
                "Qwen-Image-Edit-2511",
                True,
                2,
            )
        ),
        "FluxKontextMultiReferenceLatentMethod",
    )
    assert [one["reference_latents_method"] for one in methods] == [
        "index_timestep_zero"
    ] * 2
    own = section(
        "Qwen-Image-2.1", {"model_kwargs": ModelKwargs(match_target_res=True)}
    )
    [prompt] = of_class(
        to_api(workflow("m.safetensors", own, "Qwen-Image-2.1", True, 2)),
        "TextEncodeQwenImage21",
    )
    # the side of a square of 1216 x 832, in steps of 32
    assert prompt["resolution"] == 992
    assert {"images.image_1", "images.image_2", "vae"} <= set(prompt)
    # 2509 and 2511 were trained with these words around the prompt, also without
    # images.
    alone = to_api(
        workflow(
            "m.safetensors",
            section("Qwen-Image-Edit-2509"),
            "Qwen-Image-Edit-2509",
            False,
            2,
        )
    )
    assert all(
        set(one) == {"clip", "prompt"}
        for one in of_class(alone, "TextEncodeQwenImageEditPlus")
    )


def test_without_samples_it_has_the_trigger_word_and_the_models_own_settings() -> None:
    prompt = to_api(
        workflow(
            "m.safetensors",
            section("Qwen-Image-2.1", sample=None),
            "Qwen-Image-2.1",
            True,
            2,
        )
    )
    [sampler] = of_class(prompt, "KSampler")
    assert (sampler["steps"], sampler["cfg"], sampler["seed"]) == (40, 1.0, 42)
    assert of_class(prompt, "TextEncodeQwenImage21")[0]["prompt"] == "maya"
    assert len(of_class(prompt, "LoadImage")) == 1


def test_steps_of_a_lora_of_the_samples_are_not_those_of_the_workflow() -> None:
    fast = SampleConfig(
        lora=LoraBeside(path="lightning.safetensors"),
        samples=(SampleItem(prompt="a", sample_steps=4, guidance_scale=1),),
    )
    own = section("Qwen-Image-2512", sample=fast)
    prompt = to_api(workflow("m.safetensors", own, "Qwen-Image-2512", False, 2))
    [sampler] = of_class(prompt, "KSampler")
    assert (sampler["steps"], sampler["cfg"]) == (20, 4.0)
    assert len(of_class(prompt, "LoraLoaderModelOnly")) == 1


def test_base_loras_and_single_files_have_their_own_names() -> None:
    base = {"base_loras": (BaseLora(path="loras/style.safetensors", multiplier=0.8),)}
    own = section("Qwen-Image", {**base, "vae_path": "models/my_vae.safetensors"})
    prompt = to_api(workflow("m.safetensors", own, "Qwen-Image", False, 2))
    loras = [
        (one["lora_name"], one["strength_model"])
        for one in of_class(prompt, "LoraLoaderModelOnly")
    ]
    assert loras == [("style.safetensors", 0.8), ("m.safetensors", 1.0)]
    assert of_class(prompt, "VAELoader") == [{"vae_name": "my_vae.safetensors"}]


def test_the_note_names_the_files_the_trigger_word_and_the_other_prompts() -> None:
    contents = workflow(
        "maya.safetensors", section("Qwen-Image"), "Qwen-Image", False, 2
    )
    [note] = [
        node["widgets_values"][0]
        for node in contents["nodes"]
        if node["type"] == ONLY_SHOWN
    ]
    assert "`models/loras/maya.safetensors`" in note and "trigger word: `maya`" in note
    assert "- maya on a boat" in note and "crown" not in note and "street" not in note


def test_every_published_model_has_a_workflow_or_a_reason() -> None:
    titles = {
        family.published[name]
        for name, family in published().items()
        if type(family).__module__.startswith("toolkit.")
    }
    assert titles == set(MODELS) | set(WITHOUT) and not set(MODELS) & set(WITHOUT)


# ---------------------------------------------------------------- the files


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model counts as one of full size."""
    monkeypatch.setattr(comfyui, "LARGE_MODEL_BLOCKS", 1)


def test_what_was_trained_decides_which_files_there_are(
    tmp_path: Path, tiny_model: Path, large: None, said: list[str]
) -> None:
    lora, chosen = tmp_path / "maya.safetensors", section(str(tiny_model))
    assert [
        path.name for path in write_workflows(lora, chosen, edits=False, plain=True)
    ] == ["maya_comfyui.json"]
    assert [
        path.name for path in write_workflows(lora, chosen, edits=True, plain=False)
    ] == ["maya_comfyui_edit.json"]
    assert len(write_workflows(lora, chosen, edits=True, plain=True)) == 2
    assert (
        said[0]
        == f"for ComfyUI: {tmp_path / 'maya_comfyui.json'} (drop it into the window: docs/use_your_lora.md)"
    )


def test_a_small_model_has_none(tmp_path: Path, tiny_model: Path) -> None:
    assert not write_workflows(
        tmp_path / "m.safetensors", section(str(tiny_model)), edits=True, plain=True
    )
    assert not [*tmp_path.iterdir()]


def test_a_model_without_a_workflow_says_what_to_open(
    tmp_path: Path, large: None, said: list[str]
) -> None:
    write_tiny_model(tmp_path / "layered", TinySpec(arch="qwen_image_layered"))
    assert not write_workflows(
        tmp_path / "m.safetensors", section(str(tmp_path / "layered")), True, False
    )
    assert (
        "no ComfyUI workflow for Qwen-Image-Layered: open ComfyUI's template for Qwen-Image-Layered."
        in said
    )


def test_the_noise_levels_are_those_of_the_jobs_samples(
    tmp_path: Path, tiny_model: Path, large: None
) -> None:
    chosen = section(str(tiny_model))
    write_workflows(tmp_path / "m.safetensors", chosen, edits=False, plain=True)
    prompt = to_api(
        json.loads((tmp_path / "m_comfyui.json").read_text(encoding="utf-8"))
    )
    shift = of_class(prompt, "ModelSamplingAuraFlow")[0]["shift"]
    family = family_for(chosen.model)
    size = family.latent_size(comfyui.Size(1216, 832))
    ours = sigmas(20, dynamic_shift(tiny_model).mu(family.tokens(size), 20), None)[:-1]
    even = torch.linspace(1, 1 / 20, 20)
    # comfy/model_sampling.py, time_snr_shift; scheduler simple
    theirs = shift * even / (1 + (shift - 1) * even)
    assert title_of(chosen.model, family) == "Qwen-Image-Edit-2509"
    assert torch.allclose(ours, theirs, atol=0.002)


def test_only_a_file_that_the_program_wrote_is_replaced(
    tmp_path: Path, tiny_model: Path, large: None, said: list[str]
) -> None:
    lora, path, chosen = (
        tmp_path / "m.safetensors",
        tmp_path / "m_comfyui.json",
        section(str(tiny_model)),
    )
    write_workflows(lora, chosen, edits=False, plain=True)
    assert is_own(path)
    assert write_workflows(
        lora, section(str(tiny_model), trigger_word="pipo"), edits=False, plain=True
    ) == [path]
    assert "pipo" in path.read_text(encoding="utf-8")
    changed = json.loads(path.read_text(encoding="utf-8"))
    assert MARK in changed["extra"]
    # as ComfyUI saves it after somebody has moved a node
    changed["nodes"][1]["pos"] = [
        5,
        5,
    ]
    for text in (json.dumps(changed), "{}", "mine"):
        path.write_text(text, encoding="utf-8")
        assert not write_workflows(lora, chosen, edits=False, plain=True)
        assert path.read_text(encoding="utf-8") == text
        assert "is not from this program, so it stays as it is" in said[-1]


@pytest.mark.slow
def test_a_run_writes_it_at_its_end_alone(
    write_job,
    trainer,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    large: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    images = make_pictures(tmp_path / "images", "a", "b")
    calls: list[Path] = []
    original = comfyui.write_workflows
    monkeypatch.setattr(
        "extensions.sd_trainer.process.write_workflows",
        lambda file, **given: calls.append(file) or original(file, **given),
    )
    run_job(
        write_job(
            trainer(images, save={"save_every": 1, "dtype": "float32"}), name="maya"
        )
    )
    folder = tmp_path / "output/maya"
    assert calls == [folder / "maya.safetensors"]
    assert (
        is_own(folder / "maya_comfyui.json")
        and not (folder / "maya_comfyui_edit.json").exists()
    )
    [last] = [
        row
        for row in lines(folder / "events.jsonl")
        if row["event"] == "save" and "maya.safetensors" in row["files"]
    ]
    assert last["files"] == ["maya.safetensors"]
