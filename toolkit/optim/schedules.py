"""Learning-rate schedules: pure functions of the step, so a resume needs no state of
theirs; only `Plateau` has one. Imports no torch.

A schedule returns a factor of the base learning rate for optimizer step `step`, counted
from 0. Equal to transformers' schedules of the same names (and so to musubi-tuner's);
those that are called like a class of torch.optim.lr_scheduler are equal to that,
stepped once per optimizer step after the warm-up."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, cast

from toolkit.errors import UserError, did_you_mean

Schedule = Callable[[int], float]
"""From the number of optimizer steps done to the factor of the learning rate for the
next one."""


@dataclass(frozen=True)
class ScheduleArgs:
    """The lengths of a run in optimizer steps, and what its schedule may need: keys
    `lr_*` of `train`, and of its `lr_scheduler_params`.

    >>> course = ScheduleArgs(steps=1000, warmup=0.1)
    >>> course.warmup_steps, course.decay_progress(550)
    (100, 0.5)
    """

    steps: int
    """Steps of the whole run."""

    warmup: float = 0
    """Steps in which the rate rises; below 1 a share of all steps."""

    decay: float = 0
    """The last steps, in which the rate falls; below 1 a share of all steps. 0: from
    the warm-up's end on."""

    cycles: float = 1
    power: float = 1.0
    min_ratio: float | None = None
    """Where a falling rate ends, as a factor; None: the schedule's own end."""

    timescale: int = 0
    lr: float = 1.0
    """The base learning rate, for ends that are given as a rate."""

    @staticmethod
    def named_in(section: object) -> dict[str, Any]:
        """The values that the `train` section has as keys, as keyword arguments.

        Raises AttributeError when the section lacks one of the keys.
        """
        keys = {"lr": "lr", "warmup": "lr_warmup_steps", "decay": "lr_decay_steps"}
        return {field: getattr(section, key) for field, key in keys.items()}

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        return in_steps(self.warmup, self.steps)

    @property
    def decay_steps(self) -> int:
        """Steps of `decay`."""
        return in_steps(self.decay, self.steps)

    def decay_progress(self, step: int) -> float:
        """Share of the fall that lies behind `step`: 0 before it begins, 1 at the end
        of the run."""
        begins = (
            max(self.warmup_steps, self.steps - self.decay_steps)
            if self.decay_steps
            else self.warmup_steps
        )
        return max(0, step - begins) / max(1, self.steps - begins)

    def lerp_to_min(self, factor: float, end: float = 0.0) -> float:
        """A factor that falls from 1 to 0 as one that falls from 1 to `min_ratio`, or
        to `end` without one."""
        end = end if self.min_ratio is None else self.min_ratio
        return end + (1 - end) * factor


def in_steps(length: float, steps: int) -> int:
    """A length of the config as optimizer steps: below 1 it is a share of all steps.

    Rounded down. The result can be 0.

    >>> in_steps(0.1, steps=1000), in_steps(50, steps=1000)
    (100, 50)
    """
    return int(length * steps) if length < 1 else int(length)


# ------------------------------------------------------------ after the warm-up


def constant(step: int, course: ScheduleArgs, *, factor: float = 1.0) -> float:
    """`factor` throughout: 1 unless it is given."""
    return factor


def linear(
    step: int,
    course: ScheduleArgs,
    *,
    start_factor: float | None = None,
    end_factor: float | None = None,
) -> float:
    """From 1 to 0 in a line; with `start_factor` or `end_factor` from the first (1/3)
    to the second (1).

    Source: transformers, `get_linear_schedule_with_warmup`; torch, LinearLR.

    >>> linear(25, ScheduleArgs(steps=100))
    0.75
    """
    fallen = min(1.0, course.decay_progress(step))
    if start_factor is None and end_factor is None:
        return course.lerp_to_min(1 - fallen)
    start = 1 / 3 if start_factor is None else start_factor
    end = 1.0 if end_factor is None else end_factor
    return start + (end - start) * fallen


def cosine(step: int, course: ScheduleArgs) -> float:
    """Half a cosine from 1 to 0, or to `min_ratio`. Source: transformers,
    `get_cosine_schedule_with_warmup`.

    >>> course = ScheduleArgs(steps=100)
    >>> [round(cosine(step, course), 2) for step in (0, 25, 50, 100)]
    [1.0, 0.85, 0.5, 0.0]
    """
    return course.lerp_to_min(_half_waves(course.decay_progress(step)))


def cosine_with_restarts(step: int, course: ScheduleArgs) -> float:
    """Falls from 1 to 0 along half a cosine, `num_cycles` times.

    Source: transformers, `get_cosine_with_hard_restarts_schedule_with_warmup`.

    >>> course = ScheduleArgs(steps=100, cycles=2)
    >>> [round(cosine_with_restarts(step, course), 2) for step in (0, 25, 50, 75, 100)]
    [1.0, 0.5, 1.0, 0.5, 0.0]
    """
    fallen = course.decay_progress(step)
    return course.lerp_to_min(
        0.0 if fallen >= 1 else _half_waves(course.cycles * fallen % 1.0)
    )


def cosine_with_min_lr(step: int, course: ScheduleArgs) -> float:
    """A cosine between 1 and `min_ratio`; `num_cycles` half waves.

    Source: transformers, `get_cosine_with_min_lr_schedule_with_warmup`.

    >>> course = ScheduleArgs(steps=100, cycles=2, min_ratio=0.1)
    >>> [round(cosine_with_min_lr(step, course), 2) for step in (0, 25, 50, 100)]
    [1.0, 0.55, 0.1, 1.0]
    """
    return course.lerp_to_min(_half_waves(course.cycles * course.decay_progress(step)))


def polynomial(step: int, course: ScheduleArgs) -> float:
    """(1 - share)^power, from 1 to `min_ratio`, or without one to a rate of 1e-7.
    Source: transformers, `get_polynomial_decay_schedule_with_warmup`.

    >>> round(polynomial(50, ScheduleArgs(steps=100, power=2.0, min_ratio=0.0)), 2)
    0.25
    """
    end = min(1.0, 1e-7 / course.lr) if course.lr else 0.0
    return course.lerp_to_min(
        max(0.0, 1 - course.decay_progress(step)) ** course.power, end
    )


def warmup_stable_decay(step: int, course: ScheduleArgs) -> float:
    """1, and half a cosine to 0 in the last `lr_decay_steps`, if any. Source:
    transformers, `get_wsd_schedule`.

    >>> course = ScheduleArgs(steps=100, decay=20)
    >>> [round(warmup_stable_decay(step, course), 2) for step in (0, 80, 90, 100)]
    [1.0, 1.0, 0.5, 0.0]
    """
    return cosine(step, course) if course.decay_steps else 1.0


def inverse_sqrt(step: int, course: ScheduleArgs) -> float:
    """1 / sqrt(1 + n / timescale), n steps after the warm-up; the time scale is the
    warm-up's length, or 10000.

    Source: transformers, `get_inverse_sqrt_schedule`.

    >>> inverse_sqrt(300, ScheduleArgs(steps=1000, timescale=100))
    0.5
    """
    timescale = course.timescale or course.warmup_steps or 10_000
    return 1 / math.sqrt((step + timescale - course.warmup_steps) / timescale)


def rex(
    step: int, course: ScheduleArgs, *, rex_alpha: float = 0.1, rex_beta: float = 0.9
) -> float:
    """z / (alpha + beta z), z the share of the fall still to come: high for long, then
    steep, to 0.01.

    Source: Chen et al. 2021, arXiv:2107.04197; musubi-tuner, modules/lr_schedulers.py.

    >>> course = ScheduleArgs(steps=100)
    >>> [round(rex(step, course), 2) for step in (0, 50, 90, 100)]
    [1.0, 0.91, 0.53, 0.01]
    """
    left = max(0.0, 1 - course.decay_progress(step))
    return course.lerp_to_min(
        left / (rex_alpha + rex_beta * left) if left else 0.0, end=REX_END
    )


def step_decay(
    step: int, course: ScheduleArgs, *, step_size: int | None = None, gamma: float = 0.1
) -> float:
    """gamma^k after k times `step_size` steps; 1 throughout without a `step_size`.
    Source: torch, StepLR.

    >>> round(step_decay(25, ScheduleArgs(steps=100), step_size=10), 4)
    0.01
    """
    if step_size is not None:
        return gamma ** ((step - course.warmup_steps) // step_size)
    return 1.0


def exponential(step: int, course: ScheduleArgs, *, gamma: float) -> float:
    """gamma^n, n steps after the warm-up. Raises ValueError when gamma is below 0.
    Source: torch, ExponentialLR.

    >>> exponential(3, ScheduleArgs(steps=100), gamma=0.5)
    0.125
    """
    return _in_range("gamma", gamma, highest=math.inf) ** (step - course.warmup_steps)


def constant_lr(
    step: int, course: ScheduleArgs, *, factor: float = 1 / 3, total_iters: int = 5
) -> float:
    """`factor` in the first `total_iters` steps after the warm-up, then 1. Raises
    ValueError when `factor` is not in [0, 1]. Source: torch, ConstantLR."""
    if step - course.warmup_steps < total_iters:
        return _in_range("factor", factor)
    return 1.0


def linear_lr(
    step: int,
    course: ScheduleArgs,
    *,
    start_factor: float = 1 / 3,
    end_factor: float = 1.0,
    total_iters: int = 5,
) -> float:
    """A line from `start_factor` to `end_factor` in `total_iters` steps after the
    warm-up, then level. Raises ValueError when a factor is not in [0, 1]. Source:
    torch, LinearLR.

    >>> linear_lr(5, ScheduleArgs(steps=100), start_factor=0.5, total_iters=10)
    0.75
    """
    share = min(1.0, (step - course.warmup_steps) / total_iters)
    start = _in_range("start_factor", start_factor)
    end = _in_range("end_factor", end_factor)
    return start + (end - start) * share


def cosine_annealing_lr(
    step: int, course: ScheduleArgs, *, T_max: int | None = None
) -> float:
    """Half a cosine from 1 to `min_ratio` in `T_max` steps, then up again, and so on;
    None: one to the end of the run.

    Source: torch, CosineAnnealingLR.
    """
    length = max(1, course.steps - course.warmup_steps) if T_max is None else T_max
    return course.lerp_to_min(_half_waves((step - course.warmup_steps) / length))


def _in_range(name: str, value: float, highest: float = 1.0) -> float:
    """The value. Raises ValueError for one outside of 0 to `highest`."""
    if not 0 <= value <= highest:
        raise ValueError(
            f"{name} {value} is not "
            + ("0 or more" if highest == math.inf else f"from 0 to {highest:g}")
        )
    return value


def piecewise_constant(
    step: int, course: ScheduleArgs, *, step_rules: str = "1"
) -> float:
    """`step_rules` "1:10,0.1:20,0.01": factor 1 before step 10, 0.1 before step 20,
    then 0.01.

    Source: diffusers, optimization.py, `get_piecewise_constant_schedule`.

    >>> course = ScheduleArgs(steps=100)
    >>> piecewise_constant(15, course, step_rules="1:10,0.1:20,0.01")
    0.1
    """
    *pieces, last = step_rules.split(",")
    ends = {
        int(end): float(factor)
        for factor, end in (piece.split(":") for piece in pieces)
    }
    return next((ends[end] for end in sorted(ends) if step < end), float(last))


class Plateau:
    """1 until a value that is to fall has not fallen for a while, then `factor` of it,
    and so on down to `min_ratio`.

    The rule is the one of torch's ReduceLROnPlateau with mode min. Its state is a
    handful of JSON values.

    >>> plateau = build_schedule("plateau", 1000, params={"every": 1, "patience": 1})
    >>> for loss in (0.5, 0.5, 0.5):
    ...     plateau.observe(loss)
    >>> plateau(step=3)
    0.1
    """

    def __init__(
        self,
        course: ScheduleArgs,
        *,
        metric: str = "loss",
        every: int = 100,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        eps: float = 1e-8,
    ) -> None:
        """metric: the value, `loss` (the role's own) or a number that is measured now
        and then. every: optimizer steps whose mean loss is one value. The others as in
        torch; eps is a difference of rates.

        Raises ValueError for a number out of its range.
        """
        if not 0 < factor < 1:
            raise ValueError(f"factor {factor} is not between 0 and 1")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(
                f"threshold_mode {threshold_mode!r} is neither 'rel' nor 'abs'"
            )
        if min(every - 1, patience, cooldown, threshold, eps) < 0:
            raise ValueError("a number is too small: every is at least 1, the others 0")
        self.metric = str(metric)
        self.every = every
        self._course = course
        self._factor = factor
        self._patience = patience
        self._cooldown = cooldown
        self._threshold = threshold
        self._relative = threshold_mode == "rel"
        self._eps = eps
        self._ratio = 1.0
        self._best = math.inf
        self._bad = self._cooling = 0

    def __call__(self, step: int) -> float:
        """The factor of the next step when `step` are done, by the values seen so
        far."""
        if step < self._course.warmup_steps:
            return from_zero(step, self._course)
        return self._ratio

    def observe(self, value: float) -> None:
        """Takes the next value of the metric; one that is not finite is ignored.

        A value that is below the best one by more than `threshold` becomes the best.
        After more than `patience` others in a row the factor is multiplied by `factor`,
        but not below `min_ratio`. The `cooldown` values that follow do not count. A
        change of the learning rate by at most `eps` is not made.
        """
        if not math.isfinite(value):
            return
        bound = (
            self._best * (1 - self._threshold)
            if self._relative
            else self._best - self._threshold
        )
        if value < bound:
            self._best = value
            self._bad = 0
        else:
            self._bad += 1
        if self._cooling:
            self._cooling = self._cooling - 1
            self._bad = 0
        if self._bad > self._patience:
            self._cooling = self._cooldown
            self._bad = 0
            lower = max(self._ratio * self._factor, self._course.min_ratio or 0.0)
            if (self._ratio - lower) * self._course.lr > self._eps:
                self._ratio = lower

    def state_dict(self) -> dict[str, float | int | None]:
        """The factor, the best value (None before the first one) and the counts of bad
        and of cooldown values, as JSON values. The arguments are not in it."""
        best = self._best if math.isfinite(self._best) else None
        return {
            "ratio": self._ratio,
            "best": best,
            "bad": self._bad,
            "cooling": self._cooling,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a `state_dict`. Raises KeyError when an entry is missing."""
        self._ratio = state["ratio"]
        self._bad = state["bad"]
        self._cooling = state["cooling"]
        self._best = math.inf if state["best"] is None else state["best"]


def _half_waves(count: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * count))


# ------------------------------------------------------------ warm-ups

REX_END = 0.01


def from_zero(step: int, course: ScheduleArgs) -> float:
    """A line from 0 at step 0 to 1 at the end of the warm-up."""
    return step / course.warmup_steps


def from_the_end(step: int, course: ScheduleArgs) -> float:
    """Linear warm-up from the final learning rate. Source: transformers,
    `get_wsd_schedule`."""
    return course.lerp_to_min(step / course.warmup_steps)


def rex_warmup(step: int, course: ScheduleArgs) -> float:
    """A line from the end value at step 1. Source: musubi-tuner,
    modules/lr_schedulers.py."""
    return course.lerp_to_min(
        max(0, step - 1) / max(1, course.warmup_steps - 1), end=REX_END
    )


# ------------------------------------------------------------ the table


@dataclass(frozen=True)
class ScheduleDef:
    """One value of `train.lr_scheduler`.

    >>> cosine_schedule = SCHEDULES["cosine"]
    >>> cosine_schedule.after(500, ScheduleArgs(steps=1000))
    0.5
    """

    after: Callable[..., float]
    """The factor once the warm-up is over; its keyword arguments are names for
    `train.lr_scheduler_params`."""

    uses: tuple[str, ...] = ()
    """Fields of `ScheduleArgs` besides the warm-up that matter to it."""

    rise: Callable[[int, ScheduleArgs], float] = from_zero

    lengths: tuple[str, ...] = ()
    """Names in `train.lr_scheduler_params` that are accepted and change nothing.

    ai-toolkit replaces these lengths by the length of the run; so its
    cosine_with_restarts never comes to a second cycle, which T_mult would lengthen.
    Source: `BaseSDTrainProcess` (total_iters = steps), `toolkit/scheduler.py`.
    """

    torchs: str = ""
    """The schedule for which those lengths count."""

    needs: str = ""
    """The parameter that it requires."""


_FALL = ("decay", "min_ratio")

SCHEDULES = {
    "constant": ScheduleDef(constant, lengths=("total_iters",), torchs="ConstantLR"),
    "constant_with_warmup": ScheduleDef(
        constant, lengths=("total_iters",), torchs="ConstantLR"
    ),
    "linear": ScheduleDef(linear, _FALL, lengths=("total_iters",), torchs="LinearLR"),
    "cosine": ScheduleDef(
        cosine, _FALL, lengths=("T_max", "total_iters"), torchs="CosineAnnealingLR"
    ),
    "cosine_with_restarts": ScheduleDef(
        cosine_with_restarts,
        (*_FALL, "cycles"),
        lengths=("T_0", "T_mult", "total_iters"),
    ),
    "cosine_with_min_lr": ScheduleDef(cosine_with_min_lr, (*_FALL, "cycles")),
    "polynomial": ScheduleDef(polynomial, (*_FALL, "power")),
    "warmup_stable_decay": ScheduleDef(warmup_stable_decay, _FALL, from_the_end),
    "inverse_sqrt": ScheduleDef(inverse_sqrt, ("timescale",)),
    "rex": ScheduleDef(rex, _FALL, rex_warmup),
    "step": ScheduleDef(step_decay, needs="step_size"),
    "exponential": ScheduleDef(exponential, needs="gamma"),
    "piecewise_constant": ScheduleDef(piecewise_constant, needs="step_rules"),
    "plateau": ScheduleDef(cast("Callable[..., float]", Plateau), ("min_ratio",)),
    "ConstantLR": ScheduleDef(constant_lr),
    "LinearLR": ScheduleDef(linear_lr),
    "CosineAnnealingLR": ScheduleDef(cosine_annealing_lr, ("min_ratio",)),
}
"""By the names of `train.lr_scheduler`."""

OTHER_NAMES = {
    "num_warmup_steps": "warmup",
    "num_decay_steps": "decay",
    "num_cycles": "cycles",
    "power": "power",
    "min_lr_ratio": "min_ratio",
    "min_lr_rate": "min_ratio",
    "eta_min_factor": "min_ratio",
    "timescale": "timescale",
}
"""Name in `train.lr_scheduler_params` -> field of `ScheduleArgs`."""

BOUNDS = {
    "cycles": (1, math.inf),
    "power": (0, math.inf),
    "min_ratio": (0, 1),
    "timescale": (0, math.inf),
}
"""Field of `ScheduleArgs` -> its least and its largest value."""

END_RATES = ("eta_min", "min_lr", "lr_end")
"""Names there for the end of the fall as a learning rate instead of a ratio."""


def parameters(name: str) -> list[str]:
    """Names that `train.lr_scheduler_params` may hold for a schedule. Raises KeyError
    for a schedule that is not in `SCHEDULES`.

    >>> "power" in parameters("polynomial"), "power" in parameters("cosine")
    (True, False)
    """
    kind = SCHEDULES[name]
    names = [
        key
        for key, arg in inspect.signature(kind.after).parameters.items()
        if arg.kind is arg.KEYWORD_ONLY
    ]
    shared = [
        other for other, field in OTHER_NAMES.items() if field in ("warmup", *kind.uses)
    ]
    return [
        *names,
        *shared,
        *(END_RATES if "min_ratio" in kind.uses else ()),
        *kind.lengths,
    ]


def check_parameters(name: str, params: Mapping[str, Any]) -> None:
    """Raises UserError for a parameter the schedule does not have, lacks, or cannot
    read. The values are tried in a run of two steps.

    >>> check_parameters("exponential", {"gamma": 0.99})
    """
    known = parameters(name) if params else []
    for param in params:
        if param not in known:
            raise UserError(f"{name} has no {param!r}. {did_you_mean(param, known)}")
        least, most = BOUNDS.get(OTHER_NAMES.get(param, ""), (-math.inf, math.inf))
        value = params[param]
        if isinstance(value, int | float) and not least <= value <= most:
            words = f"{least:g} or more" if most == math.inf else f"from {least:g} to 1"
            raise UserError(f"{param}: {value} is out of range: must be {words}.")
    needed = SCHEDULES[name].needs
    if needed and needed not in params:
        raise UserError(f"{name} needs {needed!r}, which is not given.")
    if not params:
        return
    try:
        factor = build_schedule(name, 2, params=params)
        factor(0), factor(1), factor(2)
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(f"{name} cannot use {dict(params)}: {error}.") from error


def remarks(name: str, params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Parameters that do something else than their names let expect, each with a
    sentence on its effect.

    >>> [name for name, remark in remarks("linear", {"end_factor": 0.1})]
    ['end_factor']
    """
    for param in params:
        if param in SCHEDULES[name].lengths:
            other = SCHEDULES[name].torchs
            remedy = "" if other else " For restarts give 'num_cycles'."
            if other and param in parameters(other):
                remedy = f" It counts with 'lr_scheduler: {other}'."
            yield (
                param,
                f"has no effect, as in ai-toolkit: the schedule is as long as the run.{remedy}",
            )
    if name == "linear" and "end_factor" in params and "start_factor" not in params:
        yield (
            "end_factor",
            "the rate begins at a third, as in ai-toolkit. Give 'start_factor: 1' to begin at all of it.",
        )


def course_of(
    steps: int,
    warmup: float = 0,
    params: Mapping[str, Any] = MappingProxyType({}),
    **course_fields: Any,
) -> ScheduleArgs:
    """The lengths of a run; what `params` say of them goes before the rest. Arguments
    as for `build_schedule`."""
    course = ScheduleArgs(steps, warmup, **course_fields)
    for param, value in params.items():
        if param in OTHER_NAMES:
            course = replace(course, **{OTHER_NAMES[param]: value})
        elif param in END_RATES:
            course = replace(course, min_ratio=value / course.lr if course.lr else 0.0)
    return course


def course_note(name: str, course: ScheduleArgs) -> str:
    """A note on a rate that ends above its start, or on a warm-up and a fall that
    together are longer than the run; empty where neither is so.

    >>> course_note("cosine", ScheduleArgs(steps=100, warmup=10))
    ''
    >>> course_note("cosine", ScheduleArgs(steps=100, warmup=200))
    'lr: the warm-up takes 200 optimizer steps, the run 100: it never reaches ...'
    """
    rise = course.warmup_steps
    fall = course.decay_steps if "decay" in SCHEDULES[name].uses else 0
    if (course.min_ratio or 0) > 1:
        return (
            f"lr: it rises to {course.min_ratio:,.1f} times its first value. For a fraction "
            "of 'lr' give 'eta_min_factor'"
        )
    if rise >= course.steps and rise > 0:
        return (
            f"lr: the warm-up takes {rise:,} optimizer steps, the run "
            f"{course.steps:,}: it never reaches the full rate"
        )
    if rise + fall <= course.steps:
        return ""
    return (
        f"lr: a warm-up of {rise:,} and a fall of {fall:,} optimizer steps do not fit into {course.steps:,}: "
        f"the rate falls in the {course.steps - rise:,} after the warm-up"
    )


EARLY = 100
"""Optimizer steps in which the rate is not to come to nothing."""


def early_end(
    name: str,
    steps: int,
    params: Mapping[str, Any] = MappingProxyType({}),
    **course_fields: Any,
) -> str:
    """A warning of a rate that is below a thousandth of its start within 100 steps and
    the first half of what follows the warm-up; empty where there is none. Arguments as
    for `build_schedule`."""
    first = course_of(steps, params=params, **course_fields).warmup_steps
    factor = build_schedule(name, steps, params=params, **course_fields)
    start = factor(first)
    for step in range(1, min(EARLY, (steps - first) // 2) + 1):
        if factor(first + step) < 1e-3 * start:
            return (
                f"lr: {step} optimizer steps after the {'warm-up' if first else 'start'} the rate is below a "
                f"thousandth of its first value, and {steps - first - step:,} follow. A schedule counts "
                "optimizer steps, not epochs"
            )
    return ""


def build_schedule(
    name: str,
    steps: int,
    warmup: float = 0,
    params: Mapping[str, Any] = MappingProxyType({}),
    **course_fields: Any,
) -> Schedule:
    """The schedule `name` over `steps` optimizer steps.

    params: `train.lr_scheduler_params`, checked by `check_parameters`; what they say
    goes before `course_fields`, which are further fields of `ScheduleArgs`.

    Returns a function from the number of steps done to the factor of the learning rate.
    Raises KeyError for a schedule that is not in `SCHEDULES`.

    >>> factor = build_schedule("cosine", steps=110, warmup=10)
    >>> [round(factor(step), 2) for step in (10, 60, 110)]
    [1.0, 0.5, 0.0]
    """
    kind = SCHEDULES[name]
    course = course_of(steps, warmup, params, **course_fields)
    not_own = (*OTHER_NAMES, *END_RATES, *kind.lengths)
    arguments = {
        param: value for param, value in params.items() if param not in not_own
    }
    if isinstance(kind.after, type):  # Plateau, which is no function
        return Plateau(course, **arguments)

    def factor(step: int) -> float:
        if step < course.warmup_steps:
            return kind.rise(step, course)
        return kind.after(step, course, **arguments)

    return factor
