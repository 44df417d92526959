"""`type: diagrams`, `run.py diagrams`: draws the curves of a run from its folder."""

from toolkit.extension import Extension


class DiagramsExtension(Extension):
    uid = "diagrams"
    name = "Diagrams"
    purpose = "draw the curves of a run: losses, learning rates, step times"

    @classmethod
    def get_config(cls) -> type:
        from extensions.diagrams.config import DiagramsConfig

        return DiagramsConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.diagrams.process import DiagramsProcess

        return DiagramsProcess


AI_TOOLKIT_EXTENSIONS = [DiagramsExtension]
