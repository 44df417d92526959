"""Text encoders of the family and their tokenizers: read from a folder, or made with
random weights and from captions.

Embeddings are not cached here, and prompts are not read. `model` loads the encoder and
its tokenizer, `new` makes them, and `flow_process` and `memory` check and measure them.

Shape suffixes: B batch, L tokens, H width of the encoder, E width of the embeddings."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from extensions.from_scratch.latent_flow.family import PROJECTION, text_encoder_kind
from toolkit.errors import RunError, UserError
from toolkit.models.from_config import refuse_arguments
from toolkit.models.loading import (
    NO_CODE,
    STRICTLY,
    check_finite,
    check_loaded,
    reading,
)
from toolkit.system.seeding import global_generator

transformers_logging.disable_progress_bar()  # a bar per part would tear the status line

VOCABULARY = 8192
"""Maximum number of tokens of a tokenizer that is made from captions, where the config
does not set it."""

PAD = "[PAD]"
BEGIN = "[CLS]"
END = "[SEP]"
ARGUMENTS = "text_encoder.config"
"""Key of the arguments, for messages."""


class TextEncoder(nn.Module):
    """A text encoder of transformers, with the linear layer behind it where the folder
    has one.

    Example::

        encoder = load_text_encoder(folder / "text_encoder", torch.float32)
        embeds_BLE = encoder(ids_BL)
    """

    def __init__(self, encoder: Any, projection: nn.Linear | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = projection

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Embeddings [B, L, E] of texts without padding: the last hidden states."""
        hidden_BLH = self.encoder(input_ids=ids_BL).last_hidden_state
        embeds_BLE: Tensor = (
            hidden_BLH if self.projection is None else self.projection(hidden_BLH)
        )
        return embeds_BLE


def load_text_encoder(part: Path, dtype: torch.dtype) -> TextEncoder:
    """The text encoder in a folder, frozen, on the CPU. Weights of a head that it does
    not use are left out.

    Raises RunError when its weights do not fit its config, or are not finite.
    """
    kind = text_encoder_kind(part)
    with reading(part):
        model_class = getattr(importlib.import_module("transformers"), kind.class_name)
        encoder, info = model_class.from_pretrained(
            part, dtype=dtype, **STRICTLY, **kind.arguments
        )
    check_loaded(part, {**info, "unexpected_keys": ()})
    if kind.norm:
        encoder.get_submodule(kind.norm).register_forward_hook(
            lambda _, inputs, __: inputs[0]
        )
    projection = None
    file = part / PROJECTION
    if file.is_file():
        with reading(part):
            weight_EH = load_file(file)["weight"].to(dtype)
        projection = nn.Linear(weight_EH.shape[1], weight_EH.shape[0], bias=False)
        projection.weight = nn.Parameter(weight_EH)
    module = TextEncoder(encoder, projection)
    check_finite(part, module)
    return module.requires_grad_(False).eval()


def load_tokenizer(part: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder. Raises RunError when it cannot be read."""
    with reading(part):
        return PreTrainedTokenizerFast.from_pretrained(part, local_files_only=True)


def any_tokenizer(folder: Path) -> Any:
    """The tokenizer in any folder of transformers. Raises RunError when there is
    none."""
    from transformers import AutoTokenizer

    with reading(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, **NO_CODE)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise RunError(f"{folder}: its tokenizer has no fast form (tokenizer.json).")
    return tokenizer


def token_ids(
    tokenizer: PreTrainedTokenizerFast, prompt: str, max_tokens: int
) -> Tensor:
    """The tokens [L] of a prompt, at least one and at most `max_tokens`, int64."""
    ids = tokenizer(prompt, truncation=True, max_length=max_tokens, verbose=False)[
        "input_ids"
    ]
    return torch.tensor(ids or [tokenizer.eos_token_id or tokenizer.pad_token_id or 0])


# ------------------------------------------------------------ from nothing


def make_tokenizer(
    captions: Iterable[str], max_tokens: int, vocabulary: int = VOCABULARY
) -> PreTrainedTokenizerFast:
    """A tokenizer of byte pairs of these captions. It has at most `vocabulary` tokens,
    with every byte among them, so any text has tokens.

    The order of the captions and duplicates have no effect.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, BEGIN, END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(captions)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        special_tokens=[(name, special.index(name)) for name in (BEGIN, END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        cls_token=BEGIN,
        sep_token=END,
        model_max_length=max_tokens,
    )


def refuse_encoder(arguments: Mapping[str, Any]) -> None:
    """Raises UserError at `ARGUMENTS` for arguments that a BertConfig does not have or
    cannot be made of."""
    refuse_arguments(BertConfig, arguments, ARGUMENTS)
    with torch.device("meta"):
        try:
            BertModel(BertConfig(**arguments), add_pooling_layer=False)
        except Exception as error:
            raise UserError(
                f"{ARGUMENTS}: no BertModel can be made of it: {' '.join(str(error).split())}"
            ) from error


def make_encoder(
    arguments: Mapping[str, Any], tokens: int, max_tokens: int, seed: int
) -> BertModel:
    """A BertModel with random weights. Vocabulary and positions fit the tokenizer where
    they are not given; a smaller vocabulary than `tokens` is raised to it."""
    fitting = {
        "vocab_size": tokens,
        "max_position_embeddings": max_tokens,
        "pad_token_id": 0,
    }
    given = {**fitting, **arguments}
    given["vocab_size"] = max(tokens, given["vocab_size"])
    with global_generator(seed, "text encoder"):
        return BertModel(BertConfig(**given), add_pooling_layer=False)
