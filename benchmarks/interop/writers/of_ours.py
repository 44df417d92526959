"""Files of this program: every kind of network as a run saves it, and everything that
`convert` makes of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.interop.files import ALPHA, RANK, Changes, Draws, WrittenFile
from benchmarks.interop.models import TinyModel, linear_weights
from extensions.tools.lora_tools.lora_export import (
    FORMATS,
    export,
    kept_metadata,
    read_adapter,
    why_not_exported,
)
from toolkit.config.sections.network import NetworkConfig
from toolkit.contracts.network_kinds import KINDS
from toolkit.networks.adapter import LinearAdapterNetwork
from toolkit.networks.save import write_safetensors_verified
from toolkit.networks.spelling import SPELLINGS, STORED, Spelling, spelled
from toolkit.registry import FAMILIES
from toolkit.system.device import to_cpu_copies
from toolkit.version import NAME, VERSION

WRITER = f"{NAME} {VERSION}"

SETTINGS: Mapping[str, dict[str, Any]] = {
    "lokr_whole": {"type": "lokr", "lokr_full_rank": True},
    "lokr_factor": {"type": "lokr", "factor": 4},
    "boft": {"linear": 8},
}
"""Keys of `network` for further LoKrs, and for BOFT, whose blocks divide 384
outputs."""

TITLES = {
    "lora": "LoRA",
    "dora": "DoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "lokr_whole": "LoKr of whole factors",
    "lokr_factor": "LoKr with a factor of 4",
    "boft": "BOFT of lycoris-lora",
    "diag-oft": "diag-oft of lycoris-lora",
    "glora": "GLoRA of lycoris-lora",
    "ia3": "IA3 of lycoris-lora",
    "lycoris-full": "full of lycoris-lora",
}


def write(
    model: TinyModel, folder: Path, kinds: Collection[str] = ()
) -> Iterator[WrittenFile]:
    """Each kind of adapter: as saved by a new run, by an old one, and by each `convert
    --to`. kinds: these alone."""
    newest = SPELLINGS[FAMILIES.load(model.arch).lora_spelling]
    for kind in kinds or dict.fromkeys([*own_kinds(), *SETTINGS]):
        title = TITLES.get(kind, kind)
        network, meant = trained(model, kind)
        saved = _saved(model, network, folder / f"{kind}.safetensors", newest)
        what = f"{title}, as saved"
        yield WrittenFile(
            f"ours_{kind}", model.title, WRITER, what, saved, meant, network.targets
        )
        if KINDS[_settings(kind).type].library_class:
            # it has the library's names, old and new, and nothing can be converted
            continue
        old = _saved(model, network, folder / f"{kind}_old.safetensors", STORED)
        what = f"{title} of a run that began with the old names"
        yield WrittenFile(
            f"ours_{kind}_old", model.title, WRITER, what, old, meant, network.targets
        )
        yield from _converted(model, saved, kind, meant, network.targets)


def own_kinds() -> list[str]:
    """The kinds of adapter that this program trains with its own layers."""
    adapters = (name for name, kind in KINDS.items() if not kind.trains_model)
    return [
        name
        for name in adapters
        if issubclass(KINDS[name].load(), LinearAdapterNetwork)
    ]


SCALES = ("dora_scale", "rescale")
"""Parameters around 1, or the norms of a weight."""


def _settings(kind: str) -> NetworkConfig:
    return NetworkConfig(
        **{
            "type": kind,
            "linear": RANK,
            "linear_alpha": ALPHA,
            **SETTINGS.get(kind, {}),
        }
    )


def trained(model: TinyModel, kind: str) -> tuple[LinearAdapterNetwork, Changes]:
    """A network with drawn weights on a fresh transformer, and the change that its
    layers make."""
    transformer = model.build()
    before = linear_weights(transformer)
    settings = _settings(kind)
    network = (
        KINDS[settings.type]
        .load()
        .from_config(settings, model.layers(own=True), 1, torch.float32)
    )
    assert isinstance(network, LinearAdapterNetwork)
    network.attach(transformer)
    draws = Draws(model.title, "ours", kind)
    with torch.no_grad():
        for name, parameter in sorted(network.parameters().items()):
            if name.endswith(SCALES):
                parameter.mul_(1 + draws.normal(*parameter.shape, std=0.1))
            else:
                parameter.copy_(draws.normal(*parameter.shape))
    return network, _change_in_training(transformer, network.targets, before)


@torch.no_grad()
def _change_in_training(
    transformer: nn.Module, targets: tuple[str, ...], before: Changes
) -> Changes:
    """What the layers compute with, by unit inputs; of a layer in half precision it
    would be rounded."""
    changes = {}
    for target in targets:
        layer = transformer.get_submodule(target)
        weight_OI = before[f"{target}.weight"]
        unit_II = torch.eye(weight_OI.shape[1])
        nothing_O = layer(torch.zeros_like(unit_II[:1]))
        changes[f"{target}.weight"] = (layer(unit_II) - nothing_O).T - weight_OI
    return changes


def _saved(
    model: TinyModel, network: LinearAdapterNetwork, path: Path, spelling: Spelling
) -> Path:
    """Written as a run does, in float32 so that no rounding hides an error of the
    strength."""
    tensors = spelled(
        network.export({name: p.data for name, p in network.parameters().items()}),
        spelling,
    )
    metadata = {"rank": str(RANK), "alpha": str(ALPHA)}
    write_safetensors_verified(
        path, to_cpu_copies(dict(sorted(tensors.items())), "float32"), metadata
    )
    return path


def _converted(
    model: TinyModel, saved: Path, kind: str, meant: Changes, targets: tuple[str, ...]
) -> Iterator[WrittenFile]:
    file = read_adapter(saved, [targets])
    written: list[set[str]] = []
    for name, target in FORMATS.items():
        if why_not_exported(file, target):
            continue
        tensors = export(file, target)
        if set(tensors) in written:  # a form that differs for other models alone
            continue
        written.append(set(tensors))
        path = saved.with_name(f"{kind}_to_{name}.safetensors")
        write_safetensors_verified(path, tensors, kept_metadata(file, target))
        what = f"{TITLES.get(kind, kind)}, convert --to {name}"
        yield WrittenFile(
            f"ours_{kind}_to_{name}", model.title, WRITER, what, path, meant, targets
        )
