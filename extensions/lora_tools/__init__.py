"""Tools for LoRA files: `inspect`, `convert`, `resize`, `merge`, `extract`, `post_hoc_ema`."""

from toolkit.extension import Extension


class LoraTool(Extension):
    """One of them: the names of its classes in `config` and `process`."""

    section: str
    process: str

    @classmethod
    def get_config(cls) -> type:
        from extensions.lora_tools import config

        return getattr(config, cls.section)

    @classmethod
    def get_process(cls) -> type:
        from extensions.lora_tools import process

        return getattr(process, cls.process)


class InspectExtension(LoraTool):
    uid = "inspect"
    name = "Inspect a LoRA file"
    purpose = "see what is in a LoRA file: kind, rank, alpha, layers, norms, metadata"
    section, process = "InspectConfig", "InspectProcess"


class ConvertExtension(LoraTool):
    uid = "convert"
    name = "Convert a LoRA file"
    purpose = "convert a LoRA file for ComfyUI, diffusers, kohya, musubi-tuner or ai-toolkit"
    section, process = "ConvertConfig", "ConvertProcess"


class ResizeExtension(LoraTool):
    uid = "resize"
    name = "Resize a LoRA"
    purpose = "make a LoRA of a lower rank of one, or a LoRA of a LoHa or LoKr"
    section, process = "ResizeConfig", "ResizeProcess"


class MergeExtension(LoraTool):
    uid = "merge"
    name = "Merge LoRAs"
    purpose = "merge LoRAs into a model, or several into one file"
    section, process = "MergeConfig", "MergeProcess"


class ExtractExtension(LoraTool):
    uid = "extract"
    name = "Extract a LoRA"
    purpose = "extract a LoRA from a model and its fine-tuned version"
    section, process = "ExtractConfig", "ExtractProcess"


class PostHocEmaExtension(LoraTool):
    uid = "post_hoc_ema"
    name = "Post-hoc EMA"
    purpose = "average the saved files of a run"
    section, process = "PostHocEmaConfig", "PostHocEmaProcess"


AI_TOOLKIT_EXTENSIONS = [
    InspectExtension,
    ConvertExtension,
    ResizeExtension,
    MergeExtension,
    ExtractExtension,
    PostHocEmaExtension,
]
