"""Tools for LoRA files: `inspect`, `convert`, `resize`, `merge`, `extract`, `post_hoc_ema`."""

from toolkit.extension import Extension


class InspectExtension(Extension):
    uid = "inspect"
    name = "Inspect a LoRA file"
    purpose = "see what is in a LoRA file: kind, rank, alpha, layers, norms, metadata"

    @classmethod
    def get_config(cls) -> type:
        from extensions.lora_tools.config import InspectConfig

        return InspectConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.lora_tools.process import InspectProcess

        return InspectProcess


class ConvertExtension(Extension):
    uid = "convert"
    name = "Convert a LoRA file"
    purpose = "convert a LoRA file for ComfyUI, diffusers, kohya, musubi-tuner or ai-toolkit"

    @classmethod
    def get_config(cls) -> type:
        from extensions.lora_tools.config import ConvertConfig

        return ConvertConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.lora_tools.process import ConvertProcess

        return ConvertProcess


class ResizeExtension(Extension):
    uid = "resize"
    name = "Resize a LoRA"
    purpose = "make a LoRA of a lower rank of one, or a LoRA of a LoHa or LoKr"

    @classmethod
    def get_config(cls) -> type:
        from extensions.lora_tools.config import ResizeConfig

        return ResizeConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.lora_tools.process import ResizeProcess

        return ResizeProcess


class MergeExtension(Extension):
    uid = "merge"
    name = "Merge LoRAs"
    purpose = "merge LoRAs into a model, or several into one file"

    @classmethod
    def get_config(cls) -> type:
        from extensions.lora_tools.config import MergeConfig

        return MergeConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.lora_tools.process import MergeProcess

        return MergeProcess


class ExtractExtension(Extension):
    uid = "extract"
    name = "Extract a LoRA"
    purpose = "extract a LoRA from a model and its fine-tuned version"

    @classmethod
    def get_config(cls) -> type:
        from extensions.lora_tools.config import ExtractConfig

        return ExtractConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.lora_tools.process import ExtractProcess

        return ExtractProcess


class PostHocEmaExtension(Extension):
    uid = "post_hoc_ema"
    name = "Post-hoc EMA"
    purpose = "average the saved files of a run"

    @classmethod
    def get_config(cls) -> type:
        from extensions.lora_tools.config import PostHocEmaConfig

        return PostHocEmaConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.lora_tools.process import PostHocEmaProcess

        return PostHocEmaProcess


AI_TOOLKIT_EXTENSIONS = [
    InspectExtension,
    ConvertExtension,
    ResizeExtension,
    MergeExtension,
    ExtractExtension,
    PostHocEmaExtension,
]
