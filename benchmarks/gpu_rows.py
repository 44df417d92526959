"""The rows of `bench_gpu`, and how one of them is measured: a job that the program
runs, or the plain loop.

Of the program only the weights are not its own: it reads the job and its images, loads
and quantizes the model, wraps its blocks, tries the largest batch and trains, as it
always does. A hook looks at the clock after each step.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from benchmarks.device_timer import GB, Marks, finish, forget_peaks, limit_memory, peaks
from benchmarks.loops import PlainLoop, spec_of_step
from benchmarks.random_weights import (
    TEXT_TOKENS,
    RandomWeightsModel,
    drawn_models,
    write_folder,
)
from benchmarks.report import rounded
from benchmarks.synthetic import DTYPES, RANK, SEED, ModelSize
from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.process import SdTrainerProcess
from jobs.job import ExtensionJob
from toolkit.config.reading.loader import load_job
from toolkit.contracts.data import PromptEmbeds
from toolkit.contracts.training import StepResult
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.errors import OutOfMemory, RunError, UserError
from toolkit.files import log
from toolkit.memory import flops
from toolkit.memory.block_runner import BlockRunner
from toolkit.models.families import ModelLoadOptions
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.qwen_image21.family import FAMILY as FAMILY_21
from toolkit.plan.run_plan import RunPlan
from toolkit.system.device import is_out_of_memory
from toolkit.train.callbacks.watchdog import MemoryEstimateCheck
from toolkit.train.flow_step import FlowMatchingStep
from toolkit.train.run import Callback, Run

KERNELS = "kernels"
"""The name of what comes before all rows."""

CACHE = "cache"
"""The name of building the cache."""

CAPTION = "a drawn picture"

STEPS = 3000
"""Optimizer steps that a row's job asks for, as a user's would; the row ends after a
few. What pays off in a long run alone, such as compiling, is done."""

FAIL = "ATELIER_BENCH_FAIL"
"""Name of a variable of the environment that makes a row or part fail, for tests of
what goes on beside it."""

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

    single_stream: bool = False
    """The model is Qwen-Image-2.1."""

    @property
    def is_compiled(self) -> bool:
        """Whether the job asks for compiled blocks; with `auto` a GPU has them."""
        return not self.plain and bool(
            self.train.get("compile", {"enabled": "auto"})["enabled"]
        )


_NO_TABLE = {"modulation_table": False}
_INT8 = {"quantize": True, "qtype": "int8"}
_INT8_TABLE = _INT8 | {"modulation_table": True}
_INT4_TABLE = {"quantize": True, "qtype": "int4", "modulation_table": True}
_FLOAT8 = {"quantize": True, "qtype": "float8"}


def _eager(level: str) -> dict[str, object]:
    return {"gradient_checkpointing": level, "compile": {"enabled": False}}


def _compiled(level: str) -> dict[str, object]:
    return {"gradient_checkpointing": level, "compile": {"enabled": True}}


ROWS = {
    "1": Row("bf16, full, eager", _NO_TABLE, _eager("full"), goal_s=1.45, goal_gb=50),
    "2": Row(
        "bf16, full, compiled", _NO_TABLE, _compiled("full"), goal_s=1.10, goal_gb=49
    ),
    "3": Row(
        "bf16, cheap, compiled", _NO_TABLE, _compiled("cheap"), goal_s=0.88, goal_gb=120
    ),
    "0": Row("diffusers + peft with the attention mask, full, eager", plain=True),
    "0n": Row("diffusers + peft without the mask, full, eager", plain=True, lean=True),
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
    "4": Row(
        "int8 weights, full, compiled",
        _INT8 | _NO_TABLE,
        _compiled("full"),
        goal_s=1.13,
        goal_gb=29,
    ),
    "12": Row(
        "int8 weights, auto, compiled, 3 references",
        _INT8,
        _compiled("auto"),
        references=3,
        goal_gb=100,
    ),
    "11": Row(
        "bf16, auto, compiled, no reference",
        {},
        _compiled("auto"),
        references=0,
        goal_s=0.33,
    ),
    "7": Row(
        "float8 weights, full, compiled",
        _FLOAT8 | _NO_TABLE,
        _compiled("full"),
        goal_s=0.98,
        goal_gb=29,
    ),
    "3n": Row(
        "bf16, none, compiled", _NO_TABLE, _compiled("none"), goal_s=0.88, goal_gb=120
    ),
    "default": Row("bf16, all auto", goal_gb=66),
    "default, 3 references": Row("bf16, all auto, 3 references", references=3),
    "no reference": Row(
        "bf16, all auto, no reference", references=0, goal_s=0.40, goal_gb=60
    ),
    "24 GB": Row(
        "int8 weights, table, full, compiled; 24 GB card",
        _INT8_TABLE,
        _compiled("full"),
        card_gib=24,
    ),
    "2.1": Row(
        "Qwen-Image-2.1, bf16, all auto, 4 noise levels",
        train={"noise_levels_per_sample": 4},
        single_stream=True,
    ),
    "9e": Row("int4 weights, table, full, eager", _INT4_TABLE, _eager("full")),
    "u3": Row(
        "uint3 weights, table, full, eager",
        _INT4_TABLE | {"qtype": "uint3"},
        _eager("full"),
    ),
    **{
        f"512 {level}": Row(
            f"bf16, {level}, eager, half the side",
            _NO_TABLE,
            _eager(level),
            half_side=True,
        )
        for level in ("none", "cheap", "full")
    },
}
"""By name, the most telling first: base, level of checkpointing, compiled or not. Where
no key says otherwise, the program decides."""


# ------------------------------------------------------------ one row


def measure(
    row: Row, size: ModelSize, folder: Path, asked: argparse.Namespace
) -> dict[str, Any]:
    """What came of a row: its `status`, and its numbers or the `reason` that there are
    none."""
    device = torch.device(asked.device)
    if asked.size == "published":
        size = replace(size, text_tokens=TEXT_TOKENS[row.references])
    if row.half_side:
        size = replace(size, latent_side=max(8, size.latent_side // 2))
    write_folder(folder / "model", size, FAMILY_21 if row.single_stream else FAMILY)
    capped = row.card_gib is not None and not asked.no_cap
    limited = capped and limit_memory(device, row.card_gib - LEFT_TO_OTHERS_GIB)
    watch = Stopwatch(device, asked, row.what)
    try:
        level = (_plain if row.plain else _program)(row, size, folder, asked, watch)
    except (RuntimeError, RunError) as error:
        if not is_of_memory(error):
            raise
        return {
            "status": "out of memory",
            "reason": str(error).splitlines()[0],
            "what": row.what,
        }
    except UserError as error:
        return {
            "status": "refused",
            "reason": " ".join(str(error).replace(f"{folder}/", "").split()),
            "what": row.what,
        }
    # A single stream's blocks are others than `work_of` counts.
    work = None if row.single_stream else work_of(size, row.references)
    return {
        "status": "measured",
        "what": row.what,
        "level": level,
        "card_gib": row.card_gib if limited else None,
        **watch.result(),
        "model_tflop": work and work.model / 1e12,
        "executed_tflop": work and work.executed(level) / 1e12,
    }


LORA_SIDES = 2 * (4 * 2 + 2 * 5)
"""Of a rank-1 LoRA on both streams' linear layers of a block, the numbers in units of
the model's width."""


def work_of(size: ModelSize, references: int) -> flops.Flops:
    """One sample with so many references of its size, and a LoRA on every linear layer
    that tokens go through."""
    tokens, width = (
        (1 + references) * size.tokens + size.text_tokens,
        size.heads * size.head_dim,
    )
    return flops.of_forward(
        tokens, width, size.layers, LORA_SIDES * RANK * width * size.layers
    )


def is_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory; the program gives that error a text with
    advice."""
    return is_out_of_memory(error) or isinstance(error, OutOfMemory)


def fail_if_asked() -> None:
    if os.environ.get(FAIL):
        raise RuntimeError("it was asked to fail")


def write_whole(path: Path, document: Mapping[str, Any]) -> None:
    """A JSON file that is never half written."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps(rounded(document)) + "\n", encoding="utf-8")
    unfinished.replace(path)


class Measured(BaseException):
    """Everything is measured: the run ends here, before it saves."""


class Stopwatch(Callback):
    """Looks at clock and memory when training begins and after each optimizer step."""

    included_in_step_time = False

    def __init__(
        self, device: torch.device, asked: argparse.Namespace, what: str = ""
    ) -> None:
        self._device = device
        self._asked = asked
        self._what = what
        self._begin = time.perf_counter()
        self._marks = Marks(device)
        self._before: dict[str, float | None] = peaks(device)
        self._during: dict[str, float | None] = peaks(device)
        self._ready_s = self._first_step_s = 0.0
        self._profiler: Any = None
        self.block_runner: BlockRunner | None = None
        self.planned_gb: float | None = None
        self.planned_training_bytes: Callable[[], int] | None = None
        self.losses: list[float] = []

    def on_start(self, run: Run | None = None) -> None:
        self._ready_s = time.perf_counter() - self._begin
        self._before = peaks(self._device)
        forget_peaks(self._device)
        self._marks.set()
        self._keep("the first step was not done")

    def after_step(self, run: Run | None = None) -> None:
        self._marks.set()
        self._during = peaks(self._device)
        if len(self._marks) == 2:
            finish(self._device)
            self._first_step_s = time.perf_counter() - self._begin
            fail_if_asked()
        self._keep(f"after step {len(self._marks) - 1}")
        if self._asked.trace and len(self._marks) == 1 + self._asked.warm_up:
            self._profiler = torch.profiler.profile()
            self._profiler.start()
        if len(self._marks) > self._asked.warm_up + self._asked.steps:
            if self._profiler:
                self._profiler.stop()
                self._profiler.export_chrome_trace(self._asked.trace)
            # it asks the trainer, which has forgotten all once its run has ended
            if self.planned_training_bytes:
                self.planned_training_bytes = partial(
                    int, self.planned_training_bytes()
                )
            raise Measured

    def on_metrics(self, run: Run, result: StepResult) -> None:
        self.losses.append(result.loss)

    def _keep(self, reached: str) -> None:
        """Writes what is known so far: a row that is cut off leaves it."""
        if self._asked.partial:
            known = {
                "row": self._asked.row,
                "what": self._what,
                "status": "cut off",
                "reason": reached,
            }
            write_whole(Path(self._asked.partial), {**known, **self.result(wait=False)})

    def result(self, wait: bool = True) -> dict[str, Any]:
        """s: median of a micro-step, None before a timed one. Peaks are of loading and
        training; `training_gb` is of the steps alone, and so is its plan. first_step_s:
        from before loading, imports not counted."""
        each = [
            seconds / self._asked.accumulation
            for seconds in self._marks.seconds(wait)[self._asked.warm_up :]
        ]
        return {
            "s": median(each) if each else None,
            "s_each": each,
            "ready_s": self._ready_s,
            "first_step_s": self._first_step_s or None,
            "peak_gb": _larger(self._before, self._during, "allocated_gb"),
            "reserved_gb": _larger(self._before, self._during, "reserved_gb"),
            "training_gb": self._during["allocated_gb"],
            "planned_gb": self.planned_gb,
            "planned_training_gb": self.planned_training_bytes
            and self.planned_training_bytes() / GB,
            "host_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB,
            "losses": self.losses[: self._asked.warm_up + self._asked.steps],
            **({"slowest": self._slowest()} if self._profiler else {}),
        }

    def _slowest(self, count: int = 25) -> list[tuple[str, float, int]]:
        """Of a traced run: kernels with their milliseconds and calls, the slowest
        first."""
        on_gpu = self._device.type == "cuda"
        found = [
            (
                one.key,
                (one.self_device_time_total if on_gpu else one.self_cpu_time_total)
                / 1e3,
                one.count,
            )
            for one in self._profiler.key_averages()
        ]
        return sorted(found, key=lambda one: one[1], reverse=True)[:count]


def _larger(
    one: Mapping[str, float | None], other: Mapping[str, float | None], name: str
) -> float | None:
    return None if one[name] is None else max(one[name], other[name])


# ------------------------------------------------------------ the program


class MeasuredTrainer(SdTrainerProcess):
    """The program's trainer, with one more callback."""

    def __init__(self, *given: Any, watch: Stopwatch) -> None:
        super().__init__(*given)
        self._watch = watch

    def make_plan(self) -> RunPlan:
        plan = super().make_plan()
        self._watch.planned_gb = (
            plan.memory.device_bytes / GB
            if plan.memory and plan.memory.on_device
            else None
        )
        return plan

    def build_callbacks(self) -> list[Callback]:
        self._watch.block_runner = self.block_runner
        return [self._watch, *super().build_callbacks()]

    def _measure_memory(self, run: Run) -> None:
        super()._measure_memory(run)
        checks = [one for one in run.callbacks if isinstance(one, MemoryEstimateCheck)]
        # elsewhere nothing counts what training takes
        if checks and self.device.type == "cuda":
            self._watch.planned_training_bytes = partial(checks[0].predict, True)


def _program(
    row: Row, size: ModelSize, folder: Path, asked: argparse.Namespace, watch: Stopwatch
) -> str:
    """Runs the row's job; the level of checkpointing it was run at."""
    path = folder / "job.json"
    section = job_section(row, size, folder, asked)
    path.write_text(
        json.dumps(
            {"job": "extension", "config": {"name": "bench", "process": [section]}}
        )
    )
    trainer = partial(MeasuredTrainer, watch=watch)
    with drawn_models(), log.shown():
        config = load_job(path, lambda _: SdTrainerConfig)
        job = ExtensionJob(config, SimpleNamespace(process_class=lambda _: trainer))
        process = job.process[0]
        try:
            process.run()
        except Measured:
            return watch.block_runner.level
    raise RuntimeError("the job ended before everything was measured")


def job_section(
    row: Row, size: ModelSize, folder: Path, asked: argparse.Namespace
) -> dict[str, Any]:
    """The row as a process of a job, with its images."""
    side = 8 * size.latent_side
    slots = [
        _write_picture(folder / f"reference_{slot}", side)
        for slot in range(row.references)
    ]
    controls = {"control_path": list(map(str, slots))} if slots else {}
    compiler = (
        {"compile": {**row.train.get("compile", {}), "backend": asked.backend}}
        if row.is_compiled
        else {}
    )
    return {
        "type": "sd_trainer",
        "memory_check": False,  # it is measured what is needed
        "training_folder": str(folder / "output"),
        "device": asked.device,
        "training_seed": SEED,
        "network": {"type": "lora", "linear": RANK, "linear_alpha": RANK},
        "datasets": [
            {
                "folder_path": str(_write_picture(folder / "photos", side)),
                "resolution": side,
                **controls,
            }
        ],
        "train": {
            "steps": STEPS,
            "batch_size": 1,
            "gradient_accumulation": asked.accumulation,
            "optimizer": "adamw",
            "dtype": asked.dtype,
            "memory_account": asked.account,
            **row.train,
            **compiler,
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


def _plain(
    row: Row, size: ModelSize, folder: Path, asked: argparse.Namespace, watch: Stopwatch
) -> str:
    """The same steps in a plain loop, on the same weights; the level of
    checkpointing."""
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
        watch.losses = [
            sum(losses) / len(losses)
            for losses in _parts(loop.losses, asked.accumulation)
        ]
        return "full"


def _batch(model: RandomWeightsModel, size: ModelSize, references: int) -> LatentBatch:
    """What the program would have in its cache."""
    side = 8 * size.latent_side
    latents_BCHW = model.encode_images(
        torch.empty(1, model.family.pixel_channels, side, side)
    ).to(model.options.dtype)
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
