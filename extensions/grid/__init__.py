"""`type: grid`, `run.py grid`: LoRA files side by side on one page."""

from toolkit.extension import Extension


class GridExtension(Extension):
    uid = "grid"
    name = "Compare LoRAs"
    purpose = "compare checkpoints, strengths, prompts and seeds on one page"

    @classmethod
    def get_config(cls) -> type:
        from extensions.grid.config import GridConfig

        return GridConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.grid.process import GridProcess

        return GridProcess


AI_TOOLKIT_EXTENSIONS = [GridExtension]
