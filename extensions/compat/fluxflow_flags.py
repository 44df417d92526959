"""The flags of FluxFlow's guide as nodes in their places of a file of its shape.

A flag that is given replaces the key of the file. Values are not checked here:
`fluxflow`, which calls `with_flags` before it reads the file, checks them with those of
the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from extensions.compat.fluxflow_keys import SECTIONS, TRAINING, keys
from extensions.compat.nodes import entries
from toolkit.config.reading.foreign import COMMAND_LINE
from toolkit.config.reading.located import (
    ConfigNode,
    Diagnostics,
    KeyPath,
    SourceLocation,
    dotted,
)
from toolkit.config.reading.yaml_reader import scalar_value


def with_flags(
    root: ConfigNode | None,
    flags: Mapping[str, Sequence[str]],
    diagnostics: Diagnostics,
) -> ConfigNode:
    """The root with the flags in their places; None: a root made of them alone.

    A flag goes before every place of the file that has its key, which one warning
    tells. Switches of what is trained do not go together with a pipeline.
    """
    nowhere = ConfigNode({}, (), *(SourceLocation(0, 0, COMMAND_LINE),) * 2)
    root = root or replace(
        nowhere, value={TRAINING: replace(nowhere, path=(TRAINING,))}
    )
    pipeline = root.find((TRAINING, "pipeline"))[0].path == (TRAINING, "pipeline")
    for name, texts in flags.items():
        node = _flag(name, texts, nowhere)
        place = keys()[name].places[0]
        if (
            pipeline
            and name.startswith(("train_", "gan_", "freeze_"))
            and name != "training_steps"
        ):
            diagnostics.error(
                node,
                "cannot be combined with a pipeline: each of its steps says what it trains.",
            )
            continue
        root, replaced = without(root, name)
        if replaced:
            where = " and ".join(dotted(path) for path in replaced)
            diagnostics.warn(node, f"replaces {where} of the file.")
            place = str(replaced[0][0])
        root = with_entry(root, place, name, node)
    return root


def with_entry(
    root: ConfigNode, section: str, key: str, node: ConfigNode
) -> ConfigNode:
    """The root with a key in a section, which is made where it is missing."""
    place = root.value.get(section) or replace(node, text="")
    value = {**entries(place), key: node}
    place = replace(place, value=value, path=(section,))
    return replace(root, value={**root.value, section: place})


def _flag(name: str, texts: Sequence[str], nowhere: ConfigNode) -> ConfigNode:
    kind = keys()[name].kind
    node = replace(nowhere, path=(f"--{name}",))
    if kind == "texts":
        return replace(
            node, value=[replace(node, value=text, text=text) for text in texts]
        )
    text = texts[0] if texts else "true"
    read = scalar_value(text) if kind in ("whole", "number", "switch") else text
    return replace(node, value=read, text=text, plain=True)


def without(node: ConfigNode, key: str) -> tuple[ConfigNode, list[KeyPath]]:
    """The tree without a key of the sections and steps, and where it was."""
    places: list[KeyPath] = []

    def cut(node: ConfigNode, depth: int) -> ConfigNode:
        if isinstance(node.value, list):
            return replace(node, value=[cut(item, depth) for item in node.value])
        if not isinstance(node.value, dict):
            return node
        others = {}
        for name, child in node.value.items():
            if name == key and depth:
                places.append(child.path)
            elif name in (*SECTIONS, "pipeline", "steps", "defaults"):
                others[name] = cut(child, depth + 1)
            else:
                others[name] = child
        return replace(node, value=others)

    return cut(node, 0), places
