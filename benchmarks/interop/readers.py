"""The programs that read the files, and how each is asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from benchmarks.interop import comfyui_rules, musubi_rules
from benchmarks.interop.comparison import Cell, compare
from benchmarks.interop.environments import ENVIRONMENTS, run_program
from benchmarks.interop.files import WrittenFile
from benchmarks.interop.jobs import job_of
from benchmarks.interop.models import TinyModel, linear_sizes, linear_weights
from toolkit.errors import UserError
from toolkit.networks.lora_formats import load_adapter_file
from toolkit.version import NAME, VERSION

SAID = 150
"""Characters of a message that are kept."""


@dataclass(frozen=True)
class Reader:
    """One way to load a file."""

    title: str
    version: str
    environment: str = ""
    """Key of ENVIRONMENTS; empty: rules or our own reader, in this process."""

    script: str = ""
    way: str = ""
    needs_folder: bool = False
    """Whether it reads folders of peft alone."""


READERS: Mapping[str, Reader] = {
    "ours": Reader(NAME, f"{NAME} {VERSION}"),
    "comfyui": Reader("ComfyUI", "ComfyUI 17358c8f (autumn 2026), its rules"),
    "diffusers_pipeline": Reader(
        "diffusers pipeline",
        "diffusers 0.42.1 with peft 0.21.2",
        "product",
        "read_diffusers.py",
        "pipeline",
    ),
    "diffusers_adapter": Reader(
        "load_lora_adapter",
        "diffusers 0.42.1 with peft 0.21.2",
        "product",
        "read_diffusers.py",
        "adapter",
    ),
    "diffusers_bare": Reader(
        "the same, prefix=None",
        "diffusers 0.42.1 with peft 0.21.2",
        "product",
        "read_diffusers.py",
        "adapter_bare",
    ),
    "peft": Reader("peft", "peft 0.21.2", "product", "read_peft.py", needs_folder=True),
    "lycoris": Reader(
        "LyCORIS", "LyCORIS 4.1.3, its layers", "product", "read_lycoris.py", "layers"
    ),
    "lycoris_merge": Reader(
        "LyCORIS merge",
        "LyCORIS 4.1.3, merge_to",
        "product",
        "read_lycoris.py",
        "merge",
    ),
    "diffsynth": Reader(
        "DiffSynth", "DiffSynth 2.1.12", "diffsynth", "read_diffsynth.py"
    ),
    "simpletuner": Reader(
        "SimpleTuner",
        "SimpleTuner 4.10.1, init_lora",
        "simpletuner",
        "read_simpletuner.py",
    ),
    "mflux": Reader("mflux", "mflux 0.24.0 with MLX 0.32.4", "mflux", "read_mflux.py"),
    "musubi": Reader("musubi", "musubi-tuner 0.3.4, its merge, by rule"),
}

Ask = Callable[
    [WrittenFile, Mapping[str, Tensor], Mapping[str, tuple[int, int]]],
    Mapping[str, Tensor],
]
"""(file, weights, sizes of the layers) -> the change that is applied; raises what the
reader raises."""


def read_ours(
    file: WrittenFile,
    weights: Mapping[str, Tensor],
    sizes: Mapping[str, tuple[int, int]],
) -> Mapping[str, Tensor]:
    """What this program makes of a file."""
    changes: dict[str, Tensor] = {}
    for layer, change in load_adapter_file(file.path, sizes, weights).items():
        changes[f"{layer}.weight"] = change.delta_for(weights[f"{layer}.weight"])
        if change.bias is not None:
            changes[f"{layer}.bias"] = change.bias
    return changes


IN_PROCESS: Mapping[str, Ask] = {
    "ours": read_ours,
    "comfyui": lambda file, weights, _: (
        comfyui_rules.read(file.tensors(), weights).changes
    ),
    "musubi": lambda file, weights, _: musubi_rules.read(file.tensors(), weights),
}


def ask(
    name: str, model: TinyModel, files: Sequence[WrittenFile], folder: Path, cache: Path
) -> dict[str, Cell]:
    """What a reader makes of each file, by the file's name. folder: for its job. cache:
    of the environments."""
    reader = READERS[name]
    asked = [file for file in files if file.is_folder or not reader.needs_folder]
    cells = {file.name: Cell("absent") for file in files}
    if reader.environment:
        return cells | _ask_process(reader, model, asked, folder, cache)
    transformer = model.build()
    weights, sizes = linear_weights(transformer), linear_sizes(transformer)
    return cells | {
        file.name: _ask_here(IN_PROCESS[name], file, weights, sizes) for file in asked
    }


def _ask_here(
    read: Ask,
    file: WrittenFile,
    weights: Mapping[str, Tensor],
    sizes: Mapping[str, tuple[int, int]],
) -> Cell:
    try:
        return compare(read(file, weights, sizes), file.meant)
    except UserError as error:
        return Cell("refused", said=_short(str(error), file))
    except (
        KeyError,
        RuntimeError,
        AttributeError,
    ) as error:  # the rules fail where the program does
        return Cell("error", said=_short(f"{type(error).__name__}: {error}", file))


def _ask_process(
    reader: Reader,
    model: TinyModel,
    files: Sequence[WrittenFile],
    folder: Path,
    cache: Path,
) -> dict[str, Cell]:
    environment = ENVIRONMENTS[reader.environment]
    results = folder / "results"
    shutil.rmtree(results, ignore_errors=True)  # of an earlier run in the same folder
    listed = [
        {
            "name": file.name,
            "path": str(file.path.parent if reader.needs_folder else file.path),
            "layers": list(file.layers),
        }
        for file in files
    ]
    job = job_of(model, folder, {"files": listed, "results": str(results)})
    try:
        run_program(environment.python(cache), reader.script, job, reader.way)
    except RuntimeError as error:
        print(f"{reader.title} cannot be asked: {error}")
        return {
            file.name: Cell("absent", said="it could not be installed or started here")
            for file in files
        }
    return {file.name: _answer(results, file) for file in files}


def _answer(results: Path, file: WrittenFile) -> Cell:
    said = results / f"{file.name}.json"
    if said.is_file():
        return Cell(
            "error",
            said=_short(json.loads(said.read_text(encoding="utf-8"))["error"], file),
        )
    return compare(load_file(results / f"{file.name}.safetensors"), file.meant)


def _short(message: str, file: WrittenFile) -> str:
    """The start of a message, without the folder of the file."""
    plain = message.replace(str(file.path), file.path.name).replace(
        str(file.path.parent), file.path.parent.name
    )
    one_line = " ".join(plain.split())
    return one_line if len(one_line) <= SAID else one_line[: SAID - 3] + "..."
