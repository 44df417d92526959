"""The trial of an optimizer before the first step of a training: whether the class
steps as a training needs it, whether its state comes back from a checkpoint to the same
bits, and how many bytes the state has.

Classes of any package may be named in a job, and a state that cannot be read back would
be found at the first resume, hours later. So what a run does with its optimizer is done
first to one weight of each shape, through the same functions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.optim.optimizer_args import (
    MUCH_STATE,
    Arguments,
    Shape,
    measuring,
    optimizer_bytes,
)
from toolkit.optim.optimizers import (
    AnyOptimizer,
    StateError,
    build_optimizer,
    load_state_tensors,
    reason_of,
    set_rate,
    state_tensors,
)
from toolkit.system.device import to_cpu_copies

LORA_SHAPES: tuple[Shape, ...] = ((16, 3072), (3072, 16))
"""The factors of a LoRA of rank 16 on the published models: tried where a training does
not say what it has."""

STEPS_BEFORE, STEPS_AFTER = 7, 24
"""Steps before the state is stored, and with the state that was read back. Some classes
do nothing in the first five (schedulefree 1.4.1, RAdamScheduleFree), others something
every five (pytorch_optimizer 4.1.0, Ranger21)."""

ANOTHER = "Choose another optimizer."
WITHOUT_STATES = (
    "Choose another optimizer, or set save.states: never to train without states."
)


@dataclass(frozen=True)
class OptimizerTrial:
    """The result of `try_optimizer`, for an optimizer that a training can use.

    >>> trial = OptimizerTrial("adamw", difference=0, moves_at_zero=False)
    >>> next(trial.lines())
    'adamw: tried on weights of these shapes; ...'
    """

    name: str

    difference: float | None
    """How far the steps after a resume are from those without it, as a share of their
    size; None: no state is kept."""

    moves_at_zero: bool
    """Whether a learning rate of 0 moves weights."""

    def lines(self) -> Iterator[str]:
        """The lines for the log; warnings begin with `warning: `."""
        if self.difference:
            yield (
                f"warning: {self.name}: its state does not come back whole: after a resume its steps differ by "
                f"{100 * self.difference:{',.0f' if self.difference >= 0.01 else '.1g'}} % of their size. A "
                "run that was stopped ends as another one"
            )
        if self.moves_at_zero:
            yield f"warning: {self.name} moves weights at a learning rate of 0: it does not follow train.lr alone"
        if self.difference == 0:
            yield f"{self.name}: tried on weights of these shapes; its state is stored, and resumes with the same bits"


def try_optimizer(
    name: str,
    lr: float,
    arguments: Arguments,
    device: torch.device | None = None,
    keeps_state: bool = True,
    begins_at_zero: bool = False,
    shapes: Iterable[Shape] = LORA_SHAPES,
) -> OptimizerTrial:
    """Tries an optimizer on a few weights, on the device of the training (None: the
    CPU).

    keeps_state: whether the training saves its state. begins_at_zero: whether the
    learning rate of the first step is 0. shapes: of the weights that are trained; one
    of each is tried, as some classes choose by the shape what they do. Raises
    ArgumentError for arguments that it refuses, UserError for a class that cannot
    train, or not be resumed.

    Example: `try_optimizer("adamw", 1e-4, {}).difference` is 0.0.
    """
    device = device or torch.device("cpu")
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # it takes them
        build_optimizer(
            name, [nn.Parameter(torch.zeros(16, 16, device=device))], lr, arguments
        )
        # a rank may have no rows of a small weight
        filled = {shape for shape in shapes if prod(shape)} or set(LORA_SHAPES)
        tried = _shapes_to_try(name, arguments, filled, device)
        return _Trial(name, lr, arguments, device, tried).run(
            keeps_state, begins_at_zero
        )


def _shapes_to_try(
    name: str, arguments: Arguments, shapes: set[Shape], device: torch.device
) -> list[Shape]:
    """The shapes themselves. A smaller shape stands for one with many numbers, or for
    all where the state of the optimizer is large."""
    with measured_states(lambda: device):
        is_large = optimizer_bytes(name, arguments, list(shapes)) > MUCH_STATE * sum(
            map(prod, shapes)
        )
    to_try = set()
    for shape in shapes:
        if is_large or prod(shape) > MOST_NUMBERS:
            shape = _halved(shape, _halvings(shape))
        to_try.add(shape)
    return sorted(to_try)


class _Trial:
    """The steps of `try_optimizer`."""

    def __init__(
        self,
        name: str,
        lr: float,
        arguments: Arguments,
        device: torch.device,
        shapes: Sequence[Shape],
    ) -> None:
        self.name = name
        self.arguments = arguments
        self.device = device
        self.shapes = shapes
        self.lr = lr or 1.0

    def run(self, keeps_state: bool, begins_at_zero: bool) -> OptimizerTrial:
        weights = self.weights()
        optimizer = self.build(weights)
        with self.saying(
            f"with these arguments cannot step a weight on {self.device}", remedy=""
        ):
            for step in range(STEPS_BEFORE):
                self.step(optimizer, weights, step)
        self.without_gradients()
        difference = self.resume() if keeps_state else None
        return OptimizerTrial(self.name, difference, self.moves_at_zero(begins_at_zero))

    def weights(self, *more: Shape) -> list[nn.Parameter]:
        random = torch.Generator().manual_seed(0)
        values = [
            0.1 * torch.randn(shape, generator=random)
            for shape in (*self.shapes, *more)
        ]
        return [nn.Parameter(value.to(self.device)) for value in values]

    def build(self, weights: Sequence[nn.Parameter]) -> AnyOptimizer:
        return build_optimizer(self.name, weights, self.lr, self.arguments)

    def step(
        self, optimizer: AnyOptimizer, weights: Sequence[nn.Parameter], number: int
    ) -> None:
        """A step with the gradients of its number; weights beyond `shapes` have none.
        The rate is set as a training sets it."""
        random = torch.Generator().manual_seed(100 + number)
        for weight in weights[: len(self.shapes)]:
            weight.grad = torch.randn(weight.shape, generator=random).to(self.device)
        self.take(optimizer, self.lr / (1 + number))

    def take(self, optimizer: AnyOptimizer, rate: float) -> None:
        for group in optimizer.param_groups:
            set_rate(group, rate)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    # ------------------------------------------------------------ what a training needs

    def moves_at_zero(self, begins_at_zero: bool) -> bool:
        """Whether first steps at a learning rate of 0, as those of a warm-up, move a
        weight."""
        weights = self.weights()
        optimizer = self.build(weights)
        what = "cannot step at a learning rate of 0, with which the training begins"
        try:
            for _ in range(2):
                for weight in weights:
                    weight.grad = torch.ones_like(weight)
                self.take(optimizer, 0.0)
        except Exception as error:
            if begins_at_zero:
                raise UserError(
                    f"{self.name} {what}: {reason_of(error)}. Set lr_warmup_steps: 0 and a learning rate above "
                    "0, or choose another optimizer."
                ) from error
            return False
        return any(
            not torch.equal(*pair) for pair in zip(self.weights(), weights, strict=True)
        )

    def without_gradients(self) -> None:
        """One factor of a LoRA has gradients of 0 in the first step; a layer that was
        left out has none."""
        weights = self.weights(self.shapes[-1], self.shapes[-1])
        optimizer = self.build(weights)
        *others, zero, absent = weights
        before = absent.detach().clone()
        for weight in others:
            weight.grad = torch.ones_like(weight)
        zero.grad = torch.zeros_like(zero)
        with self.saying(
            "cannot step where one weight has a gradient of 0 and one has none", ANOTHER
        ):
            self.take(optimizer, self.lr)
        what = "with these arguments makes a weight whose gradient is 0 infinite or not a number"
        if not all(bool(weight.isfinite().all()) for weight in weights):
            raise UserError(f"{self.name} {what}. {ANOTHER}")
        if not torch.equal(absent, before):
            raise UserError(
                f"{self.name} moves a weight that has no gradient. {ANOTHER}"
            )

    # ------------------------------------------------------------ the state

    def resume(self) -> float:
        """The difference between the next steps with a state that was stored and read
        back, and the steps without that, as a share. One of the weights never has a
        gradient, as that of a layer which the loss does not reach."""
        weights = self.weights(self.shapes[-1])
        optimizer = self.build(weights)
        for step in range(STEPS_BEFORE):
            self.step(optimizer, weights, step)
        start = [weight.detach().clone() for weight in weights]
        resumed_weights = [nn.Parameter(value.clone()) for value in start]
        resumed = self.build(resumed_weights)
        names = [f"weight_{index}" for index in range(len(weights))]
        try:
            with self.saying("cannot give its state", WITHOUT_STATES):
                tensors, plain = _stored(*state_tensors(optimizer, names))
            load_state_tensors(resumed, names, tensors, plain)
        except StateError as error:
            raise UserError(
                f"{self.name} {error}, so no run could be resumed. {WITHOUT_STATES}"
            ) from error
        with self.saying(
            "cannot step with the state that it has saved and loaded", WITHOUT_STATES
        ):
            for step in range(STEPS_BEFORE, STEPS_BEFORE + STEPS_AFTER):
                self.step(resumed, resumed_weights, step)
        for step in range(STEPS_BEFORE, STEPS_BEFORE + STEPS_AFTER):
            self.step(optimizer, weights, step)
        size = max(
            float((one - at).detach().abs().max())
            for one, at in zip(weights, start, strict=True)
        )
        apart = max(
            float((a - b).detach().abs().max())
            for a, b in zip(weights, resumed_weights, strict=True)
        )
        return apart if apart == 0 or size == 0 else apart / size

    @contextmanager
    def saying(self, what: str, remedy: str) -> Iterator[None]:
        """Turns an error that the class raises inside the block into one line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{self.name} {what}: {reason_of(error)}. {remedy}".rstrip()
            ) from error


def _stored(
    tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state as a checkpoint gives it back: through safetensors and JSON."""
    try:
        in_file = save(to_cpu_copies(tensors))
    except (
        ValueError,
        RuntimeError,
        KeyError,
    ) as error:  # a type of numbers that the format does not have
        raise StateError(
            f"has a state that safetensors cannot store ({reason_of(error)})"
        ) from error
    return load(in_file), json.loads(json.dumps(plain))


# ------------------------------------------------------------ bytes

LARGE_SIDE, MOST_SIDE = 512, 768
"""Sides up to the first stay in a measurement; larger ones are halved together until
none is above the second."""

MOST_NUMBERS = 2**21
"""A weight of more is not made for a trial."""

IN_PROPORTION = 1.05
"""Up to this factor a state grows as the weight does."""


@contextmanager
def measured_states(device_of: Callable[[], torch.device]) -> Iterator[None]:
    """Inside the block `optimizer_bytes` measures the state of a class that is not in
    its tables, on this device."""
    sizes: dict[str, dict[Shape, int]] = {}

    def measure(name: str, arguments: Arguments, shapes: Sequence[Shape]) -> int | None:
        known = sizes.setdefault(f"{name} {dict(arguments)}", {})
        try:
            return measured_bytes(
                shapes,
                lambda wanted: _state_sizes(name, arguments, wanted, device_of()),
                known,
            )
        except Exception:  # noqa: BLE001 - the trial says what is wrong with the class, and the start ends with it
            return None

    token = measuring.set(measure)
    try:
        yield
    finally:
        measuring.reset(token)


def measured_bytes(
    shapes: Sequence[Shape],
    sizes_of: Callable[[Sequence[Shape]], dict[Shape, int]],
    known: dict[Shape, int],
) -> int:
    """Bytes of the state for weights of these shapes, by measurements of small ones.

    A large weight is measured at two smaller sizes, one of which has sides of twice the
    length. Where the state grows as the weight does, the weight itself is measured
    then, if it is not too large. Otherwise the state of the large one follows from the
    power by which it grows: 2 for a matrix of the long side. sizes_of: bytes of the
    state of each of these small weights. known: those measured before; others are
    added.
    """
    counts = Counter(shape for shape in shapes if prod(shape))
    halvings = {shape: _halvings(shape) for shape in counts}
    wanted = {_halved(shape, count) for shape, count in halvings.items()}
    wanted |= {_halved(shape, count + 1) for shape, count in halvings.items() if count}
    _measure(wanted, sizes_of, known)
    growth = {}
    for shape, count in halvings.items():
        large = _halved(shape, count)
        small = _halved(shape, count + 1)
        growth[shape] = max(1.0, known[large] / max(1, known[small])) if count else 1.0
        if (
            growth[shape] <= IN_PROPORTION * prod(large) / prod(small)
            and prod(shape) <= MOST_NUMBERS
        ):
            growth[shape], halvings[shape] = 1.0, 0
    _measure({shape for shape, count in halvings.items() if not count}, sizes_of, known)
    sizes = {
        shape: known[_halved(shape, count)] * growth[shape] ** count
        for shape, count in halvings.items()
    }
    return round(sum(counts[shape] * size for shape, size in sizes.items()))


def _measure(
    wanted: Iterable[Shape],
    sizes_of: Callable[[Sequence[Shape]], dict[Shape, int]],
    known: dict[Shape, int],
) -> None:
    if missing := sorted(set(wanted) - known.keys()):
        known.update(sizes_of(missing))


def _halvings(shape: Shape) -> int:
    count = 0
    while max(_halved(shape, count), default=0) > MOST_SIDE:
        count += 1
    return count


def _halved(shape: Shape, times: int) -> Shape:
    """The shape with its large sides halved so many times."""
    return tuple(ceil(side / 2**times) if side > LARGE_SIDE else side for side in shape)


def _state_sizes(
    name: str, arguments: Arguments, shapes: Sequence[Shape], device: torch.device
) -> dict[Shape, int]:
    """Bytes of the state of a weight of each shape after two steps."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        weights = [
            nn.Parameter(0.1 * torch.randn(shape, device=device)) for shape in shapes
        ]
        optimizer = build_optimizer(name, weights, 1e-3, arguments)
        for _ in range(2):
            for weight in weights:
                weight.grad = torch.randn_like(weight)
            optimizer.step()
    return {
        shape: _size(optimizer.state[weight])
        for shape, weight in zip(shapes, weights, strict=True)
    }


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return 0
