"""Shapes of the weights of a model that is made with random weights, by its classes' arguments. Imports no torch.

Sources: diffusers, transformer_sd3.py and transformer_qwenimage.py; transformers, modeling_bert.py. A test compares
them with the classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

Shape = tuple[int, ...]

VOCABULARY = 8192
"""Tokens of a tokenizer that is made from captions, at most, where the config does not say it."""


class TransformerSizes(NamedTuple):
    """One transformer."""

    shapes: tuple[Shape, ...]
    """Of its weights."""

    width: int
    blocks: int


def transformer_sizes(class_name: str, config: Mapping[str, Any], channels: int, text_width: int) -> TransformerSizes:
    """config: as given; what it leaves out has the value of diffusers, or fits channels and text_width."""
    heads, head, layers = _DEFAULTS[class_name]
    heads, head = config.get("num_attention_heads", heads), config.get("attention_head_dim", head)
    layers = config.get("num_layers", layers)
    shapes = tuple(_SHAPES[class_name](config, heads * head, head, layers, channels, text_width))
    return TransformerSizes(shapes, heads * head, layers)


_DEFAULTS = {"SD3Transformer2DModel": (18, 64, 18), "QwenImageTransformer2DModel": (24, 128, 60)}
"""Class -> heads, channels of a head, layers."""


def _linear(inputs: int, outputs: int, count: int = 1) -> list[Shape]:
    return [(outputs, inputs), (outputs,)] * count


def _mlp(width: int) -> list[Shape]:
    return [*_linear(width, 4 * width), *_linear(4 * width, width)]


def _sd3(config: Mapping[str, Any], width: int, head: int, layers: int, channels: int, text: int) -> Iterator[Shape]:
    patch = config.get("patch_size", 2)
    yield from [(width, channels, patch, patch), (width,)]
    for inputs in (256, text):
        yield from [*_linear(inputs, width), *_linear(width, width)]
    yield from [*_linear(text, width), *_linear(width, 2 * width), *_linear(width, patch**2 * channels)]
    dual = config.get("dual_attention_layers", ())
    for index in range(layers):
        last = index == layers - 1
        yield from [*_linear(width, (9 if index in dual else 6) * width), *_linear(width, (2 if last else 6) * width)]
        yield from [*_linear(width, width, 7 if last else 8), *_mlp(width), *([] if last else _mlp(width))]
        yield from [(head,)] * (4 if config.get("qk_norm") else 0)
        if index in dual:
            yield from [*_linear(width, width, 4), *[(head,)] * (2 if config.get("qk_norm") else 0)]


def _qwen(config: Mapping[str, Any], width: int, head: int, layers: int, channels: int, text: int) -> Iterator[Shape]:
    yield from [*_linear(256, width), *_linear(width, width), (text,), *_linear(text, width)]
    yield from [*_linear(4 * channels, width), *_linear(width, 2 * width), *_linear(width, 4 * channels)]
    for _ in range(layers):
        yield from [*_linear(width, 6 * width, 2), *_linear(width, width, 8), *[(head,)] * 4]
        yield from [*_mlp(width), *_mlp(width)]


_SHAPES: dict[str, Callable[..., Iterator[Shape]]] = {
    "SD3Transformer2DModel": _sd3,
    "QwenImageTransformer2DModel": _qwen,
}


def bert_shapes(config: Mapping[str, Any], max_tokens: int) -> Iterator[Shape]:
    """The weights of a BertModel without a pooler. max_tokens: its positions, where config does not say them."""
    width, inner = config.get("hidden_size", 768), config.get("intermediate_size", 3072)
    embedded = (
        config.get("vocab_size", VOCABULARY),
        config.get("max_position_embeddings", max_tokens),
        config.get("type_vocab_size", 2),
    )
    yield from [*[(count, width) for count in embedded], (width,), (width,)]
    for _ in range(config.get("num_hidden_layers", 12)):
        yield from [*_linear(width, width, 4), *_linear(width, inner), *_linear(inner, width), *[(width,)] * 4]
