"""The rows of `verify_gpu`, and how one of them is measured: a job that the program
runs, or the plain loop.

Of the program only the weights are not its own: it reads the job and its images, loads
and quantizes the model, wraps its blocks, tries the largest batch and trains, as it
always does. A hook looks at the clock after each step.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from PIL import Image

from benchmarks.device_timer import GB, Marks, finish, forget_peaks, limit_memory, peaks
from benchmarks.loops import PlainLoop, spec_of_step
from benchmarks.random_weights import (
    DRAWN_SIZES,
    TEXT_TOKENS,
    RandomWeightsModel,
    drawn_models,
    write_folder,
)
from benchmarks.report import rounded
from benchmarks.synthetic import DTYPES, RANK, SEED, ModelSize
from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.process import SdTrainerProcess
from extensions.tools.shared.examples import MODELS, Model
from jobs.job import ExtensionJob
from toolkit.config.reading.loader import load_job
from toolkit.contracts.data import PromptEmbeds
from toolkit.contracts.training import StepResult
from toolkit.data.batches.dataloader import LatentBatch
from toolkit.errors import OutOfMemory, RunError, UserError
from toolkit.files import log
from toolkit.memory.block_runner import BlockRunner
from toolkit.models import kept, loading
from toolkit.models.families import ModelLoadOptions
from toolkit.models.qwen_family import QwenFamily
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.qwen_image21.family import FAMILY as FAMILY_21
from toolkit.system import device as system
from toolkit.system.device import is_out_of_memory
from toolkit.train.callbacks.memory_check import MemoryEstimateCheck
from toolkit.train.flow_step import FlowMatchingStep
from toolkit.train.run import Callback, Run

CAPTION = "a drawn picture"

STEPS = 3000
"""Optimizer steps that a row's job asks for, as a user's would; the row ends after a
few. What pays off in a long run alone, such as compiling, is done."""

LEFT_TO_OTHERS_GIB = 1.0
"""Of a GPU's memory: CUDA's own, and what a desktop takes."""


@dataclass(frozen=True)
class Asked:
    """How a row is measured."""

    row: str
    folder: Path
    """Of its model, images and run."""

    size: str = "published"
    device: str = "cuda:0"
    dtype: str = "bf16"
    warm_up: int = 1
    """Untimed optimizer steps."""

    steps: int = 2
    """Timed optimizer steps."""

    accumulation: int = 2
    """Micro-steps of each."""

    backend: str = "inductor"
    """Of compiled blocks; aot_eager compiles nothing, in seconds."""

    partial: Path | None = None
    """A file for what is known so far."""

    trace: Path | None = None
    """A file for a trace of the timed steps."""


@dataclass(frozen=True)
class Row:
    """A job."""

    what: str
    model: Mapping[str, object] = field(default_factory=dict)
    """Keys of `model:`."""

    train: Mapping[str, object] = field(default_factory=dict)
    """Keys of `train:`."""

    references: int = 1
    captions: int = 1
    """Number of images. Their captions have different lengths."""

    card_gib: float | None = None
    """Memory of the GPU it is meant for; it gets no more."""

    swapped: float = 0.0
    """Share of the blocks whose weights wait in the CPU memory."""

    plain: bool = False
    """Not the program but diffusers and peft, without the attention mask."""

    kept: bool = False
    """The quantized model is kept on the disk, or read from there."""

    family: QwenFamily = FAMILY

    @property
    def is_compiled(self) -> bool:
        """Whether the job asks for compiled blocks; with `auto` a GPU has them."""
        return not self.plain and bool(
            self.train.get("compile", {"enabled": "auto"})["enabled"]
        )


_NO_TABLE = {"modulation_table": False}
_INT4 = {"quantize": True, "qtype": "int4"}


_COMPILED = {"gradient_checkpointing": "full", "compile": {"enabled": True}}


def _of_card(model: Model, gpu: int, family: QwenFamily = FAMILY) -> Row:
    """The job of pairs that `run.py new` writes for this GPU. Weights are drawn on the
    device, so `low_vram` is left out."""
    card = model.cards[gpu]
    card = card._replace(**card.for_pairs)
    quantized = {"quantize": True, "qtype": card.qtype} if card.qtype else {}
    return Row(
        f"{model.title}, {card.qtype or 'bf16'}, {card.level}, as new writes it for {gpu} GB",
        quantized | ({} if card.table else _NO_TABLE),
        {"gradient_checkpointing": card.level},
        card_gib=gpu,
        swapped=card.swap / family.published_transformer["num_layers"],
        family=family,
    )


_MODELS = {model.title: model for model in MODELS}
_EDIT, _SINGLE = _MODELS["Qwen-Image-Edit-2509"], _MODELS[FAMILY_21.title]

ROWS = {
    "2.1": Row("Qwen-Image-2.1, bf16, all auto", captions=5, family=FAMILY_21),
    "default": Row("bf16, all auto", captions=5),
    "plain loop": Row("diffusers + peft, full, eager", captions=5, plain=True),
    "no reference": Row("bf16, all auto, no reference", references=0),
    "int4": Row("int4, table, full, compiled", _INT4, _COMPILED),
    "kept": Row("int4, all auto, kept for the next start", _INT4, kept=True),
    "int8, 24 GB": Row(
        "int8, table, full, compiled",
        {"quantize": True, "qtype": "int8"},
        _COMPILED,
        card_gib=24,
    ),
    "2.1, 4 GB": _of_card(_SINGLE, 4, FAMILY_21),
    **{f"{gpu} GB": _of_card(_EDIT, gpu) for gpu in (6, 12)},
    "eager": Row(
        "bf16, full, eager",
        _NO_TABLE,
        {"gradient_checkpointing": "full", "compile": {"enabled": False}},
    ),
}
"""By name. Where no key says otherwise, the program decides."""


# ------------------------------------------------------------ one row


def measure(asked: Asked) -> dict[str, Any]:
    """What came of a row: its `status`, and its numbers or the `reason` that there are
    none."""
    row, size, folder = ROWS[asked.row], DRAWN_SIZES[asked.size], asked.folder
    device = torch.device(asked.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    if asked.size == "published":
        size = replace(size, text_tokens=TEXT_TOKENS[row.references])
    write_folder(folder / "model", size, row.family)
    known = {"row": asked.row, "what": row.what}
    watch = Stopwatch(device, asked, row.what)
    try:
        with ExitStack() as stack:
            limited = bool(row.card_gib) and as_smaller(device, row.card_gib, stack)
            spent = stack.enter_context(time_of_kept(device)) if row.kept else {}
            level = (_plain if row.plain else _program)(row, size, asked, watch)
    except (RuntimeError, RunError) as error:
        if not is_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        return {**known, "status": "out of memory", "reason": reason}
    except UserError as error:
        reason = " ".join(str(error).replace(f"{folder}/", "").split())
        return {**known, "status": "refused", "reason": reason}
    return {
        **known,
        "status": "measured",
        "level": level,
        "card_gib": row.card_gib if limited else None,
        **watch.result(),
        **({"kept_s": spent, "bits": watch.bits()} if row.kept else {}),
    }


def as_smaller(device: torch.device, gib: float, stack: ExitStack) -> bool:
    """The program sees a GPU of this memory and PyTorch takes no more of it; False on
    another device."""
    if not limit_memory(device, gib - LEFT_TO_OTHERS_GIB):
        return False
    most = int(gib * 2**30)

    def free(_: object = None) -> tuple[int, int]:
        others = int(LEFT_TO_OTHERS_GIB * 2**30)
        return max(0, most - others - torch.cuda.memory_reserved(device)), most

    stack.enter_context(mock.patch.object(torch.cuda, "mem_get_info", free))
    stack.enter_context(mock.patch.object(system, "total_memory", lambda _: most))
    return True


@contextmanager
def time_of_kept(device: torch.device) -> Iterator[dict[str, float]]:
    """Inside the block: seconds of reading a kept model, of its checksums (within the
    reading, or of those that are written), and of copying blocks to the device."""
    spent = dict.fromkeys(("reading", "checking", "copying"), 0.0)

    def timed(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            begin = time.perf_counter()
            found = own(*given)
            if name == "copying":
                finish(device)
            spent[name] += time.perf_counter() - begin
            return found

        return call

    with (
        mock.patch.object(kept, "_read_into", timed("reading", kept._read_into)),
        mock.patch.object(kept.zlib, "crc32", timed("checking", kept.zlib.crc32)),
        mock.patch.object(loading, "_place", timed("copying", loading._place)),
    ):
        yield spent


def is_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory; the program gives that error a text with
    advice."""
    return is_out_of_memory(error) or isinstance(error, OutOfMemory)


def write_whole(path: Path, document: Mapping[str, Any]) -> None:
    """A JSON file that is never half written."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps(rounded(document)) + "\n", encoding="utf-8")
    unfinished.replace(path)


class Measured(BaseException):
    """Everything is measured: the run ends here, before it saves."""


class Stopwatch(Callback):
    """Looks at clock and memory when training begins and after each optimizer step."""

    essential = True

    included_in_step_time = False

    def __init__(self, device: torch.device, asked: Asked, what: str = "") -> None:
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
        self.planned_training_bytes: Callable[[], int] | None = None
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self.blocks: Sequence[torch.nn.Module] = ()

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
        self._keep(f"after step {len(self._marks) - 1}")
        if self._asked.trace and len(self._marks) == 1 + self._asked.warm_up:
            self._profiler = torch.profiler.profile()
            self._profiler.start()
        if len(self._marks) > self._asked.warm_up + self._asked.steps:
            if self._profiler:
                self._profiler.stop()
                self._profiler.export_chrome_trace(str(self._asked.trace))
            # it asks the trainer, which has forgotten all once its run has ended
            if self.planned_training_bytes:
                self.planned_training_bytes = partial(
                    int, self.planned_training_bytes()
                )
            raise Measured

    def on_metrics(self, run: Run, result: StepResult) -> None:
        self.losses.append(result.loss)
        self.grad_norms.append(result.grad_norm)

    def bits(self) -> list[int]:
        """Checksums of the frozen weights of the first eight blocks."""
        checksums = []
        for block in self.blocks[:8]:
            checksum = 0
            for tensor in block.state_dict(keep_vars=True).values():
                if not tensor.requires_grad:
                    raw = tensor.detach().cpu().contiguous().flatten()
                    checksum = zlib.crc32(kept._bytes_of(raw), checksum)
            checksums.append(checksum)
        return checksums

    def _keep(self, reached: str) -> None:
        """Writes what is known so far: a row that is cut off leaves it."""
        if self._asked.partial:
            known = {
                "row": self._asked.row,
                "what": self._what,
                "status": "cut off",
                "reason": reached,
            }
            write_whole(self._asked.partial, {**known, **self.result(wait=False)})

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
            "planned_training_gb": self.planned_training_bytes
            and self.planned_training_bytes() / GB,
            "host_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB,
            "losses": self.losses[: self._asked.warm_up + self._asked.steps],
            "grad_norms": self.grad_norms[: self._asked.warm_up + self._asked.steps],
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

    def build_callbacks(self) -> list[Callback]:
        self._watch.block_runner = self.block_runner
        self._watch.blocks = self.model.blocks()
        return [self._watch, *super().build_callbacks()]

    def _measure_memory(self, run: Run) -> None:
        super()._measure_memory(run)
        checks = [one for one in run.callbacks if isinstance(one, MemoryEstimateCheck)]
        # elsewhere nothing counts what training takes
        if checks and self.device.type == "cuda":
            self._watch.planned_training_bytes = partial(checks[0].predict, True)


def _program(row: Row, size: ModelSize, asked: Asked, watch: Stopwatch) -> str:
    """Runs the row's job; the level of checkpointing it was run at."""
    path = asked.folder / "job.json"
    # a second start is a new run, not one that is resumed
    shutil.rmtree(asked.folder / "output" / "bench", ignore_errors=True)
    section = job_section(row, size, asked)
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


def job_section(row: Row, size: ModelSize, asked: Asked) -> dict[str, Any]:
    """The row as a process of a job, with its images."""
    folder, side = asked.folder, 8 * size.latent_side
    captions = captions_of(row, size)
    slots = [
        _write_pictures(folder / f"reference_{slot}", side, captions)
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
                "folder_path": str(_write_pictures(folder / "photos", side, captions)),
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
            **row.train,
            **compiler,
        },
        "model": {
            "name_or_path": str(folder / "model"),
            "blocks_to_swap": int(row.swapped * size.layers),
            # 20 GB of files otherwise
            **({"keep_quantized": row.kept} if row.model.get("quantize") else {}),
            **row.model,
        },
    }


def captions_of(row: Row, size: ModelSize) -> list[str]:
    """Captions of unlike lengths; with the third one the prefix of Qwen-Image-2.1 has
    128 n + 64 tokens, with which cuDNN's masked backward pass gives NaN on Hopper."""
    side = 8 * size.latent_side // FAMILY_21.latent_scale
    prefix = row.references * side**2 + size.text_tokens
    return [
        CAPTION + (f" +{more}" if more else "")
        for more in (0, 13, (64 - prefix) % 128, 40, 77)[: row.captions]
    ]


def _write_pictures(folder: Path, side: int, captions: Sequence[str]) -> Path:
    """A folder with an image for each caption."""
    folder.mkdir(exist_ok=True)
    for number, caption in enumerate(captions):
        picture = folder / f"{number}.jpg"
        if not picture.exists():  # a second start reads the cache
            Image.effect_noise((side, side), 64).convert("RGB").save(picture)
        picture.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder


# ------------------------------------------------------------ diffusers and peft


def _plain(row: Row, size: ModelSize, asked: Asked, watch: Stopwatch) -> str:
    """The same steps in a plain loop, on the same weights; the level of
    checkpointing."""
    device, dtype = torch.device(asked.device), DTYPES[asked.dtype]
    model = RandomWeightsModel(ModelLoadOptions(asked.folder / "model", device, dtype))
    batches = [
        batch_of(model, size, row.references, caption)
        for caption in captions_of(row, size)
    ]
    loop = PlainLoop(
        model.network_module,
        model.lora_targets(),
        batches[0],
        FlowMatchingStep(model, SEED).sample_noise_and_t,
        checkpointing=True,
        accumulation=asked.accumulation,
        autocast=dtype is torch.bfloat16,
        mask=False,
    )
    watch.on_start()
    try:
        while True:
            done = len(loop.losses) // asked.accumulation
            loop.batch = batches[done % len(batches)]
            loop.step()
            watch.after_step()
    except Measured:
        watch.losses = [
            sum(losses) / len(losses)
            for losses in _parts(loop.losses, asked.accumulation)
        ]
        return "full"


def batch_of(
    model: RandomWeightsModel, size: ModelSize, references: int, caption: str
) -> LatentBatch:
    """What the program would have in its cache."""
    side = 8 * size.latent_side
    latents_BCHW = model.encode_images(
        torch.empty(1, model.family.pixel_channels, side, side)
    ).to(model.options.dtype)
    text_LD = model.encode_prompt(caption, ()).to(model.options.dtype)
    return LatentBatch(
        latents_BCHW=latents_BCHW,
        prompts=PromptEmbeds.stack([text_LD]),
        control_latents=((latents_BCHW[0],) * references,),
        spec=spec_of_step(0),
        names=("0.jpg",),
        loss_weight_B=torch.ones(1),
    )


def _parts(values: Sequence[float], count: int) -> Iterator[Sequence[float]]:
    for begin in range(0, len(values), count):
        yield values[begin : begin + count]
