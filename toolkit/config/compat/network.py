"""`network` as other programs write it."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel

from toolkit.config.compat.foreign import Entries, ForeignNames, refuse
from toolkit.config.compat.pairs import read_pairs
from toolkit.config.diagnostics import Diagnostics
from toolkit.config.located import ConfigNode, show
from toolkit.config.normalise import merge_aliases
from toolkit.errors import did_you_mean

KIND_SPELLINGS = {"lycoris": "lora", "fullrank": "full"}

ALGO_SPELLINGS = {"locon": "lora"}

_MODULES = {
    "networks.lora_qwen_image": "lora",
    "networks.lora": "lora",
    "networks.loha": "loha",
    "networks.lokr": "lokr",
}

_ALGOS = ("lora", "loha", "lokr")
"""LyCORIS' names that are names of kinds here."""

_IDLE_ARGUMENTS = {
    "verbose": "the log has one level",
    **dict.fromkeys(("conv_dim", "conv_alpha"), "the transformer has no convolutions"),
}


def _reshape(section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
    """`type: lycoris` becomes the kind that `network_kwargs.algo` names; `lokr_full_rank` comes out of there.

    musubi-tuner's `network_module` becomes the type, its `network_args` the keys they name.
    """
    _from_module(entries, diagnostics)
    _from_arguments(section, entries, diagnostics)
    kwargs = entries.get("network_kwargs")
    whole = kwargs.child("lokr_full_rank") if kwargs else None
    if kwargs is not None and whole is not None:
        rest = {key: child for key, child in kwargs.value.items() if key != "lokr_full_rank"}
        kwargs = entries["network_kwargs"] = replace(kwargs, value=rest)
        if not whole.is_blank:
            entries["lokr_full_rank"] = merge_aliases(entries.get("lokr_full_rank"), whole, diagnostics)
    algo = kwargs.child("algo") if kwargs else None
    if algo is not None and not algo.is_blank:
        kind, named = _name(entries.get("type")), _name(algo)
        if kind == "lycoris" and named in _ALGOS:
            entries["type"] = replace(algo, value=named)
        elif kind != "lycoris" and named not in ("lora", "locon", kind):
            diagnostics.error(algo, "applies to 'type: lycoris' only. Say it by network.type.", at_key=True)
    for key in ("factor", "lokr_factor"):
        if key in entries and entries[key].value != -1 and _name(entries.get("type")) != "lokr":
            diagnostics.warn(entries[key], "has no effect: it concerns LoKr only.")
    return entries


def _from_module(entries: Entries, diagnostics: Diagnostics) -> None:
    module = entries.pop("network_module", None)
    if module is None:
        return
    kind = _MODULES.get(str(module.value).strip())
    if kind is None:
        diagnostics.error(module, f"{show(module)} is unknown. {did_you_mean(str(module.value), _MODULES)}")
    else:
        entries["type"] = merge_aliases(entries.get("type"), replace(module, value=kind), diagnostics)


def _from_arguments(section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> None:
    arguments = entries.pop("network_args", None)
    known = {name: name for name in section.model_fields} | dict(NETWORK.aliases)
    for key, node in read_pairs(arguments, diagnostics).value.items() if arguments else ():
        if key in _IDLE_ARGUMENTS:
            diagnostics.warn(node, f"{key!r} has no effect: {_IDLE_ARGUMENTS[key]}.")
        elif key in known:
            entries[known[key]] = merge_aliases(entries.get(known[key]), node, diagnostics)
        else:
            diagnostics.error(node, f"{key!r} is unknown. {did_you_mean(key, known, list_all=False)}")


def _name(node: ConfigNode | None) -> str:
    """The kind a node names; without one the default."""
    return str(node.value).strip().lower() if node else "lora"


NETWORK = ForeignNames(
    aliases={
        "rank": "linear",
        "network_dim": "linear",
        "alpha": "linear_alpha",
        "network_alpha": "linear_alpha",
        "network_dropout": "dropout",
        "network_weights": "pretrained_lora_path",
        "lokr_factor": "factor",
    },
    shapes={
        "network_args": "keys of this section, as a list of texts `name=value`",
        "network_module": "type: networks.lora_qwen_image, networks.loha, networks.lokr",
    },
    no_effect={
        "split_multistage_loras": "Qwen-Image has one stage",
        "old_lokr_format": "LoKr files are written in the current form only",
    },
    unsupported={
        **refuse("conv conv_alpha", 0),
        **refuse("transformer_only", True),
        **refuse("all_layers layer_offloading", False),
    },
    reshapes=(_reshape,),
)

NETWORK_KWARGS = ForeignNames(
    shapes={"lokr_full_rank": "network.lokr_full_rank"},
    unsupported={"full_if_contains": (), "transformer_only": (True,)},
)
