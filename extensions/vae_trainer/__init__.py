"""`type: vae_trainer`: trains an autoencoder of images, from nothing or from a folder."""

from toolkit.extension import Extension


class VaeTrainerExtension(Extension):
    uid = "vae_trainer"
    name = "Autoencoder trainer"

    @classmethod
    def get_config(cls) -> type:
        from extensions.vae_trainer.plan import VaeTrainerSection

        return VaeTrainerSection

    @classmethod
    def get_process(cls) -> type:
        from extensions.vae_trainer.process import VaeTrainerProcess

        return VaeTrainerProcess


AI_TOOLKIT_EXTENSIONS = [VaeTrainerExtension]
