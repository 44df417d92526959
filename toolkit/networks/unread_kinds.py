"""Kinds of adapter that are not read, recognized by the names of their tensors, so that
a refusal names the kind of a file. Called by `lora_formats` and `adapter_health`.

Source: peft 0.21.2, the `prefix` of each tuner and the keys that it saves
(`tests/toolkit/networks/ test_unread_kinds.py` asks the installed peft for them);
LyCORIS 4.1.3, `weight_list` of its modules; ComfyUI's names of whole changes.

    unread_kind("lycoris_to_q.lambda_layer")  # "a T-LoRA, ..."
"""

from __future__ import annotations

SUFFIXES = {
    ".diff": "whole changes of norms or other weights (diff)",
    ".set_weight": "whole weights (set_weight)",
    ".w_norm": "changes of norms (w_norm)",
    ".b_norm": "changes of norms (b_norm)",
    ".oft_diag": "an old OFT (oft_diag)",
    ".lora_mid.weight": "a convolution's LoRA",
    ".bm.weight": "a convolution's GLoRA",
    ".hada_t1": "a convolution's LoHa",
    ".hada_t2": "a convolution's LoHa",
    ".lokr_t2": "a convolution's LoKr",
    ".scale_weight": "scaled float8 weights",
    ".lora_E": "an AdaLoRA",
    ".lora_diag": "a KaSA, which cuts the model's own weights",
    ".lambda_layer": (
        "a T-LoRA, which adds its difference from a start that is in no file: it was computed from the weights of its "
        "base, or drawn, when the training began"
    ),
}
"""Suffix of a key -> the kind, with its article."""

_T_LORA = SUFFIXES[".lambda_layer"]
SUFFIXES |= {".q_layer.weight": _T_LORA, ".p_layer.weight": _T_LORA}

NAMES = {
    "lora_velora_embed": "a VeLoRA, which has further tensors",
    "lora_monteclora_sampler": "a MonteCLoRA, whose matrices are drawn at random",
    "lora_embedding_": "a LoRA of an embedding",
    "oft_embedding_R": "an OFT of an embedding",
    "oft_r": "an OFT of peft 0.15 or older",
    "ia3_": "an IA3 of peft",
    "pvera_": "a PVeRA of peft",
    "vera_": "a VeRA of peft",
    "adamss_": "an AdaMSS of peft",
    "adaption_prompt_": "an adaption prompt of peft",
    "beft_": "a BEFT of peft",
    "c3a_": "a C3A of peft",
    "cartridge_": "a cartridge of peft",
    "cpt_": "a CPT of peft",
    "deft_": "a DEFT of peft",
    "delora_": "a DeLoRA of peft",
    "fourierft_": "a FourierFT of peft",
    "frod_": "a FRoD of peft",
    "glora_": "a GLoRA of peft, which is another kind than that of LyCORIS",
    "gralora_": "a GraLoRA of peft",
    "hira_": "a HiRA of peft",
    "hra_": "an HRA of peft",
    "lily_": "a Lily of peft",
    "ln_tuning_": "changes of norms (LN tuning of peft)",
    "miss_": "a MiSS of peft",
    "shira_": "a SHiRA of peft",
    "prompt_tuning_": "a prompt tuning of peft",
    "multitask_prompt_tuning_": "a prompt tuning of peft",
    "osf_": "an OSF of peft",
    "p_tuning_": "a p-tuning of peft",
    "peanut_": "a PEANuT of peft",
    "poly_": "a Poly of peft",
    "prefix_tuning_": "a prefix tuning of peft",
    "psoft_": "a PSOFT of peft",
    "randlora_": "a RandLoRA of peft",
    "road_": "a RoAd of peft",
    "shadow_": "a Shadow of peft",
    "supertuning_": "a supertuning of peft",
    "tinylora_": "a TinyLoRA of peft",
    "trainable_tokens_": "trained tokens of peft",
    "unilora_": "a UniLoRA of peft",
    "vblora_": "a VB-LoRA of peft",
    "waveft_": "a WaveFT of peft",
    "xlora_": "an X-LoRA of peft",
}
"""Start of one of the last two dotted parts of a key -> the kind, with its article."""


def unread_kind(key: str) -> str:
    """The kind of adapter that has a tensor of this name, with its article; empty where
    the name is unknown.

    >>> unread_kind("transformer_blocks.0.attn.to_q.vera_lambda_b")
    'a VeRA of peft'
    """
    by_suffix = next(
        (what for suffix, what in SUFFIXES.items() if key.endswith(suffix)), ""
    )
    if by_suffix:
        return by_suffix
    # earlier parts are the module's own name, which may begin like a kind's
    for part in key.split(".")[-2:]:
        named = next(
            (what for name, what in NAMES.items() if part.startswith(name)), ""
        )
        if named:
            return named
    return ""
