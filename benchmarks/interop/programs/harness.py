"""The part that every reader script shares: it runs in the environment of the program
that it asks.

A job is a folder with job.json: {"model": title, "transformer": class, "pipeline":
class, "config": {}, "weights": path, "files": [{"name": ..., "path": ..., "layers":
[...]}], "results": folder}. For each file the script writes NAME.safetensors with the
change of every linear weight and bias that changed, or NAME.json with {"error": ...}.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Apply = Callable[
    [dict[str, Any], dict[str, Any], dict[str, torch.Tensor]], dict[str, torch.Tensor]
]
"""(job, file, weights) -> all weights and biases that the program then has, by
diffusers' names."""


def main(apply: Apply) -> None:
    """Asks the program about every file of the job that is named on the command
    line."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    results = Path(job["results"])
    results.mkdir(parents=True, exist_ok=True)
    weights = load_file(job["weights"])
    for file in job["files"]:
        try:
            with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
                after = apply(job, file, weights)
        except Exception as error:  # noqa: BLE001 - whatever the program raises is its answer
            said = f"{type(error).__name__}: {error}"
            place = traceback.extract_tb(error.__traceback__)[-1]
            answer = {
                "error": said,
                "place": f"{Path(place.filename).name}:{place.lineno}",
            }
            (results / f"{file['name']}.json").write_text(
                json.dumps(answer), encoding="utf-8"
            )
            continue
        changed = {
            name: change.contiguous()
            for name, change in changes(after, weights).items()
        }
        save_file(changed, results / f"{file['name']}.safetensors")


def write_all(
    write: Callable[
        [dict[str, Any], dict[str, torch.Tensor], Path], list[dict[str, Any]]
    ],
) -> None:
    """Has a writer make its files of the job; files.json lists them.

    write: (job, weights, folder) -> [{"name", "what", "path", "meant": changes by
    weight}].
    """
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    results = Path(job["results"])
    results.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):
        files = write(job, load_file(job["weights"]), results)
    for file in files:
        meant = results / f"{file['name']}.meant.safetensors"
        save_file(
            {key: tensor.contiguous() for key, tensor in file["meant"].items()}, meant
        )
        file["meant"] = str(meant)
    (results / "files.json").write_text(json.dumps(files), encoding="utf-8")


def drawn(name: str) -> Callable[..., torch.Tensor]:
    """A function that draws normal numbers of a shape, the same ones for each name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return lambda *shape, std=0.3: torch.randn(shape, generator=generator) * std


def changes(
    after: dict[str, torch.Tensor], before: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What changed, by name."""
    found = {
        name: after[name].float() - before[name].float()
        for name in after
        if name in before
    }
    return {name: change for name, change in found.items() if change.any()}


def build(job: dict[str, Any], weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """diffusers' transformer with the weights of the job."""
    import diffusers

    transformer = getattr(diffusers, job["transformer"])(**job["config"])
    transformer.load_state_dict(weights)
    return transformer.eval()


def base_weights(transformer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights and biases without the wrappers that an adapter leaves around them."""
    found = {
        name.replace(".base_layer", ""): tensor.detach().clone()
        for name, tensor in transformer.state_dict().items()
        if "lora_" not in name
    }
    return found
