"""The program's own `train`, on the model of the job. A level of checkpointing stands
behind the folder."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from turns import job_of_command_line, own_output, serve

CHANNEL = own_output()
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch  # noqa: E402

from benchmarks.loops import OurLoop  # noqa: E402
from benchmarks.synthetic import ModelSize  # noqa: E402


def main() -> None:
    torch.set_num_threads(1)
    job = job_of_command_line()
    size = ModelSize(**{**job["size"], "rope_axes": tuple(job["size"]["rope_axes"])})
    loop = OurLoop(job["folder"], size, torch.bfloat16, sys.argv[2], None)
    loop.batch = replace(loop.batch, control_latents=((),))

    def step() -> float:
        loop.step()
        return loop.losses[-1]

    serve(CHANNEL, step)


main()
