"""Z-Image and Z-Image-Turbo as a model family, for any trainer and tool."""

from toolkit.extension import Extension


class ZImage(Extension):
    """`model.arch: z_image`, which the files of the models say themselves."""

    uid = "z_image"
    name = "Z-Image and Z-Image-Turbo"
    family = ".family:FAMILY"


AI_TOOLKIT_EXTENSIONS = [ZImage]
