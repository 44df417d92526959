"""What each promise costs: tokens of the program and CPU seconds of its tests, as the
table in CONTRIBUTING.md: `python benchmarks/prices.py --write`.

A promise is a row of `PROMISES`: the files that keep it. Each file of the program
belongs to one row, by the longest path that it begins with. Tokens are counted without
comments, docstrings and annotations, so clarity costs nothing. Each line of the table
leaves 3 % above what is used; `tests/benchmarks/test_prices.py` holds each promise to
its line. A change that needs more raises the line in the same commit (`--write`) and
says in its message which promise pays for it.

`--cpu FILE` takes CPU seconds from what `pytest --cpu-report=FILE` wrote; several files
add up. Without it the seconds in the table stay.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.bench_walks import LIBRARY  # noqa: E402
from benchmarks.source_figures import is_text, sources  # noqa: E402

PAGE = "CONTRIBUTING.md"
BEGIN, END = "<!-- prices -->\n", "<!-- end of the prices -->\n"
ROOM = 1.03
"""A line of the table allows so many times what is used when it is written."""

PROMISES: dict[str, tuple[str, ...]] = {
    "a command line, and extensions that are found": (
        "run.py",
        "launch.py",
        "toolkit/",
        "extensions/",
    ),
    "jobs that run one after another, seeds and series": ("jobs/",),
    "a file becomes checked keys; each error has a place and a remedy": (
        "toolkit/config/",
    ),
    "what a job can say": (
        "toolkit/config/sections/",
        "extensions/sd_trainer/rules.py",
        "extensions/sd_trainer/config.py",
    ),
    "folders of images, captions and tables as they are meant": (
        "toolkit/data/",
        "toolkit/contracts/data.py",
    ),
    "image files in their colours": ("toolkit/data/pixels/",),
    "datasets that are read while they arrive": ("toolkit/data/streams/",),
    "Parquet tables": ("toolkit/files/parquet.py",),
    "buckets, batches, latents that are encoded once": ("toolkit/data/batches/",),
    "files that a power failure does not lose": ("toolkit/files/",),
    "secrets that are not written": (
        "toolkit/files/redact.py",
        "toolkit/config/reading/redacted_copy.py",
    ),
    "devices, signals and threads of this machine": ("toolkit/system/",),
    "several GPUs": (
        "toolkit/system/distributed",
        "toolkit/system/sharded_param.py",
        "toolkit/memory/fsdp.py",
        "toolkit/train/collectives.py",
        "toolkit/train/sharded_state.py",
    ),
    "Qwen-Image, Edit and Layered": ("toolkit/models/", "toolkit/contracts/"),
    "Qwen-Image-2.1": ("toolkit/models/qwen_image21/",),
    "models in one file, quantized by others, from the hub": (
        "toolkit/models/single_file.py",
        "toolkit/models/beside.py",
        "toolkit/models/hub",
        "toolkit/models/adapter_origin.py",
        "toolkit/config/sections/stored_quantization.py",
        "toolkit/models/vae_files.py",
    ),
    "a second start that quantizes nothing": (
        "toolkit/models/kept.py",
        "toolkit/files/mapped.py",
        "toolkit/plan/kept_model.py",
    ),
    "4 to 80 GB: quantization, offload, checkpointing, compilation": (
        "toolkit/memory/",
        "toolkit/models/layerwise.py",
        "toolkit/models/vae_bands.py",
    ),
    "LoRA, DoRA, LoHa, LoKr, LyCORIS, full training": ("toolkit/networks/",),
    "LoRA files that others read and write": (
        "toolkit/networks/lora_formats.py",
        "toolkit/networks/adapter_",
        "toolkit/networks/multiplied",
        "toolkit/networks/spelling.py",
        "toolkit/networks/unread_kinds.py",
    ),
    "flow matching: timesteps, losses, sampler": ("toolkit/flow/",),
    "optimizers, schedules, averages": ("toolkit/optim/",),
    "the loop, its saves, samples and validation": ("toolkit/train/",),
    "a resume to the same bytes": (
        "toolkit/train/checkpoint",
        "toolkit/train/resumption.py",
        "toolkit/train/config_diff.py",
        "toolkit/train/lock.py",
    ),
    "trackers": (
        "toolkit/train/trackers/",
        "extensions/trackers/",
        "extensions/hooks/trackers.py",
        "extensions/hooks/averages.py",
    ),
    "commands, messages and copies while it trains": ("extensions/hooks/",),
    "warnings while it trains": (
        "toolkit/train/anomalies.py",
        "extensions/hooks/watchdog.py",
    ),
    "a plan before the start: memory, disk, time, outlook": ("toolkit/plan/",),
    "`sd_trainer`": ("extensions/sd_trainer/",),
    "workflows for ComfyUI": (
        "extensions/sd_trainer/comfyui.py",
        "toolkit/models/comfyui.py",
    ),
    "models from random weights": ("extensions/from_scratch/",),
    "jobs of other programs": ("extensions/compat/",),
    "files of FluxFlow's guide": ("extensions/compat/fluxflow",),
    "the page": ("extensions/tools/ui/", "extensions/tools/shared/"),
    "`lint` and `align`: images that hurt": (
        "extensions/tools/lint/",
        "extensions/tools/align/",
    ),
    "captions by a model": ("extensions/tools/caption/",),
    "`new`: a job for this GPU": ("extensions/tools/new/",),
    "looking at a run: `best`, `grid`, `report`, `diagrams`": (
        "extensions/tools/best/",
        "extensions/tools/grid/",
        "extensions/tools/report/",
        "extensions/tools/diagrams/",
    ),
    "changing a LoRA file": ("extensions/tools/lora_tools/", "extensions/tools/ara/"),
    "`doctor`: is a LoRA file sound": ("extensions/tools/doctor/",),
    "`generate`, `cache`, `publish`": (
        "extensions/tools/generate/",
        "extensions/tools/cache/",
        "extensions/tools/publish/",
    ),
}
"""Promise -> how the paths of its files begin."""


def tokens(text: str) -> int:
    """Tokens of Python source without comments, docstrings and annotations.

    >>> tokens("def f(x: int) -> int:\\n    'Twice.'\\n    return 2 * x  # twice\\n")
    10
    """
    readline = io.StringIO(ast.unparse(_plain(ast.parse(text)))).readline
    return sum(
        token.type not in _LAYOUT for token in tokenize.generate_tokens(readline)
    )


_LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def _plain(tree: ast.Module) -> ast.Module:
    """The tree, from which docstrings, of attributes too, and annotations are taken
    out."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not is_text(one)] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
    return tree


def promise_of(path: str) -> str:
    """The promise that a file of the program belongs to. Raises KeyError for a file of
    none.

    >>> promise_of("toolkit/files/parquet.py")
    'Parquet tables'
    """
    begins = [
        begin
        for paths in PROMISES.values()
        for begin in paths
        if path.startswith(begin)
    ]
    if not begins:
        raise KeyError(f"{path} belongs to no promise: add it to benchmarks/prices.py")
    best = max(begins, key=len)
    return next(promise for promise, paths in PROMISES.items() if best in paths)


def used(texts: Mapping[str, str]) -> Counter[str]:
    """Promise -> tokens of its files."""
    counts: Counter[str] = Counter()
    for path, text in texts.items():
        counts[promise_of(path)] += tokens(text)
    return counts


def test_seconds(reports: Iterable[Mapping[str, float]]) -> Counter[str]:
    """Promise -> CPU seconds of the tests of its files: a test file belongs to what it
    mirrors, `tests/faults` and other tests of whole jobs to no promise."""
    seconds: Counter[str] = Counter()
    for report in reports:
        for path, count in report.items():
            mirrored = path.removeprefix("tests/").replace("test_", "")
            if mirrored.startswith(
                ("toolkit/", "extensions/", "jobs/", "run.py", "launch.py")
            ):
                seconds[promise_of(mirrored)] += count
    return seconds


def lines(page: str) -> dict[str, tuple[int, str]]:
    """Promise -> tokens that its line allows, CPU seconds of its tests."""
    table = page.partition(BEGIN)[2].partition(END)[0]
    rows = re.findall(r"^\| (.+) \| ([\d,]+) \| (\S*) \|$", table, re.MULTILINE)
    return {
        promise: (int(most.replace(",", "")), seconds)
        for promise, most, seconds in rows
    }


def table(counts: Mapping[str, int], seconds: Mapping[str, str]) -> str:
    """The table, dearest promise first."""
    rows = [
        f"| {promise} | {_allowed(count):,} | {seconds.get(promise, '')} |"
        for promise, count in sorted(counts.items(), key=lambda pair: -pair[1])
    ]
    head = ["| promise | tokens, at most | CPU seconds of its tests |", "|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


def _allowed(count: int) -> int:
    return -int(-count * ROOM // 10) * 10


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", action="store_true", help=f"write the table into {PAGE}"
    )
    parser.add_argument(
        "--cpu",
        nargs="*",
        default=[],
        metavar="FILE",
        help="reports of pytest --cpu-report",
    )
    return parser.parse_args(argv)


def main() -> None:
    options = arguments()
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    seconds = {promise: text for promise, (_, text) in lines(page).items()}
    if options.cpu:
        measured = test_seconds(
            json.loads(Path(file).read_text(encoding="utf-8")) for file in options.cpu
        )
        seconds = {promise: f"{count:.0f}" for promise, count in measured.items()}
    text = table(used(sources(ROOT, LIBRARY)), seconds)
    print(text)
    if options.write:
        before, _, rest = page.partition(BEGIN)
        (ROOT / PAGE).write_text(
            before + BEGIN + text + END + rest.partition(END)[2], encoding="utf-8"
        )


if __name__ == "__main__":
    main()
