"""The rows of `bench_gpu`, and how one of them is measured: a job that the program runs, or the plain loop.

Of the program only the weights are not its own: it reads the job and its images, loads and quantizes the model, wraps
its blocks, tries the largest batch and trains, as it always does. A hook looks at the clock after each step.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from benchmarks.device_timer import GB, Marks, forget_peaks, limit_memory, peaks
from benchmarks.loops import PlainLoop, spec_of_step
from benchmarks.random_weights import TEXT_TOKENS, RandomWeightsModel, drawn_models, write_folder
from benchmarks.synthetic import DTYPES, RANK, SEED, ModelSize
from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.process import SdAttached, SdTrainerProcess
from jobs.job import ExtensionJob
from jobs.process.image_trainer import EncodedImages
from jobs.process.trainer import Setup
from toolkit.config.loader import load_job
from toolkit.data.dataloader import LatentBatch
from toolkit.data.image_data import ImageData
from toolkit.data.run_plan import RunPlan
from toolkit.data.types import PromptEmbeds
from toolkit.errors import RunError, UserError
from toolkit.memory import flops
from toolkit.models.families import ModelLoadOptions
from toolkit.system.device import is_out_of_memory
from toolkit.train.flow_step import FlowMatchingStep
from toolkit.train.interface import StepResult
from toolkit.train.run import Callback, Run

KERNELS = "kernels"
"""The name of what comes before all rows."""

CACHE = "cache"
"""The name of building the cache."""

CAPTION = "a drawn picture"

LEFT_TO_OTHERS_GIB = 1.0
"""Of a GPU's memory: CUDA's own, and what a desktop takes."""


@dataclass(frozen=True)
class Row:
    """A job, and what it is meant to reach at the published size on an H200."""

    what: str
    model: Mapping[str, object] = field(default_factory=dict)
    """Keys of `model:`."""

    train: Mapping[str, object] = field(default_factory=dict)
    """Keys of `train:`."""

    references: int = 1
    card_gib: float | None = None
    """Memory of the GPU it is meant for; it gets no more."""

    goal_s: float | None = None
    """Seconds per micro-step."""

    goal_gb: float | None = None
    swapped: float = 0.0
    """Share of the blocks whose weights wait in the CPU memory."""

    half_side: bool = False
    """Images of half the side."""

    plain: bool = False
    """Not the program but diffusers and peft."""

    lean: bool = False
    """Of a plain loop: without the attention mask."""

    @property
    def is_compiled(self) -> bool:
        """Whether the job asks for compiled blocks."""
        return bool(self.train.get("compile", {"enabled": False})["enabled"])


_NO_TABLE = {"modulation_table": False}
_INT8 = {"quantize": True, "qtype": "int8"}
_INT8_WEIGHTS = _INT8 | {"int8_matmul": False}
_INT8_PRODUCTS = _INT8 | {"int8_matmul": True}
_INT4_TABLE = {"quantize": True, "qtype": "int4", "modulation_table": True}
_FLOAT8 = {"quantize": True, "qtype": "float8"}


def _eager(level: str) -> dict[str, object]:
    return {"gradient_checkpointing": level, "compile": {"enabled": False}}


def _compiled(level: str) -> dict[str, object]:
    return {"gradient_checkpointing": level, "compile": {"enabled": True}}


ROWS = {
    "1": Row("bf16, full, eager", _NO_TABLE, _eager("full"), goal_s=1.45, goal_gb=50),
    "2": Row("bf16, full, compiled", _NO_TABLE, _compiled("full"), goal_s=1.10, goal_gb=49),
    "3": Row("bf16, cheap, compiled", _NO_TABLE, _compiled("cheap"), goal_s=0.88, goal_gb=120),
    "0": Row("diffusers + peft with the attention mask, full, eager", plain=True),
    "0n": Row("diffusers + peft without the mask, full, eager", plain=True, lean=True),
    "5": Row("int8 products, full, compiled", _INT8_PRODUCTS | _NO_TABLE, _compiled("full"), goal_s=0.98, goal_gb=29),
    "8": Row(
        "int8 products, table, full, compiled; 24 GB card",
        _INT8_PRODUCTS | {"modulation_table": True},
        _compiled("full"),
        card_gib=24,
        goal_s=0.98,
        goal_gb=22.5,
    ),
    "9": Row(
        "int4 weights, table, full, compiled; 16 GB card",
        _INT4_TABLE,
        _compiled("full"),
        card_gib=16,
        goal_s=1.20,
        goal_gb=15.5,
    ),
    "10": Row(
        "int4 weights, table, a third swapped, full_offload, compiled; 12 GB card",
        _INT4_TABLE,
        _compiled("full_offload"),
        swapped=1 / 3,
        card_gib=12,
        goal_s=1.35,
        goal_gb=11,
    ),
    "6": Row("int8 products, cheap, compiled", _INT8_PRODUCTS | _NO_TABLE, _compiled("cheap"), goal_s=0.76, goal_gb=90),
    "4": Row("int8 weights, full, compiled", _INT8_WEIGHTS | _NO_TABLE, _compiled("full"), goal_s=1.13, goal_gb=29),
    "12": Row(
        "int8 products, auto, compiled, 3 references",
        _INT8_PRODUCTS,
        _compiled("auto"),
        references=3,
        goal_s=2.2,
        goal_gb=100,
    ),
    "11": Row("bf16, auto, compiled, no reference", {}, _compiled("auto"), references=0, goal_s=0.33),
    "11i": Row(
        "int8 products, auto, compiled, no reference", _INT8_PRODUCTS, _compiled("auto"), references=0, goal_s=0.26
    ),
    "7": Row("float8 weights, full, compiled", _FLOAT8 | _NO_TABLE, _compiled("full"), goal_s=0.98, goal_gb=29),
    "3n": Row("bf16, none, compiled", _NO_TABLE, _compiled("none"), goal_s=0.88, goal_gb=120),
    "9e": Row("int4 weights, table, full, eager", _INT4_TABLE, _eager("full")),
    "u3": Row("uint3 weights, table, full, eager", _INT4_TABLE | {"qtype": "uint3"}, _eager("full")),
    **{
        f"512 {level}": Row(f"bf16, {level}, eager, half the side", _NO_TABLE, _eager(level), half_side=True)
        for level in ("none", "cheap", "full")
    },
}
"""By name, the most telling first: base, level of checkpointing, compiled or not. Where no key says
otherwise, the program decides."""


# ------------------------------------------------------------ one row


def measure(row: Row, size: ModelSize, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """What came of a row: its `status`, and its numbers or the `reason` that there are none."""
    device = torch.device(asked.device)
    if asked.size == "published":
        size = replace(size, text_tokens=TEXT_TOKENS[row.references])
    if row.half_side:
        size = replace(size, latent_side=max(8, size.latent_side // 2))
    write_folder(folder / "model", size)
    limited = row.card_gib is not None and limit_memory(device, row.card_gib - LEFT_TO_OTHERS_GIB)
    watch = Stopwatch(device, asked)
    try:
        level = (_plain if row.plain else _program)(row, size, folder, asked, watch)
    except (RuntimeError, RunError) as error:
        if not is_of_memory(error):
            raise
        return {"status": "out of memory", "reason": str(error).splitlines()[0], "what": row.what}
    except UserError as error:
        return {"status": "refused", "reason": " ".join(str(error).replace(f"{folder}/", "").split()), "what": row.what}
    work = work_of(size, row.references)
    return {
        "status": "measured",
        "what": row.what,
        "level": level,
        "card_gib": row.card_gib if limited else None,
        **watch.result(),
        "model_tflop": work.model / 1e12,
        "executed_tflop": work.executed(level) / 1e12,
    }


LORA_SIDES = 2 * (4 * 2 + 2 * 5)
"""Of a rank-1 LoRA on both streams' linear layers of a block, the numbers in units of the model's width."""


def work_of(size: ModelSize, references: int) -> flops.Flops:
    """One sample with so many references of its size, and a LoRA on every linear layer that tokens go through."""
    tokens, width = (1 + references) * size.tokens + size.text_tokens, size.heads * size.head_dim
    return flops.of_forward(tokens, width, size.layers, LORA_SIDES * RANK * width * size.layers)


def is_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory; the loop gives that error a text with advice."""
    return is_out_of_memory(error) or str(error).lower().startswith("out of memory")


class Measured(BaseException):
    """Everything is measured: the run ends here, before it saves."""


class Stopwatch(Callback):
    """Looks at clock and memory when training begins and after each optimizer step."""

    included_in_step_time = False

    def __init__(self, device: torch.device, asked: argparse.Namespace) -> None:
        self._device = device
        self._asked = asked
        self._begin = time.perf_counter()
        self._marks = Marks(device)
        self._before: dict[str, float | None] = {}
        self._during: dict[str, float | None] = {}
        self._ready_s = 0.0
        self._profiler: Any = None
        self.planned_gb: float | None = None
        self.losses: list[float] = []

    def on_start(self, run: Run | None = None) -> None:
        self._ready_s = time.perf_counter() - self._begin
        self._before = peaks(self._device)
        forget_peaks(self._device)
        self._marks.set()

    def after_step(self, run: Run | None = None) -> None:
        self._marks.set()
        if self._asked.trace and len(self._marks) == 1 + self._asked.warm_up:
            self._profiler = torch.profiler.profile()
            self._profiler.start()
        if len(self._marks) > self._asked.warm_up + self._asked.steps:
            self._during = peaks(self._device)
            if self._profiler:
                self._profiler.stop()
                self._profiler.export_chrome_trace(self._asked.trace)
            raise Measured

    def on_metrics(self, run: Run, result: StepResult) -> None:
        self.losses.append(result.loss)

    def result(self) -> dict[str, Any]:
        """s: median of a micro-step. Peaks are of loading and training; `training_gb` is of the timed part alone."""
        each = [seconds / self._asked.accumulation for seconds in self._marks.seconds()[self._asked.warm_up :]]
        return {
            "s": median(each),
            "s_each": each,
            "ready_s": self._ready_s,
            "peak_gb": _larger(self._before, self._during, "allocated_gb"),
            "reserved_gb": _larger(self._before, self._during, "reserved_gb"),
            "training_gb": self._during["allocated_gb"],
            "planned_gb": self.planned_gb,
            "host_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB,
            "losses": self.losses[: self._asked.warm_up + self._asked.steps],
            **({"slowest": self._slowest()} if self._profiler else {}),
        }

    def _slowest(self, count: int = 25) -> list[tuple[str, float, int]]:
        """Of a traced run: kernels with their milliseconds and calls, the slowest first."""
        on_gpu = self._device.type == "cuda"
        found = [
            (one.key, (one.self_device_time_total if on_gpu else one.self_cpu_time_total) / 1e3, one.count)
            for one in self._profiler.key_averages()
        ]
        return sorted(found, key=lambda one: one[1], reverse=True)[:count]


def _larger(one: Mapping[str, float | None], other: Mapping[str, float | None], name: str) -> float | None:
    return None if one[name] is None else max(one[name], other[name])


# ------------------------------------------------------------ the program


class MeasuredTrainer(SdTrainerProcess):
    """The program's trainer, with one more callback."""

    def __init__(self, *given: Any, watch: Stopwatch) -> None:
        super().__init__(*given)
        self._watch = watch

    def make_plan(self, data: ImageData) -> RunPlan:
        plan = super().make_plan(data)
        self._watch.planned_gb = plan.memory.device_bytes / GB if plan.memory and plan.memory.on_device else None
        return plan

    def build_callbacks(self, setup: Setup, encoded: EncodedImages, attached: SdAttached) -> list[Callback]:
        self.block_runner = attached.block_runner
        return [self._watch, *super().build_callbacks(setup, encoded, attached)]


def _program(row: Row, size: ModelSize, folder: Path, asked: argparse.Namespace, watch: Stopwatch) -> str:
    """Runs the row's job; the level of checkpointing it was run at."""
    path = folder / "job.json"
    section = job_section(row, size, folder, asked)
    path.write_text(json.dumps({"job": "extension", "config": {"name": "bench", "process": [section]}}))
    trainer = partial(MeasuredTrainer, watch=watch)
    with drawn_models():
        config = load_job(path, lambda _: SdTrainerConfig)
        job = ExtensionJob(config, SimpleNamespace(process_class=lambda _: trainer))
        process = job.process[0]
        try:
            process.run()
        except Measured:
            return process.block_runner.level
    raise RuntimeError("the job ended before everything was measured")


def job_section(row: Row, size: ModelSize, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """The row as a process of a job, with its images."""
    side = 8 * size.latent_side
    slots = [_write_picture(folder / f"reference_{slot}", side) for slot in range(row.references)]
    controls = {"control_path": list(map(str, slots))} if slots else {}
    return {
        "type": "sd_trainer",
        "memory_check": False,  # it is measured what is needed
        "training_folder": str(folder / "output"),
        "device": asked.device,
        "training_seed": SEED,
        "network": {"type": "lora", "linear": RANK, "linear_alpha": RANK},
        "datasets": [{"folder_path": str(_write_picture(folder / "photos", side)), "resolution": side, **controls}],
        "train": {
            "steps": asked.warm_up + asked.steps,
            "batch_size": 1,
            "gradient_accumulation": asked.accumulation,
            "optimizer": "adamw",
            "dtype": asked.dtype,
            **row.train,
        },
        "model": {
            "name_or_path": str(folder / "model"),
            "blocks_to_swap": int(row.swapped * size.layers),
            **row.model,
        },
    }


def _write_picture(folder: Path, side: int) -> Path:
    """A folder with one image and its caption."""
    folder.mkdir()
    Image.effect_noise((side, side), 64).convert("RGB").save(folder / "drawn.jpg")
    (folder / "drawn.txt").write_text(CAPTION, encoding="utf-8")
    return folder


# ------------------------------------------------------------ diffusers and peft


def _plain(row: Row, size: ModelSize, folder: Path, asked: argparse.Namespace, watch: Stopwatch) -> str:
    """The same steps in a plain loop, on the same weights; the level of checkpointing."""
    device, dtype = torch.device(asked.device), DTYPES[asked.dtype]
    model = RandomWeightsModel(ModelLoadOptions(folder / "model", device, dtype))
    loop = PlainLoop(
        model.network_module,
        model.lora_targets(),
        _batch(model, size, row.references),
        FlowMatchingStep(model, SEED).sample_noise_and_t,
        checkpointing=True,
        accumulation=asked.accumulation,
        autocast=dtype is torch.bfloat16,
        mask=not row.lean,
    )
    watch.on_start()
    try:
        while True:
            loop.step()
            watch.after_step()
    except Measured:
        watch.losses = [sum(losses) / len(losses) for losses in _parts(loop.losses, asked.accumulation)]
        return "full"


def _batch(model: RandomWeightsModel, size: ModelSize, references: int) -> LatentBatch:
    """What the program would have in its cache."""
    side = 8 * size.latent_side
    latents_BCHW = model.encode_images(torch.empty(1, model.family.pixel_channels, side, side)).to(model.options.dtype)
    text_LD = model.encode_prompt(CAPTION, ()).to(model.options.dtype)
    return LatentBatch(
        latents_BCHW=latents_BCHW,
        prompts=PromptEmbeds.stack([text_LD]),
        control_latents=((latents_BCHW[0],) * references,),
        spec=spec_of_step(0),
        names=("drawn.jpg",),
        loss_weight_B=torch.ones(1),
    )


def _parts(values: Sequence[float], count: int) -> Iterator[Sequence[float]]:
    for begin in range(0, len(values), count):
        yield values[begin : begin + count]
