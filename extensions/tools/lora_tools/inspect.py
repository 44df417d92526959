"""`type: inspect`: what is in a LoRA file, in words or JSON."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from math import sqrt
from typing import Any

from extensions.tools.lora_tools.config import InspectConfig
from extensions.tools.lora_tools.files import read_lora
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
    """Prints the facts; nothing is written."""

    section: InspectConfig

    def run(self) -> None:
        super().run()
        section = self.section
        report = facts(
            read_lora(
                section.file,
                section.model_folder() if section.model else None,
                any_model=True,
            )
        )
        print(json.dumps(report, indent=2) if section.as_json else render(report))


def facts(file: AdapterFile) -> dict[str, Any]:
    """What is in a file, as JSON values."""
    layers: dict[str, dict[str, Any]] = {}
    for name, change in file.changes.items():
        rank = rank_of(change.parts)
        if change.multiplied:
            norm = None
        else:
            norm = float(change.delta().norm())
        layers[name] = {
            "kind": kind_of(change),
            "rank": rank,
            "alpha": round(change.scale * rank, 6),
            "shape": [size or None for size in change.shape],
            "norm": norm,
        }
    tensors, metadata = read_tensors(file.path)
    keys = sorted(tensors)
    return {
        "file": str(file.path),
        "bytes": file.path.stat().st_size,
        "kinds": list(file.kinds),
        "dtype": str(file.dtype).removeprefix("torch."),
        "ranks": _counts(layer["rank"] for layer in layers.values() if layer["rank"]),
        "alphas": _counts(layer["alpha"] for layer in layers.values() if layer["rank"]),
        "layers": len(layers),
        "parameters": sum(
            tensor.numel()
            for change in file.changes.values()
            for tensor in change.parts.values()
        ),
        "biases": sum(change.bias is not None for change in file.changes.values()),
        "zero_layers": sum(change.is_zero for change in file.changes.values()),
        "wrong": [
            f"{one.message} {one.remedy}"
            for one in health(tensors, metadata)
            if one.severity == "error"
        ],
        "norm": sqrt(sum((x["norm"] or 0.0) ** 2 for x in layers.values())),
        "without_norm": sum(x["norm"] is None for x in layers.values()),
        "norm_by_block": _by_block(layers),
        "first_key": keys[0],
        "readable_by": [
            name
            for name, target in FORMATS.items()
            if not why_not_exported(file, target)
        ],
        "written_by": _writer(metadata),
        "metadata": metadata,
        "by_layer": layers,
    }


def _counts(values: Iterable[float]) -> dict[str, int]:
    return {f"{value:g}": count for value, count in sorted(Counter(values).items())}


def _by_block(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Frobenius norm of the changes of each block; of what stands outside of blocks by
    its own name. Changes that multiply the weight have none without it."""
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
        return next(
            (title for key, title in WRITERS.items() if key in metadata), "unknown"
        )


def render(report: Mapping[str, Any]) -> str:
    """The facts as lines."""

    def counted(counts: Mapping[str, int]) -> str:
        return ", ".join(
            key if len(counts) == 1 else f"{key} ({count} layers)"
            for key, count in counts.items()
        )

    largest = max(report["norm_by_block"].values(), default=0.0) or 1.0
    blocks = [
        f"  {name:28} {norm:10.4g}  {'#' * round(30 * norm / largest)}"
        for name, norm in report["norm_by_block"].items()
    ]
    kinds = " and ".join(report["kinds"]) or "no change"
    if len(report["wrong"]) > 1:
        more = f" ({len(report['wrong']) - 1} more)"
    else:
        more = ""
    wrong = [f"wrong: {line}{more} See run.py doctor." for line in report["wrong"][:1]]
    multiplied = f"{report['without_norm']} layers multiply the model's weights: their change has no norm without those"
    if blocks:
        norm = [f"norm of the change {report['norm']:.4g}; by block:", *blocks]
    else:
        norm = []
    size = f"layers {report['layers']}, parameters {report['parameters']:,}"
    if report["biases"]:
        size += f", biases {report['biases']}"
    metadata = []
    for key, value in sorted(report["metadata"].items()):
        metadata.append(f"  {key}: {_short(value)}")
    return "\n".join(
        [
            f"{report['file']}: {report['bytes'] / 1e6:.2f} MB, {kinds}, {report['dtype']}",
            size,
            f"rank {counted(report['ranks']) or 'none'}; alpha {counted(report['alphas']) or 'none'}",
            f"keys such as {report['first_key']}",
            f"can be written for: {', '.join(report['readable_by']) or 'none'} (run.py convert)",
            f"written by: {report['written_by']}",
            *wrong,
            *([multiplied] if report["without_norm"] else []),
            *norm,
            "metadata:" if metadata else "metadata: none",
            *metadata,
        ]
    )


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
