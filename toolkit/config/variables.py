"""`${VAR}`, `${VAR:-default}` and `[name]`, filled in on values after parsing, so never in comments."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

from toolkit.config.diagnostics import Diagnostics
from toolkit.config.located import ConfigNode, KeyPath
from toolkit.redact import is_secret_variable

_REFERENCE = re.compile(r"\$?\$\{([^}]*)\}")
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


def expand_variables(root: ConfigNode, env: Mapping[str, str], diagnostics: Diagnostics, *skip: KeyPath) -> ConfigNode:
    """Environment variables in every string but those at `skip`. `$${X}` stands for the text `${X}`."""

    def expand(node: ConfigNode) -> ConfigNode:
        if "${" not in node.value:
            return node
        value = _REFERENCE.sub(lambda match: _expand_one(match, node, env, diagnostics), node.value)
        return replace(node, value=value, written=node.value)

    return map_strings(root, expand, skip)


def secret_values(root: ConfigNode, env: Mapping[str, str]) -> Iterator[str]:
    """What every `${VAR}` with the name of a secret stands for, its default too; also where none is filled in."""
    for node in root.walk():
        for reference in _REFERENCE.findall(node.value) if isinstance(node.value, str) else ():
            variable = _VARIABLE.fullmatch(reference)
            if variable and is_secret_variable(variable.group(1)):
                yield from filter(None, (env.get(variable.group(1)), variable.group(2)))


def written_with_variables(node: ConfigNode, key: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """(key below `node`, text as it stood in the file) of every scalar in which a variable was filled in."""
    if node.written is not None:
        yield key, node.written
    if isinstance(node.value, dict | list):
        for part, child in node.value.items() if isinstance(node.value, dict) else enumerate(node.value):
            yield from written_with_variables(child, (*key, part))


def _expand_one(match: re.Match[str], node: ConfigNode, env: Mapping[str, str], diagnostics: Diagnostics) -> str:
    if match.group().startswith("$$"):
        return match.group()[1:]
    variable = _VARIABLE.fullmatch(match.group(1))
    if not variable:
        diagnostics.error(node, f"{match.group()!r} does not name an environment variable. Write ${{NAME}}.")
        return match.group()
    name, default = variable.groups()
    if default is not None:
        return env.get(name) or default
    if name not in env:
        diagnostics.error(node, f"the environment variable {name!r} is not set. Set it, or write ${{{name}:-default}}.")
        return match.group()
    return env[name]


def replace_name(root: ConfigNode, name: str) -> ConfigNode:
    """`[name]` in every string."""

    def fill(node: ConfigNode) -> ConfigNode:
        written = node.written and node.written.replace("[name]", name)
        return replace(node, value=node.value.replace("[name]", name), written=written)

    return map_strings(root, fill)


def map_strings(
    node: ConfigNode, change: Callable[[ConfigNode], ConfigNode], skip: Collection[KeyPath] = ()
) -> ConfigNode:
    """The tree with `change` applied to each string; the parts at `skip` stay as they are."""
    if node.path in skip:
        return node
    if isinstance(node.value, dict):
        return replace(node, value={k: map_strings(v, change, skip) for k, v in node.value.items()})
    if isinstance(node.value, list):
        return replace(node, value=[map_strings(item, change, skip) for item in node.value])
    return change(node) if isinstance(node.value, str) else node
