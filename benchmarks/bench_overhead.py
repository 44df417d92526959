"""What a step costs outside the model: `python benchmarks/bench_overhead.py`.

The program's own loop with all that a job has around it (batches read from a cache on disk, clipping, AdamW, the
average of the weights, metrics.jsonl, run.json) on a one-block model, part by part, in CPU time of the loop's thread.
The adapter's forward and the backward pass take turns with it alone on the same tokens; what is left is overhead.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import report, timing  # noqa: E402
from benchmarks.loops import OurLoop  # noqa: E402
from benchmarks.synthetic import DTYPES, RANK, SEED, SIZES, write_model  # noqa: E402
from toolkit.data.cache import TensorCache  # noqa: E402
from toolkit.data.dataloader import BatchLoader  # noqa: E402
from toolkit.data.epoch_order import EpochSource, epoch_batches  # noqa: E402
from toolkit.data.latent_cache import CachePair, encode_items  # noqa: E402
from toolkit.data.threads import loaded_ahead  # noqa: E402
from toolkit.data.types import BucketedSample, ResizeCrop, Sample, Size  # noqa: E402
from toolkit.files.log import StatusLine  # noqa: E402
from toolkit.optim.ema import Ema  # noqa: E402
from toolkit.train.callbacks.metrics import MetricsCallback  # noqa: E402
from toolkit.train.callbacks.status import StatusCallback  # noqa: E402
from toolkit.train.flow_step import NETWORK  # noqa: E402
from toolkit.train.loop import train  # noqa: E402
from toolkit.train.run import Callback  # noqa: E402

PHOTO = ROOT / "config" / "examples" / "photos" / "40_photo" / "coffee.jpg"


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    size = SIZES[asked.size]
    report.card("overhead", f"LoRA rank {RANK}, size {asked.size}: {size}, batch 1, 1 reference")
    print(
        f"{asked.dtype}, no checkpointing, EMA on, workers {asked.workers} | 1 thread, {asked.steps} steps, 5 dropped"
    )
    with TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", size)
        bench = Bench(Path(folder), asked)
        bench.train()
    per_step = {part: [1e3 * s for s in seconds[5:]] for part, seconds in bench.parts.items()}
    step, model = median(per_step.pop("step")), median(per_step["model alone"])
    print(f"{'part of a step':<22} {'CPU ms, median':>15} {'min':>8}")
    for part, values in per_step.items():
        print(f"{part:<22} {median(values):15.3f} {min(values):8.3f}")
    print(f"{'whole step':<22} {step:15.3f}\n{'outside the model':<22} {step - model:15.3f}")
    report.finish(
        "overhead",
        **vars(asked),
        parts_ms={part: median(values) for part, values in per_step.items()},
        step_ms=step,
        outside_model_ms=step - model,
    )


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--size", choices=SIZES, default="XS")
    add("--dtype", choices=DTYPES, default="fp32")
    add("--steps", type=int, default=60)
    add("--workers", type=int, default=0, help="threads that load batches; 0: the loop waits for each")
    return parser.parse_args(argv)


class Bench(Callback):
    """One run of the program's loop, its parts timed; after each step the model alone has its turn."""

    included_in_step_time = False

    def __init__(self, folder: Path, asked: argparse.Namespace) -> None:
        size, dtype = SIZES[asked.size], DTYPES[asked.dtype]
        self.asked = asked
        self.ours = OurLoop(folder / "model", size, dtype, level="none", qtype=None)
        run = self.run = self.ours.run
        run.folder, run.steps = folder / "run", asked.steps + 5
        run.folder.mkdir()
        run.roles[NETWORK].ema = Ema(self.ours.network.parameters(), 0.99, warm_up=False)
        run.callbacks = [MetricsCallback(), StatusCallback(StatusLine(StringIO())), self]
        side = 8 * size.latent_side
        crop = ResizeCrop(Size(side, side), 0, 0, Size(side, side))
        items = [BucketedSample(Sample(str(PHOTO), "a cup of coffee", 20, Size(side, side), "", (str(PHOTO),)), crop)]
        stores = CachePair(TensorCache(folder / "latents"), TensorCache(folder / "text"))
        dataset = encode_items(items, self.ours.model, lambda _: stores, dtype)
        self.loader = BatchLoader(dataset, SEED)
        self.epoch_batches = partial(epoch_batches, items, 1, SEED)
        self.parts: dict[str, list[float]] = {"model alone": [], "step": []}
        self._began = 0.0

    def train(self) -> None:
        role, step_fn = self.run.roles[NETWORK], self.ours.step_fn
        with ExitStack() as stack:
            for name, owner, method in (
                ("load a batch", BatchLoader, "load"),
                ("draw noise and t", step_fn, "sample_noise_and_t"),
                ("gradient norm", role.optimizer_step, "norm"),
                ("optimizer", role.optimizer, "step"),
                ("average", role.ema, "update"),
                *((type(callback).__name__, callback, "on_metrics") for callback in self.run.callbacks[:2]),
            ):
                stack.enter_context(mock.patch.object(owner, method, self._timed(name, getattr(owner, method))))
            load = partial(loaded_ahead, self.loader.load, workers=self.asked.workers)
            train(self.run, EpochSource(self.epoch_batches, load), step_fn)

    def _timed(self, part: str, work: Callable) -> Callable:
        """`work`, whose CPU time in its thread is added to `part`."""
        seconds = self.parts.setdefault(part, [])

        def call(*arguments: Any, **named: Any) -> Any:
            begin = time.thread_time()
            result = work(*arguments, **named)
            seconds.append(time.thread_time() - begin)
            return result

        return call

    def on_start(self, run: Any) -> None:
        self._began = time.thread_time()

    def after_step(self, run: Any) -> None:
        self.parts["step"].append(time.thread_time() - self._began)
        self._model_alone()
        self._began = time.thread_time()

    def _model_alone(self) -> None:
        batch, model = self.ours.batch, self.ours.model
        begin = time.thread_time()
        velocity = model.predict_velocity(batch.latents_BCHW, torch.tensor([0.5]), batch.prompts, batch.control_latents)
        velocity.square().mean().backward()
        self.parts["model alone"].append(time.thread_time() - begin)
        self.run.roles[NETWORK].optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
