"""`type: caption`, `run.py caption`: writes captions of a folder of images."""

from toolkit.extension import Extension


class CaptionExtension(Extension):
    uid = "caption"
    name = "Caption images"
    purpose = "write captions of a folder of images with a vision-language model, or of the change between pairs"

    @classmethod
    def get_config(cls) -> type:
        from extensions.caption.config import CaptionConfig

        return CaptionConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.caption.process import CaptionProcess

        return CaptionProcess


AI_TOOLKIT_EXTENSIONS = [CaptionExtension]
