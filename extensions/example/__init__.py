"""`type: example`: counts the images of each folder. It is the template to copy;
README.md explains how.

This module only names the classes: `config` has the section of the job, `process` the
work. Both are imported when a job needs them. `toolkit.extension` finds the extension.
"""

from toolkit.extension import Extension


class ExampleExtension(Extension):
    """Counts the images of a folder.

    Example::

        process:
          - type: example
            folder_path: datasets/my_images
    """

    uid = "example"
    name = "Example: counts images"
    config = ".config:ExampleConfig"
    # imported when a job runs: only then do torch and the like load
    process = ".process:ExampleProcess"


AI_TOOLKIT_EXTENSIONS = [ExampleExtension]
