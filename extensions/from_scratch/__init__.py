"""Models with random weights: autoencoders, flow models on their latents, and the model
folders that training starts from.

This module only names the classes. `vae_config`, `flow_config` and `new_model_config`
have the sections of the jobs, `vae_process`, `flow_process` and `new_model_process` the
processes. They are imported when a job needs them. `toolkit.extension` finds the
extensions of this folder.
"""

from toolkit.extension import Extension


class VaeTrainerExtension(Extension):
    """Trains an autoencoder of images.

    Example::

        process:
          - type: vae_trainer
            datasets: [{folder_path: datasets/photos, resolution: 256}]
    """

    uid = "vae_trainer"
    name = "Autoencoder trainer"
    config = ".vae_config:VaeTrainerConfig"
    process = ".vae_process:VaeTrainerProcess"


class FlowTrainerExtension(Extension):
    """Trains a flow model on the latents of an autoencoder.

    Example::

        process:
          - type: flow_trainer
            model: {vae: output/my_model/vae/vae}
            datasets: [{folder_path: datasets/photos, resolution: 256}]
    """

    uid = "flow_trainer"
    name = "Flow model trainer"
    config = ".flow_config:FlowTrainerConfig"
    process = ".flow_process:FlowTrainerProcess"


class NewModelExtension(Extension):
    """Writes a model folder: the parts of other folders and a new transformer.

    Example::

        process:
          - type: new_model
            path: output/new_model
            base: config/examples/tiny_mascots
    """

    uid = "new_model"
    name = "New model"
    config = ".new_model_config:NewModelConfig"
    process = ".new_model_process:NewModelProcess"


class TinyModelExtension(Extension):
    """Writes a small model folder with random weights.

    Example::

        process:
          - type: tiny_model
            path: output/tiny_model
    """

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
