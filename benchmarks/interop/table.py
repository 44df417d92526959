"""The matrix as tables for docs/loras.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.interop.comparison import Cell
from benchmarks.interop.files import WrittenFile
from benchmarks.interop.models import MODELS
from benchmarks.interop.readers import READERS

BEGIN, END = "<!-- interop -->", "<!-- end of interop -->"

Matrix = Mapping[str, Mapping[str, Cell]]
"""Reader -> `WrittenFile.place` -> cell."""

SIGNS = {"exact": "=", "nothing": "0", "error": "E", "refused": "R", "absent": "–"}


def sign(cell: Cell) -> str:
    """A cell in as few characters as possible."""
    if cell.outcome == "strength":
        return f"x{cell.strength:.3g}"
    if cell.outcome == "shape":
        return f"w {cell.error:.2g}"
    return SIGNS[cell.outcome]


def markdown(files: Sequence[WrittenFile], matrix: Matrix) -> str:
    """Legend and a table for each model. Files of a writer that every reader takes
    alike share a row."""
    lines = [_legend(), ""]
    for title in MODELS:
        of_model = [file for file in files if file.model == title]
        if of_model:
            lines += [
                f"### Files of {_model_name(title)}",
                "",
                *_table(of_model, matrix),
                "",
            ]
    return "\n".join(lines).rstrip() + "\n"


def _legend() -> str:
    versions = "; ".join(dict.fromkeys(reader.version for reader in READERS.values()))
    return (
        "`=`: the change that its writer means, to 1e-6. `x2`: that change at twice the strength. `0`: nothing is "
        "applied, without an error. `w 0.3`: another change, with this relative error. `E`: an error. `R`: refused by "
        "name. `–`: not asked.\n\n"
        f"Readers: {versions}. Made by `python benchmarks/bench_interop.py --write`."
    )


def _model_name(title: str) -> str:
    return {"2509": "Qwen-Image-Edit-2509", "2.1": "Qwen-Image-2.1"}.get(title, title)


def _table(files: Sequence[WrittenFile], matrix: Matrix) -> list[str]:
    lines = [
        "| file | " + " | ".join(reader.title for reader in READERS.values()) + " |",
        "|---" * (len(READERS) + 1) + "|",
    ]
    for writer, of_writer in groupby(files, key=lambda file: file.writer):
        rows: dict[tuple[str, ...], list[str]] = {}
        for file in of_writer:
            signs = tuple(
                sign(matrix[reader][file.place]) if reader in matrix else "–"
                for reader in READERS
            )
            rows.setdefault(signs, []).append(file.what)
        for signs, whats in rows.items():
            lines.append(
                f"| {writer}: {'; '.join(whats)} | " + " | ".join(signs) + " |"
            )
    return lines


def write_between_marks(path: Path, text: str) -> None:
    """Replaces what stands between the marks of a page. Raises ValueError where a mark
    is missing."""
    page = path.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} lacks {BEGIN} or {END}")
    path.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")
