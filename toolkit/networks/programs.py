"""How other programs load a LoRA file: one table (`programs.toml`), which the end of a
run, the examination of a file, the model card and docs/use_your_lora.md use.

Each row was found by running the version of the program that its title names on files
of many writers and comparing the change of every layer (`benchmarks/bench_interop.py`,
tests/golden/interop.json). For ComfyUI's names of layers, musubi-tuner and the loader
for Nunchaku the source was read. Other versions may load more or less. Nothing here
starts a program, and `adapter_health` finds the faults of the file itself.

    for one in program_findings(PROGRAMS["mflux"], tensors, metadata):
        print(one.message, one.remedy)
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.contracts.model import ROWS_OF
from toolkit.errors import Diagnostic, in_series
from toolkit.networks.adapter_health import (
    finding,
    health,
    layers_of,
    readable_settings,
    strengths_in_settings,
)
from toolkit.networks.adapter_settings import HEADER_METADATA

FORMS = {
    "lora_A": (".lora_A.weight", ".lora_B.weight"),
    "lora_down": (".lora_down.weight", ".lora_up.weight"),
    "lora.down": (".lora.down.weight", ".lora.up.weight"),
    "default": (".lora_A.default.weight", ".lora_B.default.weight"),
    "loha": (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b"),
    "lokr": (
        *(".lokr_w1", ".lokr_w1_a", ".lokr_w1_b"),
        *(".lokr_w2", ".lokr_w2_a", ".lokr_w2_b"),
    ),
    "glora": (".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight"),
    "oft": (".oft_blocks", ".rescale"),
    "bias": (".diff_b",),
    "lora_bias": (".lora_B.bias",),
    "whole": (".diff", ".w_norm", ".b_norm"),
}
"""Form -> ends of its keys. All other keys have the form "other". "oft" is LyCORIS' OFT
and BOFT."""

_OF_LORA = ("lora_A", "lora_down", "lora.down", "default", "lora_bias")

MAGNITUDES = (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
PREFIXES = (
    "lora_transformer_",
    "lora_unet_",
    "lycoris_",
    "base_model.model.",
    "diffusion_model.",
    "transformer.",
    "",
)

WITH_ALPHA = "+"
ALPHA_MISSING = "-"
ALPHA_IGNORED = "!"
"""Marks behind a form: it is loaded only where the file has alphas; only where the file
has none; its alphas are ignored."""


def _halves(parts: Iterable[str]) -> str:
    return r"[._](?:{})$".format(
        "|".join(re.escape(part).replace(r"\.", "[._]") for part in parts)
    )


_LAYERS = {
    "halves": _halves(part for parts in ROWS_OF.values() for part in parts),
    "wholes": _halves(ROWS_OF),
}
"""Names of patterns in the table: layers that ComfyUI fuses, and the fused ones."""


@dataclass(frozen=True)
class Skip:
    """Layers of a file that a program does not load.

    >>> skip = Skip(layers="norm$", reason="it has no such layer")
    >>> skip.skips("transformer.blocks.0.norm")
    True
    """

    layers: str
    """Pattern for the ends of the names of these layers, with or without dots, or a key
    of `_LAYERS`."""

    reason: str
    remedy: str = ""
    """Empty: to convert the file."""

    prefixes: Collection[str] = PREFIXES
    """The prefixes with which the program does not load them."""

    def skips(self, stem: str) -> bool:
        pattern = _LAYERS.get(self.layers, self.layers)
        return split_stem(stem)[0] in self.prefixes and bool(re.search(pattern, stem))


@dataclass(frozen=True)
class Program:
    """The forms that one program loads correctly.

    >>> PROGRAMS["mflux"].forms("", has_halves=False)
    ['default', 'lora_down']
    """

    title: str
    """Name and tested version of the program."""

    convert_to: str
    """The form of `run.py convert` that the program loads."""

    loads: Mapping[str, str]
    """Prefix -> forms, separated by spaces, each with one of the marks above or without
    a mark."""

    loads_halves: Mapping[str, str] | None = None
    """The same as `loads` for a model whose layers ComfyUI fuses (Qwen-Image-2.1),
    where it differs."""

    knows_halves: bool = True
    """Whether it has a model whose layers ComfyUI fuses at all."""

    reads_header: bool = False
    """Whether it reads peft's settings in the header (`lora_adapter_metadata`)."""

    header_prefix: str = ""
    """The required prefix of the names of those settings. The program stops at other
    names."""

    reads_rows: bool = False
    reads_columns: bool = False
    """Whether it reads a DoRA with norms of rows (`reads_rows`) or of columns."""

    skips: tuple[Skip, ...] = ()

    @property
    def remedy(self) -> str:
        """The remedy for a LoRA in another form."""
        return f"Convert it: run.py convert FILE OUT --to {self.convert_to}."

    def forms(self, prefix: str, has_halves: bool) -> list[str]:
        """The forms that the program loads with this prefix, with their marks."""
        loads = (has_halves and self.loads_halves) or self.loads
        return loads.get(prefix, "").split()


def _program(row: dict[str, Any]) -> Program:
    for key in {"loads", "loads_halves"} & row.keys():
        row[key] = {
            prefix: each["forms"] for each in row[key] for prefix in each["prefixes"]
        }
    row["skips"] = tuple(Skip(**skip) for skip in row.get("skips", ()))
    return Program(**row)


_MERGE = "Merge it into its model (run.py merge), or extract a LoRA of that (run.py extract)."

_TABLE = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
PROGRAMS = {name: _program(row) for name, row in tomllib.loads(_TABLE).items()}
"""Name for `--for` -> the program."""

LOAD_AS_SAVED = ("comfyui", "diffusers", "diffsynth", "mflux", "nunchaku")
"""Programs that load a LoRA as a run saves it; the others need a conversion. The table
in docs/use_your_lora.md says "yes" for them."""

SAME = 1e-6
"""Strengths that differ by less count as equal."""


def split_stem(stem: str) -> tuple[str, str]:
    """(prefix, rest) of the part of a key before its form."""
    prefix = next(one for one in PREFIXES if stem.startswith(one))
    return prefix, stem.removeprefix(prefix)


def split_key(key: str) -> tuple[str, str]:
    """(stem, form) of the key of a matrix; the form is empty for alpha and
    magnitudes.

    >>> split_key("transformer.blocks.0.to_q.lora_A.weight")
    ('transformer.blocks.0.to_q', 'lora_A')
    """
    for end in (".alpha", *MAGNITUDES):
        if key.endswith(end):
            return key.removesuffix(end), ""
    for form, ends in FORMS.items():
        for end in ends:
            if key.endswith(end):
                return key.removesuffix(end), form
    bare = re.sub(r"[._]lora[._].*$", "", key)
    return key.rpartition(".")[0] if bare == key else bare, "other"


OF_HALVES = re.compile(r"img_mlp[._](?:gate_layer|gate_up|proj|out)$")
"""Ends of layers of a model whose layers ComfyUI fuses (Qwen-Image-2.1)."""


def findings_for(
    program: Program, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Iterator[Diagnostic]:
    """The faults of a file for a program: by its numbers, and by the forms that the
    program loads. Without a finding that is an error, the program applies the file
    correctly."""
    for one in health(tensors, metadata):
        is_of_forms = one.check == "unknown_keys" and all(
            _is_loaded(program, key) for key in one.key
        )
        # `program_findings` reports alphas
        if one.check != "alpha_in_header" and not is_of_forms:
            yield one
    yield from program_findings(program, tensors, metadata)


def _is_loaded(program: Program, key: object) -> bool:
    stem, form = split_key(str(key))
    return form in program.forms(split_stem(stem)[0], bool(OF_HALVES.search(stem)))


def program_findings(
    program: Program, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Iterator[Diagnostic]:
    """The parts of a file that the program does not load, or does not load correctly;
    empty where the file has its whole effect in it."""
    stems = list(dict.fromkeys(split_key(key)[0] for key in tensors))
    has_halves = any(OF_HALVES.search(stem) for stem in stems)
    yield from _not_loaded(program, tensors, len(stems), has_halves)
    yield from _of_strength(program, tensors, metadata, has_halves)
    yield from _of_magnitudes(program, tensors)
    yield from _of_rotations(program, tensors)
    yield from _of_skipped(program, stems)
    yield from _of_header_names(program, metadata)


def _not_loaded(
    program: Program, tensors: Mapping[str, Tensor], count: int, has_halves: bool
) -> Iterator[Diagnostic]:
    refused: dict[str, list[str]] = defaultdict(list)
    remedies: dict[str, None] = {}
    with_magnitudes = {split_key(key)[0] for key in tensors if key.endswith(MAGNITUDES)}
    mark, other_mark, having = ALPHA_MISSING, WITH_ALPHA, "without"
    if any(key.endswith(".alpha") for key in tensors):
        mark, other_mark, having = WITH_ALPHA, ALPHA_MISSING, "with"
    for key in tensors:
        stem, form = split_key(key)
        prefix, _ = split_stem(stem)
        forms = program.forms(prefix, has_halves)
        if not form or {form, form + mark, form + ALPHA_IGNORED} & set(forms):
            continue
        shown = f"{prefix}LAYER{key.removeprefix(stem)}"
        if form + other_mark in forms:
            shown += f" {having} alpha"
        refused[shown].append(stem)
        remedies[_remedy(program, form, stem in with_magnitudes)] = None
    names = tuple(dict.fromkeys(chain.from_iterable(refused.values())))
    if names:
        shown = " and ".join(list(refused)[:2])
        message = f"{program.title} does not load {len(names)} of {count} layers: keys of the form {shown}."
        yield finding("not_loaded", message, " ".join(remedies), names)


def _remedy(program: Program, form: str, has_magnitude: bool) -> str:
    """The remedy for layers of a form that a program does not load."""
    if has_magnitude and not (program.reads_rows or program.reads_columns):
        return _MERGE
    if form in _OF_LORA:
        return program.remedy
    if form not in ("loha", "lokr"):
        return _MERGE
    if any(form in forms.split() for forms in program.loads.values()):
        return program.remedy
    as_lora = "Make a LoRA of it (run.py resize FILE LORA --rank 64), and convert that"
    return f"{as_lora}: run.py convert LORA OUT --to {program.convert_to}."


def _of_strength(
    program: Program,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    has_halves: bool,
) -> Iterator[Diagnostic]:
    """Layers that the program applies at another strength than the file means."""
    read = layers_of(tensors)
    settings = readable_settings(metadata)
    meant = {name: change.scale for name, change in read.sound(metadata).items()}
    by_alpha = meant
    if settings is not None:
        by_alpha = {name: change.scale for name, change in read.sound({}).items()}
    in_settings = strengths_in_settings(read, settings) if settings is not None else {}
    times: dict[str, dict[str, float]] = defaultdict(dict)
    for name, scale in meant.items():
        ignores = _ignores_alpha(program, name, tensors, has_halves)
        applied = 1.0 if ignores else by_alpha[name]
        if program.reads_header:
            applied *= in_settings.get(name, 1.0)
        if not scale or abs(applied / scale - 1) <= SAME:
            continue
        check = "alpha_in_header" if name in in_settings else "alpha_ignored"
        if program.reads_header and not ignores and name in in_settings:
            check = "alpha_twice"
        times[check][name] = applied / scale
    for check, reason in _STRENGTHS.items():
        names = tuple(times[check])
        if names:
            two = sorted(set(times[check].values()))[:2]
            shown = " and ".join(f"{number:.3g}" for number in two)
            remedy = program.remedy
            if check == "alpha_ignored":
                remedy = "Convert it: run.py convert FILE OUT --to aitk."
            message = (
                f"{program.title} applies {len(names)} layers at {shown} "
                f"times their strength: it {reason}."
            )
            yield finding(check, message, remedy, names)


_STRENGTHS = {
    "alpha_ignored": "ignores alpha",
    "alpha_in_header": "does not read peft's settings in the header",
    "alpha_twice": "counts both the alpha keys and peft's settings in the header",
}
"""Check -> why a program applies another strength."""


def _ignores_alpha(
    program: Program, stem: str, tensors: Mapping[str, Tensor], has_halves: bool
) -> bool:
    forms = program.forms(split_stem(stem)[0], has_halves)
    return any(
        form + ALPHA_IGNORED in forms and any(stem + end in tensors for end in ends)
        for form, ends in FORMS.items()
    )


def _of_header_names(
    program: Program, metadata: Mapping[str, str]
) -> Iterator[Diagnostic]:
    """Settings with names that the program does not know. It stops at them."""
    if (
        not program.header_prefix
        or HEADER_METADATA not in metadata
        or readable_settings(metadata) is None
    ):
        return  # `health` reports settings that cannot be read
    names = json.loads(metadata[HEADER_METADATA])
    if any(name.startswith(program.header_prefix) for name in names):
        return
    message = f"{program.title} stops at the settings in the header: their names lack {program.header_prefix!r}."
    yield finding("header_stops", message, program.remedy)


def _of_magnitudes(
    program: Program, tensors: Mapping[str, Tensor]
) -> Iterator[Diagnostic]:
    keys = [key for key in tensors if key.endswith(MAGNITUDES)]
    layers: dict[str, list[str]] = {"rows": [], "columns": []}
    for key in keys:
        is_of_rows = tensors[key].dim() == 1 or len(tensors[key]) > 1
        layers["rows" if is_of_rows else "columns"].append(split_key(key)[0])
    is_named_for_columns = all(key.endswith(MAGNITUDES[0]) for key in keys)
    is_read = {
        "rows": program.reads_rows and not is_named_for_columns,
        "columns": program.reads_columns and is_named_for_columns,
    }
    for kind, names in layers.items():
        if names and not is_read[kind]:
            norms = f"a DoRA with norms of {kind} as it is meant ({len(names)} layers)"
            message = f"{program.title} does not read {norms}."
            yield finding("dora", message, _MERGE, names)


def _of_rotations(
    program: Program, tensors: Mapping[str, Tensor]
) -> Iterator[Diagnostic]:
    """OFTs that a program reads without their rescale, or with another limit: ComfyUI
    takes alpha as the limit of the whole rotation, LyCORIS 4.1.3 multiplies it by the
    outputs of the layer. It scales the rows of a BOFT alone."""
    wrong = []
    for key, blocks in tensors.items():
        if not key.endswith(".oft_blocks"):
            continue
        stem = key.removesuffix(".oft_blocks")
        rescale = tensors.get(f"{stem}.rescale", torch.ones(1))
        alpha = tensors.get(f"{stem}.alpha", torch.zeros(1))
        if (blocks.dim() == 3 and (rescale != 1).any()) or (alpha > 0).any():
            wrong.append(stem)
    if wrong:
        what = (
            f"the rescale or the limit of an OFT as it is meant ({len(wrong)} layers)"
        )
        yield finding("oft", f"{program.title} does not read {what}.", _MERGE, wrong)


def _of_skipped(program: Program, stems: Collection[str]) -> Iterator[Diagnostic]:
    for skip in program.skips:
        left = list(filter(skip.skips, stems))
        if left:
            message = f"{program.title} skips {len(left)} of {len(stems)} layers, such as {left[0]}: {skip.reason}."
            yield finding(
                "layers_skipped", message, skip.remedy or program.remedy, left
            )


def limits(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[str]:
    """A sentence for each reason why a file does not have its whole effect in programs
    of LOAD_AS_SAVED, with the names of these programs; empty where it has its whole
    effect in all of them."""
    programs: dict[str, list[str]] = defaultdict(list)
    has_halves = any(OF_HALVES.search(split_key(key)[0]) for key in tensors)
    for name in LOAD_AS_SAVED:
        if has_halves and not PROGRAMS[name].knows_halves:
            continue
        title = PROGRAMS[name].title
        first = next(program_findings(PROGRAMS[name], tensors, metadata), None)
        if first:
            programs[first.message.removeprefix(f"{title} ")].append(title)
    effect = "it does not have its whole effect, as the program"
    return [
        f"In {in_series(titles)} {effect} {reason}"
        for reason, titles in programs.items()
    ]
