"""YAML 1.2 text to `ConfigNode`s: core scalars, no duplicate keys, bounded aliases, a place for every value."""

from __future__ import annotations

import re
from typing import Any

import yaml

from toolkit.config.diagnostics import Diagnostics
from toolkit.config.located import ConfigNode, KeyPath, SourceLocation

MAX_NODES = 100_000
MAX_DEPTH = 64

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
    """null, bool, int, float or str: what an unquoted scalar is."""
    return next((kind for kind, pattern in _SCALARS.items() if pattern.fullmatch(text)), "str")


def scalar_value(text: str, kind: str | None = None) -> Any:
    """The value of an unquoted scalar. Raises ValueError when the text is not of the given kind."""
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
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


class _Loader(yaml.SafeLoader):
    """Composes nodes only; depth is bounded here because composing recurses."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def resolve(self, kind: type, value: str, implicit: tuple[bool, bool]) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return _TAG + scalar_kind(value)
        return super().resolve(kind, value, implicit)


def read_yaml(text: str, diagnostics: Diagnostics) -> ConfigNode:
    """The root mapping. Raises ConfigErrors where nothing can be read; other errors go to `report`."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        env = SourceLocation(mark.line + 1, mark.column + 1) if mark else SourceLocation(1, 1)
        what = "; ".join(part for part in (error.problem, error.note) if part)
        diagnostics.fatal(env, (), f"not valid YAML: {what}")
    except yaml.reader.ReaderError as error:
        diagnostics.fatal(_place_of(text, error.position), (), f"not valid YAML: the character U+{error.character:04X}")
    if root is None:
        diagnostics.fatal(SourceLocation(1, 1), (), "is empty. A job has the keys 'job' and 'config'.")
    if not isinstance(root, yaml.MappingNode):
        diagnostics.fatal(SourceLocation(1, 1), (), "is not a mapping. A job has the keys 'job' and 'config'.")
    return _Builder(diagnostics).build(root, (), _place(root), -1)


class _Builder:
    """Turns YAML nodes into `ConfigNode`s; an alias becomes a copy of what it names, and copies are counted."""

    def __init__(self, diagnostics: Diagnostics) -> None:
        self.diagnostics = diagnostics
        self.count = 0
        self.open: list[yaml.Node] = []

    def build(self, node: yaml.Node, path: KeyPath, key_at: SourceLocation, key_end: int) -> ConfigNode:
        self.count += 1
        if self.count > MAX_NODES:
            self.diagnostics.fatal(_place(node), path, f"aliases expand to more than {MAX_NODES} values")
        if any(node is parent for parent in self.open):
            self.diagnostics.fatal(_place(node), path, "an alias refers to the value that contains it")
        if len(self.open) >= MAX_DEPTH:
            self.diagnostics.fatal(_place(node), path, f"nested deeper than {MAX_DEPTH} levels")
        self.open.append(node)
        if isinstance(node, yaml.MappingNode):
            value: Any = self.mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            value = [self.build(item, (*path, i), _place(item), -1) for i, item in enumerate(node.value)]
        else:
            value = self.scalar(node, path)
        self.open.pop()
        return ConfigNode(
            value=value,
            path=path,
            key_at=key_at,
            value_at=_place(node),
            text=node.value if isinstance(node, yaml.ScalarNode) else "",
            plain=isinstance(node, yaml.ScalarNode) and node.style is None,
            span=(node.start_mark.index, node.end_mark.index),
            aliased=node.start_mark.index < key_end,
        )

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
                message = f"duplicate key, first given in line {first}. Remove one of them."
                self.diagnostics.error_at(_place(key_node), (*path, key), message)
                continue
            entries[key] = self.build(value_node, (*path, key), _place(key_node), key_node.end_mark.index)
        for value_node in merged:
            for key, child in self.merge(value_node, path).items():
                entries.setdefault(key, child)
        return entries

    def merge(self, node: yaml.Node, path: KeyPath) -> dict[str, ConfigNode]:
        """The keys that `<<: *anchor` or `<<: [*a, *b]` brings in; earlier ones win."""
        if isinstance(node, yaml.MappingNode):
            built = self.build(node, path, _place(node), -1)
            return built.value
        entries: dict[str, ConfigNode] = {}
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                for key, child in self.merge(item, path).items():
                    entries.setdefault(key, child)
        else:
            self.diagnostics.error_at(_place(node), (*path, "<<"), "merges a mapping or a list of mappings only")
        return entries

    def key(self, node: yaml.Node, path: KeyPath) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}str":
            return node.value
        text = str(node.value) if isinstance(node, yaml.ScalarNode) else "?"
        self.diagnostics.error_at(_place(node), (*path, text), "a key must be text. Put it in quotes.")
        return None

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind not in ("str", *_SCALARS):
            self.diagnostics.error_at(_place(node), path, f"the tag {node.tag!r} is not supported. Leave it out.")
            return node.value
        try:
            value = scalar_value(node.value, kind)
            # JSON writes characters beyond U+FFFF as two \u escapes, which YAML leaves apart.
            return value.encode("utf-16", "surrogatepass").decode("utf-16") if kind == "str" else value
        except ValueError as error:
            self.diagnostics.error_at(_place(node), path, str(error))
            return node.value

    @staticmethod
    def is_merge(node: yaml.Node) -> bool:
        return isinstance(node, yaml.ScalarNode) and node.style is None and node.value == "<<"


def _place(node: yaml.Node) -> SourceLocation:
    return SourceLocation(node.start_mark.line + 1, node.start_mark.column + 1)


def _place_of(text: str, index: int) -> SourceLocation:
    before = text[:index]
    return SourceLocation(before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1)
