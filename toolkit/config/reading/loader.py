"""`load_job`: from a config file to a checked `JobConfig`, or to all of its errors at
once.

The steps are: read the text (`yaml_reader`, `toml_reader`), change what the command
line changes (`changes`), fill in variables and `[name]`, turn a file of another program
into a job (`foreign`), check the frame of the job, and read each process. A process is
normalised (`normalise`), validated (`validate`), and asked for its findings (`base`).
Errors are collected in one `Diagnostics` and raised together.

`run.py` and the tools call `load_job`; `tool.py` calls `read_process` for a command.
Nothing here imports torch. The caller passes `find_model`, which knows the extensions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from toolkit.config.reading.base import all_findings
from toolkit.config.reading.changes import Change, FindModel, with_changes
from toolkit.config.reading.field_types import LONGEST_NAME
from toolkit.config.reading.foreign import (
    COMMAND_LINE,
    NO_COMMAND,
    SHELL_SUFFIXES,
    foreign_file,
    foreign_keys,
    is_command,
)
from toolkit.config.reading.located import (
    ConfigNode,
    Diagnostics,
    SourceLocation,
    odd_characters,
    show,
)
from toolkit.config.reading.normalise import Normaliser, merge_defaults
from toolkit.config.reading.process import (
    CallbackConfig,
    JobConfig,
    JobContext,
    ProcessConfig,
    ProcessEntry,
    job_state_file,
)
from toolkit.config.reading.redacted_copy import (
    job_text,
    saved_text,
    secret_scalars,
)
from toolkit.config.reading.removed import removed
from toolkit.config.reading.validate import list_remedy, not_text, validate
from toolkit.config.reading.yaml_faults import quoted
from toolkit.config.reading.yaml_reader import (
    expand_variables,
    is_json,
    map_paths,
    read_text,
    read_yaml,
    replace_name,
    scalar_value,
    secret_values,
    strip_json_comments,
    written_with_variables,
)
from toolkit.errors import ConfigErrors, Diagnostic, UserError, did_you_mean
from toolkit.extension import discover
from toolkit.files.redact import contains_secret, register_secret, wandb_keys
from toolkit.files.run_files import FILE_SUFFIXES, finished_processes, step_stem
from toolkit.files.writing import CACHE_FOLDER, TEMP_NAME_BYTES
from toolkit.registry import (
    FILE_OF_FLAGS,
    FOREIGN_COMMANDS,
    FOREIGN_TYPES,
    find_object,
    load_needed,
    load_object,
)

_IN_CONFIG = ("name", "process", "defaults")
"""Keys of `config`."""

_LOOKS_RANDOM = re.compile(r"^(?=.*[0-9])(?=.*[A-Za-z])\S{8,}$")
_SECRET_FOLDER = "folder names are visible on the disk. Remove the secret, or rename the variable it comes from."
_BAD_IN_FOLDER = re.compile(r"[/\\\x00-\x1f\x7f]")
_NO_TEXT = re.compile("[\ud800-\udfff]")
_NOT_ON_WINDOWS = re.compile(
    r'[<>:"|?*]|^[ ]|[ .]$|^(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)', re.IGNORECASE
)
"""Source: Microsoft, "Naming Files, Paths, and Namespaces"."""
"""What stands for bytes of the command line or of a variable that are not UTF-8."""

LONGEST_RUN_NAME = (
    LONGEST_NAME
    - TEMP_NAME_BYTES
    - max(len(f"{step_stem('', 1)}{suffix}") for suffix in FILE_SUFFIXES)
)
"""Bytes of a name with which the longest of the run's files, while it is being written,
has a name that disks allow."""


@dataclass(frozen=True)
class _Process:
    """A process on its way: what the file says, what it is checked against, what came
    of it."""

    node: ConfigNode
    entry: ProcessEntry
    checked: ConfigNode
    complete: bool
    """False when the section has errors that leave nothing to look at."""


def load_job(
    path: str | Path,
    find_model: FindModel,
    *,
    name: str | None = None,
    env: Mapping[str, str] = os.environ,
    flags: Mapping[str, Sequence[str]] = MappingProxyType({}),
    moved: Mapping[str, str] = MappingProxyType({}),
    command: str = "",
    as_job: bool = False,
    check_files: bool = True,
    earlier_outputs: frozenset[Path] = frozenset(),
    changes: Sequence[Change] = (),
    suffix: str = "",
) -> JobConfig:
    """Reads and checks a config. Raises ConfigErrors holding every error. check_files:
    False leaves out what needs the file system, for a job that has run.

    path: the file; COMMAND_LINE: there is none, only flags. name: replaces
    `config.name`. flags: of another program, with the texts behind them; they go before
    what a file of that program says. moved: folder -> where it is now, for every path
    in the file. command: of another program, instead of a file; path is then
    COMMAND_LINE. as_job: `unexpanded_text` is the job under our names, whatever the
    file is. earlier_outputs: as `JobContext` has it, of jobs that run before this one.
    changes: keys with other values than the file gives them. suffix: behind the job's
    name.
    """
    check_given_name(name)
    diagnostics = Diagnostics(str(path))
    text, written = read_written(path, flags, command, diagnostics)
    if changes and foreign_file(written):
        raise UserError(
            f"{changes[0].place}: is for jobs of this program. "
            f"Convert the file first: run.py import {path} -o job.yaml"
        )
    changed, paths = with_changes(written, changes, find_model, diagnostics)
    remember_secrets(text, changed, env)
    # A name given by `-n` makes the written one irrelevant, variables included.
    root = expand_variables(
        changed,
        env,
        diagnostics,
        ("meta",),
        *([("config", "name")] if name is not None else []),
    )
    if moved:
        root = map_paths(root, moved)
    reader = foreign_file(root)
    if reader:
        root = reader.as_job(root, Path(path).parent, name, diagnostics, moved)
    config = check_top_level(root, diagnostics)
    job_name = read_name(config, diagnostics) if name is None else name
    if suffix:
        job_name = name = f"{job_name}{suffix}"
        _refuse_name(changes[0].place.partition(" ")[0], name)
    root = replace_name(root, job_name)
    processes = read_processes(root.value["config"], find_model, diagnostics)
    if check_files:
        check_processes(processes, JobContext(job_name, earlier_outputs), diagnostics)
    warn_of_odd_quotes(root, diagnostics)
    warn_of_cut_texts(changed, text, diagnostics)
    warn_of_empty_sections(changed, processes, diagnostics)
    diagnostics.raise_errors()
    known = [process for process in processes if process is not None]
    meta = root.value.get("meta")
    if as_job or (reader and not reader.keeps_text):
        checked = [process.checked for process in known]
        messages = (*diagnostics.notes, *diagnostics.warnings)
        text = job_text(root, job_name, checked, str(path), messages)
    else:
        text = saved_text(
            text, changed, name, paths, rewrite=is_json(path) or bool(flags)
        )
    return JobConfig(
        job=root.value["job"].value,
        name=job_name,
        meta=meta.data() if meta and meta.value else {},
        processes=tuple(process.entry for process in known),
        warnings=diagnostics.warnings,
        path=Path(path),
        unexpanded_text=text,
        notes=tuple(diagnostics.notes),
        whole=not (flags or changes or moved or name is not None),
    )


def check_given_name(name: str | None) -> None:
    """Raises ConfigErrors for a name given by `-n` that no folder of a job may have."""
    if name is not None:
        _refuse_name("-n", name)


def read_written(
    path: str | Path,
    flags: Mapping[str, Sequence[str]],
    command: str,
    diagnostics: Diagnostics,
) -> tuple[str, ConfigNode]:
    """The text of the file, and its root with the flags in it. Raises ConfigErrors
    where nothing can be read."""
    text = command
    root = None
    if command or str(path) != COMMAND_LINE:
        text = text or read_text(path, diagnostics)
        suffix = Path(path).suffix.lower()
        if command or is_command(text) or suffix in SHELL_SUFFIXES:
            root = load_needed(
                FOREIGN_COMMANDS, f"{path}: a command of another program"
            )(text, diagnostics)
        elif suffix in (".py", ".ipynb"):
            diagnostics.fatal(SourceLocation(1, 1), (), NO_COMMAND)
        elif suffix in (".md", ".rst", ".html", ".log"):
            diagnostics.fatal(
                SourceLocation(1, 1),
                (),
                f"is not a job, a YAML or JSON file, and {NO_COMMAND}",
            )
        elif suffix == ".toml":
            from toolkit.config.reading.toml_reader import read_toml

            root = read_toml(text, diagnostics)
            diagnostics.raise_errors()
            if root is not None and not root.value:
                diagnostics.fatal(root.value_at, (), "is empty.")
            if root is not None and foreign_file(root) is None:
                remedy = "Jobs of this program are YAML."
                if "datasets" in root.value:
                    remedy = "It is a dataset file: run the config that names it."
                diagnostics.fatal(
                    root.value_at,
                    (),
                    f"is not the config of a supported program. {remedy}",
                )
        else:
            root = read_yaml(
                strip_json_comments(text) if is_json(path) else text, diagnostics
            )
    if flags:
        root = load_object(FILE_OF_FLAGS).with_flags(root, flags, diagnostics)
    assert root is not None  # there is a file, or there are flags
    return text, root


def remember_secrets(text: str, written: ConfigNode, env: Mapping[str, str]) -> None:
    """Registers the values that are redacted everywhere, before the first message can
    show one."""
    register_secret(secret_values(written, env))
    register_secret(wandb_keys(text))
    # A word such as `sort_key: filename` is redacted of the saved config at most, not
    # of everything.
    literals = [str(node.value) for node in secret_scalars(written)]
    register_secret(value for value in literals if _LOOKS_RANDOM.search(value))


# ---------------------------------------------------------------- the frame: job,
# config, meta


def check_top_level(root: ConfigNode, diagnostics: Diagnostics) -> ConfigNode:
    """The `config` mapping. Raises when there is none; all else outside the processes
    is reported."""
    refuse_unknown(
        root,
        ("job", "config", "meta"),
        dict.fromkeys(_IN_CONFIG, "'config'"),
        diagnostics,
    )
    job = root.value.get("job")
    if job is None or job.is_blank:
        diagnostics.error(
            job or root, "is required. Write 'job: extension'.", path=("job",)
        )
    elif job.value != "extension":
        refuse_absent_types(root, diagnostics)
        diagnostics.error(job, f"unknown job type {show(job)}. Write 'extension'.")
    config: ConfigNode | None = root.value.get("config")
    for node in (root.value.get("meta"), config.child("defaults") if config else None):
        if node is not None and not isinstance(node.value, dict | None):
            diagnostics.error(
                node, f"{show(node)} is not a mapping of keys and values."
            )
    if config is None or not isinstance(config.value, dict):
        message = "is required: a mapping with 'name' and 'process'."
        if config is not None and isinstance(config.value, list):
            message = (
                "a list is not a mapping. Remove the '- ' before 'name' and 'process'."
            )
        diagnostics.fatal((config or root).value_at, ("config",), message)
    return config


def refuse_absent_types(root: ConfigNode, diagnostics: Diagnostics) -> None:
    """Raises ConfigErrors for a process of another program: that line is enough."""
    listed = root.find(("config", "process"))[0].value
    for entry in listed if isinstance(listed, list) else ():
        kind = entry.child("type")
        if kind is not None and (message := absent_type(kind)):
            diagnostics.fatal(kind.value_at, kind.path, message)


def refuse_unknown(
    node: ConfigNode,
    known: tuple[str, ...],
    inside: Mapping[str, str],
    diagnostics: Diagnostics,
) -> None:
    """inside: key -> where it belongs."""
    for key, child in node.value.items():
        if key not in known:
            remedy = (
                f"It belongs in {inside[key]}."
                if key in inside
                else foreign_keys().hint(key) or did_you_mean(key, known)
            )
            diagnostics.error(child, f"unknown key. {remedy}", at_key=True)


def read_name(config: ConfigNode, diagnostics: Diagnostics) -> str:
    """`config.name`, which becomes the name of a folder. Where it is missing or cannot
    be such a name, an error is reported and "job" is returned, so that the rest is
    checked."""
    node = config.value.get("name")
    if node is None or node.is_blank:
        diagnostics.error(
            node or config,
            "is required: the run's folder gets this name.",
            path=("config", "name"),
        )
        return "job"
    sound = check_folder_name(node, diagnostics)
    if sound and (fault := job_name_error(node.value)):
        diagnostics.error(node, f"{show(node)} {fault}")
    return str(node.value) if sound else "job"


def _refuse_name(flag: str, name: str) -> None:
    if fault := job_name_error(name):
        raise ConfigErrors([Diagnostic((flag,), f"{name!r} {fault}")])


def check_folder_name(node: ConfigNode, diagnostics: Diagnostics) -> bool:
    """Whether it can be a folder's name; if not, that is reported."""
    if not isinstance(node.value, str):
        diagnostics.error(node, not_text(node))
        return False
    fault = folder_name_error(node.value)
    if fault and not diagnostics.reported(node.path):
        diagnostics.error(node, f"{show(node)} {fault}")
    elsewhere = "" if fault else windows_name_error(node.value)
    if elsewhere:
        diagnostics.warn(node, f"{show(node)} {elsewhere}")
    return not fault


def windows_name_error(name: str) -> str:
    """Why Windows cannot have a file of this name, as the rest of a message; empty
    where it can.

    >>> windows_name_error("con.v2").partition(". ")[2], windows_name_error("conrad")
    ("Write 'my_con.v2'.", '')
    """
    if not _NOT_ON_WINDOWS.search(name):
        return ""
    other = name_like(name, "my_char")
    if _NOT_ON_WINDOWS.search(other):  # a reserved name
        other = f"my_{other}"
    return f"cannot be the name of a file on Windows, nor of a LoRA in ComfyUI there. Write '{other}'."


FILE_ENDING = re.compile(r"(?i)\.(ya?ml|json\w?|toml|txt|safetensors)\b.*$", re.DOTALL)
"""The ending of a job's file, or of a run's, and what is behind it: that of a copy."""


def name_like(text: str, otherwise: str = "my_char") -> str:
    """A name that a job can have, from any text, which may be the path of its file;
    `otherwise` where no letter is left.

    >>> name_like("My cat (2)"), name_like("config/my_char.yaml")
    ('My_cat_2', 'my_char')
    """
    *_, last = re.split(r"[/\\=]|:(?=\S)|^name:", text.rstrip("/\\"))
    return re.sub(r"[^\w.-]+", "_", FILE_ENDING.sub("", last)).strip("_.-") or otherwise


def job_name_error(name: str) -> str:
    """As `folder_name_error`, of a job, whose folder is beside that of the cache."""
    if name == CACHE_FOLDER:
        return "is the folder of the shared cache. Choose another name."
    return folder_name_error(name)


def folder_name_error(name: str) -> str:
    """Why a run's folder and files cannot have this name, as the rest of a message;
    empty where they can.

    >>> folder_name_error("maya"), folder_name_error("..")
    ('', 'cannot be the name of a folder.')
    """
    if not name.strip() or name in (".", ".."):
        return "cannot be the name of a folder."
    if _BAD_IN_FOLDER.search(name):
        return "cannot be the name of a folder: leave out '/', '\\' and control characters."
    if _NO_TEXT.search(name):
        return "cannot be the name of a folder: it holds bytes that are not UTF-8. Leave them out."
    if contains_secret(name):
        return f"cannot be the name of a folder: {_SECRET_FOLDER}"
    length = len(os.fsencode(name))
    if length > LONGEST_RUN_NAME:
        return (
            f"is too long: {length} bytes, and with at most {LONGEST_RUN_NAME} all files of the run can be named "
            "after it. Shorten it."
        )
    return ""


# ---------------------------------------------------------------- processes


def read_processes(
    config: ConfigNode, find_model: FindModel, diagnostics: Diagnostics
) -> list[_Process | None]:
    """Every entry of `config.process`, checked against the model of its type; None
    where that is not known."""
    listed = config.value.get("process")
    if listed is None or not isinstance(listed.value, list) or not listed.value:
        refuse_unknown(config, _IN_CONFIG, {}, diagnostics)
        message = "is required: a list of at least one process."
        if listed is not None and not listed.is_blank and listed.value != []:
            is_type = isinstance(listed.value, str)
            remedy = (
                f"Write '- type: {listed.value}' below it."
                if is_type
                else list_remedy(listed)
            )
            message = f"{show(listed)} is not a list of processes. {remedy}"
        diagnostics.error(listed or config, message, path=("config", "process"))
        return []
    entries = listed.value
    defaults = config.value.get("defaults")
    if defaults is not None:
        entries = [merge_defaults(node, defaults, diagnostics) for node in entries]
    normaliser = Normaliser(diagnostics)
    processes = [
        read_process(index, node, find_model, normaliser)
        for index, node in enumerate(entries)
    ]
    seen: dict[str | None, int] = {}
    for process in filter(None, processes):
        section = process.entry.section
        name = process.entry.name
        job_name = config.value.get("name")
        # a process without a name goes by the job's
        if isinstance(section, ProcessConfig):
            by_job = (
                name is None and job_name is not None and job_name.written is not None
            )
            of_name = {("name",): job_name.written} if by_job else {}
            section.remember_written(
                of_name | dict(written_with_variables(process.checked))
            )
        if (
            name is not None
            and seen.setdefault(name, process.entry.index) != process.entry.index
        ):
            message = f"{name!r} is already the name of process[{seen[name]}]. Names are unique."
            diagnostics.error(process.node.value["name"], message)
    places = normaliser.places() if config.value.keys() - set(_IN_CONFIG) else {}
    inside = {
        key: f"{place[0]!r} of a process" if place[0] else "a process"
        for key, place in places.items()
    }
    refuse_unknown(config, _IN_CONFIG, inside, diagnostics)
    normaliser.defaults.report(diagnostics)
    return processes


def read_process(
    index: int, node: ConfigNode, find_model: FindModel, normaliser: Normaliser
) -> _Process | None:
    """One process, checked. None, after an error, where it is not a mapping or its
    `type` is missing or unknown. index: its place in the list, from 0."""
    diagnostics = normaliser.diagnostics
    if not isinstance(node.value, dict):
        diagnostics.error(
            node, f"{show(node)} is not a mapping. A process has a 'type' and its keys."
        )
        return None
    type_node = node.value.get("type")
    if type_node is None or type_node.is_blank:
        diagnostics.error(
            type_node or node,
            "is required: which process runs.",
            path=(*node.path, "type"),
        )
        return None
    if diagnostics.reported(type_node.path):
        return None
    name_node = node.value.get("name")
    if name_node is not None and name_node.is_blank:
        name_node = None
    if name_node is not None and not check_folder_name(name_node, diagnostics):
        # Another in its place: what follows may make a path of it.
        name_node = replace(name_node, value=f"process{index}")
        node = replace(node, value={**node.value, "name": name_node})
    try:
        model = find_model(str(type_node.value))
    except UserError as error:
        diagnostics.error(type_node, absent_type(type_node) or str(error))
        return None
    section = None
    checked = node
    if model is None:
        for child in node.walk():
            normaliser.defaults.known(child)
    else:
        checked = normaliser.process(model, node)
        callbacks, checked = read_callbacks(checked, normaliser)
        section, checked = validate(model, checked, diagnostics)
        if section is not None and callbacks:
            section = section.model_copy(update={"callbacks": callbacks})
    entry = ProcessEntry(
        index=index,
        type=str(type_node.value),
        name=None if name_node is None else str(name_node.value),
        # An unchecked section reads an unquoted `${STEPS}` as a number where its value
        # is one.
        raw=node.data(_raw_value),
        section=section,
        places=places_of_images(checked, diagnostics),
    )
    return _Process(node, entry, checked, complete=model is None or section is not None)


def absent_type(node: ConfigNode) -> str:
    """What is said of a process type that left, or is another program's; empty for all
    others."""
    kind = str(node.value)
    if gone := removed("commands").get(kind):
        return f"{show(node)} {gone}"
    of_others = find_object(FOREIGN_TYPES)
    return str(of_others(kind)) if of_others else ""


def read_callbacks(
    process: ConfigNode, normaliser: Normaliser
) -> tuple[tuple[BaseModel, ...], ConfigNode]:
    """The entries of `callbacks`, each as the section of its own, and the process with
    them under the names of these. No entries where one of them is wrong."""
    given = process.child("callbacks")
    if given is None or not isinstance(given.value, list):
        return (), process
    sections = []
    entries = []
    for entry in given.value:
        kind = entry.child("type")
        if kind is not None and not kind.is_blank:
            section, entry = read_callback(kind, entry, normaliser)
            sections.append(section)
        entries.append(entry)
    known = tuple(section for section in sections if section is not None)
    node = replace(given, value=entries)
    return (
        known if len(known) == len(entries) else (),
        replace(process, value={**process.value, "callbacks": node}),
    )


def read_callback(
    kind: ConfigNode, entry: ConfigNode, normaliser: Normaliser
) -> tuple[BaseModel | None, ConfigNode]:
    """One entry of `callbacks`, checked. None where it is wrong."""
    try:
        model = discover().find_callback_config(str(kind.value)) or CallbackConfig
    except UserError as error:
        normaliser.diagnostics.error(kind, str(error))
        return None, entry
    if not issubclass(model, CallbackConfig):
        normaliser.diagnostics.error(
            kind,
            f"the extension {kind.value!r} has a config that does not extend toolkit.config.CallbackConfig.",
        )
        return None, entry
    return validate(model, normaliser.section(model, entry), normaliser.diagnostics)


def _raw_value(scalar: ConfigNode) -> Any:
    """A value as the file means it: of text from a variable, the number or switch."""
    return (
        scalar_value(scalar.value)
        if scalar.plain and scalar.written is not None
        else scalar.value
    )


def places_of_images(process: ConfigNode, diagnostics: Diagnostics) -> dict[Path, str]:
    """Text of a dataset or of the validation, which may be a path -> its place and
    key."""
    sections = [process.child(key) for key in ("datasets", "validation")]
    return {
        Path(os.path.expanduser(node.value)): diagnostics.place(node)
        for section in sections
        for node in (section.walk() if section else ())
        if isinstance(node.value, str) and "\x00" not in node.value
    }


# ---------------------------------------------------------------- what needs the file
# system


def check_processes(
    processes: list[_Process | None], job: JobContext, diagnostics: Diagnostics
) -> None:
    """Each section's own checks, in order; a section knows what earlier processes will
    write."""
    folders: dict[Path, int] = {}
    entries = [process.entry for process in processes if process is not None]
    finished = (
        finished_processes(job_state_file(job.name, entries))
        if len(processes) > 1
        else {}
    )
    for process in processes:
        # Without this section nothing is known of what it writes; later checks would
        # see ghosts.
        if process is None or not process.complete:
            return
        section = process.entry.section
        index = process.entry.index
        job = replace(job, was_finished=process.entry.label in finished)
        # of an unchecked section: anything
        written = [process.entry.raw.get("training_folder")]
        if isinstance(section, ProcessConfig):
            written = [section.run_folder(job), *section.outputs(job)]
        # which is an error already
        named = contains_secret(f"{process.entry.name} {job.name}")
        if not named and any(contains_secret(str(folder)) for folder in written):
            diagnostics.error(
                process.node,
                f"writes to a folder with a secret in its name: {_SECRET_FOLDER}",
            )
        for finding in all_findings(section, job) if section else ():
            node, rest = process.checked.find(finding.key)
            if finding.severity == "warning":
                diagnostics.warn(node, finding.message)
                continue
            # A single value may stand for a list of one: its place is then that of the
            # value.
            path = (*node.path, *rest) if isinstance(node.value, dict) else node.path
            if not diagnostics.reported(path):
                diagnostics.error(node, finding.message, path=path)
        if not isinstance(section, ProcessConfig):
            continue
        folder = section.run_folder(job)
        if folder is not None:
            folder = Path(os.path.realpath(folder.expanduser()))
            first = folders.setdefault(folder, index)
            if first != index:
                diagnostics.error(
                    process.node,
                    f"writes to '{folder}' as process[{first}] does. "
                    f"Give process[{index}] another 'name'.",
                )
        outputs = section.outputs(job)
        for file in sorted(outputs & job.earlier_outputs):
            if file.suffix == ".safetensors":
                diagnostics.error(
                    process.node,
                    f"writes '{file}', as an earlier process does. Give it another output.",
                )
        job = JobContext(job.name, job.earlier_outputs | outputs)


def warn_of_empty_sections(
    written: ConfigNode, processes: Sequence[_Process | None], diagnostics: Diagnostics
) -> None:
    """Warns of sections of a process without any key (`train: {}`), which are written
    and say nothing."""
    for process in filter(None, processes):
        node, rest = written.find(("config", "process", process.entry.index))
        section = process.entry.section
        if rest or section is None or not isinstance(node.value, dict):
            continue
        for key, child in node.value.items():
            if child.value == {} and isinstance(getattr(section, key, None), BaseModel):
                diagnostics.warn(
                    child, "has no keys: the defaults of its keys are taken."
                )


_TEXT_KEY = re.compile(
    r"prompts?|neg|negative|(?:trigger_word|caption_prefix|default_caption|instruction|name|ctrl_img|url)\w*|\w*(?:path|folder)"
)
"""Keys whose value may hold a '#': sentences, words, names of files."""

_CUT_WORD, _CUT_PROMPT = re.compile(r" #\S"), re.compile(r" #")
"""What follows a text that a '#' ends though it may belong to it: behind a single
space, where a comment usually has two, and, but for prompts in a list, with no space
behind it."""


def warn_of_cut_texts(root: ConfigNode, text: str, diagnostics: Diagnostics) -> None:
    """Warns of texts without quotes that end at a '#' of a YAML comment and seem to go
    on. text: of the file."""
    for node in root.walk():
        if (
            not (node.plain and isinstance(node.value, str) and node.span[1])
            or node.aliased
        ):
            continue
        *_, key = (part for part in ("", *node.path) if isinstance(part, str))
        is_prompt = isinstance(node.path[-1], int) and key == "prompts"
        pattern = _CUT_PROMPT if is_prompt else _CUT_WORD
        if _TEXT_KEY.fullmatch(key) and pattern.match(text, node.span[1]):
            rest = text[node.span[1] :].partition("\n")[0].rstrip()
            diagnostics.warn(
                node,
                f"ends before {rest.strip()!r}: ' #' begins a comment. "
                f"If it belongs to the text, put the text in quotes: {quoted(node.text + rest)}",
            )


def warn_of_odd_quotes(root: ConfigNode, diagnostics: Diagnostics) -> None:
    """Warns of texts between curly quotes, which YAML takes for a part of the text, and
    of trigger words with one."""
    for node in root.walk():
        if isinstance(node.value, str) and node.value:
            ends = node.value if node.path[-1:] == ("trigger_word",) else ""
            if all(
                map(odd_characters, (node.value[0], node.value[-1]))
            ) or odd_characters(ends):
                diagnostics.warn(
                    node,
                    f"the curly quotes are a part of the value. {odd_characters(node.value)}",
                )
