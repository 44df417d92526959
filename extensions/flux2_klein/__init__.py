"""FLUX.2 [klein] as a model family, for any trainer and tool."""

from toolkit.extension import Extension


class Flux2Klein(Extension):
    """`model.arch: flux2_klein`, which the files of the models say themselves."""

    uid = "flux2_klein"
    name = "FLUX.2 [klein]"
    family = ".family:FAMILY"


AI_TOOLKIT_EXTENSIONS = [Flux2Klein]
