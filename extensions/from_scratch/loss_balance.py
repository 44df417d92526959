"""Says once when one term of an autoencoder's loss outweighs all others together."""

from __future__ import annotations

import logging

from extensions.from_scratch.losses_config import ADVERSARIAL_WEIGHT, LPIPS_METRIC, PIXEL_METRICS, LossesConfig
from toolkit.train.interface import StepResult
from toolkit.train.run import Callback, Run

logger = logging.getLogger(__name__)

TIMES = 20
COMPARE_IMAGES = ("l1", "reconstruction", "mse", "lpips")
"""Terms that may outweigh all others: they are what an autoencoder is for."""


class LossBalance(Callback):
    """Logs one warning per start, at the first step of which it is true."""

    def __init__(self, losses: LossesConfig) -> None:
        self._losses: LossesConfig | None = losses

    def on_metrics(self, run: Run, result: StepResult) -> None:
        if self._losses is None:
            return
        sizes = {key: abs(value) for key, value in _weighted(self._losses, result.extra_metrics).items()}
        key = max(sizes, key=lambda key: sizes[key], default="")
        others = sum(sizes.values()) - sizes.get(key, 0)
        if key not in COMPARE_IMAGES and 0 < TIMES * others < sizes.get(key, 0):
            logger.warning(
                f"step {result.step}: losses.{key} ({getattr(self._losses, key):g}) counts {sizes[key] / others:.0f} "
                "times as much as all other losses together, so the images are hardly compared. Lower it."
            )
            self._losses = None


def _weighted(losses: LossesConfig, numbers: dict[str, float]) -> dict[str, float]:
    """Key of `losses` -> its share of the loss of a step."""
    metrics = PIXEL_METRICS | {"lpips": LPIPS_METRIC, "adversarial": "loss_gen"}
    found = {key: getattr(losses, key) * numbers[name] for key, name in metrics.items() if name in numbers}
    if "adversarial" in found and ADVERSARIAL_WEIGHT in numbers:
        found["adversarial"] = numbers[ADVERSARIAL_WEIGHT] * numbers["loss_gen"]
    return found | {"kl": numbers.get("loss_kl_weighted", 0.0)}
