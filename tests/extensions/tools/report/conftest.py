"""A run's folder, written by hand: 120 steps, two prompts at three steps, a dataset of
three images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.numpy import save_file

SECRET = "hf_" + "A1b2C3d4E5f6G7h8J9k0L1m2N3p4Q5r6S7"
PROMPT = "<b>a cat</b> & </script><script>document.title='taken'</script>"


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    import numpy

    folder, pictures = tmp_path / "output" / "cat", tmp_path / "images"
    for made in (folder / "samples", folder / "state" / "step_000000120", pictures):
        made.mkdir(parents=True)
    status = {
        "name": "cat",
        "status": "finished",
        "step": 120,
        "steps": 120,
        "loss": 0.25,
        "samples": 240,
    }
    (folder / "run.json").write_text(json.dumps(status))
    rows = [
        {
            "step": n,
            "epoch": 0,
            "loss": 1 / n,
            "lr": 1e-4,
            "grad_norm": None if n == 7 else 2.0 + n % 3,
            "step_s": 0.5,
        }
        for n in range(1, 121)
    ]
    (folder / "metrics.jsonl").write_text(lines(*rows))
    (folder / "validation.jsonl").write_text(
        lines({"step": 60, "validation/loss": 0.6}, {"step": 120, "loss": 0.5})
    )
    (folder / "config.yaml").write_text(
        f"model:\n  name: tiny  # <i>\n  hf_token: {SECRET}\n"
    )
    (folder / "log.txt").write_text(
        "cat\n  the plan\ndevice cpu\nstep 120 of the log\n"
    )
    files = []
    for step in (0, 60, 120):
        for index in range(2):
            files.append(f"{step:09d}_{index}.png")
            Image.new("RGB", (64, 48), (step * 2, 90 * index, 40)).save(
                folder / "samples" / files[-1]
            )
    (folder / "samples" / "000000060_1.png").write_bytes(b"torn")
    (folder / "events.jsonl").write_text(
        lines(
            *(
                {
                    "time": "2026-01-01T00:00:00Z",
                    "event": "sample",
                    "step": step,
                    "files": files[at : at + 2],
                }
                | {"prompts": [PROMPT, f"a dog, {SECRET}"]}
                for at, step in ((0, 0), (2, 60), (4, 120))
            ),
            {
                "time": "2026-01-01T00:00:09Z",
                "event": "save",
                "step": 120,
                "files": ["cat.safetensors"],
            },
        )
    )
    save_file(
        {"a": numpy.zeros((2, 2), dtype=numpy.float32)},
        folder / "cat.safetensors",
        {"sha256": "ab" * 32},
    )
    manifest = {"files": {"weights.safetensors": {"size": 7, "sha256": "cd" * 32}}}
    (folder / "state" / "step_000000120" / "MANIFEST.json").write_text(
        json.dumps(manifest)
    )
    for name in ("one", "two"):
        Image.new("RGB", (900, 700), "teal").save(
            pictures / f"{name}.jpg", exif=Image.Exif()
        )
        (pictures / f"{name}.txt").write_text(f"caption of {name}")
    record = {f"images/{name}.jpg": "00" * 32 for name in ("one", "two", "gone")}
    (folder / "dataset-0123456789ab.json").write_text(json.dumps(record))
    return folder
