"""Nodes of a job that another program's file becomes: values at the places of what they
were made from.

The nodes keep the line and column of the other program's file, so that an error in the
job points there. This module does not know the keys of either program. The readers
call it: `command`, `fluxflow` and its parts, `musubi` and `shapes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.config.reading.located import ConfigNode, Diagnostics, SourceLocation
from toolkit.config.reading.yaml_reader import read_text, read_yaml
from toolkit.errors import ConfigErrors


def at(node: ConfigNode, value: Any) -> ConfigNode:
    """Another value at a node's place."""
    return replace(node, value=value, text=str(value), plain=True, written=None)


def node_at(place: ConfigNode, value: Any) -> ConfigNode:
    """A value that the file does not have, at the place of what it belongs to."""
    return ConfigNode(
        value, place.path, place.key_at, place.value_at, str(value), plain=True
    )


def their(key: str, value: Any, whose: str) -> ConfigNode:
    """A default of another program, which is in no file. whose: what stands for its
    name."""
    nowhere = SourceLocation(0, 0, whose)
    if isinstance(value, list):
        inside = [their(key, item, whose) for item in value]
    else:
        inside = value
    return ConfigNode(inside, (key,), nowhere, nowhere, str(value), plain=True)


def tree(data: Any, place: ConfigNode) -> ConfigNode:
    """Plain data with nodes in it as nodes; entries that are None are left out."""
    if isinstance(data, ConfigNode):
        return data
    if isinstance(data, Mapping):
        nodes = {
            key: tree(value, place) for key, value in data.items() if value is not None
        }
        return node_at(place, nodes)
    if isinstance(data, list | tuple):
        return node_at(place, [tree(value, place) for value in data])
    return node_at(place, data)


def entries(node: ConfigNode | None) -> dict[str, ConfigNode]:
    """The entries of a mapping; none of anything else, or without a node."""
    return node.value if node is not None and isinstance(node.value, dict) else {}


def of_file(node: ConfigNode, file: str) -> ConfigNode:
    """A node and all below it, with places of a file that another one names."""
    value = node.value
    if isinstance(value, dict):
        value = {key: of_file(child, file) for key, child in value.items()}
    elif isinstance(value, list):
        value = [of_file(child, file) for child in value]
    return replace(
        node,
        value=value,
        key_at=node.key_at._replace(file=file),
        value_at=node.value_at._replace(file=file),
    )


def file_root(path: Path, diagnostics: Diagnostics) -> ConfigNode | None:
    """The root of a TOML or JSON file that another one names; None where it cannot be
    read, which is reported."""
    of_file_alone = Diagnostics(str(path))
    root = None
    with suppress(ConfigErrors):  # which are in `of_file_alone`
        text = read_text(path, of_file_alone)
        if path.suffix.lower() == ".toml":
            from toolkit.config.reading.toml_reader import read_toml

            root = read_toml(text, of_file_alone, str(path))
        else:
            root = of_file(read_yaml(text, of_file_alone), str(path))
    diagnostics.include(of_file_alone)
    return root
