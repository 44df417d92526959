"""Does `stop_when: {no_better_within: 95%}` stop runs that still improve? Simulated
runs whose true losses are known.

`python benchmarks/figures/stopping.py` prints for each kind of run the share of false
stops, where runs stopped, and the coverage of the intervals. A stop is false where a
later step of the planned run has a true loss that is lower than that of the best
checkpoint so far by more than these images resolve (the half-width of the paired
interval).
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402
from toolkit.train.paired import difference, forecast  # noqa: E402

LOOKS, EVERY = 24, 50
"""Validations of a run, and the steps between two."""

END = LOOKS * EVERY
CONFIDENCE = 0.95

Trend = Callable[[float], float]
"""From the part of the run that is done, 0 to 1, to the true mean loss, relative to
that of the base model."""


@dataclass(frozen=True)
class Kind:
    """A kind of run."""

    trend: Trend
    shock: float = 0.004
    """Standard deviation of what a checkpoint's weights add to the losses of all images
    alike."""

    memory: float = 0.0
    """Correlation of this from one validation to the next."""

    images: int = 16
    own: float = 0.006
    """Standard deviation of what a checkpoint adds to the loss of one image."""

    unlike: float = 0.3
    """Standard deviation between images of the factor of the trend."""

    tails: bool = False
    """Differences of images are log-normal instead of normal."""


def falls(share: float, until: float = 1.0) -> Trend:
    """Exponentially by this share at `until` 1, the slower the later."""
    return lambda done: (
        1 - share * (1 - math.exp(-3 * done / until)) / (1 - math.exp(-3))
    )


def line(share: float) -> Trend:
    return lambda done: 1 - share * done


def peaks(at: float, fall: float = 0.15, rise: float = 0.15) -> Trend:
    """Falls until `at`, and rises after it."""
    return lambda done: (
        1
        - fall * math.sin(math.pi / 2 * min(1, done / at))
        + rise * max(0.0, done - at)
    )


def steps_down(share: float, at: float) -> Trend:
    """Falls to a plateau, and once more in the last part, as with a learning rate that
    decays."""
    return lambda done: (
        1 - share * min(1, done / 0.2) - share / 3 * max(0.0, done - at) / (1 - at)
    )


IMPROVING = {
    "falls fast, then slower": Kind(falls(0.2)),
    "line, -10 %": Kind(line(0.1)),
    "line, -3 %": Kind(line(0.03)),
    "line, -1 %": Kind(line(0.01)),
    "line, -3 %, 8 images": Kind(line(0.03), images=8),
    "line, -3 %, 64 images": Kind(line(0.03), images=64),
    "line, -3 %, skewed": Kind(line(0.03), tails=True),
    "line, -3 %, weights scatter": Kind(line(0.03), shock=0.02),
    "line, -10 %, weights scatter": Kind(line(0.1), shock=0.03),
    "line, -3 %, slow waves": Kind(line(0.03), shock=0.01, memory=0.7),
    "line, -10 %, slow waves": Kind(line(0.1), shock=0.02, memory=0.7),
    "line, -10 %, slower waves": Kind(line(0.1), shock=0.02, memory=0.9),
    "no scatter, -3 %": Kind(line(0.03), shock=0.0005, own=0.002),
}
ENDED = {
    "peak at 0.3": Kind(peaks(0.3)),
    "peak at 0.5": Kind(peaks(0.5)),
    "peak at 0.75": Kind(peaks(0.75)),
    "peak at 0.3, 8 images": Kind(peaks(0.3), images=8),
    "peak at 0.3, weak": Kind(peaks(0.3, rise=0.04)),
    "peak at 0.3, weights scatter": Kind(peaks(0.3), shock=0.02),
    "flat after 0.3": Kind(lambda done: 1 - 0.15 * min(1, done / 0.3)),
    "flat after 0.3, weights scatter": Kind(
        lambda done: 1 - 0.15 * min(1, done / 0.3), shock=0.02
    ),
    "flat from the start": Kind(line(0)),
}
HARD = {"plateau, then falls again": Kind(steps_down(0.1, 0.7))}


@dataclass
class Simulated:
    """A run: what is measured, and what is true of its checkpoints."""

    losses: dict[int, dict[str, float]]
    true: dict[int, float]
    """Of the checkpoints, the mean over all images that there could be."""

    expected: dict[int, float]
    """Without what is the checkpoint's own."""


def simulate(kind: Kind, seed: int) -> Simulated:
    draw = random.Random(seed)

    def own() -> float:
        if not kind.tails:
            return draw.gauss(0, kind.own)
        return kind.own * (math.exp(draw.gauss(0, 1)) - math.exp(0.5)) / 2.16

    bases = [math.exp(draw.gauss(-1, 0.4)) for _ in range(kind.images)]
    factors = [1 + draw.gauss(0, kind.unlike) for _ in bases]
    scale, shock = math.exp(-1 + 0.08), draw.gauss(0, kind.shock)
    run = Simulated({}, {}, {})
    for look in range(LOOKS + 1):
        step, change = look * EVERY, kind.trend(look / LOOKS) - 1
        shock = kind.memory * shock + math.sqrt(1 - kind.memory**2) * draw.gauss(
            0, kind.shock
        )
        run.losses[step] = {
            str(index): base * (1 + change * factor + shock + own())
            for index, (base, factor) in enumerate(zip(bases, factors, strict=True))
        }
        run.expected[step] = scale * (1 + change)
        run.true[step] = scale * (1 + change + shock)
    return run


Rule = Callable[[dict[int, dict[str, float]]], tuple[int, float] | None]
"""From the losses so far to the best step and what the images resolve, where the run is
to end; else None."""


def no_better(losses: dict[int, dict[str, float]]) -> tuple[int, float] | None:
    """The rule of `stop_when`."""
    found = forecast(losses, END, CONFIDENCE)
    return (found.best, found.resolvable) if found and found.is_over else None


def worse_once(losses: dict[int, dict[str, float]]) -> tuple[int, float] | None:
    """The simple one: the last validation is worse than the best one, by the interval
    of their difference."""
    best = min(losses, key=lambda step: fmean(losses[step].values()))
    found = difference(losses[max(losses)], losses[best], CONFIDENCE)
    return (best, found.half) if found.mean > found.half > 0 else None


def stopped_at(run: Simulated, rule: Rule = no_better) -> tuple[int, bool] | None:
    """The step at which a rule ends a run, and whether that is false; None: it does
    not."""
    for look in range(LOOKS):
        step = look * EVERY
        if found := rule(
            {each: run.losses[each] for each in run.losses if each <= step}
        ):
            later = min(value for each, value in run.expected.items() if each > step)
            return step, later < run.true[found[0]] - found[1]
    return None


def coverage(images: int, skewed: bool, draws: int = 10_000) -> float:
    """How often a 95 % interval holds the true difference."""
    draw, held = random.Random(images), 0
    for _ in range(draws):
        values = (
            draw.expovariate(1) - 1 if skewed else draw.gauss(0, 1)
            for _ in range(images)
        )
        one = {str(index): value for index, value in enumerate(values)}
        held += not difference(one, dict.fromkeys(one, 0.0)).resolved
    return held / draws


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    report.card(
        "stopping",
        f"{asked.runs} runs of each kind, {LOOKS} validations, {CONFIDENCE:.0%}",
    )
    covered = {
        f"{n}{', skewed' * skewed}": coverage(n, skewed)
        for n in (8, 16, 32)
        for skewed in (False, True)
    }
    print(
        "coverage by images: "
        + "; ".join(f"{name}: {share:.1%}" for name, share in covered.items())
    )
    figures = {}
    for title, kinds in (
        ("still improving", IMPROVING),
        ("not any more", ENDED),
        ("hard", HARD),
    ):
        print(title)
        for name, kind in kinds.items():
            runs = [simulate(kind, seed) for seed in range(asked.runs)]
            ends = [stopped_at(each) for each in runs]
            simple = [stopped_at(each, worse_once) for each in runs]
            once = sum(end is not None and end[1] for end in simple) / asked.runs
            stops = [end for end in ends if end]
            stopped, false = (
                len(found) / asked.runs
                for found in (stops, [end for end in stops if end[1]])
            )
            at = median(step for step, _ in stops) / END if stops else None
            end = f"; the simple rule false {once:6.1%}" + (
                "" if at is None else f"; median at {at:.2f}"
            )
            print(
                f"  {name:34} stopped {stopped:6.1%}, false {false:6.1%}{end}",
                flush=True,
            )
            figures[name] = {
                "stopped": stopped,
                "false": false,
                "simple": once,
                "median": at,
            }
    report.finish("stopping", runs=asked.runs, coverage=covered, figures=figures)


if __name__ == "__main__":
    main()
