"""`QwenModel`: the part of a model that all of the Qwen-Image family share in addition
to `DiffusersModel`: their own forward passes, which share projections, and the sizes of
control images.

Its subclasses, `qwen_image.model` and `qwen_image21.model`, load the parts and run the
transformer.
"""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.contracts.data import Size
from toolkit.models.diffusers_model import DiffusersModel
from toolkit.models.folder_family import reference_size
from toolkit.models.qwen_family import QwenFamily


class QwenModel(DiffusersModel):
    """See `DiffusionModel` for the methods.

    Example::

        model = family_for(section.model).open(options)
        latents_BCHW = model.encode_images(pixels_BPHW)
        pixels_BPHW = model.decode_latents(latents_BCHW)
    """

    family: QwenFamily
    fused_projections: Sequence[Sequence[str]]
    """Groups of names of linear layers in a block that read the same input. The forward
    pass gives each group to `project`, in this order."""

    def prompt_error(
        self, prompt: str, target: Size, references: Sequence[Size]
    ) -> str | None:
        o = self.options
        return self.family.prompt_fault(
            o.folder, prompt, target, references, o.reference_area
        )

    @property
    def predicts_composite(self) -> bool:
        return self.options.composite_target

    def reference_size(self, image: Size, target: Size) -> Size:
        if self.family.stacks_layers:
            return target
        return reference_size(image, target, self.options.reference_area)

    def fused_projection_groups(self) -> Sequence[Sequence[str]]:
        return [
            [f"{block}.{name}" for name in group]
            for block in self.family.block_names(self.options.folder)
            for group in self.fused_projections
        ]
