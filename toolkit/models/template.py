"""The text that the members of the family put around a prompt for the text encoder.

It has words and counts only: `vl_prompts` turns text into tokens. Qwen-Image-2.1 has
its own words in `qwen_image21.prompts`. `qwen_image.family` gives each member its
template; `qwen_image.prompts`, `qwen_image.sizes` and `tiny` use it. Imports no torch.

Source: diffusers, pipeline_qwenimage.py, pipeline_qwenimage_edit.py and
pipeline_qwenimage_edit_plus.py, `prompt_template_encode`,
`prompt_template_encode_start_idx` and `_get_qwen_prompt_embeds`.
"""

from __future__ import annotations

from typing import NamedTuple

IMAGE_PAD = "<|image_pad|>"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
"""The rest of a turn of the chat that the text encoders were trained on:
`chat_template` of their tokenizer_config.json."""


class Template(NamedTuple):
    """The text around a prompt.

    >>> TEXT_TO_IMAGE.prefix[:18]
    '<|im_start|>system'
    >>> EDIT_PLUS.image.format(2)
    'Picture 2: <|vision_start|><|image_pad|><|vision_end|>'
    """

    system: str
    dropped_tokens: int
    """Leading hidden states that are discarded: the length of `prefix` in the published
    tokenizer."""

    image: str = ""
    """The text in front of the prompt for each control image; `{}` is its number."""

    condition_area: int = 0
    """Pixels of a control image as the text encoder sees it."""

    most_tokens: int | None = None
    """Text tokens that the transformer gets at most; the rest of a prompt is cut off.
    None: it gets all."""

    @property
    def prefix(self) -> str:
        """The text in front of control images and prompt."""
        return f"<|im_start|>system\n{self.system}<|im_end|>\n<|im_start|>user\n"

    def of_pipeline(self) -> dict[str, str | int]:
        """The attributes of diffusers' pipeline that put this text around a prompt
        without control images."""
        return {
            "prompt_template_encode": f"{self.prefix}{{}}{SUFFIX}",
            "prompt_template_encode_start_idx": self.dropped_tokens,
        }


TEXT_TO_IMAGE = Template(
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:",
    dropped_tokens=34,
    most_tokens=512,  # `max_sequence_length` of the pipeline's `__call__`; the pipelines of edits do not cut
)
EDIT_PLUS = Template(
    "Describe the key features of the input image (color, shape, size, texture, objects, background), then explain how "
    "the user's text instruction should alter or modify the image. Generate a new image that meets the user's "
    "requirements while maintaining consistency with the original input where appropriate.",
    dropped_tokens=64,
    image="Picture {}: <|vision_start|>" + IMAGE_PAD + "<|vision_end|>",
    condition_area=384 * 384,
)
EDIT = EDIT_PLUS._replace(
    image="<|vision_start|>" + IMAGE_PAD + "<|vision_end|>", condition_area=1024 * 1024
)
