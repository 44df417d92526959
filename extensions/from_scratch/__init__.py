"""Models from nothing: autoencoders, flow models on their latents, and the model
folders that training starts from."""

from toolkit.extension import Extension


class VaeTrainerExtension(Extension):
    uid = "vae_trainer"
    name = "Autoencoder trainer"
    config = ".vae_config:VaeTrainerConfig"
    process = ".vae_process:VaeTrainerProcess"


class FlowTrainerExtension(Extension):
    uid = "flow_trainer"
    name = "Flow model trainer"
    config = ".flow_config:FlowTrainerConfig"
    process = ".flow_process:FlowTrainerProcess"


class NewModelExtension(Extension):
    uid = "new_model"
    name = "New model"
    config = ".new_model_config:NewModelConfig"
    process = ".new_model_process:NewModelProcess"


class TinyModelExtension(Extension):
    uid = "tiny_model"
    name = "Tiny model"
    config = ".new_model_config:TinyModelConfig"
    process = ".new_model_process:TinyModelProcess"


AI_TOOLKIT_EXTENSIONS = [
    VaeTrainerExtension,
    FlowTrainerExtension,
    NewModelExtension,
    TinyModelExtension,
]
