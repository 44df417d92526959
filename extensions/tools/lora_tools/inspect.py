"""`type: inspect`: prints the contents of a LoRA file, as lines or as JSON.

The facts are kinds, ranks, norms by block, metadata, and which programs can read the
file. Mistakes are only counted: `doctor` explains them. Nothing is written. `process`
exports the class for the table of tools.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from math import isfinite, sqrt
from typing import Any

from torch import float64
from torch.linalg import vector_norm

from extensions.tools.lora_tools.config import InspectConfig
from extensions.tools.lora_tools.files import named, read_lora
from extensions.tools.lora_tools.lora_export import (
    FORMATS,
    AdapterFile,
    kind_of,
    why_not_exported,
)
from jobs.process import BaseExtensionProcess
from toolkit.networks.adapter_health import health
from toolkit.networks.lora_formats import rank_of, read_tensors

WRITERS = {
    "ss_network_module": "kohya's sd-scripts or musubi-tuner",
    "lora_adapter_metadata": "diffusers",
}
"""Key of the metadata -> the program that writes it."""


class InspectProcess(BaseExtensionProcess):
    """Prints the facts and writes nothing.

    Example::

        python run.py inspect output/my_character.safetensors
    """

    section: InspectConfig

    def run(self) -> None:
        super().run()
        section = self.section
        report = facts(read_lora(section.file, section.model_folder(), any_model=True))
        print(json.dumps(report, indent=2) if section.as_json else render(report))


def facts(file: AdapterFile) -> dict[str, Any]:
    """The contents of a file as JSON values."""
    layers: dict[str, dict[str, Any]] = {}
    not_finite = list[str]()
    for name, change in file.changes.items():
        rank = rank_of(change.parts)
        norm = None
        if change.multiplied is None:
            # squares of large numbers are too large for float32
            norm = float(vector_norm(change.delta(), dtype=float64))
            if not isfinite(norm):
                not_finite.append(name)
                norm = None
        layers[name] = {
            "kind": kind_of(change),
            "rank": rank,
            "alpha": round(change.scale * rank, 6),
            "shape": [size or None for size in change.shape],
            "norm": norm,
        }
    changes = file.changes.values()
    tensors, metadata = read_tensors(file.path)
    wrong = [
        f"{finding.message} {finding.remedy}"
        for finding in health(tensors, metadata)
        if finding.severity == "error"
    ]
    return {
        "file": str(file.path),
        "bytes": file.path.stat().st_size,
        "kinds": list(file.kinds),
        "dtype": named(file.dtype),
        "ranks": _counts(layer["rank"] for layer in layers.values() if layer["rank"]),
        "alphas": _counts(layer["alpha"] for layer in layers.values() if layer["rank"]),
        "layers": len(layers),
        "parameters": sum(
            part.numel() for change in changes for part in change.parts.values()
        ),
        "biases": sum(change.bias is not None for change in changes),
        "zero_layers": sum(change.is_zero for change in changes),
        "wrong": wrong,
        "norm": sqrt(sum((x["norm"] or 0.0) ** 2 for x in layers.values())),
        "without_norm": sum(change.multiplied is not None for change in changes),
        "not_finite": not_finite,
        "norm_by_block": _by_block(layers),
        "first_key": min(tensors),
        "readable_by": [
            name for name in FORMATS if not why_not_exported(file, FORMATS[name])
        ],
        "written_by": _writer(metadata),
        "metadata": metadata,
        "by_layer": layers,
    }


def _counts(values: Iterable[float]) -> dict[str, int]:
    return {f"{value:g}": count for value, count in sorted(Counter(values).items())}


def _by_block(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Frobenius norm of the changes of each block. Layers outside of blocks have their
    own name. Changes that multiply the weight have no norm without it."""
    squares: dict[str, float] = defaultdict(float)
    for name, layer in layers.items():
        if layer["norm"] is None:
            continue
        block = re.match(r".*?\.\d+(?=\.)", name)
        squares[block.group() if block else name] += layer["norm"] ** 2
    return {name: sqrt(square) for name, square in squares.items()}


def _writer(metadata: Mapping[str, str]) -> str:
    try:  # ai-toolkit and this program say it themselves
        software = json.loads(metadata.get("software", "{}"))
        return f"{software['name']} {software.get('version', '')}".strip()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        for key, title in WRITERS.items():
            if key in metadata:
                return title
        return "unknown"


def render(report: Mapping[str, Any]) -> str:
    """The facts as lines."""
    largest = max(report["norm_by_block"].values(), default=0.0) or 1.0
    wrong = report["wrong"]
    more = f" ({len(wrong) - 1} more)" if len(wrong) > 1 else ""
    biases = f", biases {report['biases']}" if report["biases"] else ""
    lines = [
        f"{report['file']}: {report['bytes'] / 1e6:.2f} MB, {' and '.join(report['kinds']) or 'no change'}, "
        f"{report['dtype']}",
        f"layers {report['layers']}, parameters {report['parameters']:,}{biases}",
        f"rank {_in_words(report['ranks'])}; alpha {_in_words(report['alphas'])}",
        f"keys such as {report['first_key']}",
        f"can be written for: {', '.join(report['readable_by']) or 'none'} (run.py convert)",
        f"written by: {report['written_by']}",
    ]
    lines += [f"wrong: {line}{more} See run.py doctor." for line in wrong[:1]]
    if report["not_finite"]:
        first, *others = report["not_finite"]
        more = f" and of {len(others)} more layers" if others else ""
        lines.append(
            f"not finite: the change of {first}{more}, whose numbers are too large to be multiplied"
        )
    if report["without_norm"]:
        lines.append(
            f"{report['without_norm']} layers multiply the model's weights: their change has no norm without those"
        )
    if report["norm_by_block"]:
        lines.append(f"norm of the change {report['norm']:.4g}; by block:")
    for name, of_block in report["norm_by_block"].items():
        bar = "#" * round(30 * of_block / largest)
        lines.append(f"  {name:28} {of_block:10.4g}  {bar}")
    lines.append("metadata:" if report["metadata"] else "metadata: none")
    for key, value in sorted(report["metadata"].items()):
        lines.append(f"  {key}: {_short(value)}")
    return "\n".join(lines)


def _in_words(counts: Mapping[str, int]) -> str:
    if len(counts) < 2:
        return next(iter(counts), "none")
    return ", ".join(f"{key} ({count} layers)" for key, count in counts.items())


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
