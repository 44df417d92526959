"""Models from nothing: autoencoders, flow models on their latents, and the model folders that training starts from."""

from toolkit.extension import Extension


class VaeTrainerExtension(Extension):
    uid = "vae_trainer"
    name = "Autoencoder trainer"

    @classmethod
    def get_config(cls) -> type:
        from extensions.from_scratch.vae_plan import VaeTrainerSection

        return VaeTrainerSection

    @classmethod
    def get_process(cls) -> type:
        from extensions.from_scratch.vae_process import VaeTrainerProcess

        return VaeTrainerProcess


class FlowTrainerExtension(Extension):
    uid = "flow_trainer"
    name = "Flow model trainer"

    @classmethod
    def get_config(cls) -> type:
        from extensions.from_scratch.flow_plan import FlowTrainerSection

        return FlowTrainerSection

    @classmethod
    def get_process(cls) -> type:
        from extensions.from_scratch.flow_process import FlowTrainerProcess

        return FlowTrainerProcess


class NewModelExtension(Extension):
    uid = "new_model"
    name = "New model"

    @classmethod
    def get_config(cls) -> type:
        from extensions.from_scratch.new_model_config import NewModelConfig

        return NewModelConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.from_scratch.new_model_process import NewModelProcess

        return NewModelProcess


class TinyModelExtension(Extension):
    uid = "tiny_model"
    name = "Tiny model"

    @classmethod
    def get_config(cls) -> type:
        from extensions.from_scratch.tiny_model_config import TinyModelConfig

        return TinyModelConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.from_scratch.tiny_model_process import TinyModelProcess

        return TinyModelProcess


AI_TOOLKIT_EXTENSIONS = [VaeTrainerExtension, FlowTrainerExtension, NewModelExtension, TinyModelExtension]
