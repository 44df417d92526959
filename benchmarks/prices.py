"""What each promise costs: tokens of the program and CPU seconds of its tests, as the
table in CONTRIBUTING.md, whose sum may not grow.

A promise is a row of `PROMISES`: the files that keep it. Each file of the program
belongs to one row, by the longest path that it begins with. Tests, templates, tables
and what else is kept have rows of their own (`OTHERS`). Tokens of Python are counted
without comments, docstrings and annotations, so clarity costs nothing; of other files
words and signs. `tests/benchmarks/test_prices.py` holds each row and the sum.

`--write` lowers each row to a little above what is used, and the sum with them; it
raises nothing. `--raise PROMISE N --paid-by PROMISE` moves N tokens from a row to
another one. `--cpu FILE` takes CPU seconds from what `pytest --cpu-report=FILE` wrote;
several files add up.
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

from benchmarks.source_figures import LIBRARY, is_text, sources  # noqa: E402

PAGE = "CONTRIBUTING.md"
BEGIN, END = "<!-- prices -->\n", "<!-- end of the prices -->\n"
SUM = re.compile(r"(?<=The sum is )[\d,]+")
ROOM = 1.01
"""A row allows so many times what is used when it is written."""

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
    "folders of images, captions and tables": (
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
    "`lint` and `align`: faults of a dataset": (
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

OTHERS: dict[str, tuple[str, ...]] = {
    "tests": ("tests/**/*.py",),
    "benchmarks": ("benchmarks/**/*.py",),
    "templates, scripts and styles": (
        "extensions/**/*.j2",
        "extensions/**/*.js",
        "extensions/**/*.css",
    ),
    "tables of rules, names and texts": (
        "toolkit/**/*.toml",
        "toolkit/**/*.json",
        "toolkit/**/*.csv",
        "extensions/**/*.toml",
        "extensions/**/*.json",
    ),
    "examples": ("config/**/*.yaml", "config/**/*.py", "config/**/*.sh"),
    "what generates pages": ("docs/*.py",),
}
"""Row of what no promise has -> patterns of its files."""

VENDORED = ".min."
"""In the names of files that are somebody else's."""


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


def signs(text: str) -> int:
    """Words and signs of a text that is not Python.

    >>> signs("{{ one.name }}, <b>two</b>")
    17
    """
    return len(re.findall(r"\w+|[^\w\s]", text))


def used(root: Path) -> Counter[str]:
    """Row -> tokens of its files in a checkout."""
    counts: Counter[str] = Counter()
    for path, text in sources(root, LIBRARY).items():
        counts[promise_of(path)] += tokens(text)
    for row, patterns in OTHERS.items():
        for file in {file for pattern in patterns for file in root.glob(pattern)}:
            if VENDORED not in file.name:
                count = tokens if file.suffix == ".py" else signs
                counts[row] += count(file.read_text(encoding="utf-8"))
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


def sum_of(page: str) -> int:
    """What the rows may have together."""
    return int(SUM.search(page)[0].replace(",", ""))  # type: ignore[index]  # the page has one


def lowered(page: str, counts: Mapping[str, int]) -> dict[str, int]:
    """What each row allows: a little more than is used, and no more than before."""
    before = lines(page)
    allowed = {row: -int(-count * ROOM // 10) * 10 for row, count in counts.items()}
    return {
        row: min(most, before[row][0]) if row in before else most
        for row, most in allowed.items()
    }


def paid(
    page: str, counts: Mapping[str, int], row: str, more: int, payer: str
) -> dict[str, int]:
    """What each row allows once `payer` has given so many tokens to `row`. Ends the
    program where it does not have them."""
    allowed = {name: most for name, (most, _) in lines(page).items()}
    for name in (row, payer):
        if name not in allowed:
            sys.exit(f"{name!r} is no row of {PAGE}: {', '.join(allowed)}")
    if not 0 < more <= allowed[payer] - counts[payer]:
        left = allowed[payer] - counts[payer]
        sys.exit(
            f"{payer!r} has {left:,} tokens to give: remove what it can do without."
        )
    return allowed | {row: allowed[row] + more, payer: allowed[payer] - more}


def written(
    page: str, allowed: Mapping[str, int], seconds: Mapping[str, str] | None = None
) -> str:
    """The page with these rows, dearest first, and a sum that is no larger than
    before."""
    known = {row: text for row, (_, text) in lines(page).items()}
    rows = [
        f"| {row} | {most:,} | {(seconds or known).get(row, '')} |"
        for row, most in sorted(allowed.items(), key=lambda pair: -pair[1])
    ]
    total = min(sum(allowed.values()), sum_of(page))
    head = ["| promise | tokens, at most | CPU seconds of its tests |", "|---|---|---|"]
    before, _, rest = SUM.sub(f"{total:,}", page).partition(BEGIN)
    table = "\n".join([*head, *rows]) + "\n"
    return before + BEGIN + table + END + rest.partition(END)[2]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", action="store_true", help=f"lower the rows and the sum in {PAGE}"
    )
    parser.add_argument(
        "--raise", nargs=2, metavar=("PROMISE", "N"), dest="raised", help="by N tokens"
    )
    parser.add_argument("--paid-by", metavar="PROMISE", help="the row that gives them")
    parser.add_argument(
        "--cpu",
        nargs="*",
        default=[],
        metavar="FILE",
        help="reports of pytest --cpu-report",
    )
    options = parser.parse_args(argv)
    if bool(options.raised) != bool(options.paid_by):
        parser.error("--raise PROMISE N needs --paid-by PROMISE: the sum may not grow")
    return options


def main() -> None:
    options, file = arguments(), ROOT / PAGE
    page, counts = file.read_text(encoding="utf-8"), used(ROOT)
    if options.raised:
        row, more = options.raised
        allowed = paid(page, counts, row, int(more), options.paid_by)
    else:
        allowed = lowered(page, counts)
    reports = [json.loads(Path(one).read_text("utf-8")) for one in options.cpu]
    seconds = {row: f"{count:.0f}" for row, count in test_seconds(reports).items()}
    page = written(page, allowed, seconds)
    print(page.partition(BEGIN)[2].partition(END)[0])
    if options.write or options.raised:
        file.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
