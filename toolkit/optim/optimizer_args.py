"""Which optimizer a job means, which arguments it takes, and how many bytes of state it
has. Checking and planning a job import neither torch nor the class: of one that is not
in the table they read the source (`toolkit.class_source`).

Source of the bytes: the tensors that the class puts into its state in its first step
(torch.optim, transformers' optimization.py, prodigyopt's prodigy.py, schedulefree's
adamw_schedulefree.py, bitsandbytes' optimizer.py and ademamix.py; its blocks have 256
weights, its matrices below 4096 weights stay float32)."""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from toolkit.errors import UserError, did_you_mean
from toolkit.registry import Registry, collection_paused
from toolkit.rounding import ceil_divide

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from toolkit.class_source import ClassSource, Function


Shape = tuple[int, ...]
Arguments = Mapping[str, Any]

_ROWS: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("optimizers.json").read_text(encoding="utf-8")
)
"""Short name -> its class; the extra with its package, and the package as pip takes it,
where that is not in requirements.txt; whether it is one of `ELEMENTWISE`; the learning
rate above which a typing error, or the rate of another optimizer, is likely; the
arguments of its constructor with their defaults (torch 2.13, bitsandbytes,
transformers, prodigyopt, schedulefree as in requirements.txt). The arguments of an
optimizer whose row has none are read from the source."""

OPTIMIZERS = Registry("optimizer", {name: row["class"] for name, row in _ROWS.items()})

EXTRAS: dict[str, tuple[str, str]] = {
    name: (row["extra"], row["package"])
    for name, row in _ROWS.items()
    if "extra" in row
}
"""Short name -> the extra with its package, and the package as pip takes it. All others
are in requirements.txt."""

HIGHEST_LR: dict[str, float] = {
    name: row["highest_lr"] for name, row in _ROWS.items() if "highest_lr" in row
}


def _default(stored: Any) -> Any:
    """The default of an argument in `_ROWS`: JSON has no tuples and no infinity."""
    if isinstance(stored, list):
        return tuple(stored)
    return math.inf if stored == "Infinity" else stored


ARGUMENTS: dict[str, dict[str, Any]] = {
    name: {argument: _default(stored) for argument, stored in row["arguments"].items()}
    for name, row in _ROWS.items()
    if "arguments" in row
}
"""Short name -> argument -> default of the constructor."""

DEFAULTS: dict[str, dict[str, Any]] = {
    # Adafactor's own learning rate would ignore `train.lr`.
    "adafactor": {
        "relative_step": False,
        "scale_parameter": False,
        "warmup_init": False,
    },
    # Of a LoRA its matrices are those of the rank; of the long sides they would be a
    # hundred times the weights.
    "soap": {"max_precondition_dim": 512},
}
"""Arguments an optimizer gets unless `optimizer_params` says otherwise."""

ELEMENTWISE = (
    *(name for name, row in _ROWS.items() if row.get("elementwise")),
    *map(
        "torch.optim.{}".format,
        ("AdamW", "Adam", "SGD", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad"),
    ),
)
"""Optimizers known to step each number of a weight by nothing but its own gradients,
and to keep what they remember of it in tensors of the weight's shape: a part of a
weight moves as it does within the whole."""

NOT_ARGUMENTS = {
    "self",
    "params",
    "lr",
    "defaults",
    "args",
    "clip_lambda",
    "layer_key_fn",
}
"""What a constructor, or that of a base, gets from the run itself, bitsandbytes' object
of settings, and functions."""

RANGES = {
    **dict.fromkeys(("betas", "beta1", "beta3"), (0, 1)),
    **dict.fromkeys(
        ("weight_decay", "momentum", "alpha", "min_8bit_size"), (0, math.inf)
    ),
    # With eps 0 a weight whose gradient is 0, as one factor of a LoRA in the first
    # step, becomes 0 / 0.
    **dict.fromkeys(("d0", "slice_p", "eps"), (5e-324, math.inf)),
    "muon.momentum": (0, 1),
    "rmsprop.alpha": (0, 1),
    "clip_threshold": (5e-324, math.inf),
}
"""Argument, or of one optimizer -> its least value, and the one below which it has to
be."""

REQUIRED = object()
"""Instead of a default, of an argument that has none; any value is taken for it."""


class ArgumentError(UserError):
    """An error in `train.optimizer_params`."""


def is_schedule_free(name: str, arguments: Arguments = MappingProxyType({})) -> bool:
    """Whether the optimizer averages its weights itself, and wants neither a schedule
    nor an EMA: its class has weights to train and weights to use (`train` and `eval`),
    and its argument `use_schedulefree`, if any, is not false.

    >>> is_schedule_free("adamw")
    False
    """
    by_name = _kind(name).lower().endswith("schedulefree")
    if name in ARGUMENTS:
        return by_name
    try:
        source = find_optimizer(name)
    except UserError:  # another check reports it
        return by_name
    if not by_name and not (source.method("train") and source.method("eval")):
        return False
    key = "use_schedulefree"
    given = arguments.get(key, named_arguments(source).get(key, True))
    return (_read(given) if isinstance(given, str) else given) is not False


def requires_single_lr(name: str) -> bool:
    """Whether the optimizer refuses groups with unlike learning rates: Prodigy and
    D-Adaptation find one rate for all.

    >>> requires_single_lr("prodigy"), requires_single_lr("adamw")
    (True, False)
    """
    return _kind(name).startswith(("Prodigy", "DAdapt"))


def takes_argument(name: str, argument: str) -> bool:
    """Whether the constructor names this argument. False for an optimizer that does not
    exist.

    >>> takes_argument("adamw", "betas"), takes_argument("adamw", "momentum")
    (True, False)
    """
    try:
        return argument in (
            ARGUMENTS.get(name) or named_arguments(find_optimizer(name))
        )
    except UserError:  # another check reports it
        return False


def check_optimizer(name: str, arguments: Mapping[str, Any]) -> None:
    """Raises UserError for an optimizer that is not there and for arguments it does not
    take. Imports nothing.

    Values that the constructor of a class outside `ARGUMENTS` refuses, and what depends
    on the device, are found when the training starts (`toolkit.optim.trial`).
    """
    if "maximize" in arguments and _typed("maximize", False, arguments["maximize"]):
        raise ArgumentError("maximize: true would make the loss larger. Leave it out.")
    if name in ARGUMENTS:
        typed = typed_arguments(name, ARGUMENTS[name], arguments)
        for argument, value in typed.items():
            if reason := _refused(name, argument, value, typed):
                raise ArgumentError(
                    f"{argument}: {arguments[argument]!r} {reason}. Correct or remove it."
                )
        return
    if name in EXTRAS and find_spec(OPTIMIZERS[name].partition(":")[0]) is None:
        extra, package = EXTRAS[name]
        raise UserError(
            f"'{name}' needs the package {package.partition('=')[0]} (the extra '{extra}'), which is not "
            f"installed. Run: pip install {package}"
        )
    source = find_optimizer(name)
    typed_arguments(name, named_arguments(source), arguments, takes_any_name(source))


def unnamed_arguments(name: str, arguments: Arguments) -> Iterator[str]:
    """Warnings on arguments that the constructor takes only because it takes any name:
    it may ignore them.

    Yields nothing for an optimizer of `ARGUMENTS`, and where the source does not tell
    all names. Raises UserError for an optimizer that does not exist.
    """
    if name in ARGUMENTS:
        return
    source = find_optimizer(name)
    if not takes_any_name(source) or any(
        base.node is None for base in source.lineage()
    ):
        return
    named = named_arguments(source)
    for argument in arguments:
        if argument not in named:
            yield (
                f"{name} does not name {argument!r} among its arguments, and may ignore it. "
                f"{did_you_mean(argument, named)}"
            )


def _refused(name: str, argument: str, value: Any, given: Mapping[str, Any]) -> str:
    """Why an optimizer of the table refuses the value of an argument; empty: it does
    not."""
    least, below = RANGES.get(f"{name}.{argument}", RANGES.get(argument, (None, 0)))
    numbers = value if isinstance(value, tuple | list) else [value]
    if least is not None and any(
        _is_number(number) and not least <= number < below for number in numbers
    ):
        bounds = "above 0" if least else "at least 0"
        return f"is out of range: must be {bounds} and {f'below {below}' if below < math.inf else 'finite'}"
    if argument == "slice_p" and not isinstance(value, int):
        return "is not a whole number"
    if ARGUMENTS[name][argument] is None and isinstance(
        value, str | tuple | list | dict
    ):
        return "is neither a number nor true or false"
    impossible = {
        "growth_rate": _is_number(value)
        and value <= 0
        and "is out of range: must be above 0",
        "differentiable": value and "is not possible for weights that are trained",
        "relative_step": value and "is not possible: the learning rate is 'lr'",
        "warmup_init": value and "is not possible: it requires relative_step",
        "nesterov": value
        and (not given.get("momentum") or given.get("dampening"))
        and "needs momentum, undampened",
        "amsgrad": value and name.endswith("8bit") and "is not possible with 8 bits",
        "optim_bits": value != 32 and "is not possible, only 32",
    }
    return str(impossible.get(argument) or "")


# ------------------------------------------------------------ the class in its source


def _path(name: str) -> str:
    """The dotted path of an optimizer's class."""
    return name if "." in name else OPTIMIZERS.path_of(name).replace(":", ".")


def find_optimizer(name: str) -> ClassSource:
    """The class behind a short name or a dotted path, without importing it. Raises
    UserError when there is none."""
    from toolkit.class_source import find_class

    path = _path(name)
    try:
        source = find_class(path)
    except UserError as error:
        raise UserError(f"{name!r}: {error}") from error
    of_python = path.partition(".")[0] in sys.stdlib_module_names
    if of_python or source.is_other or not _may_be_optimizer(source):
        raise UserError(
            f"{name!r} is not an optimizer. Give a class such as 'torch.optim.AdamW'."
        )
    step = source.method("step")
    if step is not None and declared_arguments(step).get("closure") is REQUIRED:
        raise UserError(
            f"{name!r} evaluates the loss several times per step, which is not possible."
        )
    return source


def _may_be_optimizer(source: ClassSource) -> bool:
    """Whether the source leaves it possible that a class is a torch.optim.Optimizer,
    and not that one itself."""
    lineage = [
        (base.module.name, base.node.name) if base.node else None
        for base in source.lineage()
    ]
    return lineage[0] != _BASE and (None in lineage or _BASE in lineage)


_BASE = ("torch.optim.optimizer", "Optimizer")


def takes_any_name(source: ClassSource) -> bool:
    """Whether a constructor takes arguments that it does not name, or is not known."""
    init = source.method("__init__")
    return init is None or init.args.kwarg is not None


def named_arguments(source: ClassSource) -> dict[str, Any]:
    """Argument -> default, as `signature_of`, by the source; where the constructor
    passes any name on, also of those of the class's bases. A default that is not a
    literal is REQUIRED."""
    named: dict[str, Any] = {}
    for base in source.lineage():
        init = base.own_method("__init__")
        if init is None:
            continue
        named = {**declared_arguments(init), **named}
        if init.args.kwarg is None:
            break
    for name in NOT_ARGUMENTS:
        named.pop(name, None)
    return named


def declared_arguments(function: Function) -> dict[str, Any]:
    """Argument -> default of a function in the source."""
    given = function.args
    names = [*given.posonlyargs, *given.args]
    defaults = [
        *[None] * (len(names) - len(given.defaults)),
        *given.defaults,
        *given.kw_defaults,
    ]
    pairs = zip([*names, *given.kwonlyargs], defaults, strict=True)
    return {argument.arg: _literal(default) for argument, default in pairs}


def _literal(default: ast.expr | None) -> Any:
    try:
        return REQUIRED if default is None else ast.literal_eval(default)
    except NO_LITERAL:
        return REQUIRED


_OF_REQUIREMENTS = frozenset(
    re.split("[.:]", path)[0] for name, path in OPTIMIZERS.items() if name not in EXTRAS
)


def imported_code(name: str) -> str:
    """What a training imports for an optimizer with a dotted path besides the packages
    that the program itself uses: the file of the class; empty: nothing. Raises
    UserError when there is none."""
    from toolkit.class_source import find_module

    if _path(name).partition(".")[0] in _OF_REQUIREMENTS:
        return ""
    module = find_module(_path(name).rpartition(".")[0])
    return str(module.file or module.name)


# ------------------------------------------------------------ the class


def optimizer_class(name: str) -> type[Optimizer]:
    """The class behind a short name or a dotted path; its module is imported and
    executed now, so only a training asks. Raises UserError when there is none."""
    if "." not in name:
        listed: type[Optimizer] = OPTIMIZERS.load(name)
        return listed
    from toolkit.class_source import missing_package

    module_path, _, class_name = name.rpartition(".")
    package = module_path.partition(".")[0]
    try:
        module = import_module(module_path)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise UserError(f"{name!r}: {missing_package(package)}") from error
        raise UserError(f"{name!r} cannot be imported: {error}.") from error
    cls: type[Optimizer] | None = getattr(module, class_name, None)
    if cls is None:
        classes = [key for key, value in vars(module).items() if _is_optimizer(value)]
        hint = did_you_mean(class_name, classes, list_all=False) if classes else ""
        raise UserError(f"{module_path} has no {class_name!r}. {hint}".rstrip())
    if not _is_optimizer(cls):
        raise UserError(
            f"{name!r} is not an optimizer. Give a class such as 'torch.optim.AdamW'."
        )
    closure = inspect.signature(cls.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(
            f"{name!r} evaluates the loss several times per step, which is not possible."
        )
    return cls


def _is_optimizer(value: Any) -> bool:
    from torch.optim import Optimizer

    return (
        isinstance(value, type)
        and issubclass(value, Optimizer)
        and value is not Optimizer
    )


def signature_of(cls: type) -> tuple[dict[str, Any], bool]:
    """Argument -> default of those that a constructor names, and whether it takes any
    other."""
    named = {}
    takes_any = False
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any = True
        elif (
            parameter.name not in NOT_ARGUMENTS
            and parameter.kind is not parameter.VAR_POSITIONAL
        ):
            named[parameter.name] = (
                REQUIRED if parameter.default is parameter.empty else parameter.default
            )
    return named, takes_any


# ------------------------------------------------------------ arguments


def typed_arguments(
    name: str,
    defaults: Mapping[str, Any],
    arguments: Mapping[str, Any],
    takes_any: bool = False,
) -> dict[str, Any]:
    """The user's `optimizer_params` in the types of the constructor's defaults.

    Texts are read as numbers, true and false, or lists ("0.9,0.999"), as musubi-tuner
    reads them. takes_any: whether an argument without a default is passed on as it is,
    and not refused. Raises ArgumentError for an argument the optimizer does not take,
    or of another type.
    """
    typed = {}
    for argument, value in arguments.items():
        if argument == "lr":
            raise ArgumentError("'lr' has its own key. Write train.lr.")
        if argument not in defaults and takes_any:
            typed[argument] = value
            continue
        if argument not in defaults:
            raise ArgumentError(
                f"{name} has no {argument!r}. {did_you_mean(argument, defaults)}"
            )
        typed[argument] = _typed(argument, defaults[argument], value)
    return typed


def _typed(argument: str, default: Any, given: Any) -> Any:
    value = given
    if isinstance(given, str) and not isinstance(default, str):
        value = _read(given)
    if default is None or default is REQUIRED:
        return value
    if isinstance(default, bool):
        fits = isinstance(value, bool)
        wanted = "true or false"
    elif isinstance(default, int | float):
        fits = _is_number(value)
        wanted = "a number"
    elif isinstance(default, tuple | list):
        fits = isinstance(value, tuple | list) and len(value) == len(default)
        parts = zip(value, default, strict=True) if fits else ()
        fits = fits and all(
            _is_number(part) or part is default_part for part, default_part in parts
        )
        wanted = f"{len(default)} numbers"
        # whole numbers as fractions where the defaults are: PyTorch refuses betas of
        # both kinds
        if fits:
            value = tuple(
                float(part)
                if isinstance(default_part, float) and isinstance(part, int)
                else part
                for default_part, part in zip(default, value, strict=True)
            )
    else:
        fits = isinstance(value, type(default))
        wanted = f"a {type(default).__name__}"
    if not fits:
        example = (
            f", such as {list(default)}"
            if isinstance(default, tuple)
            else f", such as {default}"
        )
        raise ArgumentError(f"{argument}: {given!r} is not {wanted}{example}.")
    return value


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and not math.isnan(value)
    )


def _read(text: str) -> Any:
    """A text as the literal it spells, or as it is."""
    folded = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(
        text.strip().lower(), text.strip()
    )
    try:
        return ast.literal_eval(folded)
    except NO_LITERAL:
        return text


NO_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
"""What `ast.literal_eval` raises of a text that is not a literal, or nested too
deeply."""


# ------------------------------------------------------------ the optimizer itself


def make_optimizer(
    name: str,
    groups: Iterable[Iterable[Tensor]],
    lr: float,
    arguments: Mapping[str, Any],
    ours: Mapping[str, Any] | None = None,
) -> Optimizer:
    """The optimizer over these groups of parameters. ours: arguments where the user
    gives none.

    Raises ArgumentError for arguments that it does not take or refuses.
    """
    constructor = cast("Callable[..., Optimizer]", optimizer_class(name))
    defaults, takes_any = signature_of(optimizer_class(name))
    arguments = typed_arguments(name, defaults, arguments, takes_any)
    fresh = [{"params": list(group)} for group in groups]

    def make(given: Mapping[str, Any]) -> Optimizer:
        with collection_paused():  # the first one imports torch._dynamo
            arguments = {**DEFAULTS.get(name, {}), **(ours or {}), **given}
            # Some refuse 0 in the constructor only; it means that nothing is learned.
            return constructor(
                [dict(group) for group in fresh], lr=1.0 if lr == 0 else lr, **arguments
            )

    try:
        return make(arguments)
    except Exception as error:
        reason = str(error).rstrip(".")
        try:
            make({})
        except Exception as alone:  # noqa: BLE001 - of any class
            if str(alone) == str(error):
                given = {**DEFAULTS.get(name, {}), **(ours or {}), **arguments}
                asked = [
                    argument
                    for argument, default in defaults.items()
                    if default is REQUIRED and argument not in given
                ]
                remedy = "Choose another optimizer"
                if asked:
                    values = ", ".join(f"{argument}: VALUE" for argument in asked)
                    remedy = f"Write train.optimizer_params: {{{values}}}"
                raise UserError(
                    f"{name} cannot be made for groups of weights as a job has them: "
                    f"{reason}. {remedy}."
                ) from error
        raise ArgumentError(
            f"{name} refuses them: {reason}. Correct or remove the argument."
        ) from error


# ------------------------------------------------------------ bytes


BLOCK = 256
LEAST_FOR_8_BIT = 4096
FLOAT = 4


def optimizer_bytes(name: str, arguments: Arguments, shapes: Iterable[Shape]) -> int:
    """Bytes of the state for weights of these shapes. name, arguments:
    `train.optimizer` and its `optimizer_params`.

    A class that is not in the tables is measured where a training starts (`measuring`).
    Elsewhere, as nothing is imported there, it is taken to keep two numbers per weight,
    as most do.
    """
    shapes = list(shapes)
    if not has_known_state(name, arguments):
        measure = measuring.get()
        measured = measure(name, arguments, shapes) if measure else None
        return 2 * FLOAT * sum(map(prod, shapes)) if measured is None else measured
    kind = _kind(name)
    if moments := _EIGHT_BIT_MOMENTS.get(kind):
        # With the scale of each block; in float32 where the weight is small.
        of_moment = sum(
            n + FLOAT * ceil_divide(n, BLOCK) if n >= LEAST_FOR_8_BIT else FLOAT * n
            for n in map(prod, shapes)
        )
        return moments * of_moment
    given = {**DEFAULTS.get(name, {}), **arguments}
    return sum(int(FLOAT * _NUMBERS[kind](shape, given)) for shape in shapes)


Measure = Callable[[str, Arguments, Sequence[Shape]], "int | None"]
measuring: ContextVar[Measure | None] = ContextVar("measuring", default=None)
"""Gives the bytes of the state of a class that is not in the tables, None where it
cannot be measured; nothing is measured where there is none. A training sets it once it
may import the class (`trial.measured_states`)."""


MUCH_STATE = 32
"""Bytes of state per weight above which there is a warning: twice the bytes of
Prodigy."""


def state_note(name: str, arguments: Arguments, shapes: Sequence[Shape]) -> str:
    """The line of a plan on the state of an optimizer that the tables do not have: its
    measured bytes per weight, or a note that it is measured before the first step.

    A warning where the state takes more than `MUCH_STATE` bytes per weight; otherwise
    empty.
    """
    is_known = has_known_state(name, arguments)
    measure = measuring.get()
    if not is_known and measure is None:
        return (
            f"optimizer {name} is not in the tables of this program. Its state is taken to be two numbers per "
            "weight; it is measured, and the class tried, before the first step"
        )
    if not is_known and measure and measure(name, arguments, shapes) is None:
        return ""  # the trial says why
    per_weight = optimizer_bytes(name, arguments, shapes) / max(
        1, sum(map(prod, shapes))
    )
    limit = "max_precondition_dim"
    if per_weight > MUCH_STATE:
        smallest = max(map(min, shapes))  # of a LoRA the rank
        remedy = (
            f". Give optimizer_params: {{{limit}: {smallest}}}"
            if takes_argument(name, limit)
            else ""
        )
        return f"warning: optimizer {name} keeps {per_weight:,.0f} bytes of state per weight{remedy}"
    if is_known:
        return ""
    return f"optimizer {name}: {per_weight:.3g} bytes of state per weight"


def has_known_state(name: str, arguments: Arguments) -> bool:
    """Whether the tables say what the state of an optimizer with these arguments
    takes."""
    kind = _kind(name)
    is_other = name.startswith("heavyball.") or arguments.keys() & _RESHAPES_STATE
    return not is_other and (kind in _NUMBERS or kind in _EIGHT_BIT_MOMENTS)


def _kind(name: str) -> str:
    """The name of the class; bitsandbytes' paged ones have the state of the others."""
    return (
        OPTIMIZERS.get(name, name)
        .replace(":", ".")
        .rpartition(".")[2]
        .removeprefix("Paged")
    )


_RESHAPES_STATE = {
    "factored",
    "factored_2nd",
    "kourkoutas_beta",
    "nnmf_factor",
    "state_precision",
    "use_focus",
}
"""Arguments, of ProdigyPlus and adv-optm, with which a class of the table has another
state."""


def _rows_and_columns(shape: Shape) -> float:
    """Numbers of the means of a matrix's rows and columns; of a vector all."""
    if len(shape) >= 2:
        return prod(shape) // shape[-1] + prod(shape) // shape[-2]
    return prod(shape)


def _numbers_of_soap(shape: Shape, given: Arguments) -> float:
    """Two moments, and two square matrices for each side of a matrix up to the
    limit."""
    limit = int(given.get("max_precondition_dim", 10_000))
    sides = [side for side in shape if side <= limit] if len(shape) >= 2 else []
    return 2 * prod(shape) + 2 * sum(side * side for side in sides)


def _per_weight(numbers: int) -> Callable[[Shape, Arguments], float]:
    return lambda shape, given: numbers * prod(shape)


_NUMBERS: dict[str, Callable[[Shape, Arguments], float]] = {
    # Two moments, with `amsgrad` the largest second one too.
    **dict.fromkeys(("AdamW", "Adam"), lambda shape, given: (2 + bool(given.get("amsgrad"))) * prod(shape)),
    **dict.fromkeys(("SGDScheduleFree", "Adagrad", "Lion_adv"), _per_weight(1)),
    **dict.fromkeys(
        ("AdamWScheduleFree", "RAdamScheduleFree", "ScheduleFreeAdamW", "NAdam", "RAdam", "Adamax", "Adadelta",
         "StableAdamW", "ADOPT", "AdamW_adv", "Adopt_adv", "DAdaptLion"),
        _per_weight(2),
    ),
    **dict.fromkeys(("AdEMAMix", "DAdaptAdam", "DAdaptAdaGrad", "DAdaptSGD"), _per_weight(3)),
    "Adan": _per_weight(4),
    "DAdaptAdan": _per_weight(5),
    "SOAP": _numbers_of_soap,
    # The moment, and twice the means of rows and columns.
    "CAME": lambda shape, given: prod(shape) + 2 * _rows_and_columns(shape),
    # The average, the means of rows and columns, and of each `slice`-th weight two
    # numbers of 16 bits.
    "ProdigyPlusScheduleFree": lambda shape, given: prod(shape) * (1 + 1 / 11) + _rows_and_columns(shape),
    "Prodigy_adv": lambda shape, given: prod(shape) * (2 + 2 / max(1, int(given.get("slice_p", 11)))),
    "SGD": lambda shape, given: prod(shape) if given.get("momentum") else 0,
    # The mean square, with `momentum` its buffer, with `centered` the mean.
    "RMSprop": lambda shape, given: (1 + bool(given.get("momentum")) + bool(given.get("centered"))) * prod(shape),
    "Lion": lambda shape, given: prod(shape),
    # Of a matrix or a kernel the momentum, of a vector two moments.
    "Muon": lambda shape, given: prod(shape) * (1 if len(shape) >= 2 else 2),
    # Of a matrix the means of its rows and columns, of a vector all; with beta1 the
    # first moment too.
    "Adafactor": lambda shape, given: (
        _rows_and_columns(shape) + (prod(shape) if given.get("beta1") is not None else 0)
    ),
    # Two moments, and of each `slice_p`-th weight its start and the sum of its
    # gradients.
    "Prodigy": lambda shape, given: prod(shape) * (2 + 2 / max(1, int(given.get("slice_p", 1)))),
}  # fmt: skip
"""Class -> float32 numbers of the state for a weight."""

_EIGHT_BIT_MOMENTS = {"AdamW8bit": 2, "Adam8bit": 2, "Lion8bit": 1, "AdEMAMix8bit": 3}
"""Class -> 8-bit numbers of the state per weight."""
