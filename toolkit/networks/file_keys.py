"""The keys of LoRA files: prefix, layer and form, as the programs that write them spell
them. `doctor` and `publish` call it; `lora_formats` reads what the keys hold.
Imports no torch.
"""

from __future__ import annotations

import re

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
