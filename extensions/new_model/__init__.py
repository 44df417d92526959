"""`type: new_model`: writes a model folder whose transformer has random weights, to be trained from nothing."""

from toolkit.extension import Extension


class NewModelExtension(Extension):
    uid = "new_model"
    name = "New model"

    @classmethod
    def get_config(cls) -> type:
        from extensions.new_model.config import NewModelConfig

        return NewModelConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.new_model.process import NewModelProcess

        return NewModelProcess


AI_TOOLKIT_EXTENSIONS = [NewModelExtension]
