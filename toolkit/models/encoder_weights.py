"""The weights that the encoders of the Qwen-Image family have, by their configs.

A single file is compared with them before it is loaded. The first two functions return
name -> shape, where 0 stands for any size, and () for any shape. No file is opened
here. `folder_family` passes configs, `single_file` and `vae_files` compare names, and
`qwen_image.loading` reads Wan's names. Imports no torch.

Sources: transformers, modeling_qwen2_5_vl.py and modeling_qwen3_vl.py; diffusers,
autoencoder_kl_qwenimage.py and autoencoder_kl_qwenimage21.py; Wan's names:
Wan-Video/Wan2.1, wan/modules/vae.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

Shapes = dict[str, tuple[int, ...]]

_QWEN25 = """
language_model.embed_tokens.weight language_model.norm.weight language_model.layers.*.input_layernorm.weight
language_model.layers.*.post_attention_layernorm.weight language_model.layers.*.self_attn.{q,k,v}_proj.{weight,bias}
language_model.layers.*.self_attn.o_proj.weight language_model.layers.*.mlp.{gate,up,down}_proj.weight
visual.patch_embed.proj.weight visual.blocks.*.norm{1,2}.weight visual.blocks.*.attn.{qkv,proj}.{weight,bias}
visual.blocks.*.mlp.{gate,up,down}_proj.{weight,bias} visual.merger.ln_q.weight visual.merger.mlp.{0,2}.{weight,bias}
"""

_QWEN3 = """
language_model.embed_tokens.weight language_model.norm.weight language_model.layers.*.input_layernorm.weight
language_model.layers.*.post_attention_layernorm.weight language_model.layers.*.self_attn.{q,k,v,o}_proj.weight
language_model.layers.*.self_attn.{q,k}_norm.weight language_model.layers.*.mlp.{gate,up,down}_proj.weight
visual.patch_embed.proj.{weight,bias} visual.pos_embed.weight visual.blocks.*.norm{1,2}.{weight,bias}
visual.blocks.*.attn.{qkv,proj}.{weight,bias} visual.blocks.*.mlp.linear_fc{1,2}.{weight,bias}
visual.merger.{norm,linear_fc1,linear_fc2}.{weight,bias}
visual.deepstack_merger_list.*.{norm,linear_fc1,linear_fc2}.{weight,bias}
"""

_VAE = """
encoder.conv_{in,out}.{weight,bias} encoder.norm_out.gamma decoder.conv_{in,out}.{weight,bias} decoder.norm_out.gamma
{quant_conv,post_quant_conv}.{weight,bias}
{encoder,decoder}.mid_block.attentions.0.norm.gamma {encoder,decoder}.mid_block.attentions.0.{to_qkv,proj}.{weight,bias}
{encoder,decoder}.mid_block.resnets.{0,1}.norm{1,2}.gamma
{encoder,decoder}.mid_block.resnets.{0,1}.conv{1,2}.{weight,bias}
"""


def _expanded(pattern: str) -> Iterator[str]:
    """The names that a pattern such as `norm{1,2}.{weight,bias}` stands for."""
    braces = re.search(r"\{([^}]*)\}", pattern)
    if not braces:
        yield pattern
        return
    for choice in braces[1].split(","):
        yield from _expanded(
            pattern[: braces.start()] + choice + pattern[braces.end() :]
        )


def text_encoder_weights(config: Mapping[str, Any], layers: int, width: int) -> Shapes:
    """Weights of Qwen2.5-VL or Qwen3-VL with its vision tower, by the names in
    transformers' module without its head.

    config: of the text encoder. layers, width: number of layers and hidden size of the
    published one, for keys that the config lacks. It is a Qwen3-VL where `model_type`
    says so, or without that key where `width` is 4096.

    >>> len(text_encoder_weights({}, layers=28, width=3584))
    728
    """
    text = config.get("text_config") or config
    vision = config.get("vision_config") or {}
    is_qwen3 = str(
        config.get("model_type", "qwen3_vl" if width == 4096 else "")
    ).startswith("qwen3")
    counts = {
        "language_model": text.get("num_hidden_layers", layers),
        "visual.blocks": vision.get("depth", 27 if is_qwen3 else 32),
        "visual.deepstack_merger_list": len(
            vision.get("deepstack_visual_indexes", (8, 16, 24))
        ),
    }
    shapes: Shapes = {}
    for pattern in (_QWEN3 if is_qwen3 else _QWEN25).split():
        if "*" in pattern:
            count = next(
                counts[start] for start in (*counts, "") if pattern.startswith(start)
            )
        else:
            count = 1
        for name in _expanded(pattern):
            shapes |= {name.replace("*", str(at)): () for at in range(count)}
    return shapes | {
        "language_model.embed_tokens.weight": (0, text.get("hidden_size", width))
    }


def vae_weights(config: Mapping[str, Any], published: Mapping[str, Any]) -> Shapes:
    """Weights of AutoencoderKLQwenImage, or of AutoencoderKLQwenImage21 where
    `published` has the key `decoder_base_dim`.

    published: the keys that are read below, with the values of the published config.
    They stand in for the keys that `config` lacks.
    """
    c = {key: config.get(key, value) for key, value in published.items()}
    dims = c["dim_mult"]
    blocks = c["num_res_blocks"]
    temporal = c["temperal_downsample"]
    is_21 = "decoder_base_dim" in c
    last = len(dims) - 1
    names = [name for pattern in _VAE.split() for name in _expanded(pattern)]

    def resnet(at: str, widens: bool) -> None:
        names.extend(_expanded(f"{at}.norm{{1,2}}.gamma"))
        names.extend(
            _expanded(f"{at}.conv{{1,2{',_shortcut' * widens}}}.{{weight,bias}}")
        )

    def resample(at: str, in_time: bool) -> None:
        names.extend(
            _expanded(f"{at}.{{resample.1{',time_conv' * in_time}}}.{{weight,bias}}")
        )

    place = 0
    for level, (before, after) in enumerate(pairwise([1, *dims])):
        for block in range(blocks):
            at = f"{level}.resnets.{block}" if is_21 else f"{place + block}"
            resnet(f"encoder.down_blocks.{at}", block == 0 and before != after)
        place += blocks
        if level < last:
            resample(
                f"encoder.down_blocks.{f'{level}.downsampler' if is_21 else place}",
                temporal[level],
            )
            place += 1
    for level, (before, after) in enumerate(pairwise([dims[-1], *dims[::-1]])):
        halved = before if is_21 or level == 0 else before / 2
        for block in range(blocks + 1):
            resnet(
                f"decoder.up_blocks.{level}.resnets.{block}",
                block == 0 and halved != after,
            )
        if level < last:
            resample(
                f"decoder.up_blocks.{level}.{'upsampler' if is_21 else 'upsamplers.0'}",
                temporal[::-1][level],
            )
    kernel = (3, 3) if is_21 else (3, 3, 3)
    widest = (c.get("decoder_base_dim") or c["base_dim"]) * dims[-1]
    reads = (
        config.get("in_channels" if is_21 else "input_channels")
        or c.get("input_channels")
        or (4 if is_21 else 3)
    )
    paints = (config.get("out_channels") or 4) if is_21 else reads
    return dict[str, tuple[int, ...]].fromkeys(names, ()) | {
        "encoder.conv_in.weight": (c["base_dim"], reads, *kernel),
        "decoder.conv_in.weight": (widest, c["z_dim"], *kernel),
        "decoder.conv_out.weight": (paints, 0, *kernel),
    }


_OF_WAN = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
_OF_WAN_BLOCKS = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
}


_OF_DECODER = ("decoder.", "post_quant_conv.")
"""Beginnings of the names of the decoder's weights in diffusers' modules. All others
may decide the latents."""


def is_of_decoder(name: str) -> bool:
    """Whether a weight of a VAE, by its name in diffusers, is used only to decode.

    >>> is_of_decoder("post_quant_conv.weight"), is_of_decoder("quant_conv.weight")
    (True, False)
    """
    return name.startswith(_OF_DECODER)


def of_wan(name: str) -> str:
    """The name in AutoencoderKLQwenImage of a weight of Wan's VAE, which has two blocks
    at each size. Other names are returned unchanged.

    >>> of_wan("encoder.middle.0.residual.0.gamma")
    'encoder.mid_block.resnets.0.norm1.gamma'
    """
    start = name.split(".")[0]
    if start in _OF_WAN:
        return name.replace(start, _OF_WAN[start], 1)
    if not name.startswith(("encoder.", "decoder.")):
        return name
    name = name.replace("middle.1.", "mid_block.attentions.0.")
    name = re.sub(
        r"middle\.([02])\.", lambda at: f"mid_block.resnets.{int(at[1]) // 2}.", name
    )
    name = name.replace("encoder.downsamples.", "encoder.down_blocks.")
    name = re.sub(
        r"decoder\.upsamples\.(\d+)\.",
        lambda at: (
            f"decoder.up_blocks.{int(at[1]) // 4}."
            + ("upsamplers.0." if int(at[1]) % 4 == 3 else f"resnets.{int(at[1]) % 4}.")
        ),
        name,
    )
    for old, new in _OF_WAN_BLOCKS.items():
        name = name.replace(f".{old}.", f".{new}.")
    name = name.replace(".shortcut.", ".conv_shortcut.").replace(
        ".head.0.", ".norm_out."
    )
    return re.sub(
        r"^(encoder|decoder)\.conv1\.",
        r"\1.conv_in.",
        name.replace(".head.2.", ".conv_out."),
    )
