"""From the text of a config file to `ConfigNode`s: YAML 1.2 (core scalars, no duplicate
keys, bounded aliases, a place for every value) or JSON with comments, then `${VAR}`,
`${VAR:-default}` and `[name]`.

Variables are filled in on values after parsing, so never in comments."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from toolkit.config.reading.located import (
    NOWHERE,
    ConfigNode,
    Diagnostics,
    KeyPath,
    SourceLocation,
    odd_characters,
)
from toolkit.config.reading.yaml_faults import quoted, syntax_fault
from toolkit.files.redact import is_common, is_secret_variable
from toolkit.files.safetensors_io import LENGTH_BYTES
from toolkit.files.writing import read_source

# A string, a line comment, a block comment (perhaps unfinished), or a tab between
# tokens.
_JSON_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?(?:\*/|\Z)|\t', re.DOTALL)


_BINARY = {
    b"\x89PNG": "an image (PNG)",
    b"\xff\xd8\xff": "an image (JPEG)",
    b"GIF8": "an image (GIF)",
    b"RIFF": "an image (WebP) or a film",
    b"PK\3\4": "an archive (zip), or weights of torch",
    b"GGUF": "a GGUF file",
    b"%PDF": "a PDF file",
    b"\x1f\x8b": "an archive (gzip)",
    # of ai-toolkit's page, 2026-08
    b"SQLite f": "a database (SQLite; ai-toolkit's jobs are in output/NAME/config.yaml)",
}
"""First bytes of a binary file -> its kind."""


def binary_kind(path: str | Path) -> str:
    """The kind of a file that cannot be a job, with a remedy. Empty for all other
    files, and for pipes."""
    with suppress(OSError):
        if Path(path).is_file():
            with open(path, "rb") as file:
                start = file.read(LENGTH_BYTES + 1)
            if start[LENGTH_BYTES:] == b"{" and b"\0" in start[:LENGTH_BYTES]:
                return (
                    "is a safetensors file, not a job. "
                    "'run.py inspect FILE' shows what is in it, 'run.py generate --lora FILE' uses a LoRA."
                )
            file_kind = next(
                (kind for magic, kind in _BINARY.items() if start.startswith(magic)), ""
            )
            return (
                f"is {file_kind}, not a job: a YAML or JSON file." if file_kind else ""
            )
    return ""


def read_text(path: str | Path, diagnostics: Diagnostics) -> str:
    """The file as text, with line breaks as LF and without a byte order mark. Raises
    ConfigErrors where it is missing, not UTF-8, binary or cannot be read."""
    if kind := binary_kind(path):
        diagnostics.fatal(NOWHERE, (), kind)
    try:
        return (
            read_source(path)
            .decode("utf-8-sig")
            .replace("\r\n", "\n")
            .replace("\r", "\n")
        )
    except FileNotFoundError:
        diagnostics.fatal(
            NOWHERE, (), f"does not exist (working directory: {Path.cwd()})"
        )
    except UnicodeDecodeError as error:
        diagnostics.fatal(*_wrong_encoding(error))
    except OSError as error:
        diagnostics.fatal(NOWHERE, (), f"cannot be read: {error.strerror}")


def _wrong_encoding(error: UnicodeDecodeError) -> tuple[SourceLocation, KeyPath, str]:
    """The place of the first byte that is not UTF-8, and what it is in the encoding of
    Windows."""
    data = bytes(error.object)
    start = error.start
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return SourceLocation(1, 1), (), "is UTF-16 text. Save it as UTF-8."
    line = data.rfind(b"\n", 0, start) + 1
    place = SourceLocation(
        data.count(b"\n", 0, start) + 1,
        len(data[line:start].decode("utf-8", "replace")) + 1,
    )
    letter = data[start : start + 1].decode("cp1252", "ignore")
    meant = f" (in Windows-1252: {letter!r})" if letter.isprintable() and letter else ""
    return (
        place,
        (),
        f"is not UTF-8 text: the byte 0x{data[start]:02X}{meant}. Save the file as UTF-8.",
    )


def is_json(path: str | Path) -> bool:
    """Whether the file is JSON, perhaps with comments. Only the suffix counts.

    >>> is_json("maya.jsonc"), is_json("maya.yaml")
    (True, False)
    """
    return Path(path).suffix.lower() in (".json", ".jsonc")


def strip_json_comments(text: str) -> str:
    """JSON with spaces in place of comments and tabs. Lines and columns stay as they
    are.

    >>> strip_json_comments('{"a": 1 /* b */}')
    '{"a": 1        }'
    """
    return _JSON_TOKEN.sub(_blank, text)


def _blank(match: re.Match[str]) -> str:
    token = match.group()
    return token if token.startswith('"') else re.sub(r"[^\n]", " ", token)


MAX_NODES = 100_000
MAX_DEPTH = 64

MOST_DIGITS = 4300
"""Digits of a whole number, as Python itself reads."""

_TAG = "tag:yaml.org,2002:"

# The core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema).
_SCALARS = {
    "null": re.compile(r"(?:~|null|Null|NULL|)"),
    "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)"),
    "int": re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)"),
    "float": re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))"
    ),
}


def scalar_kind(text: str) -> str:
    """The type of an unquoted scalar by the core schema of YAML 1.2: null, bool, int,
    float or str. `yes` and `on` are text.

    >>> [scalar_kind(text) for text in ("~", "true", "1e-4", "yes")]
    ['null', 'bool', 'float', 'str']
    """
    return next(
        (kind for kind, pattern in _SCALARS.items() if pattern.fullmatch(text)), "str"
    )


def scalar_value(text: str, kind: str | None = None) -> Any:
    """The value of an unquoted scalar. Raises ValueError when the text is not of the
    given kind.

    >>> scalar_value("0x10"), scalar_value("1e-4"), scalar_value("yes")
    (16, 0.0001, 'yes')
    """
    kind = kind or scalar_kind(text)
    if kind == "str":
        return text
    if not _SCALARS[kind].fullmatch(text):
        raise ValueError(f"{text!r} is not of the kind {kind}")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        if len(text) > MOST_DIGITS:
            raise ValueError(
                f"a number of {len(text):,} digits, of which at most {MOST_DIGITS:,} are read."
            )
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_REFERENCE = re.compile(r"\$?\$\{([^}]*)\}")
_IN_LINE = re.compile(r"\$\{[^}\n\"']*\}")
_MASK = {ord(sign): chr(0x10FFF0 + i) for i, sign in enumerate("{}[],:# ")}
"""For signs of YAML within `${VAR:-a, b}`, which then may stand in braces: characters
that no text has, one for one, so that all places stay."""

_UNMASK = {ord(new): old for old, new in _MASK.items()}


class _Loader(yaml.SafeLoader):
    """Composes nodes only; depth is bounded here because composing recurses."""

    depth = 0

    def __init__(self, text: str) -> None:
        super().__init__(_IN_LINE.sub(lambda match: match[0].translate(_MASK), text))
        self.marked: dict[str, tuple[int, int]] = {}
        """Anchor of an unquoted text -> where it begins and ends, until an alias uses
        it."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        self.depth += 1
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self.marked.pop(event.anchor, None)
        elif (
            isinstance(event, yaml.ScalarEvent) and event.anchor and event.style is None
        ):
            self.marked[event.anchor] = (event.start_mark.index, event.end_mark.index)
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {MAX_DEPTH} levels",
                problem_mark=self.peek_event().start_mark,
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        node.value = node.value.translate(_UNMASK)
        return node

    def resolve(self, kind: type, value: str, implicit: tuple[bool, bool]) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return _TAG + scalar_kind(value)
        tag: str = super().resolve(kind, value, implicit)
        return tag


_ODD_SPACE = re.compile(
    r"^[ -]*(?:([^\S \t\r\n]+)[^\S\n]*(?=- |[\w\"']+ *:)|[\w\"']+:([^\S \t\r\n]))",
    re.MULTILINE,
)
"""Another space than a plain one before a key or a dash, or behind the colon of a
key."""

_TOML = re.compile(
    r"(?:\s*(?:#.*)?\n)*(?:\[\[?[A-Za-z_][\w.]*\]\]?|[A-Za-z_][\w.]* *= *\S.*)[ \t]*(?:#.*)?(?:\n|$)"
)
"""The beginning of a TOML file: the head of a table, or a key with its value."""


def read_yaml(text: str, diagnostics: Diagnostics) -> ConfigNode:
    """The root mapping. Raises ConfigErrors where nothing can be read; other errors go
    to `report`."""
    if _TOML.match(text):
        remedy = "Rename it, so that it ends in .toml: a config of musubi-tuner is then read."
        diagnostics.fatal(SourceLocation(1, 1), (), f"holds TOML, not YAML. {remedy}")
    if odd := _ODD_SPACE.search(text):
        place = _place_of(text, odd.start(odd.lastindex or 0))
        message = f"not valid YAML: a space of another kind. {odd_characters(odd[0])}"
        diagnostics.fatal(place, (), message)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        diagnostics.fatal(*syntax_fault(text, error))
    except yaml.reader.ReaderError as error:
        diagnostics.fatal(
            _place_of(text, error.position),
            (),
            f"not valid YAML: the character U+{error.character:04X}",
        )
    if root is None:
        diagnostics.fatal(
            SourceLocation(1, 1), (), "is empty. A job has the keys 'job' and 'config'."
        )
    if not isinstance(root, yaml.MappingNode):
        listed = (
            [item for item in root.value if isinstance(item, yaml.MappingNode)]
            if root.id == "sequence"
            else []
        )
        is_dataset = {"instance_data_dir", "path"} & {
            key.value for item in listed for key, _ in item.value
        }
        remedy = "A job has the keys 'job' and 'config'."
        if is_dataset:
            remedy = "It is another program's list of datasets, which is not read: docs/coming_from.md."
        diagnostics.fatal(SourceLocation(1, 1), (), f"is not a mapping. {remedy}")
    unused = {start: text[start:end] for start, end in loader.marked.values()}
    return _Builder(diagnostics, unused).build(root, (), _place(root), -1)


class _Builder:
    """Turns YAML nodes into `ConfigNode`s; an alias becomes a copy of what it names,
    and copies are counted."""

    def __init__(self, diagnostics: Diagnostics, unused: Mapping[int, str]) -> None:
        """unused: place in the file -> a text behind an anchor that no alias names."""
        self.diagnostics = diagnostics
        self.unused = unused
        self.count = 0
        self.open: list[yaml.Node] = []

    def build(
        self, node: yaml.Node, path: KeyPath, key_at: SourceLocation, key_end: int
    ) -> ConfigNode:
        self.count += 1
        if self.count > MAX_NODES:
            self.diagnostics.fatal(
                _place(node), path, f"aliases expand to more than {MAX_NODES} values"
            )
        if any(node is parent for parent in self.open):
            self.diagnostics.fatal(
                _place(node), path, "an alias refers to the value that contains it"
            )
        if len(self.open) >= MAX_DEPTH:
            self.diagnostics.fatal(
                _place(node), path, f"nested deeper than {MAX_DEPTH} levels"
            )
        self.open.append(node)
        if isinstance(node, yaml.MappingNode):
            value: Any = self.mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            value = [
                self.build(item, (*path, i), _place(item), -1)
                for i, item in enumerate(node.value)
            ]
        else:
            value = self.scalar(node, path)
        self.open.pop()
        built = ConfigNode(
            value=value,
            path=path,
            key_at=key_at,
            value_at=_place(node),
            text=node.value if isinstance(node, yaml.ScalarNode) else "",
            plain=isinstance(node, yaml.ScalarNode) and node.style is None,
            span=(node.start_mark.index, node.end_mark.index),
            aliased=node.start_mark.index < key_end,
        )
        whole = self.unused.get(node.start_mark.index)
        if whole and isinstance(value, str | None):
            self.diagnostics.warn(
                built,
                f"{whole.split()[0]!r} is left out: '&' marks a value for an alias, '*', and the file has none. "
                f"If it belongs to the text, put the text in quotes: {quoted(whole)}",
            )
        return built

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, ConfigNode]:
        entries: dict[str, ConfigNode] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if self.is_merge(key_node):
                merged.append(value_node)
                continue
            key = self.key(key_node, path)
            if key is None:
                continue
            if key in entries:
                first = entries[key].key_at.line
                self.diagnostics.error_at(
                    _place(key_node),
                    (*path, key),
                    f"duplicate key, first given in line {first}. Remove one of them.",
                )
                continue
            entries[key] = self.build(
                value_node, (*path, key), _place(key_node), key_node.end_mark.index
            )
        for value_node in merged:
            for key, child in self.merge(value_node, path).items():
                entries.setdefault(key, child)
        return entries

    def merge(self, node: yaml.Node, path: KeyPath) -> dict[str, ConfigNode]:
        """The keys that `<<: *anchor` or `<<: [*a, *b]` brings in; earlier ones win."""
        if isinstance(node, yaml.MappingNode):
            built = self.build(node, path, _place(node), -1)
            whole: dict[str, ConfigNode] = built.value
            return whole
        entries: dict[str, ConfigNode] = {}
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                for key, child in self.merge(item, path).items():
                    entries.setdefault(key, child)
        else:
            self.diagnostics.error_at(
                _place(node),
                (*path, "<<"),
                "merges a mapping or a list of mappings only",
            )
        return entries

    def key(self, node: yaml.Node, path: KeyPath) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}str":
            key: str = node.value
            return key
        text = str(node.value) if isinstance(node, yaml.ScalarNode) else "?"
        self.diagnostics.error_at(
            _place(node), (*path, text), "a key must be text. Put it in quotes."
        )
        return None

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind not in ("str", *_SCALARS):
            self.diagnostics.error_at(
                _place(node),
                path,
                f"the tag {node.tag!r} is not supported. Leave it out, or put the text in quotes.",
            )
            return node.value
        try:
            value = scalar_value(node.value, kind)
            # JSON writes characters beyond U+FFFF as two \u escapes, which YAML leaves
            # apart.
            return (
                value.encode("utf-16", "surrogatepass").decode("utf-16")
                if kind == "str"
                else value
            )
        except UnicodeDecodeError:
            self.diagnostics.error_at(
                _place(node),
                path,
                "holds half a character (a lone surrogate). Leave it out.",
            )
            return node.value.encode("utf-8", "replace").decode("utf-8")
        except ValueError as error:
            self.diagnostics.error_at(_place(node), path, str(error))
            return node.value

    @staticmethod
    def is_merge(node: yaml.Node) -> bool:
        return (
            isinstance(node, yaml.ScalarNode)
            and node.style is None
            and node.value == "<<"
        )


def _place(node: yaml.Node) -> SourceLocation:
    return SourceLocation(node.start_mark.line + 1, node.start_mark.column + 1)


def _place_of(text: str, index: int) -> SourceLocation:
    before = text[:index]
    return SourceLocation(before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1)


_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


def expand_variables(
    root: ConfigNode, env: Mapping[str, str], diagnostics: Diagnostics, *skip: KeyPath
) -> ConfigNode:
    """Environment variables in every string but those at `skip`. `$${X}` stands for the
    text `${X}`."""

    def expand(node: ConfigNode) -> ConfigNode:
        if "${" not in node.value:
            return node
        value = _REFERENCE.sub(
            lambda match: _expand_one(match, node, env, diagnostics), node.value
        )
        return replace(node, value=value, written=node.value)

    return map_strings(root, expand, skip)


def secret_values(root: ConfigNode, env: Mapping[str, str]) -> Iterator[str]:
    """The value and the default of every `${VAR}` with the name of a secret, also in
    places where variables are not filled in; and what a `command` takes from any
    variable, unless it is a word or a path."""
    for node in root.walk():
        for reference in (
            _REFERENCE.findall(node.value) if isinstance(node.value, str) else ()
        ):
            variable = _VARIABLE.fullmatch(reference)
            name, default = variable.groups() if variable else ("", None)
            value = env.get(name, "")
            if is_secret_variable(name):
                yield from filter(None, (value, default))
            elif node.path[-1:] == ("command",) and not is_common(value):
                yield value


def written_with_variables(
    node: ConfigNode, key: KeyPath = ()
) -> Iterator[tuple[KeyPath, str]]:
    """(key below `node`, text as it stood in the file) of every scalar in which a
    variable was filled in."""
    if node.written is not None:
        yield key, node.written
    if isinstance(node.value, dict | list):
        children: Iterable[tuple[str | int, ConfigNode]] = (
            node.value.items()
            if isinstance(node.value, dict)
            else enumerate(node.value)
        )
        for part, child in children:
            yield from written_with_variables(child, (*key, part))


def _expand_one(
    match: re.Match[str],
    node: ConfigNode,
    env: Mapping[str, str],
    diagnostics: Diagnostics,
) -> str:
    if match.group().startswith("$$"):
        return match.group()[1:]
    variable = _VARIABLE.fullmatch(match.group(1))
    if not variable:
        diagnostics.error(
            node,
            f"{match.group()!r} does not name an environment variable. Write ${{NAME}}.",
        )
        return match.group()
    name, default = variable.groups()
    if default is not None:
        return env.get(name) or default
    if name not in env:
        diagnostics.error(
            node,
            f"the environment variable {name!r} is not set. Set it, or write ${{{name}:-default}}.",
        )
        return match.group()
    return env[name]


def replace_name(root: ConfigNode, name: str) -> ConfigNode:
    """A copy of the tree with `[name]` in each string replaced by the name of the
    job."""

    def fill(node: ConfigNode) -> ConfigNode:
        written = node.written and node.written.replace("[name]", name)
        return replace(node, value=node.value.replace("[name]", name), written=written)

    return map_strings(root, fill)


def map_paths(root: ConfigNode, moved: Mapping[str, str]) -> ConfigNode:
    """Every text that begins with one of these folders, with the folder where that is
    now."""

    def move(node: ConfigNode) -> ConfigNode:
        path = moved_path(str(node.value), moved)
        return node if path == node.value else replace(node, value=path, written=None)

    return map_strings(root, move) if moved else root


def moved_path(path: str, moved: Mapping[str, str]) -> str:
    """The present place of a path that may begin with one of these folders; separators
    of both kinds are equal."""
    written = path.replace("\\", "/")
    for old, new in moved.items():
        old = old.replace("\\", "/").rstrip("/")
        if written == old or written.startswith(f"{old}/"):
            return f"{new.rstrip('/')}{written[len(old) :]}"
    return path


def map_strings(
    node: ConfigNode,
    change: Callable[[ConfigNode], ConfigNode],
    skip: Collection[KeyPath] = (),
) -> ConfigNode:
    """The tree with `change` applied to each string; the parts at `skip` stay as they
    are."""
    if node.path in skip:
        return node
    if isinstance(node.value, dict):
        return replace(
            node, value={k: map_strings(v, change, skip) for k, v in node.value.items()}
        )
    if isinstance(node.value, list):
        return replace(
            node, value=[map_strings(item, change, skip) for item in node.value]
        )
    return change(node) if isinstance(node.value, str) else node
