"""Tables from a name in the YAML to "module:attribute"; a module is imported only when its name is used."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from toolkit.errors import UserError, did_you_mean


class Registry(dict[str, str]):
    """Maps a name to "module:attribute". `what` names the kind of thing in error messages."""

    def __init__(self, what: str, entries: dict[str, str]) -> None:
        super().__init__(entries)
        self.what = what

    def path_of(self, name: str) -> str:
        """The "module:attribute" of `name`. Raises UserError with a did-you-mean when the name is unknown."""
        if name not in self:
            raise UserError(f"unknown {self.what} {name!r}. {did_you_mean(name, self)}")
        return self[name]

    def load(self, name: str) -> Any:
        """The object behind `name`. Raises UserError with a did-you-mean when the name is unknown."""
        return load_object(self.path_of(name))


def load_object(path: str) -> Any:
    """What "module:attribute" names; the module is imported now."""
    module, attribute = path.split(":")
    with collection_paused():
        return getattr(import_module(module), attribute)


@contextmanager
def collection_paused() -> Iterator[None]:
    """No search for reference cycles: PyTorch and diffusers make a million objects when they are imported, none of them
    garbage, and Python would look through all of them again and again, for a fifth of the time of a start."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


FAMILIES = Registry(
    "model family",
    {
        "qwen_image_edit_plus": "toolkit.models.qwen_image.family:FAMILY",
        "qwen_image": "toolkit.models.qwen_image.family:TEXT_TO_IMAGE_FAMILY",
        "qwen_image_edit": "toolkit.models.qwen_image.family:EDIT_FAMILY",
        "qwen_image_layered": "toolkit.models.qwen_image.layered:FAMILY",
        "qwen_image_2": "toolkit.models.qwen_image21.family:FAMILY",
        "latent_flow": "extensions.from_scratch.latent_flow.family:FAMILY",
    },
)
"""The model families by `model.arch`: `toolkit.models.families.ModelFamily` objects, which import no torch."""

PARTS_AROUND = "toolkit.models.beside:parts_around"
"""What is around the file of a transformer: `(name, arch, revision, part -> file) -> Around or None`."""

SPADE_LOADER = "extensions.from_scratch.spade:load_spade"
"""Gives an autoencoder the SPADE that lies in its folder: `(autoencoder, folder)`."""

MISSING_PARTS = "extensions.compat.ai_toolkit_process:missing_parts"
"""What an extension imports of ai-toolkit that is not here, with what to use instead: `(error) -> text`, or ''."""

FOREIGN_FILES = {
    "not_read": "extensions.compat.not_read:FILES",
    "musubi": "extensions.compat.musubi:JOBS",
    "fluxflow": "extensions.compat.fluxflow:GUIDE",
}
"""What makes a job of a file written for another program, each a `toolkit.config.reading.foreign.ForeignFile`."""

FOREIGN_COMMANDS = "extensions.compat.command:read_command"
"""Makes a root of what was pasted from a terminal: `(text, diagnostics) -> root`, for one of `FOREIGN_FILES`."""

FOREIGN_DATASETS = "extensions.compat.musubi:datasets_of"
"""The keys of a process that another program's dataset file gives: `(node, diagnostics) -> key -> node`."""

FOREIGN_PROMPTS = "extensions.compat.shapes:samples_of"
"""The samples of another program's file of prompts: `(node, diagnostics) -> nodes`."""

FOREIGN_OPTIONS = "extensions.compat.command:with_flags"
"""Options with those of a text of flags: `(options, node of the text, diagnostics) -> options`."""

FOREIGN_TOOLS = "extensions.compat.musubi_tools:tool_command"
"""Makes one of our commands of another program's: `(text, tool -> its flags) -> words, notes`, or None."""

FOREIGN_FLAGS = "extensions.compat.fluxflow_keys:split_flags"
"""Takes another program's flags out of a command line: `(argv, own options) -> (flag -> texts, the rest)`."""

FLUXFLOW_FILES = "extensions.compat.fluxflow_files:FluxflowFiles"
"""The callback of `save.fluxflow_files`."""

FOREIGN_KEYS = "extensions.compat.keys:KEYS"
"""What is known of the keys of other programs: a `toolkit.config.reading.foreign.ForeignKeys`."""
