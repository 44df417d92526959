"""`model` as other programs write it."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel

from toolkit.config.compat.foreign import Entries, ForeignNames, refuse
from toolkit.config.diagnostics import Diagnostics
from toolkit.config.located import ConfigNode
from toolkit.config.normalise import listed, merge_aliases

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


def _reshape(section: type[BaseModel], entries: Entries, diagnostics: Diagnostics) -> Entries:
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
            if file:
                adapter = entries.get("accuracy_recovery_adapter")
                moved = replace(node, value=file, written=written)
                entries["accuracy_recovery_adapter"] = merge_aliases(adapter, moved, diagnostics)
            else:
                diagnostics.error(node, "needs a file after '|'.")


MODEL = ForeignNames(
    aliases={"quantize_dtype": "qtype", "quantize_te_dtype": "qtype_te"},
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
        "latent_space_version": "the cache knows a VAE by its weights",
        "text_encoder_bits": "quantize_te and qtype_te decide",
        "attn_mode": "the attention kernel is chosen by PyTorch",
    },
    unsupported={
        **refuse("layer_offloading auto_memory", False),
        **refuse("layer_offloading_transformer_percent layer_offloading_text_encoder_percent", 1),
        **refuse(
            "lora_path assistant_lora_path inference_lora_path unconditional_lora_path extras_name_or_path "
            "te_name_or_path vae_path unet_path only_if_contains ignore_if_contains quantize_kwargs"
        ),
    },
    reshapes=(_reshape,),
)
