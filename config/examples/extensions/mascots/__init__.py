"""`type: mascots`: draws pictures of mascots with captions, from a seed.

An extension as anybody may write one (docs/extensions.md): it is not part of the
program, which finds it here because the jobs beside it need it.
"""

from toolkit.extension import Extension


class MascotsExtension(Extension):
    uid = "mascots"
    name = "Mascots"
    config = ".config:MascotsConfig"
    process = ".process:MascotsProcess"


AI_TOOLKIT_EXTENSIONS = [MascotsExtension]
