"""What an `sd_trainer` process would do, by arithmetic alone."""

from __future__ import annotations

import re
import sys
from collections import Counter
from math import prod
from pathlib import Path

import pytest
from PIL import Image

from extensions.sd_trainer.config import SdTrainerConfig
from tests.processes import several
from tests.toolkit.data.pixels.test_colours import gama
from toolkit.config import JobContext, load_job
from toolkit.config.sections.model_files import local_index
from toolkit.config.sections.train import TrainConfig
from toolkit.errors import DataErrors
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.plan.diffusion import data_parallel_notes
from toolkit.plan.run_plan import RunPlan
from toolkit.system import nvidia


@pytest.fixture
def plan(write_job, trainer, make_pictures, tmp_path: Path):
    """The plan of a job on 5 images of 3 repeats and 2 of 4, of two sizes of bucket."""
    many = make_pictures(tmp_path / "3_many", "a", "b", "c", "d", "e")
    few = make_pictures(tmp_path / "4_few", "f", "g", size=(64, 128))

    def make(**changes) -> RunPlan:
        section = trainer(many, few, **changes)
        entry = load_job(write_job(section), lambda uid: SdTrainerConfig).processes[0]
        return entry.section.plan(JobContext("job"))

    return make


def test_repeats_batches_and_epochs_are_counted(plan) -> None:
    """15 + 8 uses; in batches of 4: ceil(15 / 4) + ceil(8 / 4) = 6; 3 epochs in windows
    of 4: ceil(18 / 4) = 5."""
    found = plan(
        train={"steps": 0, "epochs": 3, "batch_size": 4, "gradient_accumulation": 4}
    )
    assert (
        found.samples_per_epoch,
        found.micro_batches_per_epoch,
        found.optimizer_steps,
    ) == (23, 6, 5)
    assert (found.accumulation, found.requested_epochs) == (4, 3)


def test_a_machine_without_a_gpu_is_not_said_to_have_one(
    plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cause, gpu in (("none", "a GPU, which is not available here"), ("", "the GPU")):
        monkeypatch.setattr(nvidia, "likely_cause", lambda _, cause=cause: cause)
        assert re.search(
            rf"memory: peak [\d.]+ GB on {gpu} \(", plan(device="auto").render()
        )


def test_a_schedule_that_does_not_fit_is_told_once_the_steps_are_known(plan) -> None:
    """Of epochs only the plan knows how many steps they are: here 5."""
    train = {
        "steps": 0,
        "epochs": 3,
        "batch_size": 4,
        "gradient_accumulation": 4,
        "lr_warmup_steps": 3,
    }
    schedule = {
        "lr_scheduler": "warmup_stable_decay",
        "lr_scheduler_params": {"num_decay_steps": 3},
    }
    expected = "warning: lr: a warm-up of 3 and a fall of 3 optimizer steps do not fit into 5: the rate falls in the 2"
    assert expected in plan(train=train | schedule).render()
    assert (
        "lr: "
        not in plan(train=train | {"lr_scheduler": "warmup_stable_decay"}).render()
    )
    falling = {
        "steps": 9,
        "lr_scheduler": "exponential",
        "lr_scheduler_params": {"gamma": 1e-4},
    }
    assert (
        "warning: lr: 1 optimizer steps after the start the rate is below a"
        in plan(train=falling).render()
    )


SETTINGS = {
    "optimizer: adamw (weight_decay 0.1), learning rate 0.01, constant; clipping 1": {
        "train": {"optimizer_params": {"weight_decay": 0.1}}
    },
    "optimizer: adamw8bit, learning rate 0.01, constant; clipping 1": {
        "train": {"optimizer": "adamw8bit"}
    },
    "optimizer: adamw, learning rate 0.002, constant; clipping 1": {
        "train": {"lr": 0.002}
    },
    "optimizer: adamw, learning rate 0.01, cosine, warm-up 1 steps; no clipping": {
        "train": {"lr_scheduler": "cosine", "lr_warmup_steps": 1, "max_grad_norm": 0}
    },
    "noise levels: weighted": {"train": {"timestep_type": "weighted"}},
    "samples: none": {
        "sample": {"prompts": ["a cup"]},
        "train": {"disable_sampling": True},
    },
    "samples: before step 1, every 9 steps, at the end; 1 image in 20 steps at guidance 4: 'a cup'": {
        "sample": {"prompts": ["a cup"], "sample_every": 9}
    },
    "samples: every 9 steps, at the end; 2 images in 8 steps each at guidance 2.5: 'a cup', 'a dog'": {
        "sample": {
            "prompts": ["a cup", "a dog"],
            "sample_every": 9,
            "sample_steps": 8,
            "guidance_scale": 2.5,
        },
        "train": {"skip_first_sample": True},
    },
}
"""A line of the plan -> the keys that it is about."""


@pytest.mark.slow
def test_the_settings_of_the_training_and_its_samples_are_in_the_plan(plan) -> None:
    """A key that is lost from the job changes the plan."""
    plain = plan().notes
    for line, keys in SETTINGS.items():
        assert line in plan(**keys).notes, line
        assert line not in plain or line == "samples: none", line


def test_the_share_of_captions_that_are_left_out_is_in_the_plan(
    plan, tmp_path: Path
) -> None:
    def datasets(*rates: float) -> list[dict]:
        names = zip(("3_many", "4_few"), rates, strict=True)
        return [
            {"folder_path": str(tmp_path / name), "caption_dropout_rate": rate}
            for name, rate in names
        ]

    assert (
        "caption dropout: 5 % of the uses train without caption"
        in plan(datasets=datasets(0.05, 0.05)).notes
    )
    (line,) = (
        note
        for note in plan(datasets=datasets(0, 0.15)).notes
        if note.startswith("caption dropout: ")
    )
    assert (
        "15 % of the uses of " in line
        and line.endswith("4_few")
        and "0 % of the uses of " in line
    )
    (warned,) = (
        note
        for note in plan(datasets=datasets(0.05, 1)).notes
        if note.endswith("drops every caption. Write 0.1 for 10 %.")
    )
    assert warned.startswith("warning: ") and "4_few: " in warned
    assert not any(
        note.startswith("caption dropout")
        for note in plan(datasets=datasets(0, 0)).notes
    )


def test_references_of_samples_are_opened_before_anything_expensive(
    plan, make_pictures, tmp_path: Path
) -> None:
    text, damaged, good = (
        tmp_path / "a.png",
        tmp_path / "b.png",
        str(tmp_path / "3_many" / "a.png"),
    )
    text.write_text("no image")
    damaged.write_bytes(Path(good).read_bytes()[:60])
    narrow = make_pictures(tmp_path / "refs", "thin", size=(5, 2000)) / "thin.png"
    samples = [
        {"prompt": "x", "ctrl_img": [good, str(text)]},
        {"prompt": "x", "ctrl_img": good},
    ]
    samples.append({"prompt": "x", "ctrl_img": str(narrow)})
    with pytest.raises(DataErrors) as caught:
        plan(sample={"samples": [*samples, {"prompt": "y", "ctrl_img": str(damaged)}]})
    first, thin, second = map(str, caught.value.errors)
    assert thin.startswith(
        f"sample.samples[2].ctrl_img: {narrow}: is 5 x 2000: as a control image at most 200 times"
    )
    assert first.startswith(
        f"sample.samples[0].ctrl_img: {text}: is not a JPEG, PNG, WebP, AVIF, HEIC, BMP or TIFF image"
    )
    assert second.startswith(f"sample.samples[3].ctrl_img: {damaged}: cannot be read")
    assert caught.value.exit_code == 2
    assert plan(sample={"samples": samples[1:2]}).optimizer_steps > 0


def test_sizes_that_are_more_than_one_number_are_told_as_they_were_understood(
    plan, tmp_path: Path
) -> None:
    folder = str(tmp_path / "3_many")
    two = plan(datasets=[{"folder_path": folder, "resolution": [96, 64]}]).render()
    kept = "pixels of area, aspect ratio kept"
    assert f"resolution of {folder}: up to 96 x 96 {kept}; up to 64 x 64 {kept}" in two
    one = plan(
        datasets=[{"folder_path": folder, "resolution": {"width": 100, "height": 64}}]
    )
    assert (
        f"resolution of {folder}: exactly 96 x 64 pixels, the rest of each image cut off"
        in one.render()
    )
    assert "buckets: 96x64 (5)" in one.render()
    assert one.samples_per_epoch == 15
    assert "resolution of" not in plan().render()


def test_one_line_says_how_many_images_are_converted_and_from_what(
    plan, make_pictures, tmp_path: Path
) -> None:
    folder, references = (
        make_pictures(tmp_path / name, "a", "b", "c") for name in ("x", "ref")
    )
    pairs = {"folder_path": str(folder), "control_path": str(references)}
    assert "converted from" not in plan(datasets=[pairs]).render()
    for path, gamma in (
        (folder / "a.png", 1.0),
        (references / "b.png", 1.0),
        (folder / "b.png", 0.8),
    ):
        whole = path.read_bytes()
        path.write_bytes(whole[:33] + gama(gamma) + whole[33:])
    words = plan(datasets=[pairs]).render()
    assert "2 images converted from gamma 1, 1 from gamma 0.8 to sRGB" in words
    (folder / "b.png").write_bytes((folder / "c.png").read_bytes())
    assert (
        "2 images converted from gamma 1 to sRGB\n"
        in plan(datasets=[pairs, pairs]).render()
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"trigger_word": "zuzu"}, "'zuzu a photo' (a.png)"),
        ({"trigger_word": "no"}, "'no a photo' (a.png)"),
        ({}, "'a photo' (a.png)"),
    ],
)
def test_one_caption_is_shown_as_it_is_trained(
    plan, make_pictures, tmp_path: Path, changes: dict[str, str], line: str
) -> None:
    folder = make_pictures(tmp_path / "x", "a")
    (folder / "a.txt").write_text("a photo", encoding="utf-8")
    words = plan(datasets=[{"folder_path": str(folder)}], **changes).render()
    assert f"  first caption, as it is trained: {line}\n" in words


def test_one_line_says_how_many_images_have_transparency(
    plan, make_pictures, tmp_path: Path
) -> None:
    folder, references = (
        str(make_pictures(tmp_path / name, "a", "b")) for name in ("x", "ref")
    )
    assert "alpha channel" not in plan(datasets=[{"folder_path": folder}]).render()
    for path in (Path(folder, "a.png"), Path(references, "a.png")):
        with Image.open(path) as image:
            image.convert("RGBA").save(path)
    pairs = {"folder_path": folder, "control_path": references}
    words = plan(datasets=[pairs]).render()
    assert (
        "2 images have an alpha channel: laid over white, or datasets[].background"
        in words
    )
    assert (
        "1 image has an alpha channel"
        in plan(datasets=[pairs | {"alpha_mask": True}]).render()
    )
    write_tiny_model(tmp_path / "21", TinySpec(arch="qwen_image_2"))
    words = plan(
        datasets=[pairs], model={"name_or_path": str(tmp_path / "21")}
    ).render()
    assert (
        "2 images have an alpha channel: trained with it, unless datasets[].background is given"
        in words
    )


def test_a_model_that_edits_one_image_says_where_none_is_given(
    plan, make_pictures, tmp_path: Path
) -> None:
    folder, references = (
        str(make_pictures(tmp_path / name, "a", "b")) for name in ("x", "ref")
    )
    model, picture = (
        {"name_or_path": "Qwen/Qwen-Image-Edit"},
        str(tmp_path / "ref" / "a.png"),
    )
    sample = {"samples": [{"prompt": "x"}, {"prompt": "y", "ctrl_img": picture}]}
    words = plan(
        model=model, sample=sample, datasets=[{"folder_path": folder}]
    ).render()
    made = "no control image, but Qwen-Image-Edit is made to edit one. Give"
    assert f"warning: 2 images have {made} control_path." in words
    assert f"warning: 1 sample prompt has {made} ctrl_img." in words
    paired = [{"folder_path": folder, "control_path": references}]
    assert (
        made
        not in plan(
            model=model, sample={"samples": sample["samples"][1:]}, datasets=paired
        ).render()
    )
    assert made not in plan(sample=sample, datasets=[{"folder_path": folder}]).render()


def test_texts_whose_end_the_model_does_not_get_are_named(
    plan, make_pictures, tmp_path: Path
) -> None:
    write_tiny_model(tmp_path / "model", TinySpec(arch="qwen_image"))
    folder, long = make_pictures(tmp_path / "x", "a", "b", "c"), "a" + " cat" * 600
    for name in ("b", "c"):
        (folder / f"{name}.txt").write_text(long)
    sample = {"samples": [{"prompt": "short"}, {"prompt": long}]}
    changes = {"datasets": [{"folder_path": str(folder)}], "sample": sample}
    words = plan(model={"name_or_path": str(tmp_path / "model")}, **changes).render()
    cut = "606 text tokens, of which the model gets the first 512, as in its own pipeline. Shorten the text."
    assert (
        f"warning: {folder / 'b.png'}: its caption has {cut} The same applies to 1 more caption."
        in words
    )
    assert re.search(
        rf"warning: sample: 'a( cat)+ \[\.\.\.\]' has {re.escape(cut)}$",
        words,
        re.MULTILINE,
    )
    assert "of which the model gets" not in plan(**changes).render()


def test_the_folder_of_the_model_is_looked_up_as_often_whatever_the_captions(
    plan, make_pictures, tmp_path: Path
) -> None:
    calls = Counter[int]()

    def look_ups(*names: str) -> int:
        folder = make_pictures(tmp_path / str(len(names)), *names)
        sys.setprofile(
            lambda frame, event, _: calls.update(
                [len(names)]
                * (event == "call" and frame.f_code is local_index.__code__)
            )
        )
        plan(datasets=[{"folder_path": str(folder)}])
        sys.setprofile(None)
        return calls[len(names)]

    assert look_ups("a") == look_ups("a", "b", "c") > 0


def test_the_words_tell_the_size_of_what_is_trained_and_written(plan) -> None:
    words = plan(network={"type": "lora", "linear": 4, "linear_alpha": 4}).render()
    # In each of 2 blocks 8 layers of 64 x 64, 2 of 64 x 384, 4 of 64 x 256: rank * (in
    # + out) weights each, of 4 bytes.
    weights = 2 * 4 * (8 * (64 + 64) + 2 * (64 + 6 * 64) + 4 * (64 + 256))
    assert (
        f"lora rank 4, alpha 4 on 28 layers: {weights:,} trainable parameters" in words
    )
    assert f"each file {4 * weights / 1000:.3g} kB" in words
    assert "5 x 3 + 2 x 4 = 23 samples per epoch" in words
    only = plan(
        network={
            "type": "lora",
            "linear": 4,
            "network_kwargs": {"only_if_contains": ["to_q"]},
        }
    ).render()
    assert "on 2 layers" in only


def test_a_rank_above_the_width_of_a_layer_is_told(plan) -> None:
    def of(kind: str, rank: int) -> list[str]:
        return [
            note
            for note in plan(network={"type": kind, "linear": rank}).notes
            if "extra rank" in note
        ]

    for kind in ("lora", "dora"):
        (told,) = of(kind, 65)
        assert (
            "network.linear 65 exceeds the width of 28 of 28 layers (smallest: 64)"
            in told
        )
    assert of("lora", 64) == of("lokr", 65) == of("loha", 65) == []


def test_int4_alone_is_told_to_be_less_exact(plan, tiny_model: Path) -> None:
    def of(**model: object) -> list[str]:
        found = plan(model={"name_or_path": str(tiny_model), **model})
        return [note for note in found.notes if ": each weight is off by " in note]

    assert len(of(quantize=True, qtype="int4")) == 1
    assert "uint3: each weight is off by 20 %" in "\n".join(
        of(quantize=True, qtype="uint3")
    )
    assert of(quantize=True, qtype="int8") == of(qtype="int4") == of() == []
    auto = {"quantize": True, "qtype": "int4", "accuracy_recovery_adapter": "auto"}
    found = plan(model={"name_or_path": str(tiny_model), **auto})
    assert (
        "int4: an accuracy-recovery adapter is made for it, or taken from the cache"
        in found.notes
    )


def test_the_words_tell_what_is_held_of_the_base_model(plan) -> None:
    of_class = {
        "diff_output_preservation": True,
        "diff_output_preservation_class": "dog",
    }
    blank = {
        "blank_prompt_preservation": True,
        "blank_prompt_preservation_multiplier": 0.5,
    }
    words = plan(train=of_class | blank, trigger_word="zxq").render()
    assert (
        "prediction for captions with 'dog' in place of the trigger word unchanged (weight 1)"
        in words
    )
    assert "prediction for an empty prompt unchanged (weight 0.5)" in words
    assert (
        "that takes 4 more predictions per micro-batch, 2 of them with a backward pass"
        in words
    )
    assert (
        "more predictions"
        not in plan(train=blank | {"blank_prompt_preservation_multiplier": 0}).render()
    )


def test_the_words_tell_when_a_state_is_written(
    plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(states: str) -> str:
        return next(
            line
            for line in plan(save={"states": states}).notes
            if "trainable parameters" in line
        )

    assert "kB on disk" in of("always") and "each state" in of("always")
    assert " and one state of " in of("at_end")
    assert of("never").endswith(" on disk, no state: a stopped run starts over")
    always, never = (
        plan(save={"states": states, "save_every": 1}).memory
        for states in ("always", "never")
    )
    assert always.allocated("training") > never.allocated("training")


def test_a_model_that_is_trained_itself_is_counted_whole(
    plan, tiny_model: Path
) -> None:
    from safetensors import safe_open

    shapes = []
    for shard in (tiny_model / "transformer").glob("*.safetensors"):
        with safe_open(shard, framework="numpy") as file:
            shapes += [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - not a dict
    stored = sum(map(prod, shapes))
    train = {"optimizer": "adafactor", "full_bf16": True, "dtype": "bf16"}
    words = plan(network={"type": "full"}, save={"dtype": "bf16"}, train=train).render()
    # Folder and state in bf16; Adafactor keeps a float32 mean of each row and column,
    # and all of a vector.
    kept = 4 * sum(map(sum, shapes))
    sizes = f"each folder {2 * stored / 1000:.3g} kB, each state {(2 * stored + kept) / 1000:.3g} kB on disk"
    assert f"{stored:,} trainable parameters; {sizes}" in words
    part = plan(
        network={"type": "full", "include_patterns": r".*\.norm_q"},
        save={"dtype": "fp32"},
    ).render()
    # 2 norms of 32 weights; AdamW keeps two moments of each: 12 bytes. The folder holds
    # the whole model.
    assert (
        f"64 trainable parameters; each folder {4 * stored / 1e6:.3g} MB, each state {12 * 64} B on disk"
        in part
    )


def test_a_pattern_that_matches_no_layer_is_told(plan) -> None:
    notes = plan(
        network={"type": "lora", "linear": 4, "exclude_patterns": ["attn"]}
    ).notes
    assert [
        note
        for note in notes
        if note.startswith(
            "warning: network.exclude_patterns: 'attn' matches no layer."
        )
    ]


def test_the_plan_says_what_auto_compiling_does(
    plan, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines(**changes) -> list[str]:
        notes = plan(**({"device": "auto"} | changes)).notes
        return [note for note in notes if note.startswith("train.compile")]

    # PyTorch is a build for the CPU
    monkeypatch.setattr(nvidia, "_cuda_of_torch", lambda: None)
    assert not lines()
    monkeypatch.setattr(nvidia, "_cuda_of_torch", lambda: "13.0")
    monkeypatch.setattr(nvidia, "find_spec", lambda name: name)
    monkeypatch.setenv("CC", "cc")
    compiled = "train.compile auto: the blocks are compiled at their first use, which takes a minute or more"
    assert lines() == [compiled]
    assert (
        not lines(device="cpu")
        and not lines(train={"compile": False})
        and not lines(train={"parallel": "fsdp"})
    )
    model = {"name_or_path": str(tiny_model), "quantize": True}
    assert lines(model=model) == [compiled]
    monkeypatch.setenv("CC", "")
    monkeypatch.setattr(nvidia, "which", lambda name: None)
    assert lines()[0].startswith(
        "train.compile auto: the blocks are not compiled, for which a C compiler (gcc"
    )


@pytest.mark.parametrize(
    ("processes", "accumulation", "size", "said"),
    [
        (1, 4, 1, None),
        (2, 4, 1, "2 processes share the 4 x 1 images of each step: 2 x 1 each"),
        (2, 1, 4, "2 processes share the 1 x 4 images of each step: 1 x 2 each"),
        (2, 1, 3, "2 processes share the 1 x 3 images of each step: 1 x 1 or 2 each"),
        (4, 2, 2, "4 processes share the 2 x 2 images of each step: 1 x 1 each"),
        (2, 3, 1, "2 processes share the 3 x 1 images of each step: some compute 2 batches, the others 1, and wait."),
        (2, 1, 1, "2 processes share the 1 x 1 images of each step: 1 are idle. "
                  "A gradient_accumulation of 2 gives each process one batch."),
    ],
)  # fmt: skip
def test_the_plan_says_how_several_processes_share_a_step(
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    accumulation: int,
    size: int,
    said: str | None,
) -> None:
    train = TrainConfig(gradient_accumulation=accumulation, batch_size=size)
    with several(monkeypatch, processes):
        assert list(data_parallel_notes(train)) == ([said] if said else [])
