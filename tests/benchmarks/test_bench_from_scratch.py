"""The bench of training from nothing, at the size of a test."""

from __future__ import annotations

import pytest

from benchmarks import bench_from_scratch
from benchmarks.vae_loops import PlainVaeLoop

QUICK = ("step", "--rounds", "1", "--warm-up", "1", "--noisy")


@pytest.mark.slow
def test_ours_and_the_plain_loop_learn_the_same(report_of) -> None:
    report = report_of(bench_from_scratch.main, *QUICK)
    ours, plain = report["losses"]["ours"], report["losses"]["plain"]
    assert len(ours) == 3 and ours == pytest.approx(plain, rel=2e-3)
    assert report["ratio"] == report["ratios"]["cpu_min"] > 0


def test_a_plain_loop_that_does_less_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlainVaeLoop, "_loss", lambda self, fake, real, mean, logvar: (fake - real).square().mean())
    with pytest.raises(SystemExit, match="first losses"):
        bench_from_scratch.main([*QUICK])


@pytest.mark.slow  # about a minute
def test_an_autoencoder_learns_in_150_steps_and_its_discriminator_neither_wins_nor_gives_up(
    report_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole bench has 700 steps; the bound is 2 dB below what these reach."""
    monkeypatch.setattr(bench_from_scratch, "SETTLED", 20)
    report = report_of(bench_from_scratch.main, "gan", "--steps", 150, "--gan-start", 20)
    assert report["psnr"]["mean"] >= 17
    for term in ("loss_disc_real", "loss_disc_fake"):
        values = report["losses"][term]
        assert 0.05 < values["lowest"] < values["highest"] < 2, (term, values)
