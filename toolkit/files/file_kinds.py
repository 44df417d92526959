"""What a file is that is not text, by its first bytes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from toolkit.files.safetensors_io import LENGTH_BYTES

_BINARY = {
    b"\x89PNG": "an image (PNG)",
    b"\xff\xd8\xff": "an image (JPEG)",
    b"GIF8": "an image (GIF)",
    b"RIFF": "an image (WebP) or a film",
    b"PK\3\4": "an archive (zip), or weights of torch",
    b"GGUF": "a GGUF file",
    b"%PDF": "a PDF file",
    b"\x1f\x8b": "an archive (gzip)",
}
"""First bytes of what nobody writes by hand -> what it is."""


def binary_kind(path: str | Path) -> str:
    """What a file is that cannot be a job, with what to do instead; empty for all others, and for pipes."""
    with suppress(OSError):
        if Path(path).is_file():
            with open(path, "rb") as file:
                start = file.read(LENGTH_BYTES + 1)
            if start[LENGTH_BYTES:] == b"{" and b"\0" in start[:LENGTH_BYTES]:
                remedy = "'run.py inspect FILE' shows what is in it, 'run.py generate --lora FILE' uses a LoRA."
                return f"is a safetensors file, not a job. {remedy}"
            found = next((kind for magic, kind in _BINARY.items() if start.startswith(magic)), "")
            return f"is {found}, not a job: a YAML or JSON file." if found else ""
    return ""
