"""Krea 2 Raw and Turbo as a model family, for any trainer and tool."""

from toolkit.extension import Extension


class Krea2(Extension):
    """`model.arch: krea2`, which the files of the models say themselves."""

    uid = "krea2"
    name = "Krea 2 Raw and Turbo"
    family = ".family:FAMILY"


AI_TOOLKIT_EXTENSIONS = [Krea2]
