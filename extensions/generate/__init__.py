"""`type: generate`, `run.py generate`: pictures of a model with LoRAs, from text and references."""

from toolkit.extension import Extension


class GenerateExtension(Extension):
    uid = "generate"
    name = "Generate pictures"
    purpose = "generate pictures with a model and LoRAs, from text and references"

    @classmethod
    def get_config(cls) -> type:
        from extensions.generate.config import GenerateConfig

        return GenerateConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.generate.process import GenerateProcess

        return GenerateProcess


AI_TOOLKIT_EXTENSIONS = [GenerateExtension]
