import pytest

from benchmarks import timing
from benchmarks.timing import Disturbed, Rounds, Times, interleave


def script(monkeypatch: pytest.MonkeyPatch, *times: tuple[float, float]) -> list[str]:
    """Lets each timed call take the next (wall, CPU) seconds; returns the calls as they
    come."""
    waiting = list(times)
    calls: list[str] = []

    def timed(work) -> Times:
        work()
        wall, cpu = waiting.pop(0)
        return Times([wall], [cpu])

    monkeypatch.setattr(timing, "timed", timed)
    return calls


def test_variants_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = script(monkeypatch, *[(1.0, 1.0)] * 4)
    rounds = interleave(
        {name: lambda name=name: calls.append(name) for name in "ab"},
        warm_up=1,
        rounds=2,
    )
    assert "".join(calls) == "ababab"
    assert rounds.times["a"].wall == [1.0, 1.0]


def test_a_disturbed_round_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, (1.0, 1.0), (1.2, 1.0), (2.0, 1.0))
    rounds = interleave({"a": lambda: None}, warm_up=0, rounds=1)
    assert (rounds.times["a"].wall, rounds.disturbed) == ([1.0], 0)
    script(monkeypatch, (1.2, 1.0), (1.1, 1.0))
    rounds = interleave({"a": lambda: None}, warm_up=0, rounds=1)
    assert (rounds.times["a"].wall, rounds.disturbed) == ([1.1], 1)


def test_a_disturbed_machine_gives_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, *[(1.2, 1.0)] * 6)
    with pytest.raises(Disturbed, match="refused"):
        interleave({"a": lambda: None}, warm_up=0, rounds=2)


def test_ratios_are_of_minima_and_medians() -> None:
    a, b = (
        Times([1.0, 3.0, 9.0], [1.0, 2.0, 4.0]),
        Times([2.0, 4.0, 5.0], [2.0, 8.0, 9.0]),
    )
    assert timing.ratio(a, b) == {
        "wall_min": 0.5,
        "wall_median": 0.75,
        "cpu_min": 0.5,
        "cpu_median": 0.25,
    }
    assert "9.00" not in str(Rounds({"a": a}))
