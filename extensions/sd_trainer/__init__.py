"""`type: sd_trainer`: trains a LoRA on folders of images. Also known as
`diffusion_trainer` and `ui_trainer`.

This module only names the classes: `config` has the section of the job, `process` the
trainer. Both are imported when a job needs them. `toolkit.registry` lists the
extensions of this folder.
"""

from toolkit.extension import Extension


class SdTrainerExtension(Extension):
    """Trains a LoRA, or the model itself.

    Example::

        process:
          - type: sd_trainer
            datasets: [{folder_path: datasets/maya}]
    """

    uid = "sd_trainer"
    name = "LoRA trainer"
    config = ".config:SdTrainerConfig"
    process = ".process:SdTrainerProcess"


class DiffusionTrainerExtension(SdTrainerExtension):
    """Alias that ai-toolkit jobs use.

    Example::

        process:
          - type: diffusion_trainer
    """

    uid = "diffusion_trainer"


class UiTrainerExtension(SdTrainerExtension):
    """Another alias that ai-toolkit jobs use.

    Example::

        process:
          - type: ui_trainer
    """

    uid = "ui_trainer"


AI_TOOLKIT_EXTENSIONS = [
    SdTrainerExtension,
    DiffusionTrainerExtension,
    UiTrainerExtension,
]
