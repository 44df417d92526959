"""Crosses programs that write LoRA files with programs that read them: at which
strength does each file arrive?

On one tiny transformer for each family every writer makes its files, and every reader
applies each of them. What a reader changed is compared with the change that the writer
means. Programs run in environments of pinned packages, which are made once and kept
outside the repository.

    python benchmarks/bench_interop.py --write

writes the table into docs/loras.md and the matrix into tests/golden/interop.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402 - after the path is set
from benchmarks.interop.comparison import Cell  # noqa: E402
from benchmarks.interop.environments import CACHE  # noqa: E402
from benchmarks.interop.files import WrittenFile  # noqa: E402
from benchmarks.interop.models import MODELS, TinyModel  # noqa: E402
from benchmarks.interop.readers import READERS, ask  # noqa: E402
from benchmarks.interop.record import record, text_of  # noqa: E402
from benchmarks.interop.table import markdown, sign, write_between_marks  # noqa: E402
from benchmarks.interop.writers import (  # noqa: E402
    external,
    of_diffusers,
    of_lycoris,
    of_ours,
    of_peft,
    spellings,
)

PAGE = ROOT / "docs" / "loras.md"
GOLDEN = ROOT / "tests" / "golden" / "interop.json"

WRITERS = {
    "ours": of_ours.write,
    "peft": of_peft.write,
    "diffusers": of_diffusers.write,
    "lycoris": of_lycoris.write,
    "spellings": spellings.write,
}
"""Writers of this environment; those of `external.SCRIPTS` have their own."""


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="folder of the programs' environments"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="keep the files and answers there (default: removed)",
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--writers", nargs="+", choices=[*WRITERS, *external.SCRIPTS])
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument(
        "--write",
        action="store_true",
        help="write docs/loras.md and tests/golden/interop.json",
    )
    options = parser.parse_args(given)
    is_whole = (
        options.writers is None
        and set(options.readers) == set(READERS)
        and set(options.models) == set(MODELS)
    )
    if options.write and not is_whole:
        parser.error("--write needs all models, writers and readers")
    options.writers = options.writers or [*WRITERS, *external.SCRIPTS]
    return options


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(given)
    report.card(
        "bench_interop",
        f"LoRA files of {', '.join(options.writers)} in {', '.join(options.readers)}",
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        files = [
            file
            for title in options.models
            for file in written(MODELS[title], folder, options)
        ]
        matrix = {name: read(name, files, folder, options) for name in options.readers}
        text = markdown(files, matrix)
        print(text)
        if options.write:
            write_between_marks(PAGE, text)
            GOLDEN.write_text(text_of(record(files, matrix)), encoding="utf-8")
    for file in files:
        print_unlike(file, matrix)
    outcomes = {
        name: dict(Counter(cell.outcome for cell in cells.values()))
        for name, cells in matrix.items()
    }
    report.finish("bench_interop", files=len(files), outcomes=outcomes)


def written(
    model: TinyModel, folder: Path, options: argparse.Namespace
) -> Iterator[WrittenFile]:
    """The files of all writers on a model. A program that cannot be installed is named
    and left out."""
    for name in options.writers:
        place = folder / model.title / "written" / name
        place.mkdir(parents=True, exist_ok=True)
        if name in WRITERS:
            yield from WRITERS[name](model, place)
            continue
        try:
            yield from external.write(model, place, options.cache, name)
        except RuntimeError as error:
            print(f"{name} cannot write here: {error}")


def read(
    name: str, files: Sequence[WrittenFile], folder: Path, options: argparse.Namespace
) -> dict[str, Cell]:
    """What one reader makes of all files, by `WrittenFile.place`."""
    cells: dict[str, Cell] = {}
    for title in options.models:
        of_model = [file for file in files if file.model == title]
        answers = ask(
            name, MODELS[title], of_model, folder / title / "read" / name, options.cache
        )
        cells |= {file.place: answers[file.name] for file in of_model}
    return cells


def print_unlike(file: WrittenFile, matrix: dict[str, dict[str, Cell]]) -> None:
    """The messages of what was refused or failed."""
    for name, cells in matrix.items():
        cell = cells[file.place]
        if cell.said:
            print(f"{file.model} {file.name}: {name} {sign(cell)}: {cell.said}")


if __name__ == "__main__":
    main()
