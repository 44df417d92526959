"""`type: flow_trainer`: trains a latent flow model from nothing, or from its own earlier result."""

from toolkit.extension import Extension


class FlowTrainerExtension(Extension):
    uid = "flow_trainer"
    name = "Flow model trainer"

    @classmethod
    def get_config(cls) -> type:
        from extensions.flow_trainer.plan import FlowTrainerSection

        return FlowTrainerSection

    @classmethod
    def get_process(cls) -> type:
        from extensions.flow_trainer.process import FlowTrainerProcess

        return FlowTrainerProcess


AI_TOOLKIT_EXTENSIONS = [FlowTrainerExtension]
