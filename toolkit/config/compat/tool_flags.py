"""Flags of musubi-tuner's and kohya's scripts, on the commands of this program. Source: the scripts' own --help."""

from __future__ import annotations

from collections.abc import Collection

SAME = {
    "output_file": "output",
    "save_path": "output",
    "save_to": "output",
    "image_dir": "folder",
    "output_format": "format",
    "max_new_tokens": "max_tokens",
    "negative_prompt": "negative",
    "infer_steps": "steps",
    "guidance_scale": "cfg",
    "control_image_path": "reference",
    "from_file": "prompts",
    "lora_weight": "lora",
    "new_rank": "rank",
    "save_precision": "dtype",
}
"""Flag -> the key of ours that means the same, in a tool that has it."""

_ONE_FOLDER = "One folder in diffusers layout has transformer, VAE and text encoder: write --model FOLDER."
_STRENGTH = "Write the strength behind the file: --lora FILE:0.8."

REMEDIES = {
    "dit": _ONE_FOLDER,
    "vae": _ONE_FOLDER,
    "text_encoder": _ONE_FOLDER,
    "model_path": "Write --model with a hub id or a folder in the layout of transformers; single files are not read.",
    "image_size": "Write --height H --width W.",
    "lora_multiplier": _STRENGTH,
    "ratios": _STRENGTH,
    "models": "Write --lora FILE:0.8 FILE:0.5.",
    "output_type": "Images are what is written; latents are not kept. Leave it out.",
    "edit": "Whether a model edits is read from its files. Leave it out, and give --reference.",
    "resize_control_to_image_size": "Write --match-target-res.",
    "resize_control_to_official_size": "That is the default. Leave it out.",
    "attn_mode": "PyTorch chooses the attention kernel. Leave it out.",
    "compile": "Images are generated without compilation. Leave it out.",
    "fp8": "Write --quantize --qtype float8.",
    "fp8_scaled": "Write --quantize --qtype fp8_scaled.",
    "fp8_vl": "Write --quantize float8.",
    "no_sort": "The files are always put in the order of their steps. Leave it out.",
}
"""Flag of which no key means the same -> what to write."""


def own_flag(word: str, keys: Collection[str]) -> str:
    """The word of a command line, with the flag of a tool with these keys where it is another program's."""
    name, equals, value = word.partition("=")
    same = SAME.get(_key(name))
    return f"--{same}{equals}{value}" if same in keys and _key(name) not in keys else word


def remedy(word: str) -> str | None:
    """What to write instead of a flag of another program."""
    return REMEDIES.get(_key(word.partition("=")[0]))


def _key(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else ""
