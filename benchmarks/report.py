"""How a bench reports: what ran on what, then its own lines, then one JSON line for
programs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "diffusers", "peft", "transformers", "optimum-quanto")


def card(bench: str, what: str) -> None:
    """The head of a report: what runs, and the machine and versions it runs on."""
    ran = facts()
    versions = " | ".join(f"{name} {ran[name]}" for name in LIBRARIES)
    print(f"{bench} | {what}")
    print(
        f"{ran['cpu']}, {ran['cores']} cores | Python {ran['python']} | {versions} | commit {ran['commit']}"
    )


def finish(bench: str, **figures: object) -> None:
    """The last line of a report."""
    print(
        json.dumps(
            {
                "bench": bench,
                **facts(),
                **{name: rounded(value) for name, value in figures.items()},
            }
        )
    )


def facts() -> dict[str, object]:
    """Machine, versions and date, as they stand in every JSON line."""
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: _installed(name) for name in LIBRARIES},
    }


def _installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # peft, where only requirements.txt is installed
        return "-"


def commit() -> str:
    """Short hash of the checkout, with a + when files differ from it; "unknown" outside
    a checkout."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + (
            "+" if _git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


def rounded(value: object, digits: int = 5) -> object:
    """Floats with `digits` significant digits, inside dicts and lists too."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner, digits) for inner in value]
    return value
