"""`type: lint`, `run.py lint`: what is wrong with a dataset, before it is trained on."""

from toolkit.extension import Extension


class LintExtension(Extension):
    uid = "lint"
    name = "Lint"
    purpose = "check a dataset: pairs, duplicates, blurred and enlarged pictures, captions, leaks; see what is trained"

    @classmethod
    def get_config(cls) -> type:
        from extensions.lint.config import LintConfig

        return LintConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.lint.process import LintProcess

        return LintProcess


AI_TOOLKIT_EXTENSIONS = [LintExtension]
"""The section of `type: lint`."""
