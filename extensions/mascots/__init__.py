"""`type: mascots`: draws pictures of mascots with captions, from a seed."""

from toolkit.extension import Extension


class MascotsExtension(Extension):
    uid = "mascots"
    name = "Mascots"

    @classmethod
    def get_config(cls) -> type:
        from extensions.mascots.config import MascotsConfig

        return MascotsConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.mascots.process import MascotsProcess

        return MascotsProcess


AI_TOOLKIT_EXTENSIONS = [MascotsExtension]
