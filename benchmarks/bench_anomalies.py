"""How often a sound run is said to have something wrong: `python benchmarks/bench_anomalies.py --runs 50`.

Trains LoRAs of the small model of the quickstart, each with another seed, learning rate, optimizer and kind of data
(captions alone, or with a control image; two datasets of unlike size, two buckets), and counts the events `warning`.
Prints how near each detector came to its limit: the limits of `toolkit/train/anomalies.py` were set with these numbers.
`--full` trains the model itself, every second run with `fused_backward_pass`. `--cost` measures what it adds to a step.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
import yaml
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import report, timing  # noqa: E402
from jobs import ExtensionJob, JobOptions  # noqa: E402
from toolkit.config import load_job  # noqa: E402
from toolkit.extension import discover  # noqa: E402
from toolkit.train import anomalies  # noqa: E402
from toolkit.train.callbacks import anomalies as callback  # noqa: E402
from toolkit.train.interface import SampleSource, StepResult  # noqa: E402
from toolkit.train.optimizer_step import Role  # noqa: E402
from toolkit.train.run import Run  # noqa: E402
from toolkit.train.run_reader import read_events  # noqa: E402

MODEL = ROOT / "config" / "examples" / "tiny_mascots"
VARIANTS: tuple[dict[str, Any], ...] = (
    {"optimizer": "adamw", "lr": 0.003},
    {"optimizer": "adamw", "lr": 0.0003, "lr_scheduler": "cosine"},
    {"optimizer": "muon", "lr": 0.02},
    {"optimizer": "prodigy", "lr": 1.0},
    {"optimizer": "adamw", "lr": 0.003, "timestep_type": "sigmoid", "gradient_accumulation": 2},
)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    if asked.cost:
        report.card("anomalies", "what a step costs")
        report.finish("anomalies", **costs())
        return
    logging.disable(logging.INFO)
    report.card("anomalies", f"{asked.runs} sound runs of {asked.steps} steps")
    said, most = 0, dict[str, float]()
    with TemporaryDirectory() as folder:
        for number in range(asked.first, asked.first + asked.runs):
            name = f"run{number}"
            with recorded(most):
                run_job(Path(folder), name, job(Path(folder), name, number, asked.steps, asked.full))
            (log,) = (Path(folder) / "runs").glob(f"**/{name}/events.jsonl")
            found = [row for row in read_events(log.parent).rows if row.get("event") == "warning"]
            said += len(found)
            for row in found:
                print(f"{name}: step {row['step']}: {row['kind']}: {row['message']}. Cause: {row['cause']}", flush=True)
            print(f"{name}: {len(found)} lines; so far {rounded(most)}", flush=True)
    report.finish("anomalies", runs=asked.runs, steps=asked.steps, lines=said, **most)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="number of the first run, to share them among processes")
    parser.add_argument("--steps", type=int, default=60, help="of each run")
    parser.add_argument("--full", action="store_true", help="full fine-tuning instead of LoRAs")
    parser.add_argument("--cost", action="store_true", help="instead: CPU time that is added to a step")
    return parser.parse_args(argv)


def costs(steps: int = 400) -> dict[str, float]:
    """Milliseconds per step of an adapter of 840 layers with batch 4: the callback, and the counting of gradients."""
    parameters = {
        f"blocks.{n}.to_q.lora_{side}.weight": nn.Parameter(torch.zeros(2)) for n in range(840) for side in "AB"
    }
    for parameter in parameters.values():
        parameter.grad = torch.ones(2)
    role = Role(parameters, torch.optim.SGD(parameters.values(), lr=0.0), lr=0.0, schedule=lambda step: 1.0)
    run = Run("cost", Path(), steps, 1, 1, {"network": role})
    watch = callback.AnomalyCallback(lambda *_, **__: None, lambda name: name[0])
    norm = [_milliseconds(lambda: role.optimizer_step.norm(role), steps)]
    watch.on_start(run)
    norm.append(_milliseconds(lambda: role.optimizer_step.norm(role), steps))
    sources = tuple(SampleSource(f"{name}.png", "latents (4, 16, 64, 64)") for name in "aabb")

    def step() -> None:
        run.state.step += 1
        per_sample = {"loss": (0.5, 0.6, 0.7, 0.8), "t": (0.1, 0.3, 0.6, 0.9)}
        watch.on_metrics(run, StepResult(run.state.step, 0, 0.5, 0.1, 1.0, 4, 1.0, 0.0, per_sample, sources))
        watch.after_step(run)

    return {"callback_ms": _milliseconds(step, steps), "norm_ms": norm[0], "norm_counted_ms": norm[1]}


def _milliseconds(call: Callable[[], object], times: int) -> float:
    """CPU time of one call, after some that are not measured."""
    for _ in range(20):
        call()
    begin = time.thread_time()
    for _ in range(times):
        call()
    return 1000 * (time.thread_time() - begin) / times


def job(folder: Path, name: str, number: int, steps: int, full: bool = False) -> dict[str, Any]:
    """The job of one run; its images are made once for all runs."""
    pictures, pairs = folder / "images", number % 3 == 2
    kind = {"type": "mascots", "path": str(pictures), "count": 36, "size": [64, 96], "edits": 24, "captions": "full"}
    data = [
        {"folder_path": str(pictures / "pictures"), "resolution": [64, 96], "cache_latents_to_disk": True},
        {"folder_path": str(pictures / "edits" / "after"), "resolution": 64, "num_repeats": 1},
    ]
    if pairs:
        data[1]["control_path"] = str(pictures / "edits" / "picture_1")
    train: dict[str, Any] = {"batch_size": 4, "steps": steps, "dtype": "fp32", "gradient_checkpointing": False}
    network: dict[str, Any] = {"type": "lora", "linear": (4, 16)[number % 2]}
    train |= VARIANTS[number % len(VARIANTS)]
    if full:
        network = {"type": "full"}
        train |= {"optimizer": "adamw", "lr": 0.0003, "fused_backward_pass": bool(number % 2)}
    sample = {
        "sample_every": steps // 2,
        "width": 96,
        "height": 96,
        "sample_steps": 4,
        "guidance_scale": 2,
        "seed": number,
        "prompts": ["a round blue mascot, wearing a red cap, at the beach", "a star green mascot, in the snow"],
    }
    trainer = {
        "type": "sd_trainer",
        "name": name,
        "training_folder": str(folder / "runs"),
        "device": "cpu",
        "training_seed": 100 + number,
        "network": network,
        "save": {"save_every": steps, "max_step_saves_to_keep": 1},
        "datasets": data,
        "train": train,
        "model": {"name_or_path": str(MODEL), "model_kwargs": {"match_target_res": True}},
        "sample": sample,
    }
    return {"job": "extension", "config": {"name": "anomalies", "process": [kind | {"name": "images"}, trainer]}}


def run_job(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Runs a job in this process."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    extensions = discover()
    started = ExtensionJob(load_job(path, extensions.find_config), extensions, JobOptions())
    try:
        started.run()
    finally:
        started.cleanup()


@contextmanager
def recorded(most: dict[str, float]) -> Iterator[None]:
    """Keeps in `most` how near the detectors come to their limits inside the block."""

    def keep(name: str, value: float | None, least: bool = False) -> None:
        if value is not None:
            most[name] = (min if least else max)(most.get(name, value), value)

    rise, judge = anomalies.RunawayLoss._rise, anomalies.SlowSteps._judge
    add, difference = anomalies.SampleSets.add, anomalies.difference

    def _rise(self: Any, key: Any, part: Any) -> Any:
        if found := rise(self, key, part):
            keep("rise", found[0])
            keep("deviations", sum(part.risen) + found[1] if found[0] >= anomalies.RISE else None)
        return found

    def _judge(self: Any) -> Any:
        recent = [group.ratio for group in self._recent]
        keep("slow_ratio", float(torch.tensor(recent).median()) if len(recent) >= anomalies.WINDOW_STEPS else None)
        return judge(self)

    def _add(self: Any, samples: Any) -> Any:
        keep("difference", difference(samples), least=True)
        for _, features in samples:
            keep("roughness", features.roughness)
        return add(self, samples)

    with (
        mock.patch.object(anomalies.RunawayLoss, "_rise", _rise),
        mock.patch.object(anomalies.SlowSteps, "_judge", _judge),
        mock.patch.object(callback.SampleSets, "add", _add),
    ):
        yield


def rounded(numbers: dict[str, float]) -> dict[str, float]:
    """With three digits, to be read."""
    return {name: float(f"{number:.3g}") for name, number in numbers.items()}


if __name__ == "__main__":
    main()
