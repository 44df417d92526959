"""Slips of the first hour: what people write into a job or behind the command, and what
they are to write instead."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet
from safetensors.numpy import save_file

from tests.conftest import ROOT

MODEL = str(ROOT / "config" / "examples" / "tiny_mascots")

JOB = f"""job: extension
config:
  name: my_char
  process:
    - type: sd_trainer
      training_folder: output
      device: cpu
      trigger_word: zibo
      network:
        type: lora
        linear: 4
        linear_alpha: 4
      save:
        save_every: 10
      datasets:
        - folder_path: datasets/robot
          resolution: 128
          caption_ext: txt
          caption_dropout_rate: 0.05
      train:
        steps: 30
        batch_size: 1
        lr: 0.001
        optimizer: adamw
        lr_scheduler: constant
        dtype: fp32
      model:
        name_or_path: {MODEL}
      sample:
        sample_every: 10
        seed: 42
        width: 128
        height: 128
        guidance_scale: 2
        sample_steps: 8
        prompts:
          - zibo in a room
"""
"""A job without a mistake, for the images in datasets/robot."""


class Slip(NamedTuple):
    """A line of JOB, what somebody writes instead, a part of the answer, and what the
    answer says to write.

    `\\n` parts lines of the same indent.
    """

    line: str
    written: str
    answer: str
    instead: str


def images(folder: Path) -> None:
    """Four images with captions in datasets/robot, a table of pairs, and images with
    faults in datasets/odd."""
    robot = folder / "datasets" / "robot"
    robot.mkdir(parents=True)
    for photo in sorted((ROOT / "config/examples/photos/40_photo").glob("*.jpg"))[:3]:
        shutil.copy(photo, robot)
        (robot / f"{photo.stem}.txt").write_text("a photo")
    with Image.open(robot / "coffee.jpg") as coffee:
        coffee.rotate(180).save(robot / "other.jpg")
    (robot / "other.txt").write_text("a photo")
    for name in ("01_anna", "02_bob", "03_carl"):
        (folder / "numbered" / name).mkdir(parents=True)
        shutil.copy(robot / "coffee.jpg", folder / "numbered" / name)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    matrices = {
        f"{layer}.lora_A.weight": np.ones((4, 8), "f4"),
        f"{layer}.lora_B.weight": np.ones((8, 4), "f4"),
    }
    save_file(
        matrices | {f"{layer}.alpha": np.zeros(1, "f4")}, folder / "zero.safetensors"
    )
    wide = {
        f"{layer}.lora_A.weight": np.ones((4, 128), "f4"),
        f"{layer}.lora_B.weight": np.ones((128, 4), "f4"),
    }
    save_file(wide, folder / "fits.safetensors")
    (folder / "folder").mkdir()
    shutil.copy(folder / "fits.safetensors", folder / "folder")
    (folder / "empty.txt").write_text("# no prompt\n")
    shutil.copytree(robot, folder / "datasets" / "before")
    one = folder / "datasets" / "reg"
    one.mkdir()
    for file in (robot / "coffee.jpg", robot / "coffee.txt"):
        shutil.copy(file, one)
    files = sorted(robot.iterdir())  # an image, then its caption
    for number in (0, 1):
        with tarfile.open(folder / f"robot{number}.tar", "w") as shard:
            for file in files[number * 4 :][:4]:
                shard.add(file, file.name)
    odd_images(folder)
    bare = folder / "datasets" / "odd"
    bare.mkdir()
    for name, caption in {
        "coffee.jpg": "",
        "astronaut.jpg": "a {red|blue} cat",
    }.items():
        shutil.copy(robot / name, bare)
        if caption:
            (bare / name).with_suffix(".txt").write_text(caption)


def odd_images(folder: Path) -> None:
    """Folders and tables of images, each with one thing to ask about."""
    coffee = folder / "datasets" / "robot" / "coffee.jpg"
    one = coffee.parent.parent

    def of_coffee(place: str, caption: str) -> Path:
        (one / place).mkdir(parents=True)
        shutil.copy(coffee, one / place)
        (one / place / "coffee.txt").write_text(caption)
        return one / place

    of_coffee("placeholder", "[trigger] on a beach")
    of_coffee("big/20000000_robot", "a cup")
    for year in (2023, 2024):
        of_coffee(f"years/{year}_beach", "a beach")
    listed = of_coffee("lists", "")
    (listed / "coffee.txt").unlink()
    row = {"file_name": coffee.name, "text": ["a cup", "coffee"]}
    (listed / "captions.jsonl").write_text(json.dumps(row))
    (one / "zipped").mkdir()
    with zipfile.ZipFile(one / "zipped" / "images.zip", "w") as packed:
        packed.write(coffee, coffee.name)
    (one / "layers").mkdir()
    for name in ("a", "a_layer0", "a_layer1"):
        image = Image.new("RGBA", (128, 128), (9, 99, 200, 255))
        image.save(one / "layers" / f"{name}.png")
    (one / "layers" / "a.txt").write_text("a square")
    words = "sits stands runs walks reads sleeps eats waits sings jumps smiles paints"
    for number, word in enumerate(words.split()):
        for place, caption in (("named", f"mira {word}"), ("plain", f"{word} here")):
            (one / place).mkdir(exist_ok=True)
            color = (number * 20, 90, 200 - number * 15)
            Image.new("RGB", (128, 128), color).save(one / place / f"{number}.png")
            (one / place / f"{number}.txt").write_text(caption)
    table = pyarrow.table({"file_name": [coffee.name], "text": ["a cup"]})
    (one / "with_table").mkdir()
    for file in (folder / "names.parquet", one / "with_table" / "names.parquet"):
        parquet.write_table(table, file)
    (folder / "with_flags.txt").write_text("a cat --w 64 --n blurred\n")
    (folder / "one_prompt.txt").write_text("a cat\n")


def job_with(line: str, instead: str, job: str = JOB) -> str:
    """A job with other text in the place of a line."""
    [found] = re.findall(rf"^ *{re.escape(line)}$", job, re.MULTILINE)
    indent = found.removesuffix(line)
    lines = "\n".join(f"{indent}{part}" if part else "" for part in instead.split("\n"))
    return job.replace(f"{found}\n", f"{lines}\n" if instead else "")


def slips(line: str, *rows: tuple[str, str, str]) -> list[Slip]:
    return [Slip(line, *row) for row in rows]


class Way(NamedTuple):
    """As `Slip`, where one line is not enough: line of JOB -> what stands there."""

    written: Mapping[str, str] | str
    answer: str
    instead: Mapping[str, str] | str


def job_of(changes: Mapping[str, str] | str) -> str:
    """JOB with other text in the place of several lines, or a job of one process."""
    if isinstance(changes, str):
        return job_of_one(changes)
    job = JOB
    for line, instead in changes.items():
        job = job_with(line, instead, job)
    return job


NAME = f"name_or_path: {MODEL}"
LR = "lr: 0.001"
QUANTIZED = f"{NAME}\nquantize: true"
LINEAR = "linear_alpha: 4"
DEVICE = "device: cpu"
FOLDER = "- folder_path: datasets/robot"
RATE = "caption_dropout_rate: 0.05"

JOBS = [
    *slips(
        "name: my_char",
        (
            "name: con",
            "cannot be the name of a file on Windows, nor of a LoRA in ComfyUI there. Write 'my_con'.",
            "name: my_con",
        ),
        (
            'name: "a: b"',
            "nor of a LoRA in ComfyUI there. Write 'a_b'.",
            "name: a_b",
        ),
    ),
    *slips(
        "optimizer: adamw",
        (
            "optimizer: torch.nn.Linear",
            "is not an optimizer. Give a class such as 'torch.optim.AdamW'.",
            "optimizer: torch.optim.AdamW",
        ),
    ),
    *slips(
        DEVICE,
        (
            f"{DEVICE}\nstop_when: {{metric: validation/loss}}",
            "needs the section 'validation'. Add it, or use 'loss'.",
            f"{DEVICE}\nstop_when: {{metric: validation/loss}}\nvalidation: {{fraction: 0.25, every: 5}}",
        ),
        (
            f"{DEVICE}\nstop_when: {{metric: validation/loss}}\nvalidation: {{fraction: 0.25, every: 0}}",
            "Set 'validation.every', such as a twentieth of the steps.",
            f"{DEVICE}\nstop_when: {{metric: validation/loss}}\nvalidation: {{fraction: 0.25, every: 2}}",
        ),
        (
            f"{DEVICE}\nstop_when: {{metric: validation/loss, below: 0.1}}",
            "needs the section 'validation'. Add it, or use 'loss'.",
            f"{DEVICE}\nstop_when: {{metric: loss, below: 0.1}}",
        ),
    ),
    *slips(
        FOLDER,
        (
            f"{FOLDER}\n  mask_path: datasets/robot",
            "Give another folder, or 'alpha_mask: true' to use the transparency of the images.",
            f"{FOLDER}\n  alpha_mask: true",
        ),
    ),
    *slips(
        "lr_scheduler: constant",
        (
            "lr_scheduler: linear\nlr_scheduler_params: {end_factor: 0.1}",
            "the rate begins at a third, as in ai-toolkit. Give 'start_factor: 1' to begin at all of it.",
            "lr_scheduler: linear\nlr_scheduler_params: {end_factor: 0.1, start_factor: 1}",
        ),
    ),
    *slips(
        LR,
        (
            f"{LR}\ndiff_output_preservation: true",
            "Set what it is an example of, such as 'woman'.",
            f"{LR}\ndiff_output_preservation: true\ndiff_output_preservation_class: woman",
        ),
    ),
    *slips(
        "steps: 30",
        ("steps: 2k", "'2k' is not a whole number. Write 2000.", "steps: 2000"),
        ("steps: 2,000", "Write 2000.", "steps: 2000"),
        ("steps: 2.000", "2.000 is 2, with decimals. Write 2000, or 2.", "steps: 2000"),
        ("steps: 2 000", "Write 2000.", "steps: 2000"),
        ("steps: 30 steps", "Write 30.", "steps: 30"),
        ("steps: 30,", "Write 30.", "steps: 30"),
        ("steps: auto", "Leave the key out: the default is 1000.", ""),
        (
            "steps: yes",
            "Write a whole number, such as 1000, the default.",
            "steps: 1000",
        ),
        (
            "steps: thirty",
            "Write a whole number, such as 1000, the default.",
            "steps: 1000",
        ),
        ("steps: -1", "-1 is out of range: must be >= 0.", "steps: 1"),
        ("steps: 0", "Set steps or epochs to a value above 0.", "steps: 1"),
        ("steps: 30.5", "Write 30 or 31.", "steps: 31"),
        ("steps: [30]", "Write 30, without brackets or dash.", "steps: 30"),
        (
            "steps:",
            "has no value, and counts as not given: the default is 1000.",
            "steps: 1000",
        ),
        ("steps: 10 epochs", "Write 'epochs: 10' instead of 'steps'.", "epochs: 10"),
        (
            "steps: 500 images",
            "Write a whole number, such as 1000, the default.",
            "steps: 1000",
        ),
        (
            "steps: 10 hours",
            "Write a whole number, such as 1000, the default.",
            "steps: 1000",
        ),
        ("epochs: 1 epoch", "Write 1.", "epochs: 1"),
        ("epochs: 200 steps", "Write 'steps: 200' instead of 'epochs'.", "steps: 200"),
        ("num_epochs: 10", "Did you mean 'epochs'?", "epochs: 10"),
        ("max_steps: 10", "Did you mean 'steps'?", "steps: 10"),
        ("step: 30", "Did you mean 'steps'?", "steps: 30"),
        (
            "steps: 30\nepochs: 10",
            "'epochs: 10' takes precedence. Remove one of them.",
            "epochs: 10",
        ),
        ("steps = 30", "a key has no '='. Write 'key: value'.", "steps: 30"),
        ("steps:30", "no space follows the ':'. Write 'key: value'.", "steps: 30"),
        ("Steps: 30", "Did you mean 'steps'?", "steps: 30"),
        (
            "steps: 30\nsteps: 40",
            "duplicate key, first given in line 21. Remove one of them.",
            "steps: 40",
        ),
        (
            "steps: 30#a comment",
            "A comment begins with a space and '#'.",
            "steps: 30 # a comment",
        ),
        (
            "steps: 30 // a comment",
            "A comment begins with a space and '#'.",
            "steps: 30 # a comment",
        ),
    ),
    *slips(
        LR,
        ("lr: 0,001", "Write 0.001.", "lr: 0.001"),
        ("lr: 1e4", "1e4 is out of range: must be <= 1000.", "lr: 1e-4"),
        ("lr: auto", "Leave the key out: the default is 0.0001.", ""),
        ("lr: 10^-4", "Write 1e-4.", "lr: 1e-4"),
        ("lr: 0.1%", "Write 0.001.", "lr: 0.001"),
        ("lr: 1 e-4", "Write 1e-4.", "lr: 1e-4"),
        ("lr: 1e\u22124", "Write 1e-4.", "lr: 1e-4"),
        ("lr: -0.001", "-0.001 is out of range: must be >= 0.", "lr: 0.001"),
        (
            f"{LR}\nlr_warmup_steps: 10%",
            "'10%' is not a number. Write 0.1.",
            f"{LR}\nlr_warmup_steps: 0.1",
        ),
        (
            f"{LR}\nlr_warmup_steps: 100%",
            "Write a number, such as 0, the default.",
            f"{LR}\nlr_warmup_steps: 0",
        ),
        (
            f"{LR}\nlr_warmup_steps: 1 epoch",
            "Write a number, such as 0, the default.",
            f"{LR}\nlr_warmup_steps: 0",
        ),
        (
            f"{LR}\nmin_timestep: 10%",
            "Write a number, such as 0, the default.",
            f"{LR}\nmin_timestep: 0",
        ),
        (
            f"{LR}\nmax_timestep: 0.5",
            "0.5 of 1000: only images almost without noise are trained. Write 500 for the share 0.5.",
            f"{LR}\nmax_timestep: 500",
        ),
        (
            f"{LR}\nwarmup: 10",
            "Did you mean 'lr_warmup_steps'?",
            f"{LR}\nlr_warmup_steps: 10",
        ),
        (
            f"{LR}\nema_config: {{use_ema: true, ema_decay: 1}}",
            "1 sets no limit: files are averages of about the last tenth of the run, however long it is. A typical "
            "value is 0.999.",
            f"{LR}\nema_config: {{use_ema: true, ema_decay: 0.999}}",
        ),
        (
            f"{LR}\nema_config: {{use_ema: true, ema_decay: 99%}}",
            "Write 0.99.",
            f"{LR}\nema_config: {{use_ema: true, ema_decay: 0.99}}",
        ),
        (
            f"{LR}\nema_config: 0.99",
            "0.99 is not a mapping of keys and values. Write its keys below it, indented, each as 'key: value'.",
            f"{LR}\nema_config: {{use_ema: true, ema_decay: 0.99}}",
        ),
        (
            f"{LR}\nema_config: {{enabled: true}}",
            "Did you mean 'use_ema'?",
            f"{LR}\nema_config: {{use_ema: true}}",
        ),
        (
            f"{LR}\nema_config: true",
            "Write 'ema_config: {use_ema: true}'.",
            f"{LR}\nema_config: {{use_ema: true}}",
        ),
        (
            f"{LR}\nuse_ema: true",
            "It belongs in 'train.ema_config'.",
            f"{LR}\nema_config: {{use_ema: true}}",
        ),
        (
            f"{LR}\ncompile: {{enabled: true, backend: induktor}}",
            "PyTorch itself has no backend 'induktor'. Did you mean 'inductor'?",
            f"{LR}\ncompile: {{enabled: false}}",
        ),
        (f"{LR}\nassistant: true", "each as 'key: value'; 'path' is required.", LR),
        (
            f"{LR}\nseed: abc",
            "'abc' is not a seed. Write a whole number, or random.",
            f"{LR}\nseed: random",
        ),
        (
            f"{LR}\nweight_decay: 0.01",
            "Write 'optimizer_params: {weight_decay: ...}'.",
            f"{LR}\noptimizer_params: {{weight_decay: 0.01}}",
        ),
        (
            f"{LR}\noptimizer_params: weight_decay=0.01",
            "Write 'optimizer_params: {weight_decay: 0.01}'.",
            f"{LR}\noptimizer_params: {{weight_decay: 0.01}}",
        ),
        (
            f"{LR}\noptimizer_params: {{weight_decays: 0.1}}",
            "Did you mean 'weight_decay'?",
            f"{LR}\noptimizer_params: {{weight_decay: 0.1}}",
        ),
        (
            f"{LR}\noptimizer_params: {{lr: 0.1}}",
            "'lr' has its own key. Write train.lr.",
            "lr: 0.1  # train.lr",
        ),
        (
            f"{LR}\ngradient_accumulation_steps: 4",
            "with this key ai-toolkit counts micro-batches",
            f"{LR}\ngradient_accumulation: 4",
        ),
        (
            f"{LR}\ngradient_checkpointing: maybe",
            "'maybe' is unknown. Use 'auto'",
            f"{LR}\ngradient_checkpointing: auto",
        ),
        (
            f"{LR}\ntrain_text_encoder: true",
            "Write false.",
            f"{LR}\ntrain_text_encoder: false",
        ),
        (f"{LR}\ntrain_unet: false", "Write true.", f"{LR}\ntrain_unet: true"),
        (
            f"{LR}\nnoise_scheduler: ddpm",
            "'ddpm' is unknown. Use 'flowmatch'.",
            f"{LR}\nnoise_scheduler: flowmatch",
        ),
        (
            f"{LR}\ntimestep_type: sigmoidal",
            "Did you mean 'sigmoid'?",
            f"{LR}\ntimestep_type: sigmoid",
        ),
        (
            f"{LR}\nloss_type: l3",
            "Use 'mse' or 'mae' or 'huber'.",
            f"{LR}\nloss_type: mae",
        ),
        (
            f"{LR}\nnoise_offset: 0.05",
            "0.05 is not supported yet. Leave this key out.",
            LR,
        ),
    ),
    *slips(
        "optimizer: adamw",
        ("optimizer: adam_w", "Did you mean 'adamw'?", "optimizer: adamw"),
        ("optimizer: automagic", "Use 'prodigy' with 'lr: 1'", "optimizer: prodigy"),
        (
            "optimizer: torch.optim.AdamX",
            "torch.optim has no 'AdamX'. Did you mean 'Adam'?",
            "optimizer: torch.optim.Adam",
        ),
        (
            "optimizer: torch.optim.Adam()",
            "Write a class such as 'torch.optim.SGD'.",
            "optimizer: torch.optim.SGD",
        ),
        ("optimizer: prodigy", "A typical value is 'lr: 1'.", "optimizer: adamw"),
    ),
    *slips(
        "lr_scheduler: constant",
        (
            "lr_scheduler: none",
            "'none' is not supported. Write constant:",
            "lr_scheduler: constant",
        ),
        (
            "lr_scheduler: false",
            "false is not supported. Write constant:",
            "lr_scheduler: constant",
        ),
        (
            "lr_scheduler: step",
            "25:23: process[0].train.lr_scheduler: step needs 'step_size', which is not given.",
            "lr_scheduler: step\nlr_scheduler_params: {step_size: 10}",
        ),
        ("lr_scheduler: cosin", "Did you mean 'cosine'?", "lr_scheduler: cosine"),
    ),
    *slips(
        "dtype: fp32",
        ("dtype: bfloat", "Did you mean 'bfloat16'?", "dtype: bfloat16"),
        ("dtype: bf61", "Did you mean 'bf16'?", "dtype: bf16"),
        (
            "dtype: 32",
            "is not a name. Use 'float16' or 'bfloat16' or 'float32'.",
            "dtype: float32",
        ),
        ("mixed_precision: fp16x", "Did you mean 'fp16'?", "mixed_precision: fp16"),
    ),
    *slips(
        "batch_size: 1",
        ("batch_size: 0", "0 is out of range: must be >= 1.", "batch_size: 1"),
        ("batch_size: 0.5", "0.5 is not a whole number. Write 1.", "batch_size: 1"),
        ("batch_size: 1.5", "Write 1 or 2.", "batch_size: 2"),
        ("batch_size: auto", "Leave the key out: the default is 1.", ""),
        ("batch_size: 2 images", "Write 2.", "batch_size: 2"),
        ("bs: 2", "Did you mean 'batch_size'?", "batch_size: 2"),
    ),
    *slips(
        DEVICE,
        ("device: gpu", "'gpu' is not a valid device. Write 'cuda'.", "device: cuda"),
        ("device: 0", "Write 'cuda:0'.", "device: cuda:0"),
        ("device: cuda0", "Write 'cuda:0'.", "device: cuda:0"),
        (
            f"{DEVICE}\nvalidation: true",
            "Write its keys below it, indented, each as 'key: value'.",
            DEVICE,
        ),
        (
            f"{DEVICE}\nstop_when: true",
            "Write its keys below it, indented, each as 'key: value'.",
            DEVICE,
        ),
        (
            "device: nvidia 4090",
            "Write 'auto', 'cuda', 'cuda:0' or 'cpu'.",
            "device: auto",
        ),
        ("device: tpu", "Write 'auto', 'cuda', 'cuda:0' or 'cpu'.", "device: auto"),
        (
            "device: cuda",
            "Write 'device: auto' for the best device that can, or 'cpu'.",
            "device: auto",
        ),
        (
            f"{DEVICE}\ntraining_seed: abc",
            "Write a whole number, or random.",
            f"{DEVICE}\ntraining_seed: random",
        ),
        (
            f"{DEVICE}\nresume: yes",
            "Write 'auto', 'never', a step number or",
            f"{DEVICE}\nresume: auto",
        ),
        (
            f"{DEVICE}\nresume: true",
            "Write 'auto', 'never', a step number or",
            f"{DEVICE}\nresume: auto",
        ),
        (
            f"{DEVICE}\noutput_dir: out",
            "musubi-tuner's 'output_dir' is 'training_folder' here.",
            f"{DEVICE}\nlogging: {{}}",
        ),
        (
            f"{DEVICE}\nlogging: true",
            "Write 'logging: {}' for its defaults.",
            f"{DEVICE}\nlogging: {{}}",
        ),
        (
            f"{DEVICE}\nmemory_check: off please",
            "Write true or false.",
            f"{DEVICE}\nmemory_check: false",
        ),
    ),
    *slips(
        RATE,
        (
            f"{RATE}\nshuffle_tokens: true\ncache: text",
            "Write 'cache: latents', or remove 'shuffle_tokens'.",
            f"{RATE}\nshuffle_tokens: true\ncache: latents",
        ),
        ("caption_dropout_rate: 5%", "'5%' is not a number. Write 0.05.", RATE),
        (
            "caption_dropout_rate: 5",
            "5 is out of range: must be <= 1. For 5 %, write 0.05.",
            RATE,
        ),
        ("caption_dropout_rate: never", "Write 0 (off).", "caption_dropout_rate: 0"),
        (
            "is_reg: yes",
            "true for every dataset: all images hold the model back, and none is learned.",
            "",
        ),
        ("num_repeats: 10x", "Write 10.", "num_repeats: 10"),
        (
            f"{RATE}\nbatch_size: 2",
            "The nearest here is 'train.batch_size': one for all datasets.",
            RATE,
        ),
        (
            f"{RATE}\nbucket_reso_steps: 64",
            "is not supported: buckets follow from `datasets[].resolution`.",
            RATE,
        ),
        ("repeats: 10", "Did you mean 'num_repeats'?", "num_repeats: 10"),
        ("shuffle: true", "Images are always shuffled. Leave this key out.", ""),
        (
            "enable_ar_bucket: true",
            "Images are always grouped by size. Leave this key out.",
            "",
        ),
        (
            "flip_aug: true",
            "kohya's 'flip_aug' is 'datasets[].flip_x' here.",
            "flip_x: true",
        ),
        ("mask_path: masks", "'masks' does not exist", ""),
        ("trigger: zibo", "Did you mean 'trigger_word'?", "trigger_word: zibo"),
        (
            "background: whitish",
            "Write a name such as 'white' or '#rrggbb'.",
            "background: white",
        ),
        (
            "default_caption: photo: of zibo",
            'Put the text in quotes: "photo: of zibo"',
            'default_caption: "photo: of zibo"',
        ),
    ),
    *slips(
        "caption_ext: txt",
        (
            "caption_ext: text",
            "Give 'caption_ext: [.text, .txt]'",
            "caption_ext: [.text, .txt]",
        ),
    ),
    *slips(
        "resolution: 128",
        ("resolution: 128px", "Write 128.", "resolution: 128"),
        (
            "resolution: 128x128",
            "Write one number; where several may stand, a list such as",
            "resolution: 128",
        ),
        ("resolution: 128,128", "Write 128.", "resolution: 128"),
        (
            "resolution: 128, 160",
            "Write [128, 160] where a list may stand.",
            "resolution: [128, 160]",
        ),
        (
            "resolution: 128 160",
            "Write [128, 160] where a list may stand.",
            "resolution: [128, 160]",
        ),
        (
            "resolution: [128, 160]",
            "each image is trained at both. For one rectangle, write '{width: 128, height: 160}'.",
            "resolution: {width: 128, height: 160}",
        ),
        ("resolution: hd", "Write a whole number, such as", "resolution: 128"),
        ("resolution: auto", "Leave the key out", ""),
        ("res: 128", "Did you mean 'resolution'?", "resolution: 128"),
        ("width: 128", "Did you mean 'resolution'?", "resolution: 128"),
        ("resolution: 8", "8 is out of range: must be >= 32.", "resolution: 128"),
    ),
    *slips(
        FOLDER,
        ("- folder_path: datasets/robto", "Did you mean 'datasets/robot'?", FOLDER),
        ("- folder_path: Datasets/Robot", "Did you mean 'datasets/robot'?", FOLDER),
        ("- folder_path: datasets\\robot", "Did you mean 'datasets/robot'?", FOLDER),
        (
            "- folder_path: https://example.org/robot.zip",
            "Download it, and give the folder;",
            FOLDER,
        ),
        ("- folder_path: file://datasets/robot", "Write 'datasets/robot'.", FOLDER),
        (
            "- folder_path: C:\\Users\\me\\robot",
            "begins a path of Windows: --map C:=NEW",
            FOLDER,
        ),
        (
            '- folder_path: "C:\\Users\\me\\robot"',
            "Write '/', or use single quotes; in WSL,",
            FOLDER,
        ),
        (
            '- folder_path: "datasets\\qrobot"',
            "Write '/' or '\\\\', or use single quotes.",
            FOLDER,
        ),
        (
            '- folder_path: "datasets\\robot"',
            "Write '/', or use single quotes.",
            FOLDER,
        ),
        (
            "- folder_path: $HERE/datasets/robot",
            "Write '${HERE}' for a variable",
            "- folder_path: ${HERE}/datasets/robot",
        ),
        (
            "- folder_path: $env:HERE/datasets/robot",
            "Write '${HERE}' for a variable",
            "- folder_path: ${HERE}/datasets/robot",
        ),
        (
            "- folder_path: ${NOSUCH}/robot",
            "Set it, or write ${NOSUCH:-default}.",
            "- folder_path: ${NOSUCH:-datasets}/robot",
        ),
        (
            "- folder_path: ${1X}/robot",
            "does not name an environment variable. Write ${NAME}.",
            "- folder_path: ${HERE}/datasets/robot",
        ),
        (
            "- folder_path: \u201cdatasets/robot\u201d",
            "type a plain quote or space.",
            FOLDER,
        ),
        ("- folder: datasets/robot", "Did you mean 'folder_path'?", FOLDER),
        ("- path: datasets/robot", "Did you mean 'folder_path'?", FOLDER),
        (
            "- image_dir: datasets/robot",
            "kohya's 'image_dir' is 'datasets[].folder_path' here.",
            FOLDER,
        ),
        ("-folder_path: datasets/robot", "Write a space after '-'.", FOLDER),
        (
            "- folder_path datasets/robot",
            "no ':' follows the key. Write 'key: value'.",
            FOLDER,
        ),
    ),
    *slips(
        "save_every: 10",
        (
            "save_every: 1 epoch",
            "Write 'save_every_n_epochs: 1' instead of 'save_every'.",
            "save_every_n_epochs: 1",
        ),
        (
            "save_every: 10%",
            "Write a whole number, such as 250, the default.",
            "save_every: 250",
        ),
        (
            "save_every: 30 min",
            "Write a whole number, such as 250, the default.",
            "save_every: 250",
        ),
        ("save_every: never", "Write 0 (only the final file).", "save_every: 0"),
        (
            "save_every_n_epochs: 200 steps",
            "Write 'save_every: 200' instead of",
            "save_every: 200",
        ),
        ("save_steps: 10", "Did you mean 'save_every'?", "save_every: 10"),
        ("max_step_saves_to_keep: all", "Write 0 (all).", "max_step_saves_to_keep: 0"),
        (
            "format: safetensors",
            "A LoRA is always one safetensors file. Leave this key out.",
            "",
        ),
        (
            "push_to_hub: true",
            "set hf_repo_id, such as 'owner/name'.",
            "push_to_hub: true\nhf_repo_id: owner/name",
        ),
    ),
    *slips(
        "type: lora",
        *(
            (
                f"type: {name}",
                "Write 'type: lora', and 'loraplus_lr_ratio: 16' below it.",
                "type: lora\nloraplus_lr_ratio: 16",
            )
            for name in ("lora+", "LoRA_plus")
        ),
        ("type: lycoris", "a plain LoRA is trained. Write 'type: lora'.", "type: lora"),
        ("type: locon", "'locon' is unknown. Use 'lora'", "type: lora"),
    ),
    *slips(
        "linear: 4",
        ("dim: 4", "Did you mean 'linear'?", "linear: 4"),
        (
            "linear: 16/16",
            "Write a whole number, such as 16, the default.",
            "linear: 16",
        ),
        ("linear: auto", "Leave the key out: the default is 16.", ""),
    ),
    *slips(
        LINEAR,
        (
            "linear_alpha: half",
            "Write a number, such as 16, the default.",
            "linear_alpha: 16",
        ),
        (
            "linear_alpha: none",
            "Write a number, such as 16, the default.",
            "linear_alpha: 16",
        ),
        ("linear_alpha: 0", "0 disables the adapter.", LINEAR),
        (f"{LINEAR}\ndropout: 10%", "Write 0.1.", f"{LINEAR}\ndropout: 0.1"),
        (f"{LINEAR}\ndropout: 10", "For 10 %, write 0.1.", f"{LINEAR}\ndropout: 0.1"),
        (
            f"{LINEAR}\nexclude_patterns: img_mod",
            "'img_mod' matches no layer. A pattern has to match the whole name. Write '.*img_mod.*'.",
            f"{LINEAR}\nexclude_patterns: .*img_mod.*",
        ),
        (
            f"{LINEAR}\npretrained_lora_path: https://huggingface.co/a/b/resolve/main/c/d.safetensors?download=true",
            "Run 'hf download a/b c/d.safetensors', and give the file whose path it prints.",
            f"{LINEAR}\npretrained_lora_path: fits.safetensors",
        ),
        (
            f"{LINEAR}\ntarget_modules: attn",
            "Did you mean 'network_kwargs.only_if_contains'?",
            f"{LINEAR}\nnetwork_kwargs: {{only_if_contains: attn}}",
        ),
    ),
    *slips(
        "- type: sd_trainer",
        ("- type: sd_train", "Did you mean 'sd_trainer'?", "- type: sd_trainer"),
        ("- type: lora", "Did you mean 'sd_trainer'?", "- type: sd_trainer"),
    ),
    *slips(
        "training_folder: output",
        (
            "training_folder: $HERE/output",
            "Write '${HERE}' for a variable of the environment.",
            "training_folder: ${HERE}/output",
        ),
    ),
    *slips("job: extension", ("job: train", "Write 'extension'.", "job: extension")),
    *slips(
        "job: extension",
        ("jobs: extension", "is required. Write 'job: extension'.", "job: extension"),
    ),
    *slips("config:", ("Config:", "Did you mean 'config'?", "config:")),
    *slips(
        "name: my_char",
        (
            "name: my/char",
            "leave out '/', '\\' and control characters.",
            "name: mychar",
        ),
        (
            "name: [my_char]",
            "a list is not text. Give one value;",
            "name: my_char",
        ),
        ("name: 123", 'Put it in quotes: "123"', 'name: "123"'),
    ),
    *slips(
        "sample_every: 10",
        ("sample_every: never", "Write 0 (none at intervals).", "sample_every: 0"),
        (
            "sample_every: 1 epoch",
            "Write 'sample_every_n_epochs: 1' instead of",
            "sample_every_n_epochs: 1",
        ),
    ),
    *slips(
        "seed: 42", ("seed: abc", "Write a whole number, or random.", "seed: random")
    ),
    *slips(
        "guidance_scale: 2",
        (
            "guidance_scale: 75",
            "75 is far above what the model is made for, and burns images. A typical value is 4.",
            "guidance_scale: 4",
        ),
        ("cfg: 4", "Did you mean 'guidance_scale'?", "guidance_scale: 4"),
        ("guidance_scale: none", "Write 0 (off).", "guidance_scale: 0"),
        ("guidance_scale: 7,5", "Write 7.5.", "guidance_scale: 7.5"),
    ),
    *slips(
        "sample_steps: 8",
        (
            "sample_steps: 1000",
            "1000 steps for each image take long, and show no more than 50.",
            "sample_steps: 50",
        ),
        ("steps: 8", "Did you mean 'sample_steps'?", "sample_steps: 8"),
    ),
    *slips(
        "width: 128",
        ("size: 128", "Write 'width' and 'height', in pixels.", "width: 128"),
        (
            "width: 1000",
            "the model cannot generate 1000 pixels; images will be generated at 992.",
            "width: 992",
        ),
    ),
    *slips("prompts:", ("prompt:", "Did you mean 'prompts'?", "prompts:")),
    *slips(
        "- zibo in a room",
        (
            "zibo in a room",
            "Write one prompt per line, each after '- '",
            "- zibo in a room",
        ),
        (
            "-zibo in a room",
            "Write one prompt per line, each after '- '",
            "- zibo in a room",
        ),
        (
            "- zibo in a {red|blue} room",
            "Write one of the alternatives",
            "- zibo in a red room",
        ),
        (
            "- zibo in a __colour__ room",
            "Write the word that the wildcard stands for",
            "- zibo in a red room",
        ),
        (
            "- zibo in a room --w=96",
            "'--w=96' stays in the text. Write '--w 96'.",
            "- zibo in a room --w 96",
        ),
        (
            "- zibo in a room -w 96",
            "'-w 96' stays in the text. Write '--w 96'.",
            "- zibo in a room --w 96",
        ),
        (
            "- zibo in a room \u2014w 96",
            "'\u2014w 96' stays in the text. Write '--w 96'.",
            "- zibo in a room --w 96",
        ),
        (
            "- zibo in a room --w 96 --w 128",
            "--w: is given twice, as 128 and 96. Remove one of them.",
            "- zibo in a room --w 96",
        ),
        (
            "- zibo: in a room",
            'Put the text in quotes: "zibo: in a room"',
            '- "zibo: in a room"',
        ),
        (
            "- zibo #1 in a room",
            'put the text in quotes: "zibo #1 in a room"',
            '- "zibo #1 in a room"',
        ),
    ),
    *slips(
        "trigger_word: zibo",
        ("activation_text: zibo", "Did you mean 'trigger_word'?", "trigger_word: zibo"),
        (
            'trigger_word: "[trigger]"',
            'For no trigger word write "".',
            'trigger_word: ""',
        ),
        ("trigger_word: 007", 'Put it in quotes: "007"', 'trigger_word: "007"'),
        (
            "trigger_word: \u201czibo\u201d",
            "the curly quotes are a part of the value.",
            "trigger_word: zibo",
        ),
    ),
    *slips(
        NAME,
        (
            "name_or_path: nosuch",
            "Give a folder in diffusers layout, or a hub id",
            NAME,
        ),
        ("name_or_path: Qwen-Image-2512", "Did you mean 'Qwen/Qwen-Image-2512'?", NAME),
        (
            "name_or_path: https://huggingface.co/Qwen/Qwen-Image-2512",
            "write its id, 'Qwen/Qwen-Image-2512'.",
            NAME,
        ),
        (f"path: {MODEL}", "Did you mean 'name_or_path'?", NAME),
        (
            f"{NAME}\nquantize: int8",
            "Write 'quantize: true' and 'qtype: int8'.",
            f"{QUANTIZED}\nqtype: int8",
        ),
        (
            f"{NAME}\nquantize: 8bit",
            "Write 'quantize: true' and 'qtype: int8'.",
            f"{QUANTIZED}\nqtype: int8",
        ),
        (
            f"{NAME}\nquantize: nf4",
            "Write 'quantize: true' and 'qtype: int4'.",
            f"{QUANTIZED}\nqtype: int4",
        ),
        (
            f"{NAME}\nload_in_8bit: true",
            "Write 'quantize: true' and 'qtype: int8'.",
            f"{QUANTIZED}\nqtype: int8",
        ),
        (
            f"{NAME}\nload_in_4bit: true",
            "Write 'quantize: true' and 'qtype: int4'.",
            f"{QUANTIZED}\nqtype: int4",
        ),
        (
            f"{QUANTIZED}\nqtype: nf4",
            "'nf4' is not supported. Use 'int4', or",
            f"{QUANTIZED}\nqtype: int4",
        ),
        (
            f"{QUANTIZED}\nqtype: q8_0",
            "'q8_0' is unknown. Use 'int8'",
            f"{QUANTIZED}\nqtype: int8",
        ),
        (f"{NAME}\nquantize: yess", "Write true or false.", QUANTIZED),
        (
            f"{QUANTIZED}\nqtype: int8\nquantized_products: true",
            "true: is not a name. Use 'int8' or 'fp8' or false.",
            f"{QUANTIZED}\nqtype: int8\nquantized_products: int8",
        ),
        (
            f"{QUANTIZED}\nqtype: int4\nquantized_products: int8",
            "Write 'quantize: true' and 'qtype: int8'.",
            f"{QUANTIZED}\nqtype: int8\nquantized_products: int8",
        ),
        (
            f"{NAME}\nis_qwen: false",
            "Leave it out.",
            f"{NAME}\nis_qwen: true",
        ),
        (
            f"{NAME}\nbase_loras: [fits.safetensors:0.5]",
            "Did you mean 'fits.safetensors'? Give a LoRA file; its strength is a key, 'multiplier'.",
            f"{NAME}\nbase_loras: [{{path: fits.safetensors, multiplier: 0.5}}]",
        ),
        (
            f"{NAME}\nbase_loras: [{{path: fits.safetensors, weight: 0.5}}]",
            "Did you mean 'multiplier'?",
            f"{NAME}\nbase_loras: [{{path: fits.safetensors, multiplier: 0.5}}]",
        ),
        (f"{NAME}\nvram: 24", "Write 'low_vram: true';", f"{NAME}\nlow_vram: true"),
        (
            f"{NAME}\narch: flux",
            "'flux' is unknown. Use 'qwen_image_edit_plus'",
            f"{NAME}\narch: qwen_image_edit_plus",
        ),
    ),
]
"""In a job; the answer to each is in the errors of the job, or in the warnings of its
plan."""

STREAM = {
    FOLDER: "- url: robot{0..1}.tar\n  webdataset: {label_key: txt}",
    RATE: "",
    "caption_ext: txt": "",
}
NO_WORD = {"trigger_word: zibo": ""}
FULL = {"type: lora": "type: full", "linear: 4": "", LINEAR: ""}
SWAPPED = {NAME: f"{NAME}\nblocks_to_swap: 1"}
PRESERVED = {
    LR: f"{LR}\ndiff_output_preservation: true\ndiff_output_preservation_class: robot"
}
NAMED = {FOLDER: "- folder_path: datasets/named"}
PLAIN = {FOLDER: "- folder_path: datasets/plain"}
LAYERS = {
    NAME: "name_or_path: Qwen/Qwen-Image-Layered",
    "prompts:": "samples:",
    "- zibo in a room": "- {prompt: x, ctrl_img: datasets/robot/coffee.jpg}",
}
BESIDE = {FOLDER: "- folder_path: datasets/layers\n  layers_suffix: _layer"}
NEVER = f"{DEVICE}\nstop_when: {{metric: validation/loss}}\nvalidation: {{folder_path: datasets/robot, every: 2}}"

WAYS = [
    *(
        Way(
            {
                FOLDER: f"- folder_path: {again}\n  resolution: 128\n  caption_ext: txt\n  {RATE}\n{FOLDER}"
            },
            "is given twice, so each of its images counts double. Remove one, or give 'num_repeats: 2'.",
            {RATE: f"{RATE}\nnum_repeats: 2"},
        )
        for again in ("datasets/robot", "./datasets/robot/")
    ),
    Way(
        {"training_folder: output": "training_folder: s3://bucket/out"},
        "Give a folder: one in which the bucket is mounted, or one whose files you copy there.",
        {},
    ),
    Way(
        {LR: f"{LR}\nassistant: nosuch.safetensors"},
        "Give a LoRA file, or one of the hub: owner/repo.",
        {LR: f"{LR}\nassistant: fits.safetensors"},
    ),
    Way(
        {
            NAME: f"{QUANTIZED}\nqtype: int4\naccuracy_recovery_adapter: nosuch.safetensors"
        },
        "Give a file, or owner/repo/file.safetensors of the hub.",
        {
            NAME: f"{QUANTIZED}\nqtype: int4\naccuracy_recovery_adapter: fits.safetensors"
        },
    ),
    Way(
        {FOLDER: f"- folder_path: datasets/reg\n  resolution: 128\n{FOLDER}"},
        "If they are, give the folder as a dataset with 'is_reg: true'",
        {
            FOLDER: f"- folder_path: datasets/reg\n  resolution: 128\n  is_reg: true\n{FOLDER}"
        },
    ),
    Way(
        {
            DEVICE: f"{DEVICE}\nvalidation: {{fraction: 0.5, every: 2}}",
            FOLDER: "- folder_path: datasets/reg",
        },
        "Add images, or give validation.folder_path.",
        {
            DEVICE: f"{DEVICE}\nvalidation: {{folder_path: datasets/robot, every: 2}}",
            FOLDER: "- folder_path: datasets/reg",
        },
    ),
    Way(
        {"prompts:": "prompts: empty.txt", "- zibo in a room": ""},
        "holds no prompt. Write one per line; '#' begins a line that is left out.",
        {},
    ),
    Way(
        PRESERVED | NO_WORD,
        "but trigger_word is not set. Set it, or use 'blank_prompt_preservation'.",
        PRESERVED,
    ),
    Way(
        PRESERVED | NO_WORD,
        "or use 'blank_prompt_preservation'.",
        {LR: f"{LR}\nblank_prompt_preservation: true"} | NO_WORD,
    ),
    Way(
        FULL | SWAPPED,
        "Set train.fused_backward_pass: true and train.gradient_accumulation: 1, or blocks_to_swap: 0.",
        FULL
        | SWAPPED
        | {LR: f"{LR}\nfused_backward_pass: true\ngradient_accumulation: 1"},
    ),
    Way(
        FULL | SWAPPED,
        "or blocks_to_swap: 0.",
        FULL | {NAME: f"{NAME}\nblocks_to_swap: 0"},
    ),
    Way(
        {FOLDER: f"{FOLDER}\n  control_path: datasets/before"},
        "and no prompt has one, so that each sample is drawn from words alone. Write 'zibo in a room --ctrl_img ",
        {
            FOLDER: f"{FOLDER}\n  control_path: datasets/before",
            "- zibo in a room": "- zibo in a room --ctrl_img datasets/before/coffee.jpg",
        },
    ),
    Way(
        STREAM | {DEVICE: f"{DEVICE}\nvalidation: {{fraction: 0.25, every: 2}}"},
        "no fraction of a stream can be held out. Set 'folder_path' to images that are not part of it.",
        STREAM
        | {DEVICE: f"{DEVICE}\nvalidation: {{folder_path: datasets/reg, every: 2}}"},
    ),
    Way(
        STREAM | {DEVICE: NEVER, "steps: 30": "epochs: 1"},
        "its number of steps is not known. Set 'train.steps'",
        STREAM | {DEVICE: NEVER},
    ),
    Way(
        {FOLDER: "- num_repeats: 2"},
        "names no images. Give 'folder_path', or 'url' for a stream of shards.",
        {},
    ),
    Way(
        {DEVICE: f"{DEVICE}\nvalidation: {{every: 2}}"},
        "Give 'folder_path', or the 'fraction' of the training images to hold out.",
        {DEVICE: f"{DEVICE}\nvalidation: {{every: 2, fraction: 0.25}}"},
    ),
    Way(
        {NAME: "name_or_path: fits.safetensors"},
        "It is a LoRA: give the model, and the file as model.base_loras or network.pretrained_lora_path.",
        {NAME: f"{NAME}\nbase_loras: [fits.safetensors]"},
    ),
    Way(
        {DEVICE: f"{DEVICE}\nlogging: {{log_with: tensorboard}}"},
        "Set logging_dir to a folder.",
        {DEVICE: f"{DEVICE}\nlogging: {{log_with: tensorboard, logging_dir: logs}}"},
    ),
    Way(
        {DEVICE: f"{DEVICE}\nstop_when: {{metric: loss}}"},
        "is not set. Set it, or 'metric: validation/loss', which needs none.",
        {DEVICE: f"{DEVICE}\nstop_when: {{metric: loss, below: 0.01}}"},
    ),
    Way(
        STREAM
        | {"steps: 30": "epochs: 1", "lr_scheduler: constant": "lr_scheduler: cosine"},
        "Set 'datasets[0].webdataset.samples', or 'train.steps' instead of epochs.",
        STREAM
        | {
            "webdataset: {label_key: txt}": "webdataset: {label_key: txt, samples: 4}",
            "steps: 30": "epochs: 1",
            "lr_scheduler: constant": "lr_scheduler: cosine",
        },
    ),
    Way(
        {FOLDER: "- folder_path: datasets/placeholder"} | NO_WORD,
        "Give the job a 'trigger_word'",
        {FOLDER: "- folder_path: datasets/placeholder"},
    ),
    Way(
        PLAIN | NO_WORD | {"- zibo in a room": "- sks in a room"},
        "Give the job its 'trigger_word'",
        PLAIN
        | {
            "trigger_word: zibo": "trigger_word: sks",
            "- zibo in a room": "- sks in a room",
        },
    ),
    Way(
        NAMED | NO_WORD,
        "give 'trigger_word: mira'",
        NAMED | {"trigger_word: zibo": "trigger_word: mira"},
    ),
    Way(
        {FOLDER: f"{FOLDER}\n  columns: {{prompt: text}}"},
        "Give one as 'captions_file', or take 'columns' out",
        {},
    ),
    Way(
        {FOLDER: "- folder_path: names.parquet"},
        "is a table without pictures. Give it as 'captions_file'",
        {FOLDER: f"{FOLDER}\n  captions_file: names.parquet", "caption_ext: txt": ""},
    ),
    Way(
        {FOLDER: "- folder_path: datasets/with_table"},
        "give 'captions_file: ",
        {
            FOLDER: f"{FOLDER}\n  captions_file: datasets/with_table/names.parquet",
            "caption_ext: txt": "",
        },
    ),
    Way(
        {FOLDER: "- folder_path: datasets/zipped"},
        "Give 'folder_path: ",
        {FOLDER: "- folder_path: datasets/zipped/images.zip"},
    ),
    Way(
        {FOLDER: "- folder_path: datasets/lists", "caption_ext: txt": "captions: one"},
        "Give 'captions: lines', or one of them as text",
        {
            FOLDER: "- folder_path: datasets/lists",
            "caption_ext: txt": "captions: lines",
        },
    ),
    Way(
        {FOLDER: "- folder_path: datasets/years"},
        "give 'num_repeats: 1'",
        {FOLDER: "- folder_path: datasets/years\n  num_repeats: 1"},
    ),
    Way(
        {FOLDER: "- folder_path: datasets/big"},
        "if the number is part of its name, give 'num_repeats: 1'",
        {FOLDER: "- folder_path: datasets/big\n  num_repeats: 1"},
    ),
    Way(
        LAYERS | {FOLDER: "- folder_path: datasets/layers"},
        "Give 'layers_suffix: _layer'.",
        LAYERS | BESIDE,
    ),
    Way(
        {"type: lora": "type: boft"},
        "Set it to 6 or more, or leave out layers of that size (exclude_patterns).",
        {"type: lora": "type: boft", "linear: 4": "linear: 6"},
    ),
    Way(
        {"prompts:": "", "- zibo in a room": ""},
        "has no prompts: no images are generated. Give 'prompts'.",
        {},
    ),
]
"""As JOBS, of answers that need more than a line."""

MEANT = [
    Slip("seed: 42", "seed: random", "", ""),
    Slip("seed: 42", "seed: -1", "", ""),
    Slip("seed: 42", 'seed: "-1"', "", ""),
    Slip(DEVICE, f"{DEVICE}\ntraining_seed: -1", "", ""),
    Slip(DEVICE, f"{DEVICE}\ntraining_seed: random", "", ""),
    Slip(DEVICE, "device: CPU", "", ""),
    Slip("optimizer: adamw", "optimizer: AdamW", "", ""),
    Slip("caption_ext: txt", "caption_ext: .txt", "", ""),
    Slip("linear: 4", "rank: 4", "", ""),
    Slip(LR, "learning_rate: 1e-3", "", ""),
    Slip("save_every: 10", "save_every: 1e1", "", ""),
]
"""Other ways of writing what the program does then."""

COMMANDS: dict[str, str] = {
    "trian job.yaml": "a job is run by its name alone. Write: run.py job.yaml",
    "train job.yaml": "a job is run by its name alone. Write: run.py job.yaml",
    "start": "neither a config nor a tool. Write: run.py JOB.yaml",
    "stop": "neither a config nor a tool. Write: touch RUN/control/stop (or Ctrl-C where it runs)",
    "--resume job.yaml": "a job that is run again resumes. Write: run.py JOB.yaml",
    "job.yaml --plan": "Write: run.py JOB.yaml --dry-run",
    "--dry job.yaml": "Write: run.py JOB.yaml --dry-run",
    "job.yaml \u2013-dry-run": "begins with a long dash. Write --dry-run",
    "list": "Write: run.py --help",
    "jbo.yaml": "Did you mean 'job.yaml'?",
    "job.yml": "Did you mean 'job.yaml'?",
    "datasets/robot": "'run.py new NAME datasets/robot' writes a job",
    "datasets/robot/coffee.jpg": "is an image (JPEG), not a job: a YAML or JSON file.",
    "README.md": "is not a job, a YAML or JSON file",
    "--gpu 24 job.yaml": "'run.py new NAME FOLDER --gpu GB' writes a job for a GPU.",
    "job.yaml --seed 5": "'--set training_seed=VALUE' or '--set sample.seed=VALUE'.",
    "job.yaml train.steps=100": "Write '--set train.steps=100'.",
    "job.yaml --set train.lr": "write KEY=VALUE, such as --set train.lr=1e-4",
    "job.yaml --set trian.lr=1": "--set trian.lr: process[0].trian: unknown key. Did you mean 'train'?",
    "job.yaml --set train.lr=x --dry-run": "--set train.lr: process[0].train.lr: 'x' is not a number.",
    "job.yaml --set datasets.5.num_repeats=2": "entries, counted from 0: there is no 5.",
    "job.yaml nosuch.yaml": "nosuch.yaml: no such config.",
    "--restart-from second job.yaml --dry-run": "the job has no process 'second'. Known names: [0].",
    "--name a/b job.yaml --dry-run": "leave out '/', '\\' and control characters.",
    "--card 12 job.yaml": "--card requires --dry-run",
    "job.yaml --dry-run --card 'RTX 2080'": "'RTX 2080' is not in the table of cards. Give its memory in GB, such",
    "--map datasets job.yaml": "write OLD=NEW, two folders.",
    "new": "the following arguments are required: JOB_NAME, FOLDER.",
    "new my_char nosuch": "'nosuch' is not a folder",
    "new my_char datasets/robto": "Did you mean 'datasets/robot'?",
    "new numbered numbered": "If they are, take 'num_repeats: 1' out",
    "new --rank 8": "change 'network.linear' there.",
    "new my_char datasets/robot --steps 2k": "change 'train.steps' there.",
    "new my_char datasets/robot --gpu 24GB": "Write 24.",
    "new my_char datasets/robot --gpu rtx4090": "Write its GB, 24.",
    "new my char datasets/robot": "one with spaces in quotes",
    "new 'my char' datasets/robot": "Write 'my_char'.",
    "new my_char datasets/robot --trigger zibo": "Did you mean '--trigger-word'?",
    "lint nosuch": "'nosuch' is neither a folder of images nor a job.",
    "generate --prompt x": "or give --lora FILE, which names its model.",
    "generate a cat": "Write: --prompt 'a cat'",
    "generate a.safetensors b.safetensors:0.5 'a cat'": "Write: --lora a.safetensors b.safetensors:0.5",
    "generate --loras=a.safetensors": "Did you mean '--lora'?",
    "generate --lora other --prompt x": "Did you mean 'output/other/other.safetensors'?",
    "generate --lora a.safetensors:b --prompt x": "Write FILE, or FILE:STRENGTH such as a.safetensors:0.8.",
    "generate --lora a.safetensors --prompt x --size 512": "Write --height H --width W.",
    "generate --lora a.safetensors --prompt x --fp8": "Write --quantize --qtype float8.",
    "generate --lora a.safetensors --prompt x --fp8_scaled": "Write --quantize --qtype fp8_scaled.",
    "generate --lora a.safetensors --prompt x --fp8_vl": "Write --quantize float8.",
    "generate --lora a.safetensors --prompt x --models a": "Write --lora FILE:0.8 FILE:0.5.",
    "generate --lora a.safetensors --prompt x --lora_multiplier 0.8": "--lora FILE:0.8.",
    "generate --lora a.safetensors --prompt x --vae v": "Write --model FOLDER, which has all parts",
    "generate --lora a.safetensors --prompt x --resize_control_to_image_size": "Write --match-target-res.",
    "generate --model config/tiny --prompts empty.txt": "contains no prompt. Write one per line;",
    "generate --model config/tiny --prompts prompts.yaml": "is not a mapping. Write 'samples:' and a list below it.",
    "new my_char datasets/robot --gpu 2": "Write the job for one that you rent or borrow with --gpu",
    "lint datasets/odd": "Write one (run.py caption does).",
    "lint datasets/odd --trigger-word zibo": "Write the word as the job has it.",
    "grid output/other": "Write: --lora output/other",
    "grid --lora output/other --prompt x --seeds 1": "Did you mean '--seed'?",
    "new my_char datasets/robot --size 128": "unknown argument '--size'. 'run.py new --help' lists its flags.",
    "report nosuch": "Give the folder of a run.",
    "caption nosuch": "'nosuch' is not a folder",
    "import README.md": "Give the command that starts the training in quotes to 'run.py import'",
    "compare a b": "Write: run.py grid --lora FILE FILE --prompt TEXT",
    "sample --prompt x": "Write: run.py generate --lora FILE --prompt TEXT",
    "download https://huggingface.co/Qwen/Qwen-Image": "write its id, 'Qwen/Qwen-Image'.",
    "download Qwen-Image-2512": "Did you mean 'Qwen/Qwen-Image-2512'?",
}
"""Behind `run.py`, in a folder with job.yaml, images, and the run output/other -> a
part of the answer."""


PASTED: dict[str, str] = {
    "--set 'sample.prompts=[a' cat, a 'dog]' JOB": "--set 'sample.prompts=[a cat, a dog]' JOB",
    "JOB --set sample.prompts='a cat, a dog'": "JOB --set 'sample.prompts=[a cat, a dog]'",
    "JOB --set trigger_word=my cat": "JOB --set 'trigger_word=my cat'",
    "JOB --set train.lr = 2e-4": "JOB --set 'train.lr = 2e-4'",
    "JOB --set train.lr= 2e-4": "JOB --set 'train.lr= 2e-4'",
    "JOB --set train.lr 2e-4": "JOB --set train.lr=2e-4",
    "JOB --set train.lr:2e-4": "JOB --set train.lr=2e-4",
    "JOB --set train.lr": "JOB --set train.lr=1e-4",
    "JOB --set train.lr=2e-4 train.steps=3": "JOB --set train.lr=2e-4 --set train.steps=3",
    "JOB --set train.lr=1e-4,2e-4": "JOB --sweep train.lr=1e-4,2e-4",
    "JOB --set 'train.lr=[1e-4, 2e-4]'": "JOB --sweep train.lr=1e-4,2e-4",
    "JOB --set 'train.lr=(1e-4, 2e-4)'": "JOB --sweep train.lr=1e-4,2e-4",
    "JOB --set 'train.lr=(1e-4)'": "JOB --set train.lr=1e-4",
    "JOB --set 'datasets.0.resolution=(128, 256)'": "JOB --set 'datasets.0.resolution=[128, 256]'",
    "JOB --set 'sample.prompts=(a cat, a dog)'": "JOB --set 'sample.prompts=[a cat, a dog]'",
    "JOB --set train.optimizer=adamw,lion": "JOB --sweep train.optimizer=adamw,lion",
    "JOB --set train.lr=0,001": "JOB --set train.lr=0.001",
    "JOB --set train.stesp=3": "JOB --set train.steps=3",
    "JOB --set network.rank=8": "JOB --set network.linear=8",
    "JOB --set process.0.network.rank=8": "JOB --set process.0.network.linear=8",
    "JOB --set train.learning_rate=8e-5": "JOB --set train.lr=8e-5",
    "JOB --sweep train.lr=1e-4, 2e-4 network.linear=8, 16": "JOB --sweep train.lr=1e-4,2e-4 network.linear=8,16",
    "JOB --sweep train.lr=1e-4 2e-4": "JOB --sweep train.lr=1e-4,2e-4",
    "JOB --sweep train.lr 1e-4,2e-4": "JOB --sweep train.lr=1e-4,2e-4",
    "JOB --sweep train.lr:1e-4,2e-4": "JOB --sweep train.lr=1e-4,2e-4",
    "JOB --sweep 'train.lr=[1e-4,2e-4]'": "JOB --sweep train.lr=1e-4,2e-4",
    "JOB --sweep 'train.lr=1e-4; 2e-4'": "JOB --sweep train.lr=1e-4,2e-4",
    "JOB --sweep 'network.type=[lora, dora]'": "JOB --sweep network.type=lora,dora",
    "JOB --sweep network.rank=8,16": "JOB --sweep network.linear=8,16",
    "JOB --sweep train.lr": "JOB --sweep train.lr=1e-4",
    "job.yaml,b.yaml --dry-run": "job.yaml b.yaml --dry-run",
    "job.yaml, b.yaml --dry-run": "job.yaml b.yaml --dry-run",
    "'job.yaml; b.yaml' --dry-run": "job.yaml b.yaml --dry-run",
    "job.yaml --print-schema": "--print-schema",
    "job.yaml --list-extensions": "--list-extensions",
    "JOB --seeds 1, 2": "JOB --seeds 1,2,3",
    "JOB --seeds 1-3": "JOB --seeds 1,2,3",
    "new my_char.yaml datasets/robot": "new my_char datasets/robot",
    "new my_char.YAML.bak datasets/robot": "new my_char datasets/robot",
    "new config/my_char datasets/robot": "new my_char datasets/robot",
    "new datasets/robot my_char.yaml": "new my_char datasets/robot",
    "new my_char datasets/robto": "new my_char datasets/robot",
    "new my_char datasets/robot --gpu 24GB": "new my_char datasets/robot --gpu 24",
}
"""Behind `run.py`, where JOB stands for `job.yaml --dry-run` -> what the answer says to
write, which is done. Those of a part are in its `slips.json`."""


class SlipsOfPart(NamedTuple):
    """What a part adds to these tables: `slips.json` in the folder of its tests."""

    commands: dict[str, str]
    """Rows of `COMMANDS`."""

    elsewhere: dict[str, str]
    """Rows of the table `ELSEWHERE` in test_first_hour.py: words of a message of the
    part -> the test that has them."""

    processes: Sequence[tuple[str, str, str]] = ()
    """A process in one line, a part of its answer, and the process that it leads to."""

    applied: Mapping[str, str] = MappingProxyType({})
    """Rows of the table `APPLIED` there."""

    pasted: Mapping[str, str] = MappingProxyType({})
    """Rows of `PASTED`."""


def job_of_one(process: str) -> str:
    """A job with this process."""
    line = process.replace("MODEL", MODEL)
    return f"job: extension\nconfig:\n  name: my_char\n  process:\n    - {{{line}}}\n"


def slips_of_parts() -> list[SlipsOfPart]:
    """Those of the parts that are there."""
    files = sorted((ROOT / "tests" / "extensions").rglob("slips.json"))
    return [
        SlipsOfPart(**json.loads(file.read_text(encoding="utf-8"))) for file in files
    ]


for part in slips_of_parts():
    COMMANDS |= part.commands
    PASTED |= part.pasted
    WAYS += [Way(*row) for row in part.processes]
