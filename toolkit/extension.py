"""Finds what extensions add: every folder in `extensions/` and EXTENSIONS_PATH that
lists some, and every installed package that names itself in the entry points
`atelier.extensions`; of an installed program also those in `extensions/` of the working
folder. Nothing else is imported, least of all from the folder of a job file, which may
be anybody's.

An extension is a package whose `__init__.py` lists classes in `AI_TOOLKIT_EXTENSIONS`;
`docs/extensions.md` shows how to write one. It is somebody else's code: whatever goes
wrong while it is imported is kept with its traceback and shown when its process type is
used. Other extensions still load.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from hashlib import blake2b
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import (
    find_spec,
    module_from_spec,
    resolve_name,
    spec_from_file_location,
)
from pathlib import Path
from threading import RLock, Timer
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from toolkit.commands import command
from toolkit.errors import (
    ExtensionError,
    Interrupted,
    RunError,
    UserError,
    did_you_mean,
)
from toolkit.files.log import show_extension
from toolkit.files.writing import EXTENSIONS_ROOT
from toolkit.registry import (
    MISSING_PARTS,
    find_object,
    leave_out,
    left_out,
    load_object,
)
from toolkit.version import COMMAND, IS_INSTALLED, NAME, VERSION

if TYPE_CHECKING:
    from pydantic import BaseModel

REGISTRY_VARIABLE = "AI_TOOLKIT_EXTENSIONS"
ENTRY_POINTS = "atelier.extensions"
"""The group of entry points in which an installed package names itself: `my_name =
"my_package"`."""

PartT = TypeVar("PartT")

MOST_JOBS, MEANS_TRAINER = (
    "sd_trainer",
    r"^(?:train|trainer|training|lora|lora_train\w*|train_lora|finetune)$",
)
"""The type of most jobs, and what is written for it by those who do not know its
name."""

FIRST_STAGE = "Begin"
STAGES = (FIRST_STAGE, "After a run", "LoRA files", "Others")
"""The headings under which `run.py --help` lists the tools."""


KINDS = ("callback", "tracker", "family", "network")
"""What an extension adds other than a process: the attribute that names it."""


BELONGS = {
    "callback": "'callbacks' of a trainer",
    "tracker": "'log_with'",
    "family": "'model.arch'",
    "network": "'network.type'",
}
"""Where a job names an extension of this kind."""


OBJECTS = {
    "family": "toolkit.models.families:ModelFamily",
    "network": "toolkit.contracts.network_kinds:NetworkKind",
}
"""Kind -> the class of the object that an extension gives for it."""

OWN = {
    "family": "toolkit.registry:FAMILIES",
    "network": "toolkit.contracts.network_kinds:OWN_KINDS",
}
"""Kind -> the table of the program's own, whose names no extension can take."""


class Extension:
    """One process type, callback, tracker, model family or kind of network: a uid, and
    where its classes are. Each is imported when it is needed, and no sooner.

    All of these are written "module:Class"; a module that begins with a dot
    (".process:MyProcess") is in the package of the class that names it. An extension of
    another program may override `get_process`, `get_config` and `get_command` instead.

    Example::

        class Drawings(Extension):
            uid = "drawings"
            process = ".process:DrawingsProcess"
            config = ".config:DrawingsConfig"
    """

    uid: str
    """What a job writes: as `type:`, of a process or in `callbacks`, in `log_with`, as
    `model.arch` or as `network.type`."""

    name: str = ""
    """What `--list-extensions` shows."""

    requires: str = ""
    """The versions of the program that it works with, as of a package: ">=0.3,<0.5".
    With another one it is refused by name. Empty: any."""

    purpose: str = ""
    """For a tool, whose section is a `toolkit.config.reading.tool.ToolConfig`: what
    somebody uses `run.py <uid>` for, as a line of `run.py --help`. Empty: the process
    is not a command."""

    stage: str = ""
    """For a tool: when it is used, one of `STAGES`, under which `run.py --help` lists
    it. Empty: the last."""

    process: str = ""
    """The process class, built as `(process_id, job, config)`. Its module may import
    torch."""

    callback: str = ""
    """In the place of `process`: the `toolkit.train.run.Callback` that `callbacks:` of
    any trainer names, built as `(section)`. Its module may import torch, and its
    section is a `toolkit.config.CallbackConfig`."""

    tracker: str = ""
    """In the place of `process`: the `toolkit.train.trackers.tracker.Tracker` that
    `logging.log_with` of any trainer names."""

    family: str = ""
    """In the place of `process`: the object of `toolkit.models.families.ModelFamily`
    whose models any trainer trains. Its module imports no torch."""

    network: str = ""
    """In the place of `process`: the object of
    `toolkit.contracts.network_kinds.NetworkKind` that `network.type` of any trainer
    names. Its module imports no torch."""

    config: str = ""
    """The pydantic model of the section. Empty: the section is handed over unchecked.
    Its module imports no torch."""

    command: str = ""
    """For a tool: the `ToolConfig` whose keys are its flags. Empty: the section's."""

    @classmethod
    def get_process(cls) -> type:
        """The class that `process` names."""
        process: type | None = cls._named("process")
        if process:
            return process
        raise NotImplementedError(
            f'{cls.__name__} needs get_process(), or process = ".module:Class"'
        )

    @classmethod
    def get_config(cls) -> type[BaseModel] | None:
        """The model of the section that `config` names, which is imported now. None
        where the extension names none."""
        config: type[BaseModel] | None = cls._named("config")
        return config

    @classmethod
    def get_command(cls) -> type[BaseModel] | None:
        """The model of the flags."""
        command: type[BaseModel] | None = cls._named("command")
        return command or cls.get_config()

    @classmethod
    def place_of(cls, what: str) -> str:
        """The absolute "module:Class" of an attribute; empty where it names nothing."""
        owner, path = next(
            (base, vars(base)[what]) for base in cls.__mro__ if what in vars(base)
        )
        package = sys.modules[owner.__module__].__package__
        if path and path.count(":") != 1:
            raise ValueError(f'{what} = {path!r} is not "module:Class"')
        return path and resolve_name(path, package)

    @classmethod
    def _named(cls, what: str) -> Any:
        place = cls.place_of(what)
        return load_object(place) if place else None


@dataclass(frozen=True)
class RegisteredExtension:
    """An extension class, and the folder it came from.

    >>> class Drawings(Extension):
    ...     process = ".draw.process:DrawingsProcess"
    >>> folder = Path("my_extensions")
    >>> registered = RegisteredExtension("drawings", "Drawings", folder, Drawings)
    >>> sorted(registered.names())
    ['draw', 'drawings', 'my_extensions']
    """

    uid: str
    name: str
    folder: Path
    extension: type[Any]

    @property
    def kind(self) -> str:
        """One of `KINDS`, or "process"."""
        return next(
            (kind for kind in KINDS if getattr(self.extension, kind, "")), "process"
        )

    def fault(self) -> str:
        """Why it cannot be used: its uid is one of the program's own, or this version
        none of those that it `requires`. Empty where it can."""
        if self.kind in OWN and self.uid in load_object(OWN[self.kind]):
            return f"extension {self.folder}: {self.kind} {self.uid!r} is the program's own. Give it another uid."
        requires = getattr(self.extension, "requires", "")
        if not requires:
            return ""
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        try:
            fits = SpecifierSet(requires).contains(VERSION, prereleases=True)
        except (InvalidSpecifier, AttributeError, TypeError):
            return f'extension {self.folder}: requires = {requires!r} is not a range of versions, such as ">=0.3"'
        if fits:
            return ""
        return (
            f"the extension {self.uid!r} ({self.folder}) needs {NAME} {requires}, and this is {VERSION}: "
            f"install another version of one of them."
        )

    def names(self) -> set[str]:
        """The names by which `--without` leaves it out: its type, its package, and the
        folders in the package that hold its process."""
        inside = (
            str(getattr(self.extension, "process", ""))
            .partition(":")[0]
            .split(".")[:-1]
        )
        return {self.uid, self.folder.name, *filter(None, inside)}


@dataclass(frozen=True)
class HiddenExtension:
    """An extension, or a folder of some, that `--without` leaves out.

    >>> HiddenExtension("tools", Path("extensions/tools"), "best").concerns("best")
    True
    """

    without: str
    """The name that was given."""

    folder: Path
    uid: str = ""
    """Empty: all of the folder, which is not imported."""

    def concerns(self, uid: str) -> bool:
        """Whether a user who asks for `uid` means this extension: by its uid, or by the
        name of its folder where the uid is not known."""
        return uid == (self.uid or self.folder.name)


@dataclass(frozen=True)
class FailedExtension:
    """A folder that could not be imported, or whose list is not one of extension
    classes.

    >>> FailedExtension(Path("drawings"), "ImportError: no module numpy").reason
    'ImportError: no module numpy'
    """

    folder: Path
    details: str
    """The traceback, or one line."""

    @property
    def reason(self) -> str:
        """The last line, with the file and line of a traceback."""
        said = self.details.strip().splitlines()[-1]
        places = re.findall(r'File "(.+)", line (\d+)', self.details)
        return f"{said} ({':'.join(places[-1])})" if places else said

    def concerns(self, uid: str) -> bool:
        """Whether a user who asks for `uid` means the extension of this folder."""
        return uid == self.folder.name

    def __str__(self) -> str:
        return f"failed to import extension {self.folder}:\n{_indent(self.details)}"


class ExtensionTable:
    """All that was found. Where a uid is asked for, the package of that name is
    imported; if it has none, the program's own ones, and then all others. A list needs
    all of them. Errors are raised when the uid they concern is asked for, never before.

    Example::

        table = discover()
        model = table.find_config("sd_trainer")  # checks the section
        process = table.process_class("sd_trainer")  # imports torch
    """

    def __init__(
        self, packages: Mapping[Path, str], broken: Iterable[FailedExtension]
    ) -> None:
        """packages: folder -> the module that it is imported as. broken: what is known
        without an import."""
        self.packages = tuple(packages)
        self._waiting = dict(packages)
        self._found: list[RegisteredExtension] = []
        self._broken = [*broken]
        self._skipped: list[Path] = []
        self._hidden: list[HiddenExtension] = []

    @property
    def found(self) -> tuple[RegisteredExtension, ...]:
        return tuple(self._imported()._found)

    @property
    def broken(self) -> tuple[FailedExtension, ...]:
        return tuple(self._imported()._broken)

    @property
    def skipped(self) -> tuple[Path, ...]:
        """Packages that list no process types."""
        return tuple(self._imported()._skipped)

    @property
    def hidden(self) -> tuple[HiddenExtension, ...]:
        """What `--without` leaves out."""
        return tuple(self._imported()._hidden)

    def _imported(self) -> ExtensionTable:
        """This table with all packages."""
        return self._with(lambda package, module: True)

    def _with(self, chosen: Callable[[Path, str], bool]) -> ExtensionTable:
        """This table with the packages for which this holds, of folder and module."""
        for package, module in [*self._waiting.items()]:
            if chosen(package, module):
                del self._waiting[package]
                self._import(package, module)
        order = self.packages.index
        self._found.sort(key=lambda one: order(one.folder))  # as of the folders
        return self

    def _named(self, uid: str, kind: str = "process") -> list[RegisteredExtension]:
        """The extensions of this uid and kind."""
        choices: tuple[Callable[[Path, str], bool], ...] = (
            lambda package, module: uid in (package.name, module),
            lambda package, module: package.parent == EXTENSIONS_ROOT,
            lambda package, module: True,
        )
        found = (
            [
                one
                for one in self._with(chosen)._found
                if (one.uid, one.kind) == (uid, kind)
            ]
            for chosen in choices
        )
        return next(filter(None, found), [])

    def _import(self, package: Path, module: str) -> None:
        if package.name in left_out():
            self._hidden.append(HiddenExtension(package.name, package))
            return
        listed = _listed_in(package, module)
        if isinstance(listed, FailedExtension):
            self._broken.append(listed)
        elif listed is None:
            self._skipped.append(package)
        else:
            for extension in listed:
                if absent := [one for one in left_out() if one in extension.names()]:
                    hidden = HiddenExtension(absent[0], package, extension.uid)
                    self._hidden.append(hidden)
                else:
                    self._found.append(extension)

    def __getitem__(self, uid: str) -> RegisteredExtension:
        """The one process type of this uid. Raises UserError when there is none, or
        more than one."""
        return self.find(uid, "process")

    def uids(self, kind: str) -> set[str]:
        """What a job can name of this kind."""
        return {extension.uid for extension in self.found if extension.kind == kind}

    def find(self, uid: str, kind: str) -> RegisteredExtension:
        """The one extension of this uid and kind. Raises UserError as above."""
        named = self._named(uid, kind)
        same = [extension for extension in self._found if extension.uid == uid]
        if len(named) == 1:
            if fault := named[0].fault():
                raise UserError(fault)
            return named[0]
        if named:
            folders = "".join(f"\n  {extension.folder}" for extension in named)
            raise UserError(
                f"more than one extension has the uid {uid!r}; keep one of:{folders}"
            )
        if asked := [broken for broken in self.broken if broken.concerns(uid)]:
            raise UserError("\n".join(map(str, asked)))
        if kind == "process":
            lines = [f"unknown process type {uid!r}. {self._remedy(uid)}"]
        else:
            known = self.uids(kind)
            remedy = did_you_mean(uid, known) if known else "No extension has one."
            lines = [f"unknown {kind} {uid!r}. {remedy}"]
        if same:
            belongs = BELONGS.get(same[0].kind, "'process', as its 'type'")
            lines = [
                f"{uid!r} is a {same[0].kind}, not a {kind}: it belongs in {belongs}."
            ]
            what = ("process", "get_process", *KINDS)
            if not any(
                vars(base).get(one)
                for base in same[0].extension.__mro__
                if base is not Extension
                for one in what
            ):
                lines = [
                    f"{uid!r} ({same[0].folder}) gives none of {', '.join(what)}: "
                    f"correct the name of its attribute."
                ]
        for one in self.hidden:
            if one.concerns(uid):
                lines.append(f"'--without {one.without}' leaves it out.")
        raise UserError("\n".join([*lines, *map(str, self.broken)]))

    def _remedy(self, uid: str) -> str:
        """The remedy for a type that no extension has: the type like it, or the trainer
        of most jobs."""
        known = self.uids("process")
        tools = self.tools()
        near = get_close_matches(
            uid, known - tools.keys(), n=1, cutoff=0.75
        ) or get_close_matches(uid, tools, n=1)
        if MOST_JOBS in known and re.search(MEANS_TRAINER, uid):
            near = [MOST_JOBS]
        hint = f"Did you mean {near[0]!r}? " if near else ""
        others = f"; the tools of '{COMMAND} --help' are types too" if tools else ""
        return f"{hint}Known names: {', '.join(sorted(known - tools.keys()))}{others}."

    def find_config(self, uid: str) -> type[BaseModel] | None:
        """The model that checks a section of this type; None when the extension gives
        none."""
        return self._model(self[uid], "get_config")

    def find_callback_config(self, uid: str) -> type[BaseModel] | None:
        """The model that checks an entry of `callbacks` of this type; None when the
        extension gives none."""
        return self._model(self.find(uid, "callback"), "get_config")

    def find_command(self, uid: str) -> type[BaseModel] | None:
        """The model of the flags of the tool `uid`; None where the extension has no
        flags. Raises UserError where no extension has the uid, or where its code
        fails."""
        return self._model(self[uid], "get_command")

    @staticmethod
    def _model(registered: RegisteredExtension, method: str) -> type[BaseModel] | None:
        get_model = getattr(registered.extension, method, None)
        if get_model is None:
            return None
        try:
            with _announced(registered.folder):
                model: type[BaseModel] | None = get_model()
        except Exception as error:  # a stranger's code may raise anything; its author needs the traceback
            raise UserError(_failed(registered, f"{method}()", error)) from error
        if model is not None and not hasattr(model, "model_validate"):
            raise UserError(
                f"extension {registered.folder}: {method}() gave {model!r}, not a pydantic model"
            )
        return model

    def process_class(self, uid: str) -> type:
        """The class that runs a section of this type. This is where an extension's
        heavy imports happen."""
        registered = self[uid]
        process: type = self._from_extension(
            registered, "get_process()", registered.extension.get_process
        )
        if not callable(process):
            raise RunError(
                f"extension {registered.folder}: get_process() returned {process!r}, not a class"
            )
        return process

    def part(self, uid: str, kind: str, base: type[PartT]) -> type[PartT]:
        """The class of a callback or tracker, which extends `base`. Raises RunError
        where the extension's code fails."""
        registered = self.find(uid, kind)
        cls: type[PartT] = self._from_extension(
            registered, kind, lambda: registered.extension._named(kind)
        )
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise RunError(
                f"extension {registered.folder}: {cls!r} does not extend "
                f"{base.__module__}.{base.__name__}"
            )
        return cls

    @staticmethod
    def _from_extension(
        registered: RegisteredExtension, what: str, make: Callable[[], Any]
    ) -> Any:
        try:
            with _announced(registered.folder):
                return make()
        except (UserError, RunError):
            raise
        except Exception as error:
            told = _what_it_lacks(error, registered.folder)
            kind = ExtensionError if told else RunError
            raise kind(_failed(registered, what, error)) from error

    def is_tool(self, word: str) -> bool:
        """Whether `run.py WORD` is a tool."""
        return any(getattr(one.extension, "purpose", "") for one in self._named(word))

    def tools(self) -> dict[str, str]:
        """Uid -> purpose of each tool, sorted by uid. Extensions without a `purpose`
        are not tools and are left out."""
        purposes = {
            registered.uid: getattr(registered.extension, "purpose", "")
            for registered in self.found
        }
        return {uid: purpose for uid, purpose in sorted(purposes.items()) if purpose}

    def stages(self) -> dict[str, list[str]]:
        """The uids of the tools by stage, each in the order in which their table has
        them."""
        by_stage = {stage: [] for stage in STAGES}  # type: dict[str, list[str]]
        for one in self.found:
            if getattr(one.extension, "purpose", ""):
                by_stage.setdefault(
                    getattr(one.extension, "stage", "") or STAGES[-1], []
                ).append(one.uid)
        return {stage: uids for stage, uids in by_stage.items() if uids}

    def configs(self) -> Mapping[str, type[BaseModel]]:
        """The model of every uid that has one. An extension that cannot give it is
        reported, and left out."""
        models = {}
        for uid in sorted(self.uids("process")):
            try:
                model = self.find_config(uid)
            except UserError as error:
                print(error, file=sys.stderr)
                continue
            if model is not None:
                models[uid] = model
        return models

    def render(self) -> str:
        """The table that `--list-extensions` prints: a line per process type, then the
        folders that list none, then the broken ones with their reason."""
        rows = [("type", "name", "folder")]
        for extension in self.found:
            kind = "" if extension.kind == "process" else f" ({extension.kind})"
            if fault := extension.fault():
                kind += f", refused: {fault}"
            rows.append((extension.uid, extension.name + kind, str(extension.folder)))
        for folder in self.skipped:
            rows.append(("-", "lists no extensions", str(folder)))
        for broken in self.broken:
            rows.append(("broken", broken.reason, str(broken.folder)))
        widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:2]]
        lines = [
            f"{uid:{widths[0]}}  {name:{widths[1]}}  {place}"
            for uid, name, place in rows
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data, as `--list-extensions --json` prints it."""
        found = [
            {"type": one.uid, "name": one.name, "folder": str(one.folder)}
            for one in self.found
        ]
        broken = [
            {"folder": str(one.folder), "reason": one.reason} for one in self.broken
        ]
        broken += [
            {"folder": str(one.folder), "reason": fault}
            for one in self.found
            if (fault := one.fault())
        ]
        return {
            "extensions": found,
            "without_types": list(map(str, self.skipped)),
            "broken": broken,
        }


def discover(folders: Iterable[Path] | None = None) -> ExtensionTable:
    """The table of the extensions in `folders`.

    By default these are the program's extensions, the extensions of its examples, the
    folders of EXTENSIONS_PATH, and the installed packages with an entry point.
    """
    broken: list[FailedExtension] = []
    # each with its module; a dict keeps the order and drops a folder that comes twice
    packages: dict[Path, str] = {}
    for folder in _default_folders() if folders is None else folders:
        try:
            for package in _packages(folder.resolve()):
                packages.setdefault(package, _module_name(package))
        except OSError as error:
            broken.append(
                FailedExtension(
                    folder, f"cannot be read (see EXTENSIONS_PATH): {error}"
                )
            )
    for point in entry_points(group=ENTRY_POINTS) if folders is None else ():
        if installed := _folder_of_module(point.module):
            packages.setdefault(installed, point.module)
        else:
            reason = f"entry point {point.name!r} in {ENTRY_POINTS}: there is no package {point.module!r}"
            broken.append(FailedExtension(Path(point.module), reason))
    return ExtensionTable(packages, broken)


def added(kind: str) -> Mapping[str, str]:
    """Uid -> "module:attribute" of the families, or kinds of network, that extensions
    add. One that cannot be loaded is reported on standard error, once, and left out."""
    where = os.environ.get("EXTENSIONS_PATH", ""), left_out(), Path.cwd()
    return _added(kind, *where)


@cache
def _added(kind: str, *where: object) -> Mapping[str, str]:
    table = discover()
    places = {}
    for uid in sorted(table.uids(kind)):
        try:
            registered = table.find(uid, kind)
            found = table._from_extension(
                registered, kind, partial(registered.extension._named, kind)
            )
            where_it_is = f"extension {registered.folder}: {kind}"
            if not isinstance(found, load_object(OBJECTS[kind])):
                raise UserError(
                    f"{where_it_is}: {found!r} is not an object of {OBJECTS[kind]}."
                )
            if getattr(found, "arch", uid) != uid:
                raise UserError(
                    f"{where_it_is}: its arch is {found.arch!r}, and the extension's uid {uid!r}. "
                    f"Give both the same name."
                )
            places[uid] = registered.extension.place_of(kind)
        except (UserError, RunError) as error:
            print(error, file=sys.stderr)
    return places


def do_without(names: Iterable[str]) -> None:
    """`--without`: these extensions, by type or by folder, are absent from now on.
    Raises UserError for a name that none has."""
    table = discover()
    folders = {folder.name for folder in table.packages}
    if folders.issuperset(names):  # so that nothing is imported to be left out
        leave_out(names)
        return
    known = {name for extension in table.found for name in extension.names()}
    known |= folders | {broken.folder.name for broken in table.broken}
    for hidden in table.hidden:
        known |= {hidden.without, hidden.folder.name, hidden.uid}
    known.discard("")
    for name in names:
        if name not in known:
            raise UserError(
                f"--without {name}: there is no such extension. {did_you_mean(name, known)}"
            )
    leave_out(names)


def _default_folders() -> list[Path]:
    given = os.environ.get("EXTENSIONS_PATH", "").split(os.pathsep)
    # one's own; a checkout has its folder of this name
    own = Path("extensions")
    return [
        EXTENSIONS_ROOT,
        *([own] if IS_INSTALLED and own.is_dir() else []),
        *(Path(os.path.expanduser(entry)) for entry in given if entry),
    ]


def _packages(folder: Path) -> Iterator[Path]:
    """The extension packages in `folder`, or `folder` itself when it is one."""
    init = folder / "__init__.py"
    if init.is_file() and REGISTRY_VARIABLE in init.read_text(
        encoding="utf-8", errors="replace"
    ):
        yield folder
        return
    for package in sorted(folder.iterdir()):
        if package.name[0] not in "_." and (package / "__init__.py").is_file():
            yield package


_importing = RLock()
"""Two threads of the page may ask at once: a package that is half imported looks like
one that lists nothing."""


PATIENCE_S = 5.0
"""Seconds that an import may take in silence."""


@contextmanager
def _announced(package: Path) -> Iterator[None]:
    """For imports of somebody else's code: what it prints goes to standard error, that
    of its libraries in C too, so that it does not end up in our JSON. The one that
    takes long is named, unless it is the program's own, which the program needs."""
    again = command("--without", package.name, *sys.argv[1:])
    text = (
        f"waiting for the extension {package}, which is being imported. To do without it: "
        f"{again}\n"
    )
    timer = Timer(PATIENCE_S, lambda: os.write(2, text.encode(errors="replace")))
    timer.daemon = True
    if not package.is_relative_to(EXTENSIONS_ROOT):
        timer.start()
    kept = None
    with suppress(OSError):  # one of them is closed
        kept = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        timer.cancel()
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def _listed_in(
    package: Path, module: str
) -> list[RegisteredExtension] | FailedExtension | None:
    """The extension classes a package lists; None when it has no such list."""
    try:
        known = module in sys.modules
        with _importing, nullcontext() if known else _announced(package):
            listed = getattr(_import(package, module), REGISTRY_VARIABLE, None)
    except Interrupted:
        raise
    except BaseException as error:  # noqa: BLE001 - containing a broken extension is the point
        return FailedExtension(package, _traceback(error, package))
    if listed is None:
        return None
    if not isinstance(listed, list | tuple):
        return FailedExtension(
            package, f"{REGISTRY_VARIABLE} is {listed!r}, not a list of classes"
        )
    for extension in listed:
        uid = getattr(extension, "uid", None)
        if not isinstance(extension, type) or not isinstance(uid, str) or not uid:
            return FailedExtension(
                package,
                f"{REGISTRY_VARIABLE} holds {extension!r}, which is not a class with a uid",
            )
    extensions = []
    for item in listed:
        name = str(getattr(item, "name", "") or item.uid)
        extensions.append(RegisteredExtension(item.uid, name, package, item))
    return extensions


def _folder_of_module(module: str) -> Path | None:
    """The folder that Python would import this package from; None when there is none.
    Nothing is imported."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (
        ImportError,
        ValueError,
    ):  # a module that somebody put into sys.modules has no spec
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)), *rest).resolve()
    return folder if folder.is_dir() else None


def _module_name(package: Path) -> str:
    """The name to import a folder by.

    Ours are `extensions.<name>`. A folder that Python finds by its own name keeps that
    name, so that each of its classes exists once. Others have a private name.
    """
    if package.parent == EXTENSIONS_ROOT and package.name.isidentifier():
        return f"extensions.{package.name}"
    if package.name.isidentifier() and _folder_of_module(package.name) == package:
        return package.name
    return _private_name(package)


def _private_name(package: Path) -> str:
    """A module name that no other folder can have."""
    digest = blake2b(
        str(package).encode("utf-8", "surrogateescape"), digest_size=4
    ).hexdigest()
    return f"extension_{re.sub(r'[^0-9A-Za-z_]', '_', package.name)}_{digest}"


def _import(package: Path, module_name: str) -> ModuleType:
    """Imports a package by the name that `_module_name` or its entry point gives it."""
    if module_name != _private_name(package):
        if package.parent != EXTENSIONS_ROOT:
            show_extension(module_name)
        return import_module(module_name)
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = spec_from_file_location(
        module_name, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    # a path that ends in .py always has both
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[module_name] = module
    show_extension(module_name)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _failed(extension: RegisteredExtension, what: str, error: Exception) -> str:
    return f"extension {extension.folder}: {what} failed:\n{_indent(_traceback(error, extension.folder))}"


def _traceback(error: BaseException, package: Path) -> str:
    """The traceback from the package's own first line on; how we got there is of no
    interest."""
    frames = error.__traceback__
    while frames is not None and not Path(
        frames.tb_frame.f_code.co_filename
    ).is_relative_to(package):
        frames = frames.tb_next
    text = "".join(traceback.format_exception(type(error), error, frames)).rstrip()
    more = _what_it_lacks(error, package)
    return f"{text}\n{more}" if more else text


def _what_it_lacks(error: BaseException, package: Path) -> str:
    """What an extension imports that is not there, and what to do; empty where
    something else went wrong, or where the program itself may lack the package."""
    missing_parts = find_object(MISSING_PARTS)
    if missing_parts and (theirs := missing_parts(error)):
        return str(theirs)
    name = (isinstance(error, ModuleNotFoundError) and error.name) or ""
    top, _, below = name.partition(".")
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    importers = [file for file in files if not file.startswith("<frozen")]
    if own := below and _own_name(name, package):
        inside = name.removeprefix(own).lstrip(".")
        return f"There is no {inside.replace('.', '/')}.py in {package}, which this extension names."
    if top and (package / f"{top}.py").is_file():
        return f"{top}.py is in {package}: write a dot before its name, '.{top}'."
    if not name or package.parent == EXTENSIONS_ROOT or not importers:
        return ""
    if not Path(importers[-1]).is_relative_to(package):
        return ""
    return f"No module named {top!r}, a package of this extension: see its README, or install it."


def _own_name(name: str, package: Path) -> str:
    """The module of the package itself, of which `name` is a part; else empty."""
    own = (_private_name(package), f"extensions.{package.name}", package.name)
    return next((one for one in own if f"{name}.".startswith(f"{one}.")), "")


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
