"""A training step of the program against the same step written plainly: `python
benchmarks/bench_step.py --size S`.

The plain loop is what a user writes with diffusers and peft, eager, with two settings:
as trainers mostly have it, with gradient checkpointing and the attention mask, and with
neither, which is faster: the mask is all true, and in bf16 autocast lets the adapters
multiply in bf16 too. The second is the one to beat. With `--base int8` it is that loop
on optimum-quanto's own linears. All share the saved model, LoRA layers and start,
tokens, noise and optimizer; equal losses show that they do the same work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import report, timing  # noqa: E402
from benchmarks.loops import OurLoop, PlainLoop, plain_rival  # noqa: E402
from benchmarks.synthetic import DTYPES, RANK, SIZES, write_model  # noqa: E402
from toolkit.config.reading.field_types import AUTO_LEVELS  # noqa: E402

ALLOWED_LOSS_ERROR = {
    ("fp32", "none"): 1e-5,
    ("bf16", "none"): 5e-3,
    ("fp32", "int8"): 2e-2,
    ("bf16", "int8"): 2e-2,
}
"""Relative difference of the first loss: rounding; with int8 also what computing in
integers may add."""

MASKED = "plain (mask, checkpointing)"
NEITHER = "plain (neither)"
QUANTO = "quanto (neither)"
"""The settings of a plain loop are in its name."""

ROUNDS = {"XS": 5, "S": 15, "M": 8, "L": 4}


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    describe(asked)
    with TemporaryDirectory() as folder:
        write_model(Path(folder), SIZES[asked.size])
        loops = build(Path(folder), asked)
        losses = first_step(loops, asked)
        steps = {name: loop.step for name, loop in loops.items()}
        rounds = timing.interleave(steps, asked.warm_up, asked.rounds, asked.noisy)
    times = rounds.times
    print(timing.table(times))
    print(
        f"{rounds}; loss of step {len(loops['ours'].losses)}: {said({n: loop.losses for n, loop in loops.items()})}"
    )
    ratios = {
        f"ours / {name}": timing.ratio(times["ours"], times[name])
        for name in loops
        if name != "ours"
    }
    for name, values in ratios.items():
        print(
            f"{asked.dtype}, {name}: {values['cpu_min']:.3f} (CPU minimum), {values['wall_median']:.3f} (wall median)"
        )
    report.finish(
        "step",
        **vars(asked),
        first_loss=losses,
        **rounds.facts(),
        times={name: t.summary() for name, t in times.items()},
        ratios=ratios,
        ratio=ratios[f"ours / {rival(asked)}"]["cpu_min"],
    )


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--size", choices=SIZES, default="S")
    add("--dtype", choices=DTYPES, default="bf16")
    add(
        "--base",
        choices=["none", "int8"],
        default="none",
        help="how the frozen linears are quantized",
    )
    add(
        "--checkpointing",
        choices=AUTO_LEVELS,
        default="none",
        help="ours; none is what auto takes on a CPU",
    )
    add("--rounds", type=int, help="timed steps of each variant")
    add(
        "--warm-up",
        type=int,
        default=2,
        help="untimed steps of each variant, after the first",
    )
    add(
        "--noisy",
        action="store_true",
        help="keep rounds in which other work held the processor",
    )
    asked = parser.parse_args(argv)
    asked.rounds = asked.rounds or ROUNDS[asked.size]
    return asked


def rival(asked: argparse.Namespace) -> str:
    """The variant that the last ratio is about."""
    return QUANTO if asked.base == "int8" else NEITHER


def describe(asked: argparse.Namespace) -> None:
    report.card(
        "step",
        f"LoRA rank {RANK}, size {asked.size}: {SIZES[asked.size]}, batch 1, 1 reference",
    )
    print(
        f"{asked.dtype}, base quantized: {asked.base} | checkpointing of ours: {asked.checkpointing} | 1 thread, "
        f"variants interleaved step by step, {1 + asked.warm_up} steps dropped, {asked.rounds} timed"
    )


def build(folder: Path, asked: argparse.Namespace) -> dict[str, OurLoop | PlainLoop]:
    """The variants in the order of their turns."""
    dtype = DTYPES[asked.dtype]
    qtype = None if asked.base == "none" else asked.base
    ours = OurLoop(folder, SIZES[asked.size], dtype, asked.checkpointing, qtype)
    loops: dict[str, OurLoop | PlainLoop] = {
        "ours": ours,
        MASKED: plain_rival(folder, dtype, ours),
        NEITHER: plain_rival(folder, dtype, ours, lean=True),
    }
    if qtype:
        loops[QUANTO] = plain_rival(folder, dtype, ours, quanto=True, lean=True)
    return loops


def first_step(
    loops: dict[str, OurLoop | PlainLoop], asked: argparse.Namespace
) -> dict[str, float]:
    """Takes the first step of each and compares the losses: speed is not bought with
    other work."""
    for loop in loops.values():
        loop.step()
    losses = {name: loop.losses[0] for name, loop in loops.items()}
    error = abs(losses["ours"] / losses[rival(asked)] - 1)
    allowed = ALLOWED_LOSS_ERROR[asked.dtype, asked.base]
    print(
        f"loss of step 1: {said({n: loop.losses for n, loop in loops.items()})}; ours differs by {error:.1e}"
    )
    if not error <= allowed:
        sys.exit(
            f"refused: the first losses of ours and {rival(asked)} differ by more than {allowed:g}."
        )
    return losses


def said(losses: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {values[-1]:.6f}" for name, values in losses.items())


if __name__ == "__main__":
    main()
