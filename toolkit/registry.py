"""Tables from a name in the YAML to "module:attribute".

A module is imported only when its name is used, so a dry run imports no torch, and the
core imports no part that can be left out. The names of those parts are in this file and
in no other file of the core. `--without NAME` removes entries.

The config, `toolkit/models/families.py`, `toolkit/contracts/network_kinds.py` and
`run.py` load through it. Process types are not listed here: `toolkit/extension.py`
discovers them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from toolkit.errors import UserError, did_you_mean

LEFT_OUT = "ATELIER_WITHOUT"
"""Environment variable with the parts that `--without` names, separated by commas. What
this program starts inherits it."""


def left_out() -> tuple[str, ...]:
    """The names that `--without` gave, in their order. They are read from the
    environment, so that child processes leave out the same parts."""
    return tuple(name for name in os.environ.get(LEFT_OUT, "").split(",") if name)


def part_of(path: str) -> str:
    """The part that "module:attribute" is a piece of, as the package of its folder:
    `extensions.NAME`, of a tool `extensions.tools.NAME`. Empty for what is always
    there.

    >>> part_of("extensions.tools.NAME.config:A"), part_of("toolkit.errors:UserError")
    ('extensions.tools.NAME', '')
    """
    words = path.partition(":")[0].split(".")
    if words[0] != "extensions":
        return ""
    return ".".join(words[: 3 if words[1] == "tools" else 2])


def is_present(path: str) -> bool:
    """Whether the part that "module:attribute" is a piece of exists and is not left out
    (`--without`). Nothing is imported.

    >>> is_present("toolkit.errors:UserError")
    True
    """
    part = part_of(path)
    if not part:
        return True
    if set(part.split(".")[1:]) & set(left_out()):
        return False
    package = "extensions"
    for word in part.split(".")[1:]:
        package = f"{package}.{word}"
        spec = find_spec(package)
        # a part that was removed may leave its `__pycache__`: a folder without a file
        if spec is None or spec.origin is None:
            return False
    return True


class Registry(dict[str, str]):
    """Maps a name to "module:attribute". `what` names the kind of thing in error
    messages.

    Entries of a part that is absent are left out.

    Example::

        FAMILIES = Registry("model family", {"my_family": "extensions.my_part.family:FAMILY"})
        FAMILIES.load("my_family")  # an error that lists the known names, where there is no such part
    """

    def __init__(self, what: str, entries: dict[str, str]) -> None:
        super().__init__(
            {name: path for name, path in entries.items() if is_present(path)}
        )
        self.what = what

    def leave_out(self) -> None:
        """Removes the entries whose parts are left out (`--without`)."""
        for name, path in [*self.items()]:
            if not is_present(path):
                del self[name]

    def path_of(self, name: str) -> str:
        """The "module:attribute" of `name`. Raises UserError with a did-you-mean when
        the name is unknown."""
        if name not in self:
            raise UserError(f"unknown {self.what} {name!r}. {did_you_mean(name, self)}")
        return self[name]

    def load(self, name: str) -> Any:
        """The object behind `name`. Raises UserError with a did-you-mean when the name
        is unknown."""
        return load_object(self.path_of(name))


def load_object(path: str) -> Any:
    """The object that "module:attribute" names; the module is imported now. Raises
    ImportError or AttributeError where there is none.

    >>> load_object("toolkit.errors:UserError").__name__
    'UserError'
    """
    module, attribute = path.split(":")
    with collection_paused():
        return getattr(import_module(module), attribute)


def find_object(path: str) -> Any:
    """The object that "module:attribute" names, as `load_object`. None where its part
    is absent or left out (`--without`)."""
    return load_object(path) if is_present(path) else None


def load_needed(path: str, needed_by: str) -> Any:
    """The object that "module:attribute" names. Raises UserError, which begins with
    `needed_by`, where its part is absent."""
    if is_present(path):
        return load_object(path)
    name = part_of(path).rpartition(".")[2]
    if name in left_out():
        raise UserError(
            f"{needed_by} needs the extension '{name}', which '--without {name}' leaves out."
        )
    raise UserError(
        f"{needed_by} needs the extension '{name}', which is not installed."
    )


@contextmanager
def collection_paused() -> Iterator[None]:
    """Inside the block, Python does not search for reference cycles. PyTorch and
    diffusers make a million objects when they are imported, none of them garbage. The
    searches would take a fifth of the time of a start."""
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
"""The model families by `model.arch`: `toolkit.models.families.ModelFamily` objects,
which import no torch."""

PARTS_AROUND = "toolkit.models.beside:parts_around"
"""What is around the file of a transformer: `(name, arch, revision, part -> file) ->
Around or None`."""

VAE_ADDITIONS = {"_spade": "extensions.from_scratch.spade:load_spade"}
"""Key in the config of an autoencoder -> what gives it the weights that lie beside its
own: `(autoencoder, folder)`."""

HINTED_TOOLS = {"page": "ui", "examination": "doctor", "publication": "publish"}
"""What a message may advise -> the tool that does it; see `hinted_tool`."""


def hinted_tool(what: str) -> str:
    """The tool for one of `HINTED_TOOLS`; empty where it is absent, so that messages do
    not name it."""
    tool = HINTED_TOOLS[what]
    return tool if is_present(f"extensions.tools.{tool}") else ""


AROUND_A_RUN = Registry(
    "callback",
    {
        "trackers": "extensions.hooks.trackers:TrackerCallback",
        "overview": "extensions.hooks.overview:OverviewCallback",
        "diagrams": "extensions.hooks.tool_at_saves:diagrams_at_saves",
        "report": "extensions.hooks.tool_at_saves:report_at_saves",
        "publication": "extensions.hooks.tool_at_saves:publish_at_end",
        "watchdog": "extensions.hooks.watchdog:WatchdogCallback",
    },
)
"""What `toolkit.train.callbacks.standard` adds to a run, and which it can do without:
what makes the `toolkit.train.run.Callback`."""

MISSING_PARTS = "extensions.compat.ai_toolkit_process:missing_parts"
"""What an extension imports of ai-toolkit that is not here, with what to use instead:
`(error) -> text`, or ''."""

FOREIGN_FILES = Registry(
    "program",
    {
        "not_read": "extensions.compat.not_read:FILES",
        "musubi": "extensions.compat.musubi:JOBS",
        "fluxflow": "extensions.compat.fluxflow:GUIDE",
    },
)
"""What makes a job of a file written for another program, each a
`toolkit.config.reading.foreign.ForeignFile`."""

FOREIGN_TYPES = "extensions.compat.not_read:process_type"
"""The message about a process type of another program: `(type) -> text`, or ''."""

FILE_OF_FLAGS = "extensions.compat.fluxflow:GUIDE"
"""The one of `FOREIGN_FILES` whose flags `FOREIGN_FLAGS` takes."""

FOREIGN_COMMANDS = "extensions.compat.command:read_command"
"""Makes a root of what was pasted from a terminal: `(text, diagnostics) -> root`, for
one of `FOREIGN_FILES`."""

FOREIGN_OPTIONS = "extensions.compat.command:with_flags"
"""Options with those of a text of flags: `(options, node of the text, diagnostics) ->
options`."""

FOREIGN_TOOLS = "extensions.compat.musubi_tools:tool_command"
"""Makes one of our commands of another program's: `(text, tool -> its flags) -> words,
notes`, or None."""

FOREIGN_FLAGS = "extensions.compat.fluxflow_keys:split_flags"
"""Takes another program's flags out of a command line: `(argv, own options) -> (flag ->
texts, the rest)`."""

HELP_ON_FLAGS = "extensions.compat.fluxflow_keys:HELP"
"""What `run.py --help` says of these flags: `(heading, text)`."""

FLUXFLOW_FILES = "extensions.compat.fluxflow_files:FluxflowFiles"
"""The callback of `save.fluxflow_files`."""

FOREIGN_KEYS = "extensions.compat.keys:KEYS"
"""What is known of the keys of other programs: a
`toolkit.config.reading.foreign.ForeignKeys`."""


def leave_out(names: Iterable[str]) -> None:
    """`--without`: parts, by the names of their folders or of their process types, are
    absent from now on."""
    os.environ[LEFT_OUT] = ",".join(dict.fromkeys([*left_out(), *names]))
    FAMILIES.leave_out()
    FOREIGN_FILES.leave_out()
    AROUND_A_RUN.leave_out()
