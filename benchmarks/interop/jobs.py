"""The job folders that scripts of other environments work on; the form is in
`programs/harness.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.interop.models import TinyModel, save_weights


def job_of(model: TinyModel, folder: Path, more: Mapping[str, Any]) -> Path:
    """Writes job.json and the weights of the model into `folder`; more: further
    keys."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "weights.safetensors"
    save_weights(model.build(), weights)
    job = {
        "model": model.title,
        "transformer": model.transformer,
        "pipeline": model.pipeline,
        "config": dict(model.config),
        "weights": str(weights),
        **more,
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    return path
