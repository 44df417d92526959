"""Makes diffusers' own pipelines run in the environment of requirements.txt, with the
same results as the trainer's samples.

It is for users' scripts: docs/use_your_lora.md imports it. The trainer does not use it:
it encodes prompts with `prompts.py`. Nothing else in the program calls it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, Qwen2VLProcessor

from toolkit.models.template import EDIT_PLUS

if TYPE_CHECKING:
    from diffusers import QwenImagePipeline


class EditProcessor(Qwen2VLProcessor):
    """`Qwen2VLProcessor` for images alone, because its video processor needs
    torchvision. It reads the processor folder of a model, a local folder or a hub id.

    Example::

        processor = EditProcessor.from_pretrained(model, subfolder="processor")
        pipe = QwenImageEditPlusPipeline.from_pretrained(model, processor=processor)
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
    ) -> None:
        # transformers reads the parts of a processor off the names of these arguments.
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


def add_image_positions(text_encoder: PreTrainedModel) -> None:
    """Makes every call with images pass `mm_token_type_ids` [B, L]: 1 for the tokens of
    an image, 0 for text.

    Since version 5.3, transformers gives image tokens their three-dimensional positions
    only with them. The pipeline of diffusers 0.42.1 does not pass them (diffusers issue
    14194). Calls that pass them already are not changed.
    """

    def pass_ids(
        encoder: PreTrainedModel, args: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if inputs.get("pixel_values") is not None and "mm_token_type_ids" not in inputs:
            inputs["mm_token_type_ids"] = (
                inputs["input_ids"] == encoder.config.image_token_id
            ).int()
        return args, inputs

    text_encoder.register_forward_pre_hook(pass_ids, with_kwargs=True)


def use_edit_template(pipeline: QwenImagePipeline) -> None:
    """Makes the text-to-image pipeline put the words of Qwen-Image-Edit-2509 and 2511
    around a prompt. The trainer does the same for these models when a sample has no
    control image. With the pipeline's own words the images differ.
    """
    for name, value in EDIT_PLUS.of_pipeline().items():
        setattr(pipeline, name, value)
