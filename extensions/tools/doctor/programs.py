"""Which keys the programs load, by table: what each was found to read, at the version that its title names.

ComfyUI and diffusers were run on generated files (docs/correctness.md); musubi-tuner and the Nunchaku loader were read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from toolkit.errors import Diagnostic, UserError
from toolkit.models.interface import ROWS_OF
from toolkit.networks.adapter_health import finding, layers_of, strengths_in_settings
from toolkit.networks.adapter_settings import read_settings

FORMS = {
    "lora_A": (".lora_A.weight", ".lora_B.weight"),
    "lora_down": (".lora_down.weight", ".lora_up.weight"),
    "default": (".lora_A.default.weight", ".lora_B.default.weight"),
    "loha": (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b"),
    "lokr": (".lokr_w1", ".lokr_w2", ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2_a", ".lokr_w2_b"),
    "other": (".diff_b",),
}
"""Form -> ends of its keys. All others are "other" too."""

MAGNITUDES = (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
PREFIXES = ("lora_transformer_", "lora_unet_", "lycoris_", "base_model.model.", "diffusion_model.", "transformer.", "")


@dataclass(frozen=True)
class Program:
    """What one program loads with the meaning that the file has."""

    title: str
    """With the version that this is true of."""

    loads: Mapping[str, str]
    """Prefix -> forms, separated by spaces; with `+` behind it only where the file has alphas, with `-` without."""

    remedy: str
    reads_header: bool = False
    """Whether it reads alpha from the header (`lora_adapter_metadata`)."""

    reads_rows: bool = False
    reads_columns: bool = False
    """DoRA with norms of rows, of columns."""

    skips: str = ""
    """Pattern of layers that it does not find or leaves out."""

    why_skipped: str = ""


_ALL = "lora_A lora_down default other loha lokr"
PROGRAMS = {
    "comfyui": Program(
        "ComfyUI (a125cd84, 2025-10-12)",
        dict.fromkeys(("lora_unet_", "lycoris_", "diffusion_model.", "transformer.", ""), _ALL),
        "Convert it: run.py convert FILE OUT --to comfyui.",
        reads_columns=True,
        skips=r"[._](?:{})$".format(
            "|".join(part.replace(".", "[._]") for parts in ROWS_OF.values() for part in parts)
        ),
        why_skipped="its weights hold them in pairs. Convert it: run.py convert FILE OUT --to comfyui-fused.",
    ),
    "diffusers": Program(
        "diffusers 0.42.1 with peft 0.21.2",
        {
            "diffusion_model.": "lora_A lora_down default",
            "lora_unet_": "lora_A lora_down",
            "transformer.": "lora_A-",
            "": "lora_A+ lora_down+ default-",
        },
        "Convert it: run.py convert FILE OUT --to diffusers.",
        reads_header=True,
        reads_rows=True,
    ),
    "nunchaku": Program(
        "ComfyUI-QwenImageLoraLoader (254679f) for Nunchaku, which itself loads no LoRA of this family",
        dict.fromkeys(("lora_unet_", "diffusion_model.", "transformer.", ""), "lora_A lora_down default"),
        "Convert it: run.py convert FILE OUT --to comfyui; of a LoHa, LoKr or DoRA extract a LoRA first "
        "(run.py resize).",
        skips=r"[._](?:img|txt)_mod[._]1$|[._]img_mlp[._](?:gate_layer|gate_up|proj)$",
        why_skipped="it leaves out the modulation layers, unless QWENIMAGE_LORA_APPLY_AWQ_MOD=1 is set, and does not "
        "support layers of Qwen-Image-2.1. Train without them (network.ignore_if_contains), or merge it before "
        "quantizing.",
    ),
    "musubi": Program(
        "musubi-tuner 0.3.4 (30c658c)",
        {"lora_unet_": "lora_down loha lokr"},
        "Convert it: run.py convert FILE OUT --to musubi.",
    ),
}
"""`program` -> what it loads."""


def split_stem(stem: str) -> tuple[str, str]:
    """(prefix, rest) of what stands before the form of a key."""
    prefix = next(one for one in PREFIXES if stem.startswith(one))
    return prefix, stem.removeprefix(prefix)


def split_key(key: str) -> tuple[str, str]:
    """(stem, form) of the key of a matrix; the form is empty for alpha and magnitudes."""
    if key.endswith((".alpha", *MAGNITUDES)):
        return key[: max(key.rfind(end) for end in (".alpha", *MAGNITUDES))], ""
    form, end = next(((f, e) for f, ends in FORMS.items() for e in ends if key.endswith(e)), ("other", ""))
    return key.removesuffix(end) if end else re.sub(r"[._]lora[._].*$", "", key), form


def program_findings(
    program: Program, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Iterator[Diagnostic]:
    """What of a file the program would not load, or not as it is meant."""
    has_alpha = any(key.endswith(".alpha") for key in tensors)
    refused: dict[str, list[str]] = defaultdict(list)
    layers: dict[str, None] = {}
    for key in tensors:
        stem, form = split_key(key)
        layers[stem] = None
        prefix, _ = split_stem(stem)
        forms = program.loads.get(prefix, "").split()
        if form and not {form, f"{form}{'+' if has_alpha else '-'}"} & set(forms):
            alphas = (
                f" {'with' if has_alpha else 'without'} alpha" if f"{form}{'-' if has_alpha else '+'}" in forms else ""
            )
            refused[f"{prefix or 'no prefix, '}...{key.removeprefix(stem)}{alphas}"].append(stem)
    if refused:
        names = tuple(dict.fromkeys(name for found in refused.values() for name in found))
        shown = " and ".join(list(refused)[:2])
        message = f"{program.title} does not load {len(names)} of {len(layers)} layers: keys of the form {shown}."
        yield finding("not_loaded", message, program.remedy, names)
    rows = [split_key(k)[0] for k, t in tensors.items() if k.endswith(MAGNITUDES) and (t.dim() == 1 or len(t) > 1)]
    columns = [split_key(k)[0] for k in tensors if k.endswith(MAGNITUDES) and split_key(k)[0] not in rows]
    for kind, found, reads in (("rows", rows, program.reads_rows), ("columns", columns, program.reads_columns)):
        named = all(k.endswith(MAGNITUDES[0]) for k in tensors if k.endswith(MAGNITUDES))
        if found and not (reads and named == (kind == "columns")):
            message = f"{program.title} does not read a DoRA with norms of {kind} as it is meant ({len(found)} layers)."
            yield finding("dora", message, "Extract a LoRA of it (docs/loras.md).", tuple(found))
    if program.skips and (left := [name for name in layers if re.search(program.skips, name)]):
        message = f"{program.title} skips {len(left)} of {len(layers)} layers, such as {left[0]}:"
        yield finding("layers_skipped", message, program.why_skipped, tuple(left))
    yield from _of_header(program, tensors, has_alpha, metadata)


def _of_header(
    program: Program, tensors: Mapping[str, Tensor], has_alpha: bool, metadata: Mapping[str, str]
) -> Iterator[Diagnostic]:
    """Layers whose strength is in peft's settings, for a program that does not read those, or reads them as well."""
    try:
        settings = read_settings(metadata)
    except UserError:
        return  # `health` reports it
    if settings is None or settings.fault[0]:
        return
    scales = strengths_in_settings(layers_of(tensors), settings)
    wrong = {name: scale for name, scale in scales.items() if abs(scale - 1) > SAME}
    if not wrong:
        return
    shown = " and ".join(f"{scale:.3g}" for scale in sorted(set(wrong.values()))[:2])
    if has_alpha and program.reads_header:
        message = f"{program.title} scales {len(wrong)} layers twice: by the alpha keys, and by {shown} in the header."
        yield finding("alpha_twice", message, program.remedy, tuple(wrong))
    elif not has_alpha and not program.reads_header:
        message = (
            f"{program.title} uses {len(wrong)} layers with strength 1: it does not read the {shown} in the header."
        )
        yield finding("alpha_in_header", message, program.remedy, tuple(wrong))


SAME = 1e-6
"""Strengths that differ by less are the same."""
