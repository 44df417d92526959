"""The bench of training from nothing, at the size of a test."""

from __future__ import annotations

import pytest

from benchmarks import bench_from_scratch
from benchmarks.bench_from_scratch import range_of, vae_section
from benchmarks.vae_loops import PlainVaeLoop

QUICK = ("step", "--rounds", "1", "--warm-up", "1", "--noisy")


def test_ours_and_the_plain_loop_learn_the_same(report_of) -> None:
    report = report_of(bench_from_scratch.main, *QUICK)
    ours, plain = report["losses"]["ours"], report["losses"]["plain"]
    assert len(ours) == 3 and ours == pytest.approx(plain, rel=2e-3)
    assert report["ratio"] == report["ratios"]["cpu_min"] > 0


def test_a_plain_loop_that_does_less_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlainVaeLoop, "_loss", lambda self, fake, real, mean, logvar: (fake - real).square().mean())
    with pytest.raises(SystemExit, match="first losses"):
        bench_from_scratch.main([*QUICK])


def test_a_range_is_of_means_of_ten() -> None:
    assert range_of([0.0, 2.0] * 5 + [3.0] * 10 + [100.0]) == {"lowest": 1.0, "highest": 3.0, "mean": 2.0}


def test_the_model_is_small_enough(tmp_path) -> None:
    import torch

    from extensions.vae_trainer.config import VaeTrainerConfig
    from toolkit.models.autoencoders import make_autoencoder

    section = VaeTrainerConfig(**vae_section(tmp_path, "vae", 1))
    module = make_autoencoder(section.model, 0, torch.device("cpu")).module
    assert sum(p.numel() for p in module.parameters()) <= 1_500_000
