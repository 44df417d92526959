import json
import math

import pytest
import torch

from tests.golden_tables import golden
from tests.measured import at_most
from toolkit.config.sections.train import TrainConfig
from toolkit.errors import UserError
from toolkit.optim.schedules import (
    SCHEDULES,
    ScheduleArgs,
    build_schedule,
    check_parameters,
    course_note,
    course_of,
    early_end,
    in_steps,
    parameters,
    remarks,
)

MUSUBI = [case for case in golden("lr_schedules", project="musubi") if "lr" in case]
MUSUBI = [
    case
    for case in MUSUBI
    if not (isinstance(case["warmup"], float) and case["warmup"] >= 1)
]
"""A warm-up of exactly 1.0 is one step here and all steps in musubi:
tests/golden/README.md."""

AI_TOOLKIT = [
    case for case in golden("lr_schedules", project="ai-toolkit") if "lr" in case
]
DIFFERENT = {"linear": {}, "constant_with_warmup": {}}
"""ai-toolkit's with these options: a rise from 1/3, and a warm-up of 1000 steps nobody
asked for."""


def worst_of(case: dict, factor, first: int = 0) -> float:
    """Largest relative difference over the steps of the run."""
    worst = 0.0
    for step, expected in list(enumerate(case["lr"]))[first : case["total_steps"]]:
        difference = abs(case["base_lr"] * factor(step) - expected)
        if difference > 1e-12:
            worst = max(worst, difference / max(expected, 1e-12))
    return worst


@pytest.mark.parametrize(
    "case",
    MUSUBI,
    ids=lambda case: f"{case['scheduler']}-{case['warmup']}-{case['decay']}",
)
def test_learning_rates_are_those_of_musubi(case: dict) -> None:
    options = dict(case["options"])
    params = dict(text.split("=") for text in options.pop("lr_scheduler_args", []))
    params |= {key.removeprefix("lr_scheduler_"): options[key] for key in options}
    factor = build_schedule(
        case["scheduler"],
        case["total_steps"],
        case["warmup"],
        {name: float(value) for name, value in params.items()},
        decay=case["decay"],
        lr=case["base_lr"],
    )
    # Its rex takes a negative remainder at step 0 of a warm-up, and begins one step
    # late after a warm-up of 1.
    first = (
        {"rex": 2 if case["warmup"] == 1 else 1}.get(case["scheduler"], 0)
        if case["warmup"]
        else 0
    )
    at_most(
        f"learning rates, {case['scheduler']}, warm-up {case['warmup']}",
        worst_of(case, factor, first),
        1e-6,
    )


@pytest.mark.parametrize(
    "case", AI_TOOLKIT, ids=lambda case: f"{case['scheduler']}-{case['options']}"
)
def test_learning_rates_are_those_of_ai_toolkit_where_the_meaning_is_the_same(
    case: dict,
) -> None:
    check_parameters(case["scheduler"], case["options"])
    factor = build_schedule(
        case["scheduler"],
        case["total_steps"],
        params=case["options"],
        lr=case["base_lr"],
    )
    if DIFFERENT.get(case["scheduler"]) == case["options"]:
        assert worst_of(case, factor) > 0.1
    else:
        at_most(
            f"learning rates of ai-toolkit, {case['scheduler']}",
            worst_of(case, factor),
            1e-6,
        )


TORCHS = [
    ("exponential", "ExponentialLR", {"gamma": 0.95}),
    ("step", "StepLR", {"step_size": 7, "gamma": 0.5}),
    ("ConstantLR", "ConstantLR", {}),
    ("ConstantLR", "ConstantLR", {"factor": 0.2, "total_iters": 20}),
    ("LinearLR", "LinearLR", {}),
    ("LinearLR", "LinearLR", {"start_factor": 1, "end_factor": 0.1, "total_iters": 20}),
    ("CosineAnnealingLR", "CosineAnnealingLR", {"T_max": 20}),
    ("CosineAnnealingLR", "CosineAnnealingLR", {"T_max": 40, "eta_min": 0.002}),
]


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize(("name", "theirs", "params"), TORCHS)
def test_a_schedule_by_the_name_of_a_class_is_torchs(
    name: str, theirs: str, params: dict, warmup: int
) -> None:
    """60 steps, so beyond the ends of all but one; a cosine then rises again."""
    check_parameters(name, params)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = getattr(torch.optim.lr_scheduler, theirs)(optimizer, **params)
    ours = build_schedule(name, 60 + warmup, warmup, params, lr=0.01)
    assert [ours(step) for step in range(warmup)] == [
        step / warmup for step in range(warmup)
    ]
    for step in range(60):
        assert 0.01 * ours(warmup + step) == pytest.approx(
            scheduler.get_last_lr()[0], abs=1e-9
        ), step
        optimizer.step()
        scheduler.step()


def test_a_cosine_without_a_length_ends_with_the_run_at_its_factor() -> None:
    theirs = build_schedule("CosineAnnealingLR", 50, 10, {"eta_min_factor": 0.1})
    ours = build_schedule("cosine", 50, 10, min_ratio=0.1)
    assert [theirs(step) for step in range(51)] == pytest.approx(
        [ours(step) for step in range(51)], abs=1e-12
    )
    assert theirs(50) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "steps", "params", "says"),
    [
        ("exponential", 1000, {"gamma": 0.5}, "10 optimizer steps after the start"),
        ("exponential", 1000, {"gamma": 0.93}, "96 optimizer steps after the start"),
        ("exponential", 1000, {"gamma": 0.94}, ""),
        ("exponential", 19, {"gamma": 0.5}, ""),
        ("step", 500, {"step_size": 20}, "80 optimizer steps after the start"),
        (
            "step",
            500,
            {"step_size": 20, "num_warmup_steps": 9},
            "80 optimizer steps after the warm-up",
        ),
        ("step", 500, {"step_size": 20, "num_warmup_steps": 400}, ""),
        (
            "LinearLR",
            1000,
            {"start_factor": 1, "end_factor": 0, "total_iters": 50},
            "50 optimizer steps after the start",
        ),
        (
            "CosineAnnealingLR",
            1000,
            {"T_max": 50},
            "49 optimizer steps after the start",
        ),
        ("cosine", 20, {}, ""),
        ("polynomial", 150, {"power": 12.0}, ", and 84 follow."),
        ("plateau", 1000, {}, ""),
    ],
)
def test_a_rate_that_comes_to_nothing_early_is_told(
    name: str, steps: int, params: dict, says: str
) -> None:
    line = early_end(name, steps, params)
    assert says in line and bool(line) == bool(says)


@pytest.mark.parametrize(
    "options",
    [{"end_factor": 0.2}, {"start_factor": 0.5}, {"start_factor": 1, "end_factor": 0}],
)
def test_a_line_between_factors_is_torchs(options: dict) -> None:
    """LinearLR, as ai-toolkit calls it: over all steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=50, **options)
    ours = build_schedule("linear", 50, params=options)
    for step in range(50):
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("name", "param"),
    [(name, param) for name, kind in SCHEDULES.items() for param in kind.lengths],
)
def test_lengths_that_ai_toolkit_replaces_by_the_runs_change_nothing_and_it_is_said(
    name: str, param: str
) -> None:
    check_parameters(name, {param: 7})
    plain, given = (
        build_schedule(name, 20, params=params) for params in ({}, {param: 7})
    )
    assert [given(step) for step in range(21)] == [plain(step) for step in range(21)]
    [(key, message)] = remarks(name, {param: 7})
    assert key == param and message.startswith(
        "has no effect, as in ai-toolkit: the schedule is as long as the run."
    )
    assert ("'num_cycles'" in message) == (name == "cosine_with_restarts")
    other = {
        "constant": "ConstantLR",
        "linear": "LinearLR",
        "cosine": "CosineAnnealingLR",
    }.get(name.split("_with")[0])
    counts = name != "cosine_with_restarts" and (name, param) != (
        "cosine",
        "total_iters",
    )
    assert (f"It counts with 'lr_scheduler: {other}'." in message) == counts


def test_a_line_that_is_only_told_its_end_says_where_it_begins() -> None:
    assert [key for key, _ in remarks("linear", {"end_factor": 0.2})] == ["end_factor"]
    assert [
        *remarks("linear", {"start_factor": 1, "end_factor": 0.2}),
        *remarks("cosine", {"eta_min": 0}),
    ] == []


@pytest.mark.parametrize(
    ("name", "lengths", "says"),
    [
        ("warmup_stable_decay", (60, 40), ""),
        (
            "warmup_stable_decay",
            (0.6, 0.5),
            "a warm-up of 60 and a fall of 50 optimizer steps do not fit into 100: ",
        ),
        ("linear", (1, 100), "the rate falls in the 99 after the warm-up"),
        ("constant", (60, 90), ""),
        (
            "constant",
            (100, 0),
            "the warm-up takes 100 optimizer steps, the run 100: it never reaches the full rate",
        ),
        ("cosine", (0, 0, 1, 1.0, 5.0), "lr: it rises to 5.0 times its first value"),
    ],
)
def test_a_course_that_is_longer_than_the_run_or_rises_is_told(
    name: str, lengths: tuple, says: str
) -> None:
    line = course_note(name, ScheduleArgs(100, *lengths))
    assert says in line and bool(line) == bool(says)


def test_lengths_among_the_parameters_count_in_a_course() -> None:
    course = course_of(
        100, 5, {"num_warmup_steps": 70, "num_decay_steps": 0.4}, decay=3
    )
    assert (course.warmup_steps, course.decay_steps) == (70, 40)


def test_the_course_comes_from_the_config() -> None:
    params = {"num_cycles": 5, "power": 2, "min_lr_ratio": 0.5, "timescale": 7}
    train = TrainConfig(
        lr=2.0, lr_warmup_steps=3, lr_decay_steps=4, lr_scheduler_params=params
    )
    course = course_of(
        10, params=train.lr_scheduler_params, **ScheduleArgs.named_in(train)
    )
    assert course == ScheduleArgs(10, 3, 4, 5, 2, 0.5, 7, 2.0)


@pytest.mark.parametrize(
    ("name", "param", "value", "fault"),
    [
        ("cosine_with_restarts", "num_cycles", 0, "1 or more"),
        ("polynomial", "power", -1, "0 or more"),
        ("cosine", "min_lr_ratio", 1.5, "from 0 to 1"),
        ("cosine", "eta_min_factor", -0.1, "from 0 to 1"),
        ("inverse_sqrt", "timescale", -5, "0 or more"),
    ],
)
def test_a_parameter_out_of_its_range_is_refused(
    name: str, param: str, value: float, fault: str
) -> None:
    with pytest.raises(UserError) as refused:
        check_parameters(name, {param: value})
    told = f"{param}: {value} is out of range: must be {fault}."
    assert str(refused.value) == told


# ------------------------------------------------------------ by hand


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_a_function_of_the_step(name: str) -> None:
    params = {
        "step": {"step_size": 3},
        "exponential": {"gamma": 0.5},
        "piecewise_constant": {"step_rules": "1:5,0.1"},
    }.get(name, {})
    factor = build_schedule(name, 20, 4, params, decay=6)
    forwards = [factor(step) for step in range(20)]
    assert [factor(step) for step in reversed(range(20))] == forwards[::-1]
    assert all(0 <= value <= 1 for value in forwards)
    assert factor(4) == pytest.approx(1) or name in (
        "inverse_sqrt",
        "ConstantLR",
        "LinearLR",
    )


def test_a_length_below_one_is_a_share() -> None:
    assert [in_steps(value, 200) for value in (0, 0.1, 0.5, 1, 10)] == [
        0,
        20,
        100,
        1,
        10,
    ]


# ------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        (
            "cosine",
            {"num_warmup_step": 4},
            r"cosine has no 'num_warmup_step'\. Did you mean 'num_warmup_steps'",
        ),
        ("cosine", {"gamma": 4}, "cosine has no 'gamma'"),
        ("constant", {"eta_min": 0}, "constant has no 'eta_min'"),
        ("step", {}, "step needs 'step_size'"),
        ("exponential", {}, "exponential needs 'gamma'"),
        ("exponential", {"gamma": -0.5}, "gamma -0.5 is not 0 or more"),
        ("LinearLR", {"total_iters": 0}, "LinearLR cannot use {'total_iters': 0}"),
        ("LinearLR", {"end_factor": 1.5}, "end_factor 1.5 is not from 0 to 1"),
        ("ConstantLR", {"factor": 2}, "factor 2 is not from 0 to 1"),
        (
            "CosineAnnealingLR",
            {"total_iters": 5},
            "CosineAnnealingLR has no 'total_iters'",
        ),
        ("step", {"step_size": 0}, "step cannot use {'step_size': 0}"),
        ("piecewise_constant", {}, "piecewise_constant needs 'step_rules'"),
        ("piecewise_constant", {"step_rules": "1-10"}, "piecewise_constant cannot use"),
        ("constant", {"num_warmup_steps": "many"}, "constant cannot use"),
    ],
)
def test_a_wrong_parameter_is_a_mistake_with_a_hint(
    name: str, params: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_parameters(name, params)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_takes_the_warm_up_by_its_other_name(name: str) -> None:
    assert "num_warmup_steps" in parameters(name)


# ------------------------------------------------------------ a schedule that follows a
# value


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"factor": 0.5, "patience": 0},
        {"factor": 0.3, "patience": 2, "cooldown": 3},
        {"patience": 1, "threshold": 0.05, "threshold_mode": "abs", "min_lr": 1e-4},
        {"patience": 1, "eps": 1e-4},
    ],
)
def test_plateau_is_torchs(settings: dict) -> None:
    generator = torch.Generator().manual_seed(2)
    values = (
        1 / (1 + 0.05 * torch.arange(120)).clamp(max=3)
        + 0.05 * torch.rand(120, generator=generator)
    ).tolist()
    values[7] = values[50]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **settings)
    schedule = build_schedule("plateau", 1000, params=settings, lr=0.01)
    rates = []
    for step, value in enumerate(values):
        theirs.step(value)
        schedule.observe(value)
        assert 0.01 * schedule(step) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-9
        )
        rates.append(schedule(step))
        resumed = build_schedule("plateau", 1000, params=settings, lr=0.01)
        resumed.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
        schedule = resumed
    assert len(set(rates)) > 1


def test_plateau_rises_first_and_looks_at_no_number_that_is_none() -> None:
    schedule = build_schedule(
        "plateau", 100, warmup=4, params={"patience": 0, "factor": 0.5}
    )
    assert [schedule(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    for value in (1.0, math.nan, math.inf):
        schedule.observe(value)
    assert schedule(5) == 1
    schedule.observe(1.0)
    assert schedule(5) == 0.5


@pytest.mark.parametrize(
    "params",
    [
        {"factor": 1.0},
        {"patience": -1},
        {"threshold_mode": "x"},
        {"every": 0},
        {"mode": "max"},
    ],
)
def test_plateau_refuses_what_it_cannot_use(params: dict) -> None:
    with pytest.raises(UserError):
        check_parameters("plateau", params)
