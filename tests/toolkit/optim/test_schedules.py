import pytest

from tests.golden_tables import golden
from tests.measured import at_most
from toolkit.errors import UserError
from toolkit.optim.schedules import SCHEDULES, build_schedule, warmup_steps

OURS = {"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine"}
CASES = [case for case in golden("lr_schedules", project="musubi") if case["warmup"] != 1.0]
"""A warm-up of exactly 1 is one step here and all steps in musubi: below 1 it is a share, docs/config.md."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['scheduler']}-{case['warmup']}")
def test_learning_rates_are_those_of_musubi(case: dict) -> None:
    factor = build_schedule(OURS[case["scheduler"]], case["total_steps"], case["warmup"])
    worst = 0.0
    for step, expected in enumerate(case["lr"]):
        difference = abs(case["base_lr"] * factor(step) - expected)
        if difference > 1e-12:
            worst = max(worst, difference / expected)
    at_most(f"learning rates, {case['scheduler']}, warm-up {case['warmup']}", worst, 1e-6)


def test_the_compared_schedules_are_all_there_are() -> None:
    assert {OURS[case["scheduler"]] for case in CASES} == set(SCHEDULES)


def test_linear_without_warm_up_falls_to_zero() -> None:
    factor = build_schedule("linear", 4, 0)
    assert [factor(step) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_warm_up_below_one_is_a_share() -> None:
    assert [warmup_steps(value, 200) for value in (0, 0.1, 0.5, 1, 10)] == [0, 20, 100, 1, 10]


def test_the_other_name_of_the_warm_up() -> None:
    factor = build_schedule("constant", 100, 0, {"num_warmup_steps": 4})
    assert [factor(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]


def test_an_unknown_parameter_is_a_mistake_with_a_hint() -> None:
    with pytest.raises(UserError, match=r"cosine has no 'num_warmup_step'\. Did you mean 'num_warmup_steps'"):
        build_schedule("cosine", 100, 0, {"num_warmup_step": 4})
