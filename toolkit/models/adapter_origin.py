"""Of which model a LoRA file is, by its header alone. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from toolkit.config.findings import Findings, error, warning
from toolkit.errors import UserError
from toolkit.files.safetensors_io import read_metadata, tensor_shapes
from toolkit.models.families import ModelFamily, family_for
from toolkit.models.interface import ROWS_OF, ModelSection
from toolkit.registry import FAMILIES

ARCHITECTURE, VERSION = "modelspec.architecture", "ss_base_model_version"
"""Keys of the metadata that name the model: as `ModelFacts.modelspec` with the kind of network behind a slash, and as
`ModelFacts.arch`."""


def origin_findings(key: str, path: str, model: ModelSection, folder: Path) -> Findings:
    """A LoRA file of another model: an error where that has other layers, else a warning. Nothing of a file that is not
    there or cannot be read, and of a model that is not known: other rules say so.

    folder: of the model.
    """
    try:
        family = family_for(model)
        keys, metadata = tensor_shapes(Path(path).expanduser()), read_metadata(Path(path).expanduser())
        own = _kinds(family, folder)
    except (UserError, OSError, ValueError):
        return
    said = str(metadata.get(ARCHITECTURE, "")).partition("/")[0]
    known = [one for one in map(FAMILIES.load, FAMILIES) if one.published]
    named = [one for one in known if one.modelspec[0] == said or one.arch == metadata.get(VERSION)]
    others = [one for one in named or known if _kinds(one, Path(next(iter(one.published)))) != own]
    if (named and others) or (not named and not _fits(keys, own)):
        found = others if named else [one for one in others if _fits(keys, _kinds(one, Path()))]
        if found:
            titles = " or ".join(one.title for one in found)
            yield error(key, f"{path} is a LoRA of {titles}, and this model is {family.title}. Give one of this model.")
    elif named and said and said != family.modelspec[0]:
        yield warning(key, f"{path} was trained on {said}, and this model is {family.modelspec[0]}. Its layers fit.")


def _kinds(family: ModelFamily, folder: Path) -> frozenset[str]:
    """The layers of a model without the numbers of blocks, flat; those that other programs have in one too."""
    kinds = {_flat(name) for name in family.every_linear_layer(folder)}
    for whole, parts in ROWS_OF.items():
        flat = _flat(parts[0])
        kinds |= {kind.removesuffix(flat) + _flat(whole) for kind in kinds if kind.endswith(flat)}
    return frozenset(kinds)


def _flat(name: str) -> str:
    return re.sub(r"(?<=_)\d+(?=_|$)", "N", name.replace(".", "_"))


def _fits(keys: Iterable[str], kinds: Iterable[str]) -> bool:
    """Whether each key is of one of these layers."""
    pattern = re.compile(f"(?:^|_)(?:{'|'.join(map(re.escape, kinds))})_")
    return all(pattern.search(_flat(key)) for key in keys)
