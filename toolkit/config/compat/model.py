"""`model` and `network` as other programs write them."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel

from toolkit.config.base import Entries, ForeignNames, refuse
from toolkit.config.located import ConfigNode, Diagnostics, show
from toolkit.config.normalise import listed, merge_aliases, read_pairs
from toolkit.errors import did_you_mean
from toolkit.number_types import QTYPES

QTYPE_SPELLINGS = {
    "qint8": "int8",
    "qint4": "int4",
    "qint2": "int2",
    "qfloat8": "float8",
    "qfloat8_e4m3fn": "float8",
    "fp8": "float8",
}

TO_TRAIN = {
    "compile_mode": "compile_mode",
    "compile_dynamic": "compile_dynamic",
    "compile_fullgraph": "compile_fullgraph",
    "cache_size_limit": "compile_cache_size_limit",
}
"""ai-toolkit's keys of `model` -> of `train`, where compiling belongs here."""

_OTHER_FAMILIES = "is_flux is_xl is_v2 is_v3 is_v_pred is_pixart is_pixart_sigma is_auraflow is_lumina2 is_ssd is_vega"
"""ai-toolkit's switches that say which family a model is."""

_OF_OTHER_FAMILIES = "use_flux_cfg flux_cfg use_text_encoder_1 use_text_encoder_2 experimental_xl refiner_name_or_path"


def _reshape_model(section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
    """`base_weights` and `base_weights_multiplier` become `base_loras`.

    `qtype: type|file` is parted; musubi-tuner's switches become `quantize`, `quantize_te` and their types.
    """
    _switched(entries, diagnostics)
    _parted(entries, diagnostics)
    weights, multipliers = entries.pop("base_weights", None), entries.pop("base_weights_multiplier", None)
    if weights is None or weights.value == []:
        if multipliers is not None and multipliers.data() not in (1, [1], []):
            diagnostics.warn(multipliers, "has no effect without base_weights.")
    elif "base_loras" in entries and entries["base_loras"].value:
        diagnostics.error(weights, "'base_loras' is given as well. Remove one of them.", at_key=True)
    else:
        entries["base_loras"] = _paired(listed(weights), multipliers and listed(multipliers), diagnostics)
    return entries


def _paired(paths: ConfigNode, multipliers: ConfigNode | None, diagnostics: Diagnostics) -> ConfigNode:
    """musubi-tuner's two lists as one; files beyond the last multiplier have 1, as there."""
    factors = list(multipliers.value) if multipliers else []
    if multipliers is not None and len(factors) > len(paths.value):
        diagnostics.error(multipliers, f"{len(factors)} multipliers for {len(paths.value)} files of base_weights.")
    factors += [None] * (len(paths.value) - len(factors))
    entries = [
        replace(path, value={"path": path, **({"multiplier": factor} if factor else {})})
        for path, factor in zip(paths.value, factors, strict=False)
    ]
    return replace(paths, value=entries)


def _switched(entries: Entries, diagnostics: Diagnostics) -> None:
    """`fp8_base`, `fp8_scaled` and `fp8_vl` as what they stand for. Alone, `fp8_base` is float8 with scales."""
    given = {key: entries.pop(key, None) for key in ("fp8_base", "fp8_scaled", "fp8_vl")}
    for key, node in list(given.items()):
        if node is not None and not isinstance(node.value, bool):
            diagnostics.error(node, "write true or false.")
            given[key] = None
    given_base, given_scaled, _ = given.values()
    if given_base is not None and given_base.value is False and given_scaled is not None and given_scaled.value is True:
        message = "'fp8_scaled: true' and 'fp8_base: false' contradict each other. Leave one of them out."
        diagnostics.error(given_scaled, message, at_key=True)
    base, scaled, text = (node if node is not None and node.value else None for node in given.values())
    for node, switch, kind, qtype in (
        (scaled or base, "quantize", "qtype", "fp8_scaled" if scaled else "float8"),
        (text, "quantize_te", "qtype_te", "float8"),
    ):
        if node is not None:
            entries[switch] = merge_aliases(entries.get(switch), replace(node, value=True), diagnostics)
            entries[kind] = merge_aliases(entries.get(kind), replace(node, value=qtype), diagnostics)


def _parted(entries: Entries, diagnostics: Diagnostics) -> None:
    """`qtype: int4|file` as qtype and accuracy_recovery_adapter, as in ai-toolkit."""
    for key in ("qtype", "quantize_dtype"):
        node = entries.get(key)
        if node is not None and isinstance(node.value, str) and "|" in node.value:
            qtype, file = (part.strip() for part in node.value.split("|", 1))
            written = node.written and node.written.rpartition("|")[2].strip()
            entries[key] = replace(node, value=qtype)
            if file and qtype.lower() not in {*QTYPES, *QTYPE_SPELLINGS}:
                message = f"{qtype!r} is unknown. Use {' or '.join(map(repr, QTYPES))}, without '|' and the file: "
                diagnostics.error(node, f"{message}its adapter makes up for the errors of {qtype} alone.")
            elif file:
                adapter = entries.get("accuracy_recovery_adapter")
                moved = replace(node, value=file, written=written)
                entries["accuracy_recovery_adapter"] = merge_aliases(adapter, moved, diagnostics)
            else:
                diagnostics.error(node, "needs a file after '|'.")


MODEL = ForeignNames(
    aliases={"ara": "accuracy_recovery_adapter", "quantize_dtype": "qtype", "quantize_te_dtype": "qtype_te"},
    shapes={
        "fp8_base": "quantize with qtype float8",
        "fp8_scaled": "quantize with qtype fp8_scaled",
        "fp8_vl": "quantize_te with qtype_te float8",
        "base_weights": "base_loras, as a list of paths",
        "base_weights_multiplier": "base_loras, as a list of multipliers",
        **dict.fromkeys(("compile", "block_compile"), "train.compile.enabled"),
        **{old: f"train.compile.{new.removeprefix('compile_')}" for old, new in TO_TRAIN.items()},
    },
    refused_when_on=dict.fromkeys(
        _OTHER_FAMILIES.split(),
        "only Qwen-Image-Edit-2509 and what is made from it can be trained. Give such a model, and leave this key out.",
    ),
    no_effect={
        **dict.fromkeys([*_OTHER_FAMILIES.split(), *_OF_OTHER_FAMILIES.split()], "this trains Qwen-Image"),
        **dict.fromkeys(("dtype", "te_dtype", "vae_dtype"), "train.dtype decides"),
        "attn_masking": "captions of a batch are never padded",
        "refiner_start_at": "there is no refiner",
        "latent_space_version": "the cache knows a VAE by its weights",
        "text_encoder_bits": "quantize_te and qtype_te decide",
        "attn_mode": "the attention kernel is chosen by PyTorch",
    },
    unsupported={
        **refuse("layer_offloading auto_memory", False),
        **refuse("layer_offloading_transformer_percent layer_offloading_text_encoder_percent", 1),
        **refuse(
            "lora_path assistant_lora_path inference_lora_path unconditional_lora_path extras_name_or_path "
            "te_name_or_path vae_path unet_path only_if_contains ignore_if_contains quantize_kwargs unet_sample_size "
            "vae_device te_device model_paths"
        ),
        **refuse("split_model_over_gpus in_context", False),
        **refuse("split_model_other_module_param_count_scale", 0.3),
    },
    needs={
        "split_model_other_module_param_count_scale": "split_model_over_gpus",
        **dict.fromkeys(
            ("layer_offloading_transformer_percent", "layer_offloading_text_encoder_percent"), "layer_offloading"
        ),
    },
    reshapes=(_reshape_model,),
)


MODEL_KWARGS = ForeignNames(unsupported=refuse("kv_cache", False))

KIND_SPELLINGS = {"lycoris": "lora", "fullrank": "full"}

ALGO_SPELLINGS = {"locon": "lora"}

_MODULES = {
    "networks.lora_qwen_image": "lora",
    "networks.lora": "lora",
    "networks.loha": "loha",
    "networks.lokr": "lokr",
}

_IN_KWARGS = ("lokr_full_rank", "factor")
"""Keys of `network` that ai-toolkit's jobs for LyCORIS have in `network_kwargs`."""

_ALGOS = ("lora", "loha", "lokr")
"""LyCORIS' names that are names of kinds here."""

_IDLE_ARGUMENTS = {
    "verbose": "the log has one level",
    **dict.fromkeys(("conv_dim", "conv_alpha"), "the transformer has no convolutions"),
}


def _reshape_network(section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
    """`type: lycoris` becomes the kind that `network_kwargs.algo` names; `_IN_KWARGS` come out of there.

    musubi-tuner's `network_module` becomes the type, its `network_args` the keys they name.
    """
    _from_module(entries, diagnostics)
    _from_arguments(section, entries, diagnostics)
    kwargs = entries.get("network_kwargs")
    if kwargs is not None and isinstance(kwargs.value, dict):
        rest = {key: child for key, child in kwargs.value.items() if key not in _IN_KWARGS}
        for key in kwargs.value.keys() - rest.keys():
            if not kwargs.value[key].is_blank:
                entries[key] = merge_aliases(entries.get(key), kwargs.value[key], diagnostics)
        kwargs = entries["network_kwargs"] = replace(kwargs, value=rest)
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
        **dict.fromkeys(("conv", "conv_alpha"), "the transformer has no convolutions"),
        "old_lokr_format": "LoKr files are written in the current form only",
    },
    unsupported={
        **refuse("lorm"),
        **refuse("transformer_only", True),
        **refuse("all_layers layer_offloading", False),
    },
    reshapes=(_reshape_network,),
)

NETWORK_KWARGS = ForeignNames(
    shapes={key: f"network.{key}" for key in _IN_KWARGS},
    unsupported={"full_if_contains": (), "transformer_only": (True,)},
)
