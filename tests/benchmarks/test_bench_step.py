import pytest

from benchmarks import bench_step
from benchmarks.loops import PlainLoop

QUICK = ("--size", "XS", "--rounds", "1", "--warm-up", "1", "--noisy")


MASKED, NEITHER = "plain (mask, checkpointing)", "plain (neither)"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_ours_and_the_plain_loops_learn_the_same(report_of, dtype: str) -> None:
    report = report_of(bench_step.main, *QUICK, "--dtype", dtype)
    assert report["bench"] == "step"
    losses = report["first_loss"]
    assert list(losses) == ["ours", MASKED, NEITHER]
    assert (
        losses["ours"]
        == pytest.approx(losses[MASKED], rel=5e-3)
        == pytest.approx(losses[NEITHER], rel=5e-3)
    )
    assert report["ratios"][f"ours / {MASKED}"]["cpu_min"] > 0
    assert report["ratio"] == report["ratios"][f"ours / {NEITHER}"]["cpu_min"] > 0


@pytest.mark.slow
def test_with_int8_ours_is_compared_with_quanto(report_of) -> None:
    report = report_of(
        bench_step.main, *QUICK, "--base", "int8", "--checkpointing", "full"
    )
    assert list(report["times"]) == ["ours", MASKED, NEITHER, "quanto (neither)"]
    assert report["ratio"] == report["ratios"]["ours / quanto (neither)"]["cpu_min"]


def test_other_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain loop that leaves out its reference is faster, and has another loss."""
    step = PlainLoop.step

    def without_reference(self: PlainLoop) -> None:
        self.batch.control_latents[0][0].zero_()
        step(self)

    monkeypatch.setattr(PlainLoop, "step", without_reference)
    with pytest.raises(SystemExit, match="first losses"):
        bench_step.main([*QUICK, "--dtype", "fp32"])
