"""Optimizers as the training uses them: built by name, stored as tensors, skipped by
flag.

`build_optimizer` makes an optimizer by a short name of `train.optimizer` or by a dotted
path. `step_if` steps only where a flag on the device is true, without the host waiting
for it where the optimizer allows that. `state_tensors` and `load_state_tensors` turn
the state into named tensors and back.

Names and arguments are checked in `optimizer_args.py`, without torch.
`toolkit/train/roles.py`, `optimizer_step.py` and `checkpoint_state.py` call this
module.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from toolkit.errors import UserError
from toolkit.optim.optimizer_args import make_optimizer, optimizer_class


class AnyOptimizer(Protocol):
    """The interface of an optimizer, as `torch.optim.Optimizer` has it.

    >>> weight = nn.Parameter(torch.ones(2))
    >>> optimizer: AnyOptimizer = build_optimizer("adamw", [weight], 1e-4, {})
    >>> optimizer.param_groups[0]["lr"]
    0.0001
    """

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    @property
    def defaults(self) -> dict[str, Any]: ...

    def step(self) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


HAS_FOUND_INF = (Adam, AdamW)
"""Optimizers whose fused implementation supports `found_inf`."""


def supports_found_inf(optimizer: AnyOptimizer) -> TypeGuard[Adam]:
    """Whether the optimizer can skip a step without the host waiting for the flag.

    torch's fused Adam and AdamW do, by the `found_inf` that `torch.amp.GradScaler`
    gives them: their kernel returns before it changes anything, and the step count is
    taken back. (Fused SGD would leave its first momentum unset.) All others count steps
    on the host.
    """
    return type(optimizer) in HAS_FOUND_INF and all(
        group["fused"] for group in optimizer.param_groups
    )


def step_if(optimizer: AnyOptimizer, step_ok: Tensor) -> None:
    """`optimizer.step()` where `step_ok` (0-dim bool); else parameters and state stay
    as they are, bit for bit.

    Without `found_inf` support the host waits here for the flag.
    """
    if supports_found_inf(optimizer):
        optimizer.found_inf = step_ok.logical_not().float()  # type: ignore[attr-defined]  # as torch's GradScaler sets it
        optimizer.step()
    elif step_ok.item():
        with _waiting_once(optimizer):
            optimizer.step()


@contextmanager
def _waiting_once(optimizer: AnyOptimizer) -> Iterator[None]:
    """Inside the block bitsandbytes does not wait for the device after each parameter,
    1,680 of them for a LoRA on the published model. Its kernels run in the order of all
    others; a paged state alone is waited for, at the end."""
    # loaded where it is one of its optimizers
    bitsandbytes: Any = sys.modules.get("bitsandbytes.optim.optimizer")
    if bitsandbytes is None or not isinstance(optimizer, bitsandbytes.Optimizer8bit):
        yield
        return
    wait = bitsandbytes.sync_gpu
    waited_for = dict[torch.device, Tensor]()
    bitsandbytes.sync_gpu = lambda tensor: waited_for.setdefault(tensor.device, tensor)
    try:
        yield
    finally:
        bitsandbytes.sync_gpu = wait
    if optimizer.is_paged:
        for tensor in waited_for.values():
            wait(tensor)


GROUPS = "param_groups"
"""First part of the names of state that belongs to all parameters; no parameter is
called that."""

FUSED_DEVICES = {"cpu", "cuda"}
"""Devices where torch's fused Adam supports the flag of `step_if`."""

ParameterGroups = Mapping[str, Iterable[nn.Parameter]]


def build_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter] | ParameterGroups,
    lr: float,
    arguments: Mapping[str, Any],
) -> Optimizer:
    """The optimizer `name` with learning rate `lr` and the user's `optimizer_params`,
    ready to train.

    parameters: all of one group, or the parameters of each group by its name; the
    optimizer's state has the same order. The caller sets each group's rate
    (`Role.set_learning_rates`). Raises ArgumentError for an argument the optimizer does
    not take or refuses.
    """
    groups = (
        list(parameters.values())
        if isinstance(parameters, Mapping)
        else [list(parameters)]
    )
    # torch's fused step is faster, and can skip a step on the device (`step_if`).
    devices = {parameter.device.type for group in groups for parameter in group}
    chosen = arguments.keys() & {"fused", "foreach", "capturable", "differentiable"}
    fuses = (
        optimizer_class(name) in HAS_FOUND_INF
        and devices <= FUSED_DEVICES
        and not chosen
    )
    optimizer = make_optimizer(
        name, groups, lr, arguments, {"fused": True} if fuses else {}
    )
    for group in optimizer.param_groups:
        if "lr" not in group:  # A2Grad and AliG of pytorch_optimizer 4.1.0
            raise UserError(
                f"{name} takes no learning rate, so train.lr cannot be set. Choose another optimizer."
            )
        set_rate(group, lr)
    if has_eval_mode(optimizer):
        optimizer.train()
    return optimizer


def set_rate(group: dict[str, Any], lr: float) -> None:
    """Sets the learning rate of a parameter group. Where a class keeps it as a tensor,
    so that its compiled step reads it again, the tensor stays and gets the value.
    >>> group = {"lr": torch.tensor(0.5)}
    >>> set_rate(group, 0.25)
    >>> group["lr"]
    tensor(0.2500)
    """
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


# ------------------------------------------------------------ schedule-free


class Averaging(AnyOptimizer, Protocol):
    """A schedule-free optimizer.

    Example::

        with eval_mode(optimizer):  # the averaged weights of a schedule-free optimizer
            save(network.export(network.parameters()))
    """

    def train(self) -> None: ...

    def eval(self) -> None: ...


def has_eval_mode(optimizer: AnyOptimizer) -> TypeGuard[Averaging]:
    """Whether the optimizer has separate train and eval weights (schedule-free), by its
    methods `train` and `eval`."""
    return callable(getattr(optimizer, "eval", None)) and callable(
        getattr(optimizer, "train", None)
    )


@contextmanager
def eval_mode(optimizer: AnyOptimizer) -> Iterator[None]:
    """Inside the block the parameters hold the average of a schedule-free optimizer;
    others change nothing.

    After it they are as before, bit for bit: a run that saves often is the same run.
    """
    if not has_eval_mode(optimizer):
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    trained = [p.detach().clone() for p in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for parameter, value in zip(parameters, trained, strict=True):
                parameter.copy_(value)


# ------------------------------------------------------------ state


class StateError(UserError):
    """The state of an optimizer holds something that a checkpoint cannot."""


OTHERS = "state_dict"
"""Path of what a class keeps in its `state_dict()` beside state and groups, as Ranger21
of pytorch_optimizer 4.1.0 its steps until the next look-ahead."""

BY_COLUMNS = "by_columns"
"""Entry of the plain values: the matrices that are stored by columns, which files do
not keep. SOAP of pytorch_optimizer 4.1.0 has some: products with the same numbers
stored by rows have other last bits on a CPU."""

_INDEX = re.compile(r"[\[({<](-?\d*)[\])}>]")
"""A part of an entry's name that is a place and not a key of a mapping: `[2]` of a
list, `(2)` of a tuple, `{2}` of a set, `<2>` the whole number 2 as a key; without a
number that it is empty."""

_BRACKETS = ((list, "[]"), (tuple, "()"), (set, "{}"))


def state_tensors(
    optimizer: AnyOptimizer, names: list[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state by parameter name: tensors as `<parameter>/<entry>`,
    everything else as JSON values.

    names: of the parameters, in the order the optimizer was given them. Nested entries
    (bitsandbytes keeps its 8-bit state one level deeper, SOAP has lists) have one more
    part in their name for each level; what the optimizer counts for all parameters
    together (Prodigy's estimate, a schedule-free step count) is
    `param_groups/<index>/<entry>`. Raises StateError for what is neither a plain tensor
    nor a JSON value.

    Example: `{"lora_A/exp_avg": ..., "lora_A/Q/[0]": ...}, {"lora_A/step": 3}`.
    """
    flat: dict[str, Any] = {}
    saved = optimizer.state_dict()
    for index, entries in saved["state"].items():
        flat.update(_flatten(entries, names[index]))
    for entry in saved.keys() - {"state", GROUPS}:
        # What cannot be stored is left out, such as a pickle, which would be run as
        # code when it is read (heavyball 3.2.1). The trial finds whether it matters.
        with suppress(StateError):
            flat.update([*_flatten(saved[entry], f"{OTHERS}/{_key(entry)}")])
    defaults = optimizer.defaults
    for index, group in enumerate(optimizer.param_groups):
        for entry, value in group.items():
            # what is not a setting has moved away from what the constructor gave
            counted = (
                isinstance(value, Tensor)
                or entry not in defaults
                or value != defaults[entry]
            )
            if counted and entry not in ("params", "lr", "initial_lr"):
                flat.update(_flatten(value, f"{GROUPS}/{index}/{entry}"))
    tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
    plain = {key: value for key, value in flat.items() if key not in tensors}
    by_columns = [key for key, value in tensors.items() if _is_by_columns(value)]
    if by_columns:
        plain[BY_COLUMNS] = by_columns
    return tensors, plain


def _is_by_columns(tensor: Tensor) -> bool:
    """Whether a matrix is stored by columns, without gaps."""
    return (
        tensor.dim() == 2 and not tensor.is_contiguous() and tensor.mT.is_contiguous()
    )


def load_state_tensors(
    optimizer: AnyOptimizer,
    names: list[str],
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
) -> None:
    """The inverse of `state_tensors`, into a fresh optimizer over the same parameters.

    `load_state_dict` gets the groups as they were saved, with the settings of the fresh
    optimizer. Raises StateError where the class refuses its own state.
    """
    tree: dict[str, Any] = {}
    plain = dict(plain)
    by_columns = {
        key: tensors[key].mT.contiguous().mT for key in plain.pop(BY_COLUMNS, [])
    }
    for key, value in {**plain, **tensors, **by_columns}.items():
        *path, entry = key.split("/")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[entry] = value
    saved_groups = tree.pop(GROUPS, {})
    others = _restored(tree.pop(OTHERS, {}))
    groups = []
    for index, fresh in enumerate(optimizer.state_dict()[GROUPS]):
        # A group that the saved state does not have continues with the values of the
        # first one.
        counted = _restored(saved_groups.get(str(index), saved_groups.get("0", {})))
        groups.append({**fresh, **_moved(counted, optimizer.param_groups[index])})
    index_of = {name: index for index, name in enumerate(names)}
    state = {index_of[name]: _restored(entries) for name, entries in tree.items()}
    try:
        optimizer.load_state_dict({"state": state, GROUPS: groups, **others})
    except Exception as error:
        raise StateError(
            f"cannot load the state that it has saved ({reason_of(error)})"
        ) from error
    # torch 2.13 gives what it loads the weights' type. ProdigyPlusScheduleFree 2.0.1
    # keeps bfloat16 beside weights in float32, and would go on with other numbers.
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    states = getattr(optimizer, "state", {})  # a wrapper may have none of its own
    for index, entries in state.items():
        loaded = states.get(weights[index], {})
        for entry, value in entries.items():
            kept = loaded.get(entry)
            if isinstance(kept, Tensor) and kept.dtype != value.dtype:
                loaded[entry] = value.to(kept.device)


def reason_of(error: Exception) -> str:
    """The first line of what a class raised, without its full stop, as a part of a
    sentence; the name of the class for an error without text.

    >>> reason_of(ValueError("lr is negative.\\nSee the documentation."))
    'lr is negative'
    >>> reason_of(KeyError("state"))
    "no entry 'state'"
    >>> reason_of(AssertionError())
    'AssertionError'
    """
    if isinstance(error, KeyError):
        return f"no entry {error}"
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def _flatten(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The tensors and JSON values within a value, each with its path."""
    kind = type(value)
    if (
        kind in (Tensor, nn.Parameter)
        or value is None
        or isinstance(value, str | int | float)
    ):
        yield path, value
        return
    if isinstance(value, Mapping):
        parts = {_key(key): inner for key, inner in value.items()}
        brackets = "<>"
    else:
        brackets = next(
            (pair for base, pair in _BRACKETS if isinstance(value, base)), ""
        )
        if not brackets:
            entry = path.rpartition("/")[2]
            raise StateError(
                f"keeps {entry!r} in its state as {kind.__name__}, which cannot be stored"
            )
        items = sorted(value, key=repr) if brackets == "{}" else value
        parts = {
            f"{brackets[0]}{index}{brackets[1]}": inner
            for index, inner in enumerate(items)
        }
    if not parts:
        yield f"{path}/{brackets}", None
    for part, inner in parts.items():
        yield from _flatten(inner, f"{path}/{part}")


def _key(key: Any) -> str:
    """A key of a mapping as a part of a path."""
    if type(key) is int:
        return f"<{key}>"
    if not isinstance(key, str) or not key or "/" in key or _INDEX.fullmatch(key):
        raise StateError(f"keeps the key {key!r} in its state, which cannot be stored")
    return key


def _restored(tree: Any) -> Any:
    """The inverse of `_flatten`, of the parts of a path as nested mappings."""
    if not isinstance(tree, dict):
        return tree
    first = next(iter(tree), "")
    make = None
    if _INDEX.fullmatch(first):
        make = next((base for base, pair in _BRACKETS if first[0] == pair[0]), None)
    parts: dict[Any, Any] = {}
    for part, inner in tree.items():
        index = _INDEX.fullmatch(part)
        if index is None:
            parts[part] = _restored(inner)
        elif index[1]:
            parts[int(index[1])] = _restored(inner)
    return parts if make is None else make(parts[index] for index in sorted(parts))


def _moved(counted: dict[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a group with their tensors on the device of its weights, or of the
    fresh entry."""
    moved = {}
    for entry, value in counted.items():
        fresh = group.get(entry)
        like = fresh if isinstance(fresh, Tensor) else group["params"][0]
        moved[entry] = value.to(like.device) if isinstance(value, Tensor) else value
    return moved
