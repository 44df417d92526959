"""The whole path on a tiny model without references, one with them, one of layers and
one of the second architecture: trained, killed, gone on with, sampled, and then the
tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.diffusers_reference import MEMBERS
from tests.faults.conftest import KILL, STEP, Job, draw_pictures
from tests.layer_files import write_layers
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.registry import FAMILIES

FAMILY_SPECS = {name: MEMBERS[name] for name in ("Qwen-Image", "Qwen-Image-Edit-2511")}
FAMILY_SPECS["Qwen-Image-2.1"] = TinySpec(arch="qwen_image_2")
FAMILY_SPECS["Qwen-Image-Layered"] = TinySpec(arch="qwen_image_layered")
SMALL = (
    "--width 64 --height 64 --steps 2 --dtype float32 --device cpu --match-target-res"
)

IN_STEP_3 = 1 + 3
"""The call of STEP in step 3: the save of step 2 has waited until the one of step 1 was
on disk."""

SHORT = {
    "train__steps": 3,
    "train__gradient_accumulation": 1,
    "save__save_every": 1,
    "save__max_states_to_keep": 0,
}


@pytest.fixture(params=FAMILY_SPECS)
def spec(request: pytest.FixtureRequest) -> TinySpec:
    return FAMILY_SPECS[request.param]


@pytest.mark.slow
def test_images_with_alpha_are_trained_and_drawn(job: Job, tmp_path: Path) -> None:
    """Qwen-Image-2.1 ends in RGBA samples; without alpha in other bytes."""
    write_tiny_model(tmp_path / "model", TinySpec(arch="qwen_image_2"))
    photos, before = (
        draw_pictures(tmp_path / name, "a", "b", "c") for name in ("photos", "before")
    )

    def give_alpha(level: int) -> None:
        for path in [*photos.glob("*.png"), *before.glob("*.png")]:
            image = Image.open(path).convert("RGB")
            image.putalpha(
                Image.linear_gradient("L")
                .resize(image.size)
                .point(lambda value: max(value, level))
            )
            image.save(path)

    give_alpha(0)
    job.section["datasets"] = [
        {"folder_path": str(photos), "control_path": [str(before)], "resolution": 64}
    ]
    job.change(model__name_or_path=str(tmp_path / "model"), **SHORT)
    job.run()
    assert {Image.open(path).mode for path in job.folder.glob("samples/*.png")} == {
        "RGBA"
    }
    with_alpha = (job.folder / "job.safetensors").read_bytes()
    shutil.rmtree(job.folder)
    give_alpha(255)
    job.run()
    assert (job.folder / "job.safetensors").read_bytes() != with_alpha


@pytest.mark.slow
def test_the_whole_path(job: Job, spec: TinySpec, tmp_path: Path) -> None:
    """Trained on int8 weights, where there is a modulation table from it, with a kill
    in step 3."""
    family = FAMILIES.load(spec.arch)
    takes = min(2, family.max_references)
    write_tiny_model(tmp_path / "model", spec)
    photos, before = (
        draw_pictures(tmp_path / name, "a", "b", "c") for name in ("photos", "before")
    )
    references = [str(before / f"{stem}.png") for stem in "ab"[:takes]]
    partners = {"control_path": [str(before)] * takes} if takes else {}
    if family.stacks_layers:
        partners = {"layers_suffix": "_layer"}
        for count, stem in enumerate("abc", start=1):
            write_layers(photos, count, stem=stem)
    job.section["datasets"] = [
        {"folder_path": str(photos), "resolution": 64, **partners}
    ]
    del job.section["sample"]["prompts"]
    job.section["sample"]["samples"] = [{"prompt": "a photo", "ctrl_img": references}]
    job.section["model"] |= {
        "name_or_path": str(tmp_path / "model"),
        "quantize": True,
        "qtype": "int8",
    }
    job.section["model"]["modulation_table"] = spec.arch != "qwen_image_2"
    job.change(**SHORT)

    job.run("--dry-run")
    assert job.start(faults=[("kill_self", STEP, IN_STEP_3, KILL)]).wait() == -KILL
    assert "resuming from" in job.run()
    gone_on = job.result()
    assert job.steps() == [1, 2, 3]
    drawn = sorted(path.name for path in job.folder.glob("samples/layers/*"))
    assert len(drawn) == (2 * 4 if family.stacks_layers else 0)  # at steps 0 and 3
    shutil.rmtree(job.folder)
    job.run()
    expected = job.result()
    assert [name for name in expected if gone_on[name] != expected[name]] == []

    def tool(line: str) -> None:
        job.nursery.fork(line.split(), tmp_path, line.split()[0]).ends_with(0)

    lora, model = job.folder / "job.safetensors", f"--model {tmp_path / 'model'}"
    beside = f"--reference {' '.join(references)}" if takes else ""
    tool(f"generate {model} --lora {lora} --prompt cat {beside} {SMALL} --output drawn")
    tool(f"merge --base {tmp_path / 'model'} --lora {lora} --output merged")
    tool(f"generate --model merged --prompt cat {beside} {SMALL} --output drawn_merged")
    ours, merged = (
        Image.open(min((tmp_path / name).glob("*.png")))
        for name in ("drawn", "drawn_merged")
    )
    assert ours.size == merged.size == (64 * (4 if family.stacks_layers else 1), 64)
    if family.stacks_layers:
        tool(f"convert {lora} diffusers.safetensors --to diffusers")
        tool(f"grid {model} --lora {lora} --prompt cat {beside} {SMALL} --output grid")
        tool(f"report {job.folder}")
        tool(f"best {job.folder} --images 2 --device cpu")
        assert (tmp_path / "grid" / "index.html").is_file()
        assert (job.folder / "report.html").is_file()
    index = json.loads((tmp_path / "merged" / "model_index.json").read_text())
    assert index["_class_name"] == family.pipelines[0]
