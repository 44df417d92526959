"""Which optimizer a job means, and which arguments it takes: read from the source, so that planning needs no torch."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toolkit.errors import UserError, did_you_mean
from toolkit.registry import Registry

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adamw": "torch.optim:AdamW",
        "adam": "torch.optim:Adam",
        "sgd": "torch.optim:SGD",
        "adamw8bit": "bitsandbytes.optim:AdamW8bit",
        "adam8bit": "bitsandbytes.optim:Adam8bit",
        "lion8bit": "bitsandbytes.optim:Lion8bit",
        "ademamix8bit": "bitsandbytes.optim:AdEMAMix8bit",
        "adafactor": "transformers.optimization:Adafactor",
        "prodigy": "prodigyopt:Prodigy",
        "schedulefree_adamw": "schedulefree:AdamWScheduleFree",
    },
)

DEFAULTS: dict[str, dict[str, Any]] = {
    # Adafactor's own learning rate would ignore `train.lr`.
    "adafactor": {"relative_step": False, "scale_parameter": False, "warmup_init": False},
}
"""Arguments an optimizer gets unless `optimizer_params` says otherwise."""

NUMBER_BY_NUMBER = (
    "adamw",
    "adam",
    "sgd",
    "schedulefree_adamw",
    *(f"torch.optim.{name}" for name in ("AdamW", "Adam", "SGD", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad")),
)
"""Optimizers known to step each number of a weight by nothing but its own gradients, and to keep what they remember of
it in tensors of the weight's shape: a part of a weight moves as it does within the whole."""

NOT_ARGUMENTS = {"self", "params", "lr"}
"""What the constructor gets from the run itself."""

UNREADABLE = object()
"""A default that is no literal; any value is taken for it."""


class ArgumentError(UserError):
    """A mistake in `train.optimizer_params`."""


def is_schedule_free(name: str) -> bool:
    """Whether the optimizer averages its weights itself and wants no schedule."""
    return OPTIMIZERS.get(name, name).lower().endswith("schedulefree")


def wants_one_rate(name: str) -> bool:
    """Whether the optimizer refuses groups with unlike learning rates (it finds one rate for all)."""
    return OPTIMIZERS.get(name, name).replace(":", ".").rpartition(".")[2].startswith(("Prodigy", "DAdapt"))


def check_choice(name: str, arguments: Mapping[str, Any]) -> None:
    """Raises UserError for an optimizer that is not there and for arguments it does not take.

    A class that cannot be found by reading alone is left to `build_optimizer`.
    """
    module, _, class_name = OPTIMIZERS.get(name, ":".join(name.rpartition(".")[::2])).partition(":")
    package = module.partition(".")[0]
    if name not in OPTIMIZERS and is_missing(package):
        raise UserError(f"{name!r}: there is no package {package!r} here. Is it installed, and spelled right?")
    defaults = read_defaults(module, class_name)
    if defaults is not None:
        typed_arguments(name, defaults, arguments)
    elif (names := names_in(module)) is not None and class_name not in names:
        classes = [known for known in names if known[:1].isupper()] or names
        raise UserError(f"{module} has no {class_name!r}. {did_you_mean(class_name, classes, list_all=False)}")


def is_missing(package: str) -> bool:
    """Whether a top-level package cannot be found, for certain. Imports nothing."""
    try:
        return find_spec(package) is None
    except (ImportError, ValueError):
        return False


# ------------------------------------------------------------ the constructor, as it is written


def read_defaults(module: str, class_name: str, depth: int = 4) -> dict[str, Any] | None:
    """Argument -> default of a class's constructor, or None where reading the files does not find it.

    Names that a module only imports from another one are followed `depth` times.
    """
    path = _source_of(module)
    if path is None or depth == 0:
        return None
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return _constructor_defaults(node)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == class_name:
                    return read_defaults(_absolute(node, module, path), alias.name, depth - 1)
    return None


def names_in(module: str) -> set[str] | None:
    """Every name a module's source defines or imports; None where that is not all there is to know."""
    path = _source_of(module)
    if path is None:
        return None
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return None if names & {"*", "__getattr__"} else names


def _source_of(module: str) -> Path | None:
    package, *parts = module.split(".")
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin:
        return None
    folder = Path(spec.origin).parent
    if not parts:
        return Path(spec.origin) if spec.origin.endswith(".py") else None
    place = folder.joinpath(*parts)
    candidates = [place.with_name(place.name + ".py"), place / "__init__.py"]
    return next((path for path in candidates if path.is_file()), None)


def _absolute(node: ast.ImportFrom, module: str, path: Path) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *filter(None, [node.module])])


def _constructor_defaults(node: ast.ClassDef) -> dict[str, Any] | None:
    constructor = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
    if constructor is None or constructor.args.kwarg:
        return None
    arguments = constructor.args
    positional = [*arguments.posonlyargs, *arguments.args]
    values = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, values, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return {argument.arg: _literal(value) for argument, value in pairs if argument.arg not in NOT_ARGUMENTS}


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else UNREADABLE
    except ValueError:
        return UNREADABLE


# ------------------------------------------------------------ arguments


def typed_arguments(name: str, defaults: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The user's `optimizer_params` in the types of the constructor's defaults.

    Texts are read as numbers, true and false, or lists ("0.9,0.999"), as musubi-tuner reads them.
    Raises ArgumentError for an argument the optimizer does not take, or of another type.
    """
    typed = {}
    for argument, value in arguments.items():
        if argument == "lr":
            raise ArgumentError("'lr' has its own key. Write train.lr.")
        if argument not in defaults:
            raise ArgumentError(f"{name} has no {argument!r}. {did_you_mean(argument, defaults)}")
        typed[argument] = _typed(argument, defaults[argument], value)
    return typed


def _typed(argument: str, default: Any, given: Any) -> Any:
    value = given
    if isinstance(given, str) and not isinstance(default, str):
        value = _read(given)
    if default is None or default is UNREADABLE or value is None:
        return value
    if isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, int | float):
        fits, wanted = _is_number(value), "a number"
    elif isinstance(default, tuple | list):
        fits = isinstance(value, tuple | list) and len(value) == len(default)
        fits, wanted = fits and all(_is_number(part) or part is None for part in value), f"{len(default)} numbers"
        value = tuple(value) if fits else value
    else:
        fits, wanted = isinstance(value, type(default)), f"a {type(default).__name__}"
    if not fits:
        example = f", such as {list(default)}" if isinstance(default, tuple) else f", such as {default}"
        raise ArgumentError(f"{argument}: {given!r} is not {wanted}{example}.")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _read(text: str) -> Any:
    """A text as the literal it spells, or as it is."""
    folded = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(text.strip().lower(), text.strip())
    try:
        return ast.literal_eval(folded)
    except (ValueError, SyntaxError):
        return text
