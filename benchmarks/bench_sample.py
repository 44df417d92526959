"""A sampling step against the forward pass of a training step: `python benchmarks/bench_sample.py --size S`.

Both see the same tokens: the image, one reference, the text. What a sampling step costs beyond the forward pass is
overhead of the sampler; that it keeps no activations may even make it cheaper.
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
from benchmarks.loops import OurLoop  # noqa: E402
from benchmarks.synthetic import DTYPES, RANK, SIZES, write_model  # noqa: E402
from toolkit.data.cache import TensorCache  # noqa: E402
from toolkit.data.latent_cache import CachePair, ItemEncoder  # noqa: E402
from toolkit.data.types import Size  # noqa: E402
from toolkit.train.sampling import SamplePrompt, Sampler  # noqa: E402

PHOTO = ROOT / "config" / "examples" / "photos" / "40_photo" / "coffee.jpg"
ROUNDS = {"XS": 3, "S": 8, "M": 5}


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    report.card("sample", f"LoRA rank {RANK}, size {asked.size}: {SIZES[asked.size]}, 1 reference, no guidance")
    print(
        f"{asked.dtype}, no checkpointing | 1 thread | {asked.rounds} rounds of one picture of {asked.steps} steps "
        f"and {asked.steps} training forwards, 1 round dropped; times are per step"
    )
    with TemporaryDirectory() as folder:
        write_model(Path(folder), SIZES[asked.size])
        loop = OurLoop(Path(folder), SIZES[asked.size], DTYPES[asked.dtype], level="none", qtype=None)
        sampler = make_sampler(loop, asked)
        work = {
            "sampling step": lambda: sampler.latents(0),
            "training forward": lambda: [loop.step_fn(loop.batch) for _ in range(asked.steps)],
        }
        rounds = timing.interleave(work, warm_up=1, rounds=asked.rounds, noisy=asked.noisy)
    per_step = {name: t.divided(asked.steps) for name, t in rounds.times.items()}
    print(timing.table(per_step))
    ratio = timing.ratio(per_step["sampling step"], per_step["training forward"])
    print(rounds)
    print(f"sampling step / training forward: {ratio['cpu_min']:.3f} (CPU minimum)")
    report.finish(
        "sample",
        **vars(asked),
        **rounds.facts(),
        times={name: t.summary() for name, t in per_step.items()},
        ratios=ratio,
        ratio=ratio["cpu_min"],
    )


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--size", choices=SIZES, default="S")
    add("--dtype", choices=DTYPES, default="bf16")
    add("--steps", type=int, default=4, help="of each picture")
    add("--rounds", type=int, help="timed pictures")
    add("--noisy", action="store_true", help="keep rounds in which other work held the processor")
    asked = parser.parse_args(argv)
    asked.rounds = asked.rounds or ROUNDS[asked.size]
    return asked


def make_sampler(loop: OurLoop, asked: argparse.Namespace) -> Sampler:
    """The program's sampler for one image of the training size, its embeddings and reference already cached."""
    side = 8 * SIZES[asked.size].latent_side
    prompt = SamplePrompt("drawn", "", Size(side, side), 42, guidance_scale=1.0, steps=asked.steps, references=(PHOTO,))
    stores = CachePair(TensorCache(None), TensorCache(None))
    sampler = Sampler(loop.model, [prompt], ItemEncoder(loop.model, DTYPES[asked.dtype]), stores)
    sampler.encode(lambda what, done, total: None)
    return sampler


if __name__ == "__main__":
    main()
