import pytest
import torch
from torch import nn

from tests.golden_tables import golden
from tests.measured import at_most
from toolkit.optim.ema import Ema

CASES = golden("ema", use_feedback=False, param_multiplier=1.0, update_rule="w = input")


def settle(ema: Ema) -> Ema:
    """After so many updates that only its decay counts."""
    ema.load(dict(ema.averages), updates=10**9)
    return ema


def test_averages_are_those_of_ai_toolkit() -> None:
    worst = 0.0
    for case in CASES:
        parameter = nn.Parameter(torch.tensor(case["initial"]))
        ema = Ema({"w": parameter}, case["decay"])
        if not case["use_num_updates"]:
            settle(ema)
        for value, expected, after in zip(
            case["inputs"], case["ema"], case["param_after"], strict=True
        ):
            parameter.data.fill_(value)
            ema.update()
            worst = max(worst, abs(float(ema.averages["w"]) - expected))
            assert float(parameter) == pytest.approx(after)
        with ema.applied():
            assert float(parameter) == pytest.approx(case["eval_value"], abs=1e-6)
        assert float(parameter) == pytest.approx(case["train_value"], abs=1e-6)
    assert {case["use_num_updates"] for case in CASES} == {True, False}
    at_most("moving average", worst, 1e-6)


def two_weights() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": nn.Parameter(torch.randn(3, 4, generator=generator)),
        "b": nn.Parameter(torch.randn(5, generator=generator).bfloat16()),
    }


def test_the_weights_come_back_bit_for_bit() -> None:
    parameters = two_weights()
    ema = Ema(parameters, 0.9)
    for parameter in parameters.values():
        parameter.data.add_(1 / 3)
    ema.update()
    own = {name: p.detach().clone() for name, p in parameters.items()}
    with ema.applied():
        assert torch.equal(parameters["a"], ema.averages["a"]) and not torch.equal(
            parameters["a"], own["a"]
        )
    assert all(torch.equal(p, own[name]) for name, p in parameters.items())
    with pytest.raises(KeyError), ema.applied():
        raise KeyError
    assert all(torch.equal(p, own[name]) for name, p in parameters.items())


def test_averages_are_float32_for_half_precision_weights() -> None:
    parameters = two_weights()
    ema = settle(Ema(parameters, 0.999))
    start = ema.averages["b"].clone()
    parameters["b"].data.add_(0.25)
    ema.update()
    assert ema.averages["b"].dtype == torch.float32
    torch.testing.assert_close(
        ema.averages["b"], start + 0.001 * (parameters["b"].detach().float() - start)
    )


def test_a_saved_average_goes_on_as_if_never_stopped() -> None:
    parameters = two_weights()
    straight, first = (Ema(parameters, 0.99) for _ in range(2))
    resumed = Ema(two_weights(), 0.99)
    for parameter in parameters.values():
        parameter.data.add_(1)
    straight.update()
    first.update()
    resumed.load(
        {name: average.clone() for name, average in first.averages.items()},
        first.updates,
    )
    resumed._parameters = parameters
    straight.update()
    resumed.update()
    assert all(
        torch.equal(straight.averages[name], resumed.averages[name])
        for name in parameters
    )


def test_an_update_that_is_not_taken_is_none() -> None:
    """Neither the average moves nor does the next update count as a later one."""
    averages = []
    for step_ok in ([True, True, True], [True, False, True, False, False, True]):
        w = nn.Parameter(torch.tensor([1.0, -2.0]))
        ema = Ema({"w": w}, 0.9)
        for is_taken in step_ok:
            if is_taken:
                w.data += 1
            ema.update(torch.tensor(is_taken))
        assert ema.updates == 3
        averages.append(ema.averages["w"])
    assert torch.equal(*averages)


def test_a_decay_near_one_is_not_rounded_away() -> None:
    """1 - 0.9999 in float32 arithmetic is off by 0.02 %; the weight of an update is
    not."""
    w = nn.Parameter(torch.zeros(1))
    ema = settle(Ema({"w": w}, 0.9999))
    w.data += 1
    ema.update()
    assert float(ema.averages["w"]) == pytest.approx(1e-4, rel=1e-6)
