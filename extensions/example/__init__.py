"""`type: example`: counts the images of each folder. The template to copy; README.md says how."""

from toolkit.extension import Extension


class ExampleExtension(Extension):
    uid = "example"
    name = "Example: counts images"

    @classmethod
    def get_process(cls) -> type:
        from .process import ExampleProcess  # here, not above: torch and the like load only when a job runs

        return ExampleProcess

    @classmethod
    def get_config(cls) -> type:
        from .config import ExampleConfig

        return ExampleConfig


AI_TOOLKIT_EXTENSIONS = [ExampleExtension]
