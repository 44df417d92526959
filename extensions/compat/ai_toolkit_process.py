"""What an extension written for ai-toolkit imports of its code that is not here, with
what to use instead.

It does not run the extension: the imports are read from its source. The loader of
extensions calls it through `toolkit.registry` when an import has failed.
"""

from __future__ import annotations

import ast
import traceback
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

INSTEAD = {
    "toolkit.config_modules": "its own section class: config = '.config:MyConfig', as in extensions/example",
    "toolkit.stable_diffusion_model": "toolkit.models.loading.load_model(section.model, ...)",
    "toolkit.train_tools": "toolkit.number_types, toolkit.flow, toolkit.optim",
    "toolkit.data_loader": "toolkit.data, by a process that extends jobs.process.trainer.Trainer",
    "toolkit.data_transfer_object": "toolkit.data, by a process that extends jobs.process.trainer.Trainer",
    "toolkit.prompt_utils": "toolkit.data.scan.captions, DiffusionModel.encode_prompt",
    "toolkit.lora_special": "toolkit.networks",
    "jobs.process": "BaseProcess, BaseExtensionProcess, BaseTrainProcess of jobs.process; jobs.process.trainer.Trainer",
}
"""Module of ai-toolkit -> what to use here."""

THEIR_PACKAGES = ("toolkit", "jobs", "extensions_built_in")


def missing_parts(error: BaseException) -> str:
    """What a module of an extension imports of ai-toolkit's own code that is not here,
    all of it, with what to use instead: a line for each module. Empty where something
    else went wrong.

    Source: ai-toolkit 27a03a91, the imports of extensions/ and extensions_built_in/.
    """
    if (
        not isinstance(error, ImportError)
        or (error.name or "").partition(".")[0] not in THEIR_PACKAGES
    ):
        return ""
    files = [
        frame.filename
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_file()
    ]
    tree = ast.parse(Path(files[-1]).read_text(encoding="utf-8"))
    lines = [
        _line(node.module, [alias.name for alias in node.names])
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level and node.module
    ]
    listed = "\n".join(filter(None, lines))
    head = "ai-toolkit's own code, which this program is not and has not:"
    return f"{head}\n{listed}" if listed else ""


def _line(module: str, names: list[str]) -> str:
    """The line of a module that lacks some of the names; empty where it has them all,
    or is another package."""
    is_theirs = module.partition(".")[0] in THEIR_PACKAGES
    lost = _lost(module, names) if is_theirs else []
    instead = next(
        (
            f": here {ours}"
            for theirs, ours in INSTEAD.items()
            if f"{module}.".startswith(f"{theirs}.")
        ),
        "",
    )
    return f"  {module} ({', '.join(lost)}){instead}" if lost else ""


def _lost(module: str, names: list[str]) -> list[str]:
    """Those of the names that the module does not have; all of a module that is not
    there."""
    try:
        imported = import_module(module)
    except ImportError:
        return names
    return [
        name
        for name in names
        if not hasattr(imported, name) and not _is_module(f"{module}.{name}")
    ]


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:
        return False
