"""`type: mascots`: draws pictures of mascots with captions, from a seed.

It is an extension as anybody may write one (docs/extensions.md), and not part of the
program. The program finds it because the jobs in `config/examples` use it.
"""

from toolkit.extension import Extension


class MascotsExtension(Extension):
    """Draws pictures of mascots with captions.

    Example::

        process:
          - type: mascots
            path: datasets/mascots
            count: 100
    """

    uid = "mascots"
    name = "Mascots"
    config = ".config:MascotsConfig"
    process = ".process:MascotsProcess"


AI_TOOLKIT_EXTENSIONS = [MascotsExtension]
