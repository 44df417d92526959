"""`type: sd_trainer`: trains a LoRA on folders of images. Also known as
`diffusion_trainer` and `ui_trainer`."""

from toolkit.extension import Extension


class SdTrainerExtension(Extension):
    uid = "sd_trainer"
    name = "LoRA trainer"
    config = ".config:SdTrainerConfig"
    process = ".process:SdTrainerProcess"


class DiffusionTrainerExtension(SdTrainerExtension):
    uid = "diffusion_trainer"


class UiTrainerExtension(SdTrainerExtension):
    uid = "ui_trainer"


AI_TOOLKIT_EXTENSIONS = [
    SdTrainerExtension,
    DiffusionTrainerExtension,
    UiTrainerExtension,
]
