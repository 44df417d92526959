"""`type: tiny_model`: writes a small Qwen-Image-Edit model with random weights, for trying things out."""

from toolkit.extension import Extension


class TinyModelExtension(Extension):
    uid = "tiny_model"
    name = "Tiny model"

    @classmethod
    def get_config(cls) -> type:
        from extensions.tiny_model.config import TinyModelConfig

        return TinyModelConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.tiny_model.process import TinyModelProcess

        return TinyModelProcess


AI_TOOLKIT_EXTENSIONS = [TinyModelExtension]
