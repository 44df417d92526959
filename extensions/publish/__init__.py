"""`type: publish`, `run.py publish`: a run's LoRA with a model card to the Hugging Face hub."""

from toolkit.extension import Extension


class PublishExtension(Extension):
    uid = "publish"
    name = "Publish a LoRA"
    purpose = "upload a run's LoRA with a model card, samples and its report to the Hugging Face hub"

    @classmethod
    def get_config(cls) -> type:
        from extensions.publish.config import PublishConfig

        return PublishConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.publish.process import PublishProcess

        return PublishProcess


AI_TOOLKIT_EXTENSIONS = [PublishExtension]
