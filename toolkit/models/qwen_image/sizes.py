"""The sizes of latents and images, and whether a prompt fits into the transformer's
rotary positions together with its control images.

Text tokens take the positions behind the images, and the table of positions is finite.
The tokenizer is loaded only for prompts that are long enough to be in doubt; nothing is
encoded. Called by `family`; `forward` and `new` use the constants. Imports no torch.

Source: diffusers, pipelines/qwenimage/pipeline_qwenimage_edit_plus.py,
`calculate_dimensions`, CONDITION_IMAGE_SIZE and VAE_IMAGE_SIZE; "target area":
ai-toolkit, `match_target_res`."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from math import prod
from pathlib import Path

from toolkit.contracts.data import Size
from toolkit.models.folder_family import cut_note, reference_size, size_of_area
from toolkit.models.template import EDIT_PLUS, Template

OWN_SIZES = tuple(
    Size(*sides)
    for sides in (
        (1328, 1328),
        (1664, 928),
        (928, 1664),
        (1472, 1104),
        (1104, 1472),
        (1584, 1056),
        (1056, 1584),
    )
)
"""1:1, 16:9, 9:16, 4:3, 3:4, 3:2, 2:3. Source: README of QwenLM/Qwen-Image,
`aspect_ratios`."""

LATENT_CHANNELS = 16
LATENT_SCALE = 8
"""Pixels along one side of a latent pixel. Source: diffusers, AutoencoderKLQwenImage,
`spatial_compression_ratio`."""

PATCH = 2
"""Latent pixels along one side of a token. Source: diffusers,
pipeline_qwenimage_edit_plus.py, `_pack_latents`."""

POSITIONS = 4096
"""Rows of the table of positions. Source: diffusers, transformer_qwenimage.py,
QwenEmbedRope."""

SURE_PROMPT = 500
"""Letters of a prompt that fits with any images: at most 4 bytes each, and three
control images of the most extreme shapes that the image processor takes (200 : 1)."""

PIXELS_PER_TEXT_TOKEN = 28
"""Side of the square of an image that is one token of the text encoder: 14 x 14
patches, merged by 2 x 2."""

WORDS_AROUND = 40
"""An upper bound of the tokens that the template puts around a prompt, and around each
of its images."""


def prompt_fault(
    folder: Path,
    prompt: str,
    target: Size,
    references: Sequence[Size],
    area: int,
    template: Template = EDIT_PLUS,
) -> str | None:
    """A message where a prompt is too long for a target of this size with these control
    images. None where it fits, and where the tokenizer does not exist (yet).

    folder: of the model. references: pixels of the images as they are. area: pixels
    that they are scaled to; 0: the number of pixels of the target.

    >>> fault = prompt_fault(Path("not_here_yet"), "a cat", Size(1024, 1024), [], 0)
    >>> fault is None
    True
    """
    seen = [reference_size(reference, target, area) for reference in references]
    most = POSITIONS - max(
        max(size) // (LATENT_SCALE * PATCH) // 2 for size in (target, *seen)
    )
    seen_at = (
        size_of_area(template.condition_area, reference.width / reference.height)
        for reference in references
    )
    # tokens of each in the text encoder
    images = [
        prod(max(1, round(side / PIXELS_PER_TEXT_TOKEN)) for side in size)
        for size in seen_at
    ]
    count = _tokens_above(most, folder, prompt, images, template)
    if count is None or (template.most_tokens or count) <= most:
        return None
    if references:
        beside = f" beside {len(references)} control image{'s' * (len(references) > 1)}"
    else:
        beside = ""
    return f"{count:,} text tokens; a target of {target}{beside} leaves room for {most:,}. Shorten the text."


def prompt_cut(folder: Path, prompt: str, template: Template) -> str | None:
    """A message where the transformer does not get all of a prompt, because of
    `Template.most_tokens`. None where it does, and where the model's tokenizer does not
    exist (yet)."""
    most = template.most_tokens
    count = None if most is None else _tokens_above(most, folder, prompt, (), template)
    if count is None:
        return None
    return cut_note(count, most)


def _tokens_above(
    most: int, folder: Path, prompt: str, images: Sequence[int], template: Template
) -> int | None:
    """Tokens of a prompt with images of these tokens, where they are more than `most`.
    None where they are not, and where the model's tokenizer does not exist (yet)."""
    bound = _bytes(prompt) + sum(images) + WORDS_AROUND * (1 + len(images))
    if bound <= most or not (folder / "tokenizer").is_dir():
        return None
    from toolkit.models.qwen_image.prompts import token_ids
    from toolkit.models.vl_prompts import known_tokenizer

    tokenizer = known_tokenizer(folder / "tokenizer")
    ids = token_ids(prompt, images, tokenizer, template)
    count = len(ids) - template.dropped_tokens
    return count if count > most else None


def _bytes(prompt: str) -> int:
    """An upper bound of a prompt's tokens: each is at least one byte of the text in its
    composed form."""
    return len(unicodedata.normalize("NFC", prompt).encode("utf-8", "replace"))
