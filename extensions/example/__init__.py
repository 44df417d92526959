"""`type: example`: counts the images of each folder. The template to copy; README.md
says how."""

from toolkit.extension import Extension


class ExampleExtension(Extension):
    uid = "example"
    name = "Example: counts images"
    config = ".config:ExampleConfig"
    # imported when a job runs: only then do torch and the like load
    process = ".process:ExampleProcess"


AI_TOOLKIT_EXTENSIONS = [ExampleExtension]
