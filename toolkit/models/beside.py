"""Completes a model from the file of its transformer alone, as ComfyUI users have it:
finds out which model it is, and where its other parts are.

Parts are searched next to the file, in the folders of a ComfyUI that contains it, and
in the hub cache. The weights decide what a file is; a name decides only between models
that have the same weights. It reads headers alone, loads and downloads nothing, opens
no connection, and imports no torch.

The `model:` section calls `parts_around` through `toolkit.registry.PARTS_AROUND`; tools
that take a transformer's file call `transformer_fault`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from toolkit.config.sections.model import ARCH_SPELLINGS
from toolkit.config.sections.model_files import (
    INDEX,
    ModelFolder,
    cached_index,
    cached_snapshot,
    family_of,
    is_offline,
    lora_words,
    quantization_fault,
    weight_files,
)
from toolkit.errors import UserError
from toolkit.files.safetensors_io import read_metadata
from toolkit.models.families import ModelFamily, published_families
from toolkit.models.single_file import (
    MARKERS,
    OTHER_MODELS,
    encoder_file_fault,
    encoder_stored,
    encoders_in,
    part_words,
    shapes_of,
    shards_of,
    stored_weights,
    unread,
    without_prefix,
)

MODEL_FOLDERS = ("diffusion_models", "unet", "checkpoints")
PART_FOLDERS = {
    "vae": ("vae",),
    "text_encoder": ("text_encoders", "clip", "text_encoder"),
}
"""Folders of ComfyUI's `models` for each part; MODEL_FOLDERS are those for
transformers. Source: ComfyUI, folder_paths.py."""

SUFFIXES = (".safetensors", ".sft")
"""Suffixes of files that may be a part, in lower case."""


@dataclass(frozen=True)
class Around:
    """The model and the files that were found around a transformer's file.

    >>> around = parts_around("no_such_file.safetensors", None, None, {})
    >>> around is None
    True
    """

    model: str = ""
    """For `model.name_or_path`: the model folder that has the file, or the hub id of
    the published model."""

    files: Mapping[str, str] = field(default_factory=dict)
    """Part -> file that was found. The model has the weights of the other parts."""

    note: str = ""
    """For the plan: the model, and how it was recognised."""

    fault: str = ""
    """The reason why it cannot be trained as it is, with the remedy. All other fields
    are then empty."""


@dataclass(frozen=True)
class Candidate:
    """A model whose transformer a file may be: a published one, or the model folder
    that has the file.

    Example::

        Candidate(hub_id, title, family.of_title(title))
        Candidate(str(folder), family.title, family, folder)
    """

    id: str
    """Hub id, or the path of a folder."""

    title: str
    family: ModelFamily
    folder: Path = Path()
    """Folder of its configs. Where it does not exist, the published sizes count."""


def parts_around(
    name: str, arch: str | None, revision: str | None, given: Mapping[str, str]
) -> Around | None:
    """The model and the parts around the file `name`; None: there is no such file.

    arch: as the user wrote it, or None. given: part -> file that the job names.
    """
    path = Path(os.path.expanduser(name))
    if not os.path.isfile(path):
        return None
    fault = transformer_fault(name)
    if fault:
        return Around(fault=fault)
    try:
        if "transformer" in given:
            return Around(
                fault=f"{name!r} is a transformer, and so is transformer_path. Remove one of them."
            )
        home = _home_of(path)
        candidate, note = _model_of(path, arch, home)
        if home is None or home.family.title != candidate.family.title:
            index = cached_index(candidate.id, revision)
            folder = index.parent if index else Path(candidate.id)
            home = replace(candidate, folder=folder)
        model = home.id
        files = dict(_parts(path, home, given))
    except UserError as error:
        return Around(fault=str(error) if name in str(error) else f"{name!r}: {error}")
    everything = {"transformer": name, **given, **files}
    if (
        model == candidate.id
        and not cached_snapshot(model, revision, everything)
        and is_offline()
    ):
        absent = f"{name!r} is {candidate.title}, whose configs and tokenizer are not in the hub cache"
        remedy = f"Unset it, or run `hf download {model} --exclude '*.safetensors'` where there is a connection"
        return Around(
            fault=f"{absent}, and HF_HUB_OFFLINE forbids to ask the hub. {remedy}."
        )
    return Around(model, {"transformer": name, **files}, note)


# ---------------------------------------------------------------- which model it is


def transformer_fault(name: str) -> str:
    """The reason why the file `name` is not a transformer that can be trained, with the
    remedy. Empty: it has the keys of one."""
    path = Path(name).expanduser()
    try:
        fault = unread(path) or _no_transformer(path, name)
    except UserError as error:
        fault = str(error)
    return f"{name!r}: {fault}" if fault and name not in fault else fault


def _no_transformer(path: Path, name: str) -> str:
    """A message that says what a readable file is instead of a transformer that can be
    trained. Empty: it has the keys of one."""
    words = lora_words(path)
    if words:
        return f"{name!r} is not a model. {words}"
    parts = encoders_in(encoder_stored(path))
    if parts:
        remedy = "Give the transformer as model.name_or_path."
        return f"{name!r} is {part_words(parts[0])}: that is model.{parts[0]}_path. {remedy}"
    bare = {without_prefix(tensor) for tensor in shapes_of(path)}
    ours = {
        weight
        for family in published_families()
        for weight in family.weight_shapes(Path(next(iter(family.published))))
    }
    other = next(
        (other for tensor, other in OTHER_MODELS.items() if tensor in bare - ours), ""
    )
    if other:
        return f"{name!r} is another model: this is {other}. Give a transformer of a model that can be trained."
    if not _candidates(path):
        some = ", ".join(sorted(bare)[:3]) or "none at all"
        return f"{name!r} has no transformer of a model that can be trained; its weights: {some}. Give another file."
    return ""


def _pattern(weight: str) -> str:
    return re.sub(r"^transformer_blocks\.\d+\.", "transformer_blocks.*.", weight)


def _candidates(path: Path) -> list[Candidate]:
    """The published models whose names of weights are nearest to the names in a file,
    whatever its number of blocks. Empty where more than half of them differ."""
    shapes = shapes_of(path)
    names = {_pattern(weight) for weight in stored_weights(shapes)}
    markers = {
        title
        for marker, title in MARKERS.items()
        if title and marker in map(without_prefix, shapes)
    }
    near: dict[int, list[Candidate]] = {}
    for family in published_families():
        for hub_id, title in family.published.items():
            expected = {
                _pattern(weight) for weight in family.weight_shapes(Path(hub_id))
            }
            differ = len(expected ^ names)
            if differ <= len(expected) / 2 and (not markers or title in markers):
                near.setdefault(differ, []).append(
                    Candidate(hub_id, title, family.of_title(title))
                )
    return near[min(near)] if near else []


def _home_of(path: Path) -> Candidate | None:
    """The model folder that contains a file; None: it is not in one."""
    for folder in list(path.parents)[:2]:
        if (folder / INDEX).is_file() and not ModelFolder(folder).fault(
            ("transformer", "vae", "text_encoder")
        ):
            facts = family_of(ModelFolder(folder).pipeline())
            assert facts is not None  # else it has a fault
            family = cast("ModelFamily", facts).of_folder(folder)
            return Candidate(str(folder), family.title, family, folder)
    return None


def _model_of(
    path: Path, arch: str | None, home: Candidate | None
) -> tuple[Candidate, str]:
    """The model of a file, and a note on how it was recognised. Raises UserError where
    it cannot be recognised, or `arch` is another."""
    candidates = _candidates(path)
    titles = ", ".join(candidate.title for candidate in candidates)
    if arch:
        name = ARCH_SPELLINGS.get(arch, arch.split(":")[0])
        version = re.search(r"25\d\d", arch)
        of_arch = [
            one
            for one in candidates
            if one.family.arch == ARCH_SPELLINGS.get(name, name)
        ]
        if not of_arch:
            raise UserError(
                f"by its weights it is {titles}, which model.arch {arch!r} is not. Leave it out, or give such a model."
            )
        candidates = [
            one for one in of_arch if version and version[0] in one.title
        ] or of_arch
    by = f"by its weights and arch {arch}" if arch else "by its weights"
    if len(candidates) == 1:
        return candidates[0], f"{candidates[0].title} {by}"
    if home:
        of_home = [one for one in candidates if one.family.title == home.family.title]
        if of_home:
            return of_home[0], f"{home.title} {by} and the folder that it lies in"
    metadata = read_metadata(path)
    texts = [
        (metadata.get(key, ""), "metadata")
        for key in ("base_model", "modelspec.architecture")
    ]
    for text, where in (*texts, (path.name, "name")):
        named = _named(str(text).split("/")[-1], candidates)
        if named:
            return (
                named,
                f"{named.title} {by}, which other models have too, and its {where}",
            )
    # a distilled model has to be named
    candidates = [
        one for one in candidates if not one.family.sample_sigmas
    ] or candidates
    # text to image: no version differs in use
    if len({(one.family.arch, one.family.title) for one in candidates}) == 1:
        return candidates[0], f"{candidates[0].title} {by}"
    archs = " or ".join(
        dict.fromkeys(f"{one.family.arch}{_tag(one)}" for one in candidates)
    )
    raise UserError(
        f"by its weights it may be {titles}, and its name does not say which. Give model.arch: {archs}."
    )


def _tag(candidate: Candidate) -> str:
    version = re.search(r"25\d\d", candidate.title)
    several = len(candidate.family.published) > 1
    return f":{version[0]}" if version and several else ""


def _named(text: str, candidates: list[Candidate]) -> Candidate | None:
    """The candidate whose title begins a text; case and punctuation do not count. None
    where a word or number follows that may mean another model."""
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    for candidate in sorted(candidates, key=lambda one: -len(one.title)):
        title = re.sub(r"[^a-z0-9]", "", candidate.title.lower())
        if plain.startswith(title):
            rest = plain.removeprefix(title)
            return None if re.match(r"\d|plus|layered|.*edit", rest) else candidate
    return None


# ---------------------------------------------------------------- where its parts are


def _parts(
    path: Path, candidate: Candidate, given: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """The file of each part that is not given, where there is one. Raises UserError
    where several fit, and where there is none and the model's folder has no weights of
    that part either."""
    faults = []
    for part in candidate.family.weight_parts:
        if part == candidate.family.trained_part or part in given:
            continue
        fits, others = _fitting(
            path,
            part,
            tuple(candidate.family.encoder_weights(part, candidate.folder).items()),
        )
        if len(fits) == 1:
            yield part, str(fits[0])
            continue
        words = part_words(part)
        key = f"model.{part}_path"
        if fits:
            faults.append(f"{', '.join(map(str, fits))} fit it. Choose one with {key}.")
            continue
        try:
            weight_files(candidate.folder / part)
        except UserError as error:
            if quantization_fault(candidate.folder / part):
                faults.append(str(error))
                continue
            unfit = "; ".join(other.rstrip(".") for other in others[:3])
            unfit = f" ({unfit})" if unfit else ""
            home, instead = candidate.id, ""
            if home in candidate.family.published:
                instead = f", or name_or_path: {home} and this file as transformer_path, to download it"
                home = f"the hub cache of {home}"
            places = (
                f"in {' or '.join(PART_FOLDERS[part])} of its ComfyUI, or in {home}"
            )
            faults.append(
                f"no file of {words} is beside it, {places}{unfit}. Give {key}{instead}."
            )
    if faults:
        raise UserError(f"it is {candidate.title}, and {' And '.join(faults)}")


def _fitting(
    path: Path, part: str, expected: tuple[tuple[str, Any], ...]
) -> tuple[list[Path], list[str]]:
    """The files nearby that are this part, and the reasons why other files with such
    weights are not."""
    fits: list[Path] = []
    unfit: list[str] = []
    for file in _files_around(path, part):
        stamp = file.stat()
        fault = _fault_of(file, part, expected, stamp.st_size, stamp.st_mtime_ns)
        if fault is None:
            fits.append(file)
        elif fault:
            unfit.append(fault)
    return fits, unfit


@lru_cache(256)
def _fault_of(
    file: Path, part: str, expected: tuple[tuple[str, Any], ...], *stamp: int
) -> str | None:
    """The reason why a file is not this part. None: it is. Empty: it is something else
    altogether. stamp: the file is read again when it changes."""
    try:
        if part not in encoders_in(encoder_stored(file)):
            return ""
        return encoder_file_fault(file, part, dict(expected)) or None
    except UserError as error:
        return str(error)


def _files_around(path: Path, part: str) -> list[Path]:
    """The files that may be a part: next to the transformer's file, and in the folders
    of its ComfyUI with all folders below them. A file with several paths is listed
    once, under the first one. Shards are listed by their first file."""
    files: dict[Path, Path] = {}
    seen: set[Path] = set()
    for place in dict.fromkeys((path.absolute(), path.resolve())):
        roots = [
            place.parent,
            *(
                above.parent
                for above in place.parents
                if above.name.lower() in MODEL_FOLDERS
            ),
        ]
        tops = dict.fromkeys(
            (
                place.parent,
                *(root / name for root in roots for name in PART_FOLDERS[part]),
            )
        )
        for top in tops:
            for folder, below, names in os.walk(top, followlinks=True):
                real = Path(folder).resolve()
                if top == place.parent or real in seen:
                    below.clear()  # only next to the file; links may lead back
                else:
                    seen.add(real)
                for file in (Path(folder, name) for name in sorted(names)):
                    if (
                        file.suffix.lower() in SUFFIXES
                        and file.is_file()
                        and shards_of(file)[0] == file
                    ):
                        files.setdefault(file.resolve(), file)
    files.pop(path.resolve(), None)
    return list(files.values())
