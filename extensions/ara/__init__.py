"""`type: ara`, `run.py ara`: makes an accuracy-recovery adapter for a quantized model."""

from toolkit.extension import Extension


class AraExtension(Extension):
    uid = "ara"
    name = "Make an accuracy-recovery adapter"
    purpose = "make a LoRA that makes up for what quantizing a model loses"

    @classmethod
    def get_config(cls) -> type:
        from extensions.ara.config import AraConfig

        return AraConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.ara.process import AraProcess

        return AraProcess


AI_TOOLKIT_EXTENSIONS = [AraExtension]
