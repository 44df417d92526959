"""`type: new`, `run.py new`: writes the job of a character for this machine's GPU, checks it and shows its plan."""

from toolkit.extension import Extension


class NewExtension(Extension):
    uid = "new"
    name = "New job"
    purpose = "write the job for a folder of images and this GPU, check it and show its plan"

    @classmethod
    def get_config(cls) -> type:
        from extensions.new.config import NewConfig

        return NewConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.new.process import NewProcess

        return NewProcess


AI_TOOLKIT_EXTENSIONS = [NewExtension]
