"""Nodes of a job that another program's file becomes: values at the places of what they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from toolkit.config.located import ConfigNode


def at(node: ConfigNode, value: Any) -> ConfigNode:
    """Another value at a node's place."""
    return replace(node, value=value, text=str(value), plain=True, written=None)


def made(place: ConfigNode, value: Any) -> ConfigNode:
    """A scalar that the file does not have, at the place of what it belongs to."""
    return ConfigNode(value, place.path, place.key_at, place.value_at, str(value), plain=True)


def tree(data: Any, place: ConfigNode) -> ConfigNode:
    """Plain data with nodes in it as nodes; entries that are None are left out."""
    if isinstance(data, ConfigNode):
        return data
    if isinstance(data, Mapping):
        return made(place, {key: tree(value, place) for key, value in data.items() if value is not None})
    if isinstance(data, list | tuple):
        return made(place, [tree(value, place) for value in data])
    return made(place, data)
