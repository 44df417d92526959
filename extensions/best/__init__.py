"""`type: best`, `run.py best`: which of a run's saved LoRAs to use."""

from toolkit.extension import Extension


class BestExtension(Extension):
    uid = "best"
    name = "Choose a checkpoint"
    purpose = "measure the saved LoRAs of a run and say which to use"

    @classmethod
    def get_config(cls) -> type:
        from extensions.best.config import BestConfig

        return BestConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.best.process import BestProcess

        return BestProcess


AI_TOOLKIT_EXTENSIONS = [BestExtension]
