"""The process of `doctor`: examines a LoRA file and prints the findings.

Findings come from the file itself (`toolkit/networks/adapter_health.py`) and from the
model it is used with. The file is never changed. The table of tools
(`extensions/tools/__init__.py`) names the process.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from extensions.tools.doctor.config import DoctorConfig
from extensions.tools.shared.run_job import model_of
from jobs.process import BaseExtensionProcess
from toolkit.config.sections.model import ModelConfig
from toolkit.errors import Diagnostic, RunError, UserError
from toolkit.models.adapter_origin import (
    ARCHITECTURE,
    named_families,
    origin_findings,
    other_model,
)
from toolkit.models.families import ModelFamily, family_for, published_members
from toolkit.networks.adapter_health import (
    TEXT_SIDE,
    finding,
    health,
    is_own,
    layers_of,
)
from toolkit.networks.lora_formats import (
    BESIDE_LAYERS,
    LayerDelta,
    fused_layers,
    read_tensors,
)

SHOWN = 5
"""Layers that are named in words; JSON has all."""


class Base(NamedTuple):
    """The model that a file is compared with.

    Example::

        base = Base(family, folder, family.every_linear_layer(folder), model=None)
        inputs, outputs = base.layers["transformer_blocks.0.attn.to_q"]
    """

    family: ModelFamily
    folder: Path
    layers: Mapping[str, tuple[int, int]]
    """Name -> (inputs, outputs), also of layers that ComfyUI joins to one."""

    model: ModelConfig | None
    """None: a published model that is not on this disk."""

    is_given: bool = False


class DoctorProcess(BaseExtensionProcess):
    """Raises RunError, exit code 1, where there are errors.

    Example::

        python run.py doctor output/my_character.safetensors
    """

    section: DoctorConfig

    def run(self) -> None:
        super().run()
        section = self.section
        tensors, metadata = read_tensors(Path(section.file).expanduser())
        try:
            findings, title = self._examine(tensors, metadata)
        except UserError as error:  # patterns of the settings that are not done in time
            raise UserError(f"{section.file}: {error}") from error
        wrong = [one for one in findings if one.severity == "error"]
        if section.as_json:
            report = {
                "file": section.file,
                "model": title,
                "sound": not wrong,
                "findings": list(map(as_json, findings)),
            }
            print(json.dumps(report, indent=2))
        else:
            print("\n".join(render(section.file, title, findings)))
        if wrong:
            names = ", ".join(dict.fromkeys(one.check for one in wrong))
            raise RunError(
                f"{section.file}: {len(wrong)} thing{'s' * (len(wrong) > 1)} wrong: {names}"
            )

    def _examine(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[list[Diagnostic], str]:
        """Findings, and the title of the model."""
        read = layers_of(tensors)
        if not tensors:
            return [finding("empty", "It holds no tensors.", AS_SAVED)], ""
        findings = health(tensors, metadata)

        def matching_layers(base: Base) -> tuple[int, int]:
            names = _located(read.parts, base.layers)
            return len(names), len(_misnamed(read.parts, base.layers))

        base = max(self._bases(), key=matching_layers)
        names = _located(read.parts, base.layers)
        sound = read.sound(metadata)
        findings += _of_model(read.parts, names, base, sound)
        findings += _of_biases(read.biases, base) if names or base.is_given else ()
        has_size = any(one.check == "size" for one in findings)
        if len(names) == len(read.parts) and not has_size:
            findings += _missing(names, base, metadata)
        findings += self._of_metadata(metadata, base, findings)
        return findings, self._title(metadata, base) if names else ""

    def _title(self, metadata: Mapping[str, str], base: Base) -> str:
        if base.model:
            return base.family.title
        same = (one.title for one in named_families(metadata) if _kin(one, base.family))
        return next(same, f"{base.family.title}, or a model with its layers")

    def _bases(self) -> list[Base]:
        section = self.section
        try:
            if section.model:
                folder = str(Path(section.model).expanduser())
                return [_base(ModelConfig(name_or_path=folder), is_given=True)]
            return [_base(model_of(Path(section.file).expanduser()))]
        except UserError:
            if section.model:
                raise
        return _published()

    def _of_metadata(
        self, metadata: Mapping[str, str], base: Base, findings: list[Diagnostic]
    ) -> Iterator[Diagnostic]:
        """Another base that the metadata of the file name; nothing where its layers
        were found to belong to another model already."""
        if any(one.check in ("other_model", "other_layers") for one in findings):
            return
        if base.model:
            file = str(Path(self.section.file).expanduser())
            for one in origin_findings("", file, base.model, base.folder):
                yield finding(
                    "other_base", one.message, ITS_MODEL, severity=one.severity
                )
        else:
            named = named_families(metadata)
            if named and not any(_kin(family, base.family) for family in named):
                message = f"Its metadata say {named[0].title}, and its layers are those of {base.family.title}."
                yield finding("other_base", message, AS_SAVED)
        architecture = metadata.get(ARCHITECTURE, "")
        is_ours = any(
            architecture.startswith(one.modelspec[0]) for one in published_members()
        )
        if OTHER_ARCHITECTURES.match(architecture) and not is_ours:
            message = f"Its metadata say {architecture}, and its layers have the names of those of {base.family.title}."
            yield finding("other_base", message, ITS_MODEL)


AS_SAVED = "Take the file as its trainer saved it."
ITS_MODEL = "Use it with the model it is of."

OTHER_ARCHITECTURES = re.compile(
    r"flux|stable-diffusion|sd3|wan|hunyuan|z-?image|lumina|chroma", re.IGNORECASE
)
"""Beginnings of `modelspec.architecture` of models that this program does not support.
Some have the same names and widths of layers."""

PREFIXES = (
    "lora_transformer_",
    "lora_unet_",
    "lycoris_",
    "base_model.model.",
    "diffusion_model.",
    "transformer.",
)
"""What programs put before the name of a layer."""

_WRAPPERS = ("model.", "module.", "_orig_mod.", "pipe.dit.")
NEEDLESS = (*PREFIXES, *_WRAPPERS)
"""Beginnings that programs and their wrappers put before a layer's name."""

MOST_HOLES = 0.1
"""Largest share of the blocks that may lack a layer for it to count as missing, where
blocks on both sides have it."""


def _kin(one: ModelFamily, other: ModelFamily) -> bool:
    """Whether the published models of both have the same layers."""
    return (
        one.every_linear_layer(Path()).keys() == other.every_linear_layer(Path()).keys()
    )


def _base(model: ModelConfig, is_given: bool = False) -> Base:
    folder = model.files_folder()
    here = model if folder.is_dir() else None
    return _with_layers(family_for(model), folder, here, is_given)


def _with_layers(
    family: ModelFamily,
    folder: Path,
    model: ModelConfig | None = None,
    is_given: bool = False,
) -> Base:
    layers = dict(family.every_linear_layer(folder))
    for whole, parts in fused_layers(layers).items():
        layers[whole] = (layers[parts[0]][0], sum(layers[part][1] for part in parts))
    return Base(family, folder, layers, model, is_given)


def _published() -> list[Base]:
    return [
        _with_layers(family, Path(next(iter(family.published))))
        for family in published_members()
    ]


def _located(
    stems: Iterable[str], layers: Mapping[str, tuple[int, int]]
) -> dict[str, str]:
    """Stem -> the layer of the model that it names."""
    names = {
        spelling: name for name in layers for spelling in (name, name.replace(".", "_"))
    }
    rests = {
        stem: stem.removeprefix(next(filter(stem.startswith, PREFIXES), ""))
        for stem in stems
    }
    return {stem: names[rest] for stem, rest in rests.items() if rest in names}


def _misnamed(
    stems: Iterable[str], layers: Mapping[str, tuple[int, int]]
) -> dict[str, str]:
    """Stem -> the layer of the model that it names once several prefixes are
    removed."""
    bare = {stem: _without_prefixes(stem) for stem in stems}
    located = _located(bare, layers)
    names = _located(bare.values(), layers)
    return {
        stem: names[rest]
        for stem, rest in bare.items()
        if stem not in located and rest in names
    }


def _without_prefixes(stem: str) -> str:
    while prefix := next(filter(stem.startswith, NEEDLESS), ""):
        stem = stem.removeprefix(prefix)
    return stem


def _missing(
    names: Mapping[str, str], base: Base, metadata: Mapping[str, str]
) -> Iterator[Diagnostic]:
    """Layers that are missing. A file of this program lacks a layer that its training
    chose; another file lacks a layer that blocks on both sides have."""
    fused = fused_layers(base.layers)
    there = {part for name in names.values() for part in fused.get(name, (name,))}
    if not there:
        return
    blocks: dict[str, dict[int, str]] = defaultdict(dict)
    for name in base.layers:
        place, index, _ = base.family.place_of(name)
        is_usual = re.fullmatch(base.family.lora_layers or ".*", name)
        if place >= 0 and is_usual and name not in fused:
            blocks[name.replace(f".{index}.", ".N.", 1)][index] = name
    gone: list[str] = []
    for of_block in blocks.values():
        has = [number for number, name in of_block.items() if name in there]
        holes = of_block.keys() - has
        if not _has_all(metadata):
            holes = {n for n in holes if has and min(has) < n < max(has)}
            if len(holes) > MOST_HOLES * len(has):
                continue
        # Layers whose output reaches no pixel are not in all files.
        gone += [
            of_block[n]
            for n in sorted(holes)
            if n != max(of_block) or not TEXT_SIDE.search(of_block[n])
        ]
    if gone:
        message = f"{len(gone)} layers are missing that it was trained with, such as {gone[0]}."
        remedy = "Take the file as its trainer saved it: this one has lost them."
        yield finding("missing", message, remedy, gone)


def _has_all(metadata: Mapping[str, str]) -> bool:
    """Whether the training of a file of this program chose every layer, and no tool
    changed the file since."""
    if not is_own(metadata) or "merged_from" in metadata:
        return False
    try:
        chosen = json.loads(metadata["ss_network_args"]).keys()
    except (KeyError, ValueError, AttributeError, RecursionError):
        return False
    return not chosen & {"network_kwargs", "include_patterns", "exclude_patterns"}


def _of_model(
    stems: Mapping[str, Any],
    names: Mapping[str, str],
    base: Base,
    sound: Mapping[str, LayerDelta],
) -> Iterator[Diagnostic]:
    """Layers that the model lacks or has in another size, and layers that are changed
    twice."""
    title = base.family.title
    left = [stem for stem in stems if stem not in names]

    def told(check: str, layers: list[str], what: str, remedy: str) -> Diagnostic:
        message = f"{len(layers)} of {len(stems)} layers {what}, such as {layers[0]}."
        return finding(check, message, remedy, layers)

    encoder = [stem for stem in left if names and BESIDE_LAYERS.match(stem)]
    if encoder:
        remedy = f"Programs leave them out: {title} has no LoRA on its text encoder. Train without it."
        yield told("other_layers", encoder, "are of a text encoder", remedy)
        left = [stem for stem in left if stem not in encoder]
    misnamed = _misnamed(left, base.layers)
    if misnamed:
        stem, name = next(iter(misnamed.items()))
        message = f"{len(misnamed)} of {len(stems)} layers have too much before their name: {stem} is {name}."
        remedy = "No program finds them. Save it again, or rename the keys (safetensors) to diffusion_model.LAYER."
        yield finding("prefix", message, remedy, tuple(misnamed))
        left = [stem for stem in left if stem not in misnamed]
    if left:
        known = _family_with(stems, base.family) or other_model(left)
        if known:
            message = f"It is a LoRA of {known}; {title} has other layers."
            yield finding("other_model", message, ITS_MODEL)
            return
        if len(left) >= len(names):
            what = "are of no model that is known here"
            yield told("other_model", left, what, ITS_MODEL)
            return
        remedy = "Programs leave them out; use it with the model it was trained on."
        yield told("other_layers", left, f"are none of {title}", remedy)
    odd = {
        stem: change
        for stem, change in sound.items()
        if stem in names and not _fits(change, base.layers[names[stem]])
    }
    if odd:
        stem, change = next(iter(odd.items()))
        inputs, outputs = base.layers[names[stem]]
        message = (
            f"{len(odd)} of {len(stems)} layers have another width than {title}: {stem} has {change.shape[1]} "
            f"inputs and {change.shape[0]} outputs, there {inputs} and {outputs}."
        )
        more = "." if base.is_given else ", or give that (--model)."
        yield finding("size", message, ITS_MODEL.removesuffix(".") + more, tuple(odd))
    by_name: dict[str, list[str]] = defaultdict(list)
    for stem, name in names.items():
        by_name[name].append(stem)
    twice = [group for group in by_name.values() if len(group) > 1]
    if twice:
        message = f"{len(twice)} layers appear twice under two names, such as {' and '.join(twice[0])}."
        remedy = "Keep one of the names: programs use one and drop the other."
        yield finding("twice", message, remedy, [group[0] for group in twice])


def _family_with(stems: Mapping[str, Any], other_than: ModelFamily) -> str:
    """Title of a published model that has all of these layers; empty: there is none."""
    for base in _published():
        if not _kin(base.family, other_than):
            if len(_located(stems, base.layers)) == len(stems):
                return base.family.title
    return ""


def _of_biases(biases: Mapping[str, Tensor], base: Base) -> Iterator[Diagnostic]:
    """Changes of biases that the model lacks."""
    weights = base.family.weight_shapes(base.folder)
    fused = fused_layers(base.layers)
    names = {
        stem: fused.get(name, (name,))[0]
        for stem, name in _located(biases, base.layers).items()
    }
    absent = [stem for stem in biases if f"{names.get(stem)}.bias" not in weights]
    if weights and absent:
        message = (
            f"{len(absent)} of {len(biases)} biases that it changes are none of {base.family.title}, "
            f"such as that of {absent[0]}."
        )
        yield finding("other_layers", message, ITS_MODEL, absent)


def _fits(change: LayerDelta, size: tuple[int, int]) -> bool:
    sides = zip(change.shape, reversed(size), strict=True)
    # 0: the matrices do not determine the side.
    return all(side in (0, wanted) for side, wanted in sides)


def as_json(one: Diagnostic) -> dict[str, Any]:
    return {
        "check": one.check,
        "message": one.message,
        "remedy": one.remedy,
        "layers": list(one.key),
        "is_wrong": one.severity == "error",
    }


def render(file: str, title: str, findings: list[Diagnostic]) -> list[str]:
    """The report as lines."""
    lines = [f"{file}: a LoRA of {title}" if title else file]
    for one in findings:
        note = "note: " if one.severity == "warning" else ""
        lines += [f"{note}{one.check}: {one.message}", f"  do: {one.remedy}"]
        if one.key:
            more = f" and {len(one.key) - SHOWN} more" if len(one.key) > SHOWN else ""
            lines.append(f"  where: {', '.join(map(str, one.key[:SHOWN]))}{more}")
    if not any(one.severity == "error" for one in findings):
        lines.append("sound: nothing wrong was found")
    return lines
