"""`type: sd_trainer` as a user meets it: jobs that run to the end on a tiny model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import ChainMap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from extensions.sd_trainer.process import SdTrainerProcess
from tests.extensions.sd_trainer.test_config import SEED_001
from tests.running import lines, run_job, run_tool
from toolkit.config.sections.model import ModelConfig
from toolkit.errors import RunError, UserError
from toolkit.files.log import IN_LOG, shown
from toolkit.memory.quantization import quantizer
from toolkit.models.families import family_for
from toolkit.models.loading import load_model
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.rotation import regular_hadamard, rotate

Run = Callable[..., subprocess.CompletedProcess]
PHOTOS = Path(__file__).resolve().parents[3] / "config" / "examples" / "photos"
PICTURE = re.compile(r"^(\d{9})_(\d+)\.(jpg|png|webp)$")


def pictures(folder: Path) -> list[tuple[int, int]]:
    """(step, index) of every sample image."""
    names = [PICTURE.match(path.name) for path in (folder / "samples").iterdir()]
    return sorted((int(name[1]), int(name[2])) for name in names)


def network_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def tensors_of(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a network file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 - not a dict


# ------------------------------------------------------------ the job that users bring

SHORT = {
    "save_every: 340  # Every epoch (3400 / 10)": "save_every: 2",
    "max_step_saves_to_keep: 10": "max_step_saves_to_keep: 2",
    "resolution: [1024, 1024]": "resolution: [64, 64]",
    "steps: 3400": "steps: 6",
    '"Qwen/Qwen-Image-Edit-2509"': '"models/tiny-edit"',
    "sample_every: 340  # Every epoch": "sample_every: 3",
    "width: 1024": "width: 64",
    "height: 1024": "height: 64",
    "sample_steps: 28": "sample_steps: 1",
}
"""Paths and sizes of the published job, and others."""


def short_job() -> str:
    """The published job on two small folders."""
    text = SEED_001
    for old, new in SHORT.items():
        assert old in text
        text = text.replace(old, new)
    datasets = text[text.index("        - folder_path:") : text.index("      train:")]
    both = [
        datasets.replace('"photos"', f'"dataset/{name}"')
        for name in ("40_maya_char", "20_maya_char_realbody")
    ]
    return text.replace(datasets, "".join(both))


@pytest.mark.slow
def test_the_published_job_runs_with_only_paths_and_sizes_changed(
    run_py: Run, tiny_model: Path, make_pictures, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny-edit").symlink_to(tiny_model)
    close = make_pictures(tmp_path / "dataset" / "40_maya_char", "drawn")
    body = make_pictures(tmp_path / "dataset" / "20_maya_char_realbody")
    for photo, folder in [
        ("40_photo/astronaut", close),
        ("20_photo_wide/rocket", body),
    ]:
        for suffix in (".jpg", ".txt"):
            shutil.copy(PHOTOS / f"{photo}{suffix}", folder)
    job = tmp_path / "my_char.yaml"
    job.write_text(short_job(), encoding="utf-8")

    result = run_py(job, "-v")
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), (
        result.stderr
    )
    for words in (
        "2 x 40 + 1 x 20 = 100 samples per epoch in 100 batches, 4 for each step: 25 steps; ",
        "device: cuda:0 is not available",
        "int8",
    ):
        assert words in result.stdout
    folder = tmp_path / "output" / "qwen_character_lora"
    assert network_files(folder) == [
        "qwen_character_lora.safetensors",
        "qwen_character_lora_000000004.safetensors",
        "qwen_character_lora_000000006.safetensors",
    ]
    assert pictures(folder) == [(step, index) for step in (0, 3, 6) for index in (0, 1)]
    assert [
        (line["step"], line["samples"]) for line in lines(folder / "metrics.jsonl")
    ] == [(step, 4 * step) for step in range(1, 7)]
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert (folder / "config.yaml").read_text(encoding="utf-8") == short_job()
    log = (folder / "log.txt").read_text(encoding="utf-8")
    assert "2 x 40 + 1 x 20" in log
    assert (
        f"saved {Path('output/qwen_character_lora/qwen_character_lora.safetensors')}"
        in log
    )

    tensors, metadata = tensors_of(folder / "qwen_character_lora.safetensors")
    matrices = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    assert len(matrices) == 2 * 14 * 2  # up and down, 14 layers in each of the 2 blocks
    assert {tensor.dtype for tensor in matrices.values()} == {torch.float16}
    # What the last block makes of the text is thrown away: nothing there is ever
    # learned.
    unlearned = {name for name, tensor in matrices.items() if not tensor.any()}
    assert unlearned == {
        f"diffusion_model.transformer_blocks.1.{layer}.lora_B.weight"
        for layer in (
            "attn.add_q_proj",
            "attn.to_add_out",
            "txt_mlp.net.0.proj",
            "txt_mlp.net.2",
        )
    }
    assert (metadata["rank"], metadata["trigger_word"], metadata["base_model"]) == (
        "16",
        "maya_char",
        tiny_model.name,
    )
    assert json.loads(metadata["training_info"]) == {"step": 6, "epoch": 0}
    assert not any(str(tmp_path) in value for value in metadata.values())


# ------------------------------------------------------------ stopping and going on


def without_times(metrics: list[dict]) -> list[dict]:
    return [
        {
            key: value
            for key, value in line.items()
            if key != "time" and not key.endswith("_s")
        }
        for line in metrics
    ]


def in_8_bit(model: Path, code: str) -> dict[str, torch.Tensor]:
    """The transformer in one file's layout, its blocks in codes of that kind with their
    scales."""
    stored: dict[str, torch.Tensor] = {}
    for name, weight in ChainMap(
        *(tensors_of(path)[0] for path in (model / "transformer").glob("*.safetensors"))
    ).items():
        stored[f"model.diffusion_model.{name}"] = weight
        if weight.ndim < 2 or "transformer_blocks" not in name:
            continue
        layer = f"model.diffusion_model.{name.removesuffix('.weight')}"
        if code == "fp8":
            scale = weight.abs().max().float() / 448
            codes = (weight.float() / scale).to(torch.float8_e4m3fn)
        else:
            rotated = rotate(weight.float(), regular_hadamard(64))
            scale = rotated.abs().amax(1, keepdim=True) / 127
            codes = (rotated / scale).round().to(torch.int8)
            said = b'{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 64}'
            stored[f"{layer}.comfy_quant"] = torch.tensor(list(said), dtype=torch.uint8)
        stored |= {f"{layer}.weight": codes, f"{layer}.weight_scale": scale}
    return stored


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "base"),
    [("fp8", {}), ("int8", {"quantize": True, "qtype": "int8"})],
    ids=["fp8, converted", "int8_convrot, as stored"],
)
def test_a_base_in_one_8_bit_file_trains_goes_on_from_where_it_lies_and_generates(
    write_job,
    trainer,
    make_pictures,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
    code: str,
    base: dict,
) -> None:
    monkeypatch.chdir(tmp_path)
    stored = in_8_bit(tiny_model, code)
    file, moved, other = (
        tmp_path / f"{name}.safetensors" for name in (code, "moved", "other")
    )
    save_file(stored, file)
    bias = "model.diffusion_model.img_in.bias"
    save_file(stored | {bias: stored[bias] + 1}, other)
    data = make_pictures(tmp_path / "data", "a", "b")
    run = tmp_path / "output" / "job"

    def train(path: Path, **changes: object) -> dict[str, torch.Tensor]:
        model = trainer()["model"] | {"transformer_path": str(path)} | base
        save = {"dtype": "float32", "save_every": 1}
        run_job(write_job(trainer(data, model=model, save=save, **changes)))
        return tensors_of(run / "job.safetensors")[0]

    whole = train(file)
    # A second start reads the model that the first has kept.
    kept = [line for line in said if "codes and scales" in line]
    assert ["28 layers keep its int8" in line for line in kept] == (
        [True] if base else []
    )
    file.rename(moved)
    with pytest.raises(UserError, match="base model: transformer differs"):
        train(other, resume=1)
    again = train(moved, resume=1)
    family = family_for(ModelConfig(name_or_path=str(tiny_model)))
    # after ComfyUI's own name of each layer, as on any base
    assert whole.keys() == again.keys() == {
        f"diffusion_model.{layer}.{part}.weight"
        for layer in family.linear_layers(tiny_model)
        for part in ("lora_A", "lora_B")
    }  # fmt: skip
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())

    flags = ["--model", tiny_model, "--lora", run / "job.safetensors", "--prompt", "a"]
    flags += ["--steps", 1, "--width", 64, "--height", 64, "--device", "cpu"]
    run_tool("generate", [*flags, "--output", "plain"])
    run_tool("generate", [*flags, "--output", "single", "--transformer-path", moved])
    images = [
        next((tmp_path / name).glob("*.png")).read_bytes()
        for name in ("plain", "single")
    ]
    assert images[0] != images[1]


@pytest.mark.slow
def test_a_trained_model_in_one_file_is_that_of_the_folder(
    write_job,
    trainer,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """EMA and raw weights, of a step and of the end."""
    monkeypatch.chdir(tmp_path)
    base, data = tmp_path / "base", make_pictures(tmp_path / "data", "a")
    write_tiny_model(base, TinySpec(arch="qwen_image_2"))
    model = trainer()["model"] | {"name_or_path": str(base)}
    average = {"use_ema": True, "ema_decay": 0.5}
    for layout in ("diffusers", "single_file"):
        save = {"dtype": "float32", "save_every": 1, "layout": layout, "also": ["raw"]}
        section = trainer(
            data,
            training_folder=layout,
            model=model,
            train={"steps": 1, "lr": 1e-3, "ema_config": average},
            save=save,
            network={"type": "full"},
        )
        run_job(write_job(section, name="m"))
    folders = sorted(
        path.parent
        for path in (tmp_path / "diffusers" / "m").glob("*/model_index.json")
    )
    assert [folder.name for folder in folders] == [
        "m", "m_000000001", "m_000000001_raw", "m_raw"
    ]  # fmt: skip
    for folder in folders:
        file = tmp_path / "single_file" / "m" / f"{folder.name}.safetensors"
        assert any("gate_up" in name for name in tensors_of(file)[0])
        states = [
            load_model(
                ModelConfig(**given), torch.device("cpu"), torch.float32, quantizer
            ).network_module.state_dict()
            for given in (
                {"name_or_path": str(folder)},
                {"name_or_path": str(base), "transformer_path": str(file)},
            )
        ]
        assert states[0].keys() == states[1].keys()
        assert all(
            torch.equal(tensor, states[1][name]) for name, tensor in states[0].items()
        )


@pytest.mark.slow
def test_the_control_folder_saves_samples_and_stops(
    start_py, write_job, trainer, make_pictures, tmp_path: Path
) -> None:
    section = trainer(
        make_pictures(tmp_path / "data", "a"),
        train={"steps": 5000, "disable_sampling": False, "skip_first_sample": True},
        sample={
            "prompts": ["a"],
            "width": 64,
            "height": 64,
            "sample_steps": 1,
            "sample_every": 0,
            "format": "png",
        },
    )
    process = start_py(write_job(section, name="asked"))
    folder = tmp_path / "output" / "asked"
    process.wait_until(
        lambda: (
            (folder / "metrics.jsonl").exists()
            and (folder / "metrics.jsonl").stat().st_size
        )
    )
    for name in ("save_now", "sample_now"):
        (folder / "control" / name).touch()
    process.wait_until(lambda: not any((folder / "control").iterdir()))
    (folder / "control" / "stop").touch()
    assert (process.wait(60), process.errors) == (0, "Stopped.\n")
    done = lines(folder / "metrics.jsonl")[-1]["step"]
    assert done < 5000
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
    assert (folder / "state" / f"step_{done:09d}").is_dir()
    events = {line["event"]: line for line in lines(folder / "events.jsonl")}
    assert (
        network_files(folder)
        == events["save"]["files"]
        == [f"asked_{events['save']['step']:09d}.safetensors"]
    )
    assert pictures(folder) == [(events["sample"]["step"], 0)]
    assert all(0 < line["step"] <= done for line in events.values())


# ------------------------------------------------------------ what a dataset may hold


@pytest.mark.slow
def test_images_with_none_to_three_references_train_together(
    run_py: Run, write_job, trainer, make_pictures, tmp_path: Path
) -> None:
    stems = ["none", "one", "two", "three", "again"]
    targets = make_pictures(tmp_path / "data", *stems)
    slots = [
        make_pictures(
            tmp_path / "slot_1", "one", "two", "three", "again", captions=False
        ),
        make_pictures(
            tmp_path / "slot_2", "two", "three", size=(64, 96), captions=False
        ),
        make_pictures(tmp_path / "slot_3", "three", size=(96, 64), captions=False),
    ]
    dataset = {
        "folder_path": str(targets),
        "resolution": 64,
        "control_path": list(map(str, slots)),
        "control_optional": True,
    }
    reference = {"ctrl_img": str(slots[1] / "two.png")}
    drawn = [{"prompt": "x"}, {"prompt": "y", "width": 64, "height": 96, **reference}]
    sample = {
        "sample_every": 3,
        "sample_steps": 1,
        "width": 64,
        "height": 64,
        "overview": True,
        "samples": drawn,
    }
    section = trainer(
        datasets=[dataset], train={"steps": 3, "batch_size": 2}, sample=sample
    )
    result = run_py(write_job(section, name="edits"))
    assert result.returncode == 0, result.stderr
    plan = run_py(tmp_path / "edits.yaml", "--dry-run", "--json")
    assert json.loads(plan.stdout)["processes"][0]["datasets"][0]["references"] == {
        "0": 1,
        "1": 2,
        "2": 1,
        "3": 1,
    }
    metrics = lines(tmp_path / "output" / "edits" / "metrics.jsonl")
    assert [line["samples"] for line in metrics] == [2, 4, 5]
    assert all(line["loss"] > 0 and "skipped" not in line for line in metrics)
    cached = list((tmp_path / "output" / "_cache" / "latents").rglob("*.safetensors"))
    # the last for the sample, which has another size
    assert len(cached) == 5 + 4 + 2 + 1 + 1
    assert tensors_of(tmp_path / "output" / "edits" / "edits.safetensors")[0]
    with Image.open(
        tmp_path / "output" / "edits" / "samples" / "overview.png"
    ) as sheet:
        # references on the left, then steps 0 and 3
        assert sheet.width == 6 + (29 + 6) + 2 * (64 + 6)


@pytest.mark.slow
def test_masks_flips_and_regularisation_images_go_on_in_the_same_bits(
    write_job,
    trainer,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
) -> None:
    """Three images with a mask, one of them mirrored with its reference; two
    regularisation images."""
    monkeypatch.chdir(tmp_path)
    folders = [
        make_pictures(tmp_path / name, "a", "b", "c")
        for name in ("2_data", "mask", "ref")
    ]
    reg = make_pictures(tmp_path / "reg", "d", "e", size=(64, 96))
    masked = {
        "mask_path": str(folders[1]),
        "mask_min_value": 0.1,
        "control_path": str(folders[2]),
        "flip_x": True,
    }
    section = trainer(
        datasets=[
            {
                "folder_path": str(folders[0]),
                "resolution": 64,
                "caption_dropout_rate": 0.3,
                **masked,
            },
            {
                "folder_path": str(reg),
                "resolution": 64,
                "is_reg": True,
            },
        ],
        save={"dtype": "float32", "save_every": 2, "max_states_to_keep": 0},
        train={
            "steps": 4,
            "batch_size": 2,
            "gradient_accumulation": 2,
        },
        trigger_word="zxq",
    )

    def run(**changes: object) -> tuple[dict[str, bytes], str]:
        with shown():
            run_job(write_job({**section, **changes}))
        names = (
            "job.safetensors",
            "metrics.jsonl",
            "state/step_000000004/optimizer.safetensors",
        )
        files = {
            name: (tmp_path / "output" / "job" / name).read_bytes() for name in names
        }
        files["metrics.jsonl"] = json.dumps(
            without_times(lines(tmp_path / "output" / "job" / "metrics.jsonl"))
        ).encode()
        return files, capsys.readouterr().out

    whole, _ = run()
    said = (tmp_path / "output" / "job" / "log.txt").read_text(encoding="utf-8")
    assert "3 x 2 x 2 flips + 2 x 1 = 14 samples per epoch" in said
    assert "masks: 3 of 3" in said and "regularisation images" in said
    latents = list((tmp_path / "output" / "_cache" / "latents").rglob("*.safetensors"))
    # target, mask and reference, each as it is and mirrored
    assert len(latents) == 3 * 2 * 3 + 2
    again, said = run(resume=2)
    assert "resuming from" in said and "step_000000002" in said
    assert again == whole

    Image.new("L", (80, 64)).save(folders[1] / "b.png")
    _, said = run(resume=2)
    assert re.search(r"the dataset has changed: 1 edited \(.*2_data/b.png\)", said)


def test_bad_pictures_are_all_named_before_anything_starts(
    run_py: Run, write_job, trainer, make_pictures, tmp_path: Path
) -> None:
    folder = make_pictures(tmp_path / "data", "good", "cut", "lonely", "twin")
    references = make_pictures(
        tmp_path / "references", "good", "cut", "twin", "moving", captions=False
    )
    cut = folder / "cut.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    with Image.open(folder / "twin.png") as picture:
        picture.save(folder / "twin.jpg")
        frames = [picture.rotate(90 * turn) for turn in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    dataset = {
        "folder_path": str(folder),
        "resolution": 64,
        "control_path": str(references),
    }
    result = run_py(write_job(trainer(datasets=[dataset]), name="bad"))
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for name in ("cut.png", "lonely", "twin", "moving.gif"):
        assert any(name in line for line in result.stderr.splitlines()), name
    assert "good" not in result.stderr
    assert not (tmp_path / "output").exists()


# ------------------------------------------------------------ optimizers of anybody

FORGETFUL = """
import torch

class Forgetful(torch.optim.SGD):
    def load_state_dict(self, state):
        raise KeyError("kind")

class Doubled(torch.optim.AdamW):
    def step(self, closure=None):
        super().step()
        for p, state in self.state.items():
            state.setdefault("copies", [torch.zeros_like(p), torch.zeros_like(p)])
"""


@pytest.mark.slow
def test_an_optimizer_that_cannot_be_resumed_is_refused_before_the_model_is_read(
    trainer,
    write_job,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "of_somebody.py").write_text(FORGETFUL, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    section = trainer(
        make_pictures(tmp_path / "photos", "a"),
        save={"save_every": 1},
        train={"steps": 2},
    )
    section["train"] |= {"optimizer": "of_somebody.Forgetful", "lr": 1e-3}
    with pytest.raises(UserError) as caught:
        run_job(write_job(section))
    assert str(caught.value) == (
        "train.optimizer: of_somebody.Forgetful cannot load the state that it has saved (no entry 'kind'), so no run "
        "could be resumed. Choose another optimizer, or set save.states: never to train without states."
    )
    assert not list((tmp_path / "output").rglob("*.safetensors"))

    section["train"]["optimizer"] = "of_somebody.Doubled"
    with caplog.at_level("INFO"):
        run_job(write_job(section))
    said = "\n".join(
        getattr(record, IN_LOG, record.getMessage()) for record in caplog.records
    )
    assert "optimizer of_somebody.Doubled: 16 bytes of state per weight" in said
    assert (
        "of_somebody.Doubled: tried on weights of these shapes; its state is stored, and resumes with"
        in said
    )
    whole = (tmp_path / "output" / "job" / "job.safetensors").read_bytes()
    run_job(write_job({**section, "resume": 1}))
    assert (tmp_path / "output" / "job" / "job.safetensors").read_bytes() == whole


@pytest.mark.slow
def test_a_step_that_an_extension_does_not_return_is_named(
    trainer, make_pictures, write_job, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(SdTrainerProcess, "make_step", lambda self: None)
    job = write_job(trainer(make_pictures(tmp_path / "photos", "a")))
    message = r"SdTrainerProcess\.make_step returns None: return the step of super"
    with pytest.raises(RunError, match=message):
        run_job(job)
