"""How other programs load a LoRA file: one table, which the end of a run, the
examination of a file, the model card and docs/use_your_lora.md use.

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
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

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
        ".lokr_w1",
        ".lokr_w2",
        ".lokr_w1_a",
        ".lokr_w1_b",
        ".lokr_w2_a",
        ".lokr_w2_b",
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


@dataclass(frozen=True)
class Skip:
    """Layers of a file that a program does not load.

    >>> Skip(r"norm$", "it has no such layer", "Leave it out.").prefixes == PREFIXES
    True
    """

    layers: str
    """Pattern for the ends of the names of these layers, with or without dots."""

    reason: str
    remedy: str
    prefixes: Collection[str] = PREFIXES
    """The prefixes with which the program does not load them."""


@dataclass(frozen=True)
class Program:
    """The forms that one program loads correctly.

    >>> PROGRAMS["mflux"].forms("", has_halves=False)
    ['default', 'lora_down']
    """

    title: str
    """Name and tested version of the program."""

    loads: Mapping[str, str]
    """Prefix -> forms, separated by spaces, each with one of the marks above or without
    a mark."""

    convert_to: str
    """The form of `run.py convert` that the program loads."""

    loads_halves: Mapping[str, str] | None = None
    """The same as `loads` for a model whose layers ComfyUI fuses (Qwen-Image-2.1),
    where it differs."""

    reads_header: bool = False
    """Whether it reads peft's settings in the header (`lora_adapter_metadata`)."""

    header_prefix: str = ""
    """The required prefix of the names of those settings. The program stops at other
    names."""

    reads_rows: bool = False
    reads_columns: bool = False
    """Whether it reads a DoRA with norms of rows (`reads_rows`) or of columns."""

    skips: tuple[Skip, ...] = field(default_factory=tuple)

    @property
    def remedy(self) -> str:
        """The remedy for a LoRA in another form."""
        return f"Convert it: run.py convert FILE OUT --to {self.convert_to}."

    def forms(self, prefix: str, has_halves: bool) -> list[str]:
        """The forms that the program loads with this prefix, with their marks."""
        if self.loads_halves is None or not has_halves:
            loads = self.loads
        else:
            loads = self.loads_halves
        return loads.get(prefix, "").split()


def _halves(parts: Iterable[str]) -> str:
    return r"[._](?:{})$".format(
        "|".join(re.escape(part).replace(r"\.", "[._]") for part in parts)
    )


HALVES = _halves(part for parts in ROWS_OF.values() for part in parts)
WHOLES = _halves(ROWS_OF)

_COMFYUI = "lora_A lora_down lora.down default bias loha lokr glora oft whole"
_HAS_HALVES = "its model has the halves of this layer"
_MERGE = "Merge it into its model (run.py merge), or extract a LoRA of that (run.py extract)."

PROGRAMS = {
    "comfyui": Program(
        "ComfyUI (17358c8f, autumn 2026)",
        dict.fromkeys(
            ("lora_unet_", "lycoris_", "diffusion_model.", "transformer.", ""), _COMFYUI
        ),
        "comfyui",
        reads_columns=True,
        skips=(
            Skip(
                HALVES,
                "its weights hold them in pairs, and it knows the halves by other prefixes",
                "Convert it: run.py convert FILE OUT --to comfyui.",
                ("lora_unet_", "diffusion_model."),
            ),
            Skip(
                WHOLES,
                "it knows the halves of this layer by this prefix, and not the whole",
                "Convert it: run.py convert FILE OUT --to comfyui.",
                ("lycoris_", "transformer.", ""),
            ),
        ),
    ),
    "diffusers": Program(
        "diffusers 0.42.1 with peft 0.21.2",
        {
            "diffusion_model.": "lora_A lora_down default",
            "lora_unet_": "lora_A lora_down",
            "transformer.": "lora_A- lora.down- lora_bias-",
            "": "lora_A+ lora_down+ default",
        },
        "diffusers",
        reads_header=True,
        header_prefix="transformer.",
        reads_rows=True,
        skips=(
            Skip(
                _halves(("img_mlp.gate_layer",)),
                "its pipeline does not know the flat name",
                "Convert it: run.py convert FILE OUT --to diffusers.",
                ("lora_unet_",),
            ),
            Skip(
                WHOLES,
                _HAS_HALVES,
                "Convert it: run.py convert FILE OUT --to diffusers.",
            ),
        ),
    ),
    "diffsynth": Program(
        "DiffSynth 2.1.12",
        dict.fromkeys(("diffusion_model.", ""), "lora_A lora_down default"),
        "aitk",
        skips=(
            Skip(WHOLES, _HAS_HALVES, "Convert it: run.py convert FILE OUT --to aitk."),
        ),
    ),
    "mflux": Program(
        "mflux 0.24.0 (macOS)",
        {
            "diffusion_model.": "lora_A!",
            "lora_unet_": "lora_down",
            "": "default lora_down",
        },
        "aitk",
        loads_halves={
            "diffusion_model.": "lora_A!",
            "transformer.": "lora_A!",
            "": "default!",
        },
        reads_header=True,
        skips=(
            Skip(
                r"[._](?:img|txt)_mod[._]1$",
                "it has no place for changes of the modulation layers",
                "Train without them (network.network_kwargs.ignore_if_contains), or merge the LoRA (run.py merge).",
            ),
        ),
    ),
    "simpletuner": Program(
        "SimpleTuner 4.10.1 (init_lora)",
        {"transformer.": "lora_A-"},
        "diffusers",
    ),
    "nunchaku": Program(
        "ComfyUI-QwenImageLoraLoader (254679f), for Nunchaku",
        dict.fromkeys(
            ("lora_unet_", "diffusion_model.", "transformer.", ""),
            "lora_A lora_down default",
        ),
        "comfyui",
        skips=(
            Skip(
                r"[._](?:img|txt)_mod[._]1$|[._]img_mlp[._](?:gate_layer|gate_up|proj)$",
                "it leaves out the modulation layers, unless QWENIMAGE_LORA_APPLY_AWQ_MOD=1 is set, and does not "
                "support layers of Qwen-Image-2.1",
                "Train without them (network.network_kwargs.ignore_if_contains), or merge it before quantizing.",
            ),
        ),
    ),
    "musubi": Program(
        "musubi-tuner 0.3.4 (30c658c)",
        {"lora_unet_": "lora_down loha lokr"},
        "musubi",
    ),
}
"""Name for `--for` -> the program."""

LOAD_AS_SAVED = ("comfyui", "diffusers", "diffsynth", "mflux")
"""Programs that load a LoRA as a run saves it; the others need a conversion."""

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
    return (key.rpartition(".")[0] if bare == key else bare), "other"


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
    has_alpha = any(key.endswith(".alpha") for key in tensors)
    yield from _not_loaded(program, tensors, len(stems), has_alpha, has_halves)
    yield from _of_strength(program, tensors, metadata, has_halves)
    yield from _of_magnitudes(program, tensors)
    yield from _of_rotations(program, tensors)
    yield from _of_skipped(program, stems)
    yield from _of_header_names(program, metadata)


def _not_loaded(
    program: Program,
    tensors: Mapping[str, Tensor],
    count: int,
    has_alpha: bool,
    has_halves: bool,
) -> Iterator[Diagnostic]:
    refused: dict[str, list[str]] = defaultdict(list)
    remedies: dict[str, None] = {}
    with_magnitudes = {split_key(key)[0] for key in tensors if key.endswith(MAGNITUDES)}
    for key in tensors:
        stem, form = split_key(key)
        prefix, _ = split_stem(stem)
        forms = program.forms(prefix, has_halves)
        mark = WITH_ALPHA if has_alpha else ALPHA_MISSING
        if not form or {form, form + mark, form + ALPHA_IGNORED} & set(forms):
            continue
        shown = f"{prefix}LAYER{key.removeprefix(stem)}"
        other_mark = ALPHA_MISSING if has_alpha else WITH_ALPHA
        if form + other_mark in forms:
            shown += " with alpha" if has_alpha else " without alpha"
        refused[shown].append(stem)
        remedies[_remedy(program, form, stem in with_magnitudes)] = None
    if not refused:
        return
    names = tuple(dict.fromkeys(stem for stems in refused.values() for stem in stems))
    shown = " and ".join(list(refused)[:2])
    message = f"{program.title} does not load {len(names)} of {count} layers: keys of the form {shown}."
    yield finding("not_loaded", message, " ".join(remedies), names)


def _remedy(program: Program, form: str, has_magnitude: bool) -> str:
    """The remedy for layers of a form that a program does not load."""
    has_form = any(form in forms.split() for forms in program.loads.values())
    if has_magnitude and not (program.reads_rows or program.reads_columns):
        return _MERGE
    if form in _OF_LORA or (has_form and form in ("loha", "lokr")):
        return program.remedy
    if form in ("loha", "lokr"):
        as_lora = (
            "Make a LoRA of it (run.py resize FILE LORA --rank 64), and convert that"
        )
        return f"{as_lora}: run.py convert LORA OUT --to {program.convert_to}."
    return _MERGE


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
    by_alpha = {name: change.scale for name, change in read.sound({}).items()}
    in_settings = strengths_in_settings(read, settings) if settings is not None else {}
    times: dict[str, list[float]] = defaultdict(list)
    names: dict[str, list[str]] = defaultdict(list)
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
        times[check].append(applied / scale)
        names[check].append(name)
    for check, reason in _STRENGTHS.items():
        if names[check]:
            shown = _few(set(times[check]))
            message = (
                f"{program.title} applies {len(names[check])} layers at {shown} "
                f"times their strength: it {reason}."
            )
            if check == "alpha_ignored":
                remedy = "Convert it: run.py convert FILE OUT --to aitk."
            else:
                remedy = program.remedy
            yield finding(check, message, remedy, tuple(names[check]))


_STRENGTHS = {
    "alpha_ignored": "ignores alpha",
    "alpha_in_header": "does not read peft's settings in the header",
    "alpha_twice": "counts both the alpha keys and peft's settings in the header",
}
"""Check -> why a program applies another strength."""


def _ignores_alpha(
    program: Program, stem: str, tensors: Mapping[str, Tensor], has_halves: bool
) -> bool:
    prefix, _ = split_stem(stem)
    forms = program.forms(prefix, has_halves)
    for form, ends in FORMS.items():
        if form + ALPHA_IGNORED in forms and any(stem + end in tensors for end in ends):
            return True
    return False


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
    magnitudes = {
        key: tensor for key, tensor in tensors.items() if key.endswith(MAGNITUDES)
    }
    rows = [
        split_key(key)[0] for key, t in magnitudes.items() if t.dim() == 1 or len(t) > 1
    ]
    columns = [
        name for name in (split_key(key)[0] for key in magnitudes) if name not in rows
    ]
    is_named_for_columns = all(key.endswith(MAGNITUDES[0]) for key in magnitudes)
    reads_rows = program.reads_rows and not is_named_for_columns
    reads_columns = program.reads_columns and is_named_for_columns
    for kind, layers, is_read in (
        ("rows", rows, reads_rows),
        ("columns", columns, reads_columns),
    ):
        if layers and not is_read:
            norms = f"a DoRA with norms of {kind} as it is meant ({len(layers)} layers)"
            yield finding(
                "dora", f"{program.title} does not read {norms}.", _MERGE, tuple(layers)
            )


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
        rescale = tensors.get(f"{stem}.rescale")
        alpha = tensors.get(f"{stem}.alpha")
        is_rescaled = (
            blocks.dim() == 3 and rescale is not None and bool((rescale != 1).any())
        )
        is_limited = alpha is not None and bool((alpha > 0).any())
        if is_rescaled or is_limited:
            wrong.append(stem)
    if wrong:
        what = (
            f"the rescale or the limit of an OFT as it is meant ({len(wrong)} layers)"
        )
        message = f"{program.title} does not read {what}."
        yield finding("oft", message, _MERGE, tuple(wrong))


def _of_skipped(program: Program, stems: Collection[str]) -> Iterator[Diagnostic]:
    for skip in program.skips:
        left = [
            stem
            for stem in stems
            if split_stem(stem)[0] in skip.prefixes and re.search(skip.layers, stem)
        ]
        if left:
            message = f"{program.title} skips {len(left)} of {len(stems)} layers, such as {left[0]}: {skip.reason}."
            yield finding("layers_skipped", message, skip.remedy, tuple(left))


def _few(numbers: Iterable[float]) -> str:
    """Up to two of the numbers, in words."""
    return " and ".join(f"{number:.3g}" for number in sorted(numbers)[:2])


def limits(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[str]:
    """A sentence for each reason why a file does not have its whole effect in programs
    of LOAD_AS_SAVED, with the names of these programs; empty where it has its whole
    effect in all of them."""
    programs: dict[str, list[str]] = defaultdict(list)
    for name in LOAD_AS_SAVED:
        title = PROGRAMS[name].title
        for one in list(program_findings(PROGRAMS[name], tensors, metadata))[:1]:
            programs[one.message.removeprefix(f"{title} ")].append(title)
    effect = "it does not have its whole effect, as the program"
    return [
        f"In {in_series(titles)} {effect} {reason}"
        for reason, titles in programs.items()
    ]
