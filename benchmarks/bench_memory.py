"""Predicted and measured peak memory of whole jobs on the CPU: `python
benchmarks/bench_memory.py`.

Each job runs in a process of its own, as a user runs it (`run.py`), on a random model
that is large beside the program itself. Its plan (`--dry-run --json`) is held against
the most that it had of memory without pages of files (RssAnon, looked at every 5 ms),
as the plan counts it. `--cards` prints the table of docs/memory.md instead: the
published model on GPUs, by the same arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from benchmarks import report  # noqa: E402
from extensions.sd_trainer.config import SdTrainerConfig  # noqa: E402
from toolkit.contracts.data import BucketedSample, ResizeCrop, Sample, Size  # noqa: E402
from toolkit.memory.estimate import GB  # noqa: E402
from toolkit.models import kept  # noqa: E402
from toolkit.models.tiny import TinySpec, write_tiny_model  # noqa: E402
from toolkit.plan.memory import Machine  # noqa: E402
from toolkit.plan.memory_inputs import group_items  # noqa: E402
from toolkit.plan.memory_plan import plan_memory  # noqa: E402

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
POLL_S = 0.005

SPEC = TinySpec(layers=6, heads=24)
"""Width 768: 130 million weights."""

JOBS: dict[str, dict[str, Any]] = {
    "lora fp32": {"train": {"dtype": "fp32", "gradient_checkpointing": True}},
    "lora bf16, nothing kept": {
        "train": {"gradient_checkpointing": True},
        "resolution": 512,
    },
    "lora bf16, all kept": {
        "train": {"gradient_checkpointing": False},
        "resolution": 512,
    },
    "lora bf16, batch 4": {
        "train": {"gradient_checkpointing": False, "batch_size": 4},
        "resolution": 512,
    },
    "lora fp32 on int8": {
        "train": {"dtype": "fp32"},
        "model": {"quantize": True, "qtype": "int8"},
    },
    "samples larger than training": {
        "sample": {
            "samples": [{"prompt": "a cup"}],
            "width": 1024,
            "height": 1024,
            "sample_steps": 2,
        },
    },
}
"""What each job has of its own; `resolution` is its datasets'."""


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    if asked.cards:
        print(cards_table())
        return
    report.card(
        "memory",
        f"whole jobs on the CPU, one process each; {SPEC.layers} blocks of width {32 * SPEC.heads}",
    )
    with TemporaryDirectory(dir=asked.folder) as folder:
        prepare(Path(folder))
        print(f"{'':<30} {'predicted':>10} {'measured':>10}  difference   at the peak")
        rows = {
            name: measure(Path(folder), name, JOBS[name]) for name in asked.jobs or JOBS
        }
    report.finish("memory", jobs=rows)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", nargs="*", choices=JOBS, help="default: all")
    parser.add_argument(
        "--cards", action="store_true", help="only print the table of cards, calculated"
    )
    parser.add_argument(
        "--folder", help="where to write; default: the temporary folder"
    )
    return parser.parse_args(argv)


def prepare(
    folder: Path,
    write: Callable[[Path], object] = lambda to: write_tiny_model(to, SPEC),
) -> None:
    """The model, in bfloat16 as the published one, and four images."""
    write(folder / "model")
    for shard in (folder / "model" / "transformer").glob("*.safetensors"):
        save_file(
            {name: tensor.bfloat16() for name, tensor in load_file(shard).items()},
            shard,
        )
    (folder / "pictures").mkdir()
    for number in range(4):
        Image.radial_gradient("L").resize((1024, 1024)).convert("RGB").save(
            folder / "pictures" / f"{number}.png"
        )
        (folder / "pictures" / f"{number}.txt").write_text(
            f"picture {number}", encoding="utf-8"
        )


def measure(folder: Path, name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Runs one job; prints and returns its row, in bytes."""
    job = folder / "job.json"
    job.write_text(json.dumps(job_of(folder, name, own)), encoding="utf-8")
    plan = json.loads(run("run.py", "--dry-run", "--json", job))["processes"][0][
        "memory"
    ]
    measured = watched(folder / "job.out", "run.py", job)
    off = plan["host_bytes"] / measured - 1
    predicted, phase = (
        plan["host_bytes"],
        max(plan["phases"], key=lambda name: sum(plan["phases"][name].values())),
    )
    print(
        f"{name:<30} {predicted / 1e9:>7.2f} GB {measured / 1e9:>7.2f} GB  {off:>+9.1%}   {phase}",
        flush=True,
    )
    return {"predicted": predicted, "measured": measured, "phase": phase}


def job_of(folder: Path, name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    section = {
        "type": "sd_trainer",
        "device": "cpu",
        "training_seed": 1,
        "training_folder": str(folder / "output"),
        "network": {"type": "lora", "linear": 16} | own.get("network", {}),
        "save": {"save_every": 0},
        "datasets": [
            {
                "folder_path": str(folder / "pictures"),
                "resolution": own.get("resolution", 128),
            }
        ],
        "train": {"steps": 3, "disable_sampling": "sample" not in own}
        | own.get("train", {}),
        "model": {"name_or_path": str(folder / "model")} | own.get("model", {}),
        **({"sample": own["sample"]} if "sample" in own else {}),
    }
    return {
        "job": "extension",
        "config": {
            "name": name.replace(" ", "_").replace(",", ""),
            "process": [section],
        },
    }


def watched(output: Path, *command: object) -> int:
    """Runs a Python process to its end, and gives the most memory that it had without
    pages of files. output: file for what it prints, which is shown when it fails."""
    most = 0
    with output.open("w") as file:
        process = subprocess.Popen(
            _words(command), cwd=ROOT, env=ENVIRONMENT, stdout=file, stderr=file
        )
        while process.poll() is None:
            most = max(most, anonymous_bytes(process.pid))
            time.sleep(POLL_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{output.read_text()}")
    return most


def anonymous_bytes(pid: int) -> int:
    """Bytes of a process now that are no pages of files; 0 once it has ended
    (Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def _words(command: Sequence[object]) -> list[str]:
    return [sys.executable, *map(str, command)]


def run(*command: object) -> str:
    """What a Python process prints; its messages are shown when it fails."""
    done = subprocess.run(
        _words(command), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(
            f"{' '.join(map(str, command))} failed:\n{done.stdout}\n{done.stderr}"
        )
    return done.stdout


# ------------------------------------------------------------ the published model on
# GPUs

QUANTIZED = {"quantize": True, "low_vram": True}
SMALL_STATE = {"gradient_checkpointing": "full_offload", "optimizer": "adamw8bit"}
CARD_JOBS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "int8": {"model": {"quantize": True}},
    "the same, offload_attention": {
        "model": {"quantize": True},
        "train": {"gradient_checkpointing": "offload_attention"},
    },
    "fp8_scaled, blocks_to_swap 16": {
        "model": {"quantize": True, "qtype": "fp8_scaled", "blocks_to_swap": 16}
    },
    "fp8_scaled, low_vram, blocks_to_swap 45": {
        "model": QUANTIZED | {"qtype": "fp8_scaled", "blocks_to_swap": 45}
    },
    "int4, low_vram": {"model": QUANTIZED | {"qtype": "int4"}},
    "the same, full_offload, adamw8bit": {
        "model": QUANTIZED | {"qtype": "int4"},
        "train": SMALL_STATE,
    },
    "the same, blocks_to_swap 30": {
        "model": QUANTIZED | {"qtype": "int4", "blocks_to_swap": 30},
        "train": SMALL_STATE,
    },
    "int4, low_vram, block_offload, adamw8bit, blocks_to_swap 59": {
        "model": QUANTIZED
        | {"qtype": "int4", "blocks_to_swap": 59, "modulation_table": False},
        "train": SMALL_STATE | {"gradient_checkpointing": "block_offload"},
    },
    "bf16, gradient_checkpointing cheap": {
        "train": {"gradient_checkpointing": "cheap"}
    },
    "network.type full: full_bf16, adafactor, fused_backward_pass": {
        "network": {"type": "full"},
        "train": {
            "full_bf16": True,
            "optimizer": "adafactor",
            "fused_backward_pass": True,
            "max_grad_norm": 0,
        },
    },
}
"""Each with a LoRA of rank 16 on all layers, 1024 x 1024 and one reference, unless it
says otherwise."""


TENSORS_GB = {
    "int8": 21.4,
    "int4, low_vram": 14.7,
    "bf16, gradient_checkpointing cheap": 65.1,
}
"""Peak of tensors in training that was measured for such a job (docs/measured.md),
without CUDA's context and gaps."""


def cards_table() -> str:
    """A row per job in Markdown: peak on the device, its phase, CPU memory, the
    smallest GPU, what was measured."""
    lines = [
        "| job | device | at the peak | main memory | fits | measured |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in CARD_JOBS.items():
        job = published_job(own)
        # whatever is free on the disk here
        with mock.patch.object(kept, "LEAST_FREE", -(10**12)):
            plan = plan_memory(job, group_items([one_item()]), Machine("cuda"))
        card = plan.card()
        fits = f"{card} GB" if card else "none of these"
        sizes = f"{plan.peak_bytes / GB:.1f} GB | {plan.peak.name} | {plan.host_bytes / GB:.1f} GB"
        measured = f"{TENSORS_GB[name]:.1f} GB" if name in TENSORS_GB else "no"
        lines.append(f"| {name} | {sizes} | {fits} | {measured} |")
    return "\n".join(lines)


def published_job(own: Mapping[str, Any]) -> SdTrainerConfig:
    section = {
        "type": "sd_trainer",
        "network": own.get("network", {}),
        "datasets": [{"folder_path": "pictures"}],
        "train": {"gradient_checkpointing": "full"} | own.get("train", {}),
        "model": {"name_or_path": "Qwen/Qwen-Image-Edit-2509"} | own.get("model", {}),
    }
    return SdTrainerConfig.model_validate(section)


def one_item() -> BucketedSample:
    side = Size(1024, 1024)
    sample = Sample(
        "a.png", "a caption of some two hundred letters" * 5, 1, side, ".", ("b.png",)
    )
    return BucketedSample(sample, ResizeCrop(scaled=side, left=0, top=0, bucket=side))


if __name__ == "__main__":
    main()
