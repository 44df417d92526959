"""Records of a run's folder as a page shows them: curves, samples, dataset, files.

Any file may be missing, half written, or of another version: then its part is left out.
Nothing is written. Every text is redacted here, because a secret could not be found any
more once it is escaped for a page.

`report` writes the page of a run with them. The views of the page (`ui/views/run`,
`compare`) call single functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from extensions.tools.shared.diagrams import KL, LOSSES, RATES, TIMES
from extensions.tools.shared.feed import Feed, facts_of, status_of
from extensions.tools.shared.html_page import texts
from extensions.tools.shared.series import IN_STEPS, Curve
from toolkit.data.scan.captions import LIST, CaptionError, caption_in, files_beside
from toolkit.files.redact import redact, redact_text
from toolkit.files.run_files import CONFIG, LOG, workflow_files
from toolkit.files.safetensors_io import read_metadata
from toolkit.files.writing import open_regular, read_object, sha256_of
from toolkit.train.checkpoint_store import MANIFEST
from toolkit.train.paired import CONFIDENCE, as_good_as_the_lowest
from toolkit.train.run_reader import (
    RunInfo,
    SampleImage,
    list_checkpoints,
    list_dataset_files,
    list_network_files,
    list_samples,
    read_events,
    read_losses_by_image,
    spread,
)

MOST_POINTS = 300
"""Points of a curve on a page."""

MOST_CURVES = 8
"""Curves of one diagram."""

MOST_ROWS = 300
"""Rows of a table on a page."""

MOST_WARNINGS = 5
"""Warnings of a run on its page, the latest ones."""

_MOST_CAPTION_BYTES = 100_000
_MOST_CAPTION_CHARACTERS = 1000
_MOST_CONFIG_BYTES = 2**19
_PLAN_BYTES = 32_768


def page_values(
    run: RunInfo,
    feed: Feed,
    here: str = "",
    address: Callable[[Path], str | None] = lambda path: path.name,
    most_pictures: int | None = None,
    most_files: int | None = None,
    hashed: bool = False,
) -> dict[str, Any]:
    """The variables of the template of a run's page (pages/run.html.j2) that come from
    the run's folder alone; `data` is what its script reads. A part that is None is left
    out of the page.

    here: address of the page on a server. address, most_pictures: as in
    `sample_table`. most_files: files that are listed. hashed: as in `saved_files`.
    """
    news, cursor = feed.update().news()
    rows = news.get("events", [])
    of = {
        event: [row for row in rows if row.get("event") == event]
        for event in ("memory", "warning")
    }
    samples = sample_table(run.folder, address, most_pictures)
    files = list(islice(saved_files(run.folder, hashed), most_files))
    return {
        "run": run,
        "folder": run.folder,
        "now_facts": facts_of(run, feed.metrics.total(*IN_STEPS)),
        "memory": of["memory"][-1] if of["memory"] else {},
        "which": which_file(run.folder),
        "warnings": of["warning"][-MOST_WARNINGS:],
        "lines": [c for series in feed.series for c in series.curves(points=240)],
        "log": news.get("log", ""),
        "plan": plan_text(run.folder),
        "settings": settings_text(run.folder),
        "events": [event_row(row) for row in rows[-MOST_ROWS:]],
        "event_count": len(rows),
        "dataset": None,
        "result": None,
        "here": here,
        "samples": samples,
        "files": files,
        "file_count": len(files)
        if len(files) != most_files
        else sum(1 for _ in saved_files(run.folder, hashed=False)),
        "workflows": [path.name for path in workflow_files(run.folder, run.name)],
        "data": {
            "here": here,
            "samples": samples,
            "words": texts()["run"]["script"],
            **({"cursor": cursor, "status": status_of(run)} if here else {}),
        },
    }


# ------------------------------------------------------------ curves


DIAGRAMS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("Loss", lambda name: LOSSES.takes(name) and not name.startswith("validation")),
    ("Validation", lambda name: name.startswith("validation")),
    ("Learning rate", RATES.takes),
    ("Gradient norm", lambda name: name.split("/")[0] == "grad_norm"),
    ("KL divergence", lambda name: KL.takes(name) and not KL.right(name)),
    ("Seconds per step", TIMES.takes),
    ("Other numbers", lambda name: True),
)
"""Title of a diagram -> whether it takes a curve that no diagram before it has
taken."""

EXACT = ("Validation", "Learning rate")
"""Diagrams of values without noise, for which a running mean would only lag."""


def diagrams(curves: Iterable[Curve]) -> list[dict[str, Any]]:
    """The diagrams of a run, for the script of its page. A curve is in the first
    diagram that takes it."""
    left = list(curves)
    drawn = []
    for title, takes in DIAGRAMS:
        matching = [c for c in left if takes(c.name)]
        left = [c for c in left if not takes(c.name)]
        if matching:
            names = [c.name for c in matching[MOST_CURVES:]]
            diagram = {
                "title": title,
                "curves": [_drawn(curve) for curve in matching[:MOST_CURVES]],
                "exact": title in EXACT,
                "left_out": [redact_text(name) for name in names],
            }
            drawn.append(diagram)
    return drawn


def _drawn(curve: Curve) -> dict[str, Any]:
    values = {"low": curve.low, "high": curve.high, "mean": curve.mean}
    short = {
        kind: [float(f"{value:.5g}") for value in numbers]
        for kind, numbers in values.items()
    }
    return {"name": redact_text(curve.name), "steps": curve.steps, **short}


_UNMARKED = ("memory",)
"""Events that belong to no place of a curve."""

MOST_MARKS = 500


def marks(folder: Path) -> list[tuple[int, str]]:
    """Step and name of the latest events that belong to a step, for the diagrams."""
    rows = [
        row
        for row in read_events(folder).rows
        if type(row.get("step")) is int and row["step"] >= 0
    ]
    marked = [row for row in rows if row.get("event") not in _UNMARKED][-MOST_MARKS:]
    return [(row["step"], redact_text(str(row.get("event", "")))) for row in marked]


# ------------------------------------------------------------ samples


@dataclass(frozen=True)
class SampleRow:
    """The samples of one place in the sets of a run, by their step.

    Example::

        rows, steps = sample_rows(Path("output/my_character"))
        for row in rows:
            print(row.prompt, row.by_step[500].path)
    """

    index: int
    samples: tuple[SampleImage, ...]

    @property
    def prompt(self) -> str:
        """The latest prompt; empty where none is recorded."""
        for sample in reversed(self.samples):
            if sample.prompt:
                return sample.prompt
        return ""

    @cached_property
    def by_step(self) -> dict[int, SampleImage]:
        """Step -> sample."""
        return {sample.step: sample for sample in self.samples}


def sample_rows(
    folder: Path, most_pictures: int | None = None
) -> tuple[tuple[SampleRow, ...], int]:
    """The samples of a run by their index, and how many steps have any.

    most_pictures: a run with more samples is thinned out to the first step, the last
    step, and evenly chosen ones between.
    """
    samples = list_samples(folder)
    steps = sorted({s.step for s in samples})
    indices = sorted({s.index for s in samples})
    if most_pictures is not None and samples:
        indices = indices[:most_pictures]
        steps_shown = set(spread(steps, max(2, most_pictures // len(indices))))
        samples = tuple(one for one in samples if one.step in steps_shown)
    rows: dict[int, list[SampleImage]] = {index: [] for index in indices}
    for sample in samples:
        if sample.index in rows:
            rows[sample.index].append(sample)
    filled = [SampleRow(index, tuple(row)) for index, row in rows.items() if row]
    return tuple(filled), len(steps)


def sample_table(
    folder: Path,
    address: Callable[[Path], str | None] = lambda path: path.name,
    most_pictures: int | None = None,
) -> dict[str, Any]:
    """The samples of a run for the template and the script of its page: `steps`, the
    number of all steps (`of`), and for each place in the sets its prompt, and by step
    the `files` (None: there is no sample).

    address: gives the address of a file; None: it is not an image. most_pictures: as in
    `sample_rows`.
    """
    rows, count = sample_rows(folder, most_pictures)
    steps = sorted({sample.step for row in rows for sample in row.samples})
    table = []
    for row in rows:
        row_samples = [row.by_step.get(step) for step in steps]
        files = [sample and address(sample.path) for sample in row_samples]
        table.append(
            {
                "index": row.index,
                "prompt": redact_text(row.prompt),
                "files": files,
            }
        )
    return {"steps": steps, "of": count, "rows": table}


# ------------------------------------------------------------ dataset


@dataclass(frozen=True)
class DatasetImage:
    """One image that a run has trained on.

    Example::

        for image in dataset_images(Path("output/my_character")):
            print(image.name, image.caption)
    """

    name: str
    """`<folder>/<file>` as the run recorded it."""

    file: Path | None
    """The path at which it is now; None: not found."""

    caption: str
    """Current text of the caption file next to it."""


def dataset_images(folder: Path) -> tuple[DatasetImage, ...]:
    """The images of the newest record of the dataset."""
    records = sorted(list_dataset_files(folder), key=modified_at)
    names = read_object(records[-1]) if records else {}
    return tuple(_image(name, folder) for name in names)


def modified_at(path: Path) -> float:
    """Time of the last change of a file, in seconds since 1970. 0: the file does not
    exist any more."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _image(name: str, folder: Path) -> DatasetImage:
    """A relative name is looked for from the working directory, then from each folder
    above the run's."""
    given = Path(name).expanduser()
    places = (base / given for base in (Path(), *folder.absolute().parents))
    file = next((place for place in places if _is_file(place)), None)
    caption = redact_text(_caption(file)) if file else ""
    return DatasetImage(redact_text(name), file, caption)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _caption(image: Path) -> str:
    for path in files_beside(image):
        try:
            with open_regular(path) as file:
                data = file.read(_MOST_CAPTION_BYTES)
            caption = caption_in(path, data.decode("utf-8-sig", errors="replace"))
        except (OSError, CaptionError):
            continue
        if caption:
            return caption[:_MOST_CAPTION_CHARACTERS].replace(LIST, "\n")
    return ""


# ------------------------------------------------------------ files


@dataclass(frozen=True)
class SavedFile:
    """A file that a run has saved.

    Example::

        for file in saved_files(Path("output/my_character"), hashed=False):
            print(file.name, file.kind, file.size)
    """

    name: str
    """Relative to the run's folder."""

    kind: str
    size: int
    """Bytes."""

    time: str
    sha256: str
    """SHA-256 of the file; empty: not known."""

    weights_sha256: str
    """SHA-256 of its weights from the header."""


def saved_files(folder: Path, hashed: bool) -> Iterator[SavedFile]:
    """The network files of a run, then its states. The files of a model folder are listed one by one.

    hashed: compute the hashes that are not recorded.
    """
    for saved in list_network_files(folder):
        step = "" if saved.step is None else f", step {saved.step}"
        time = saved.time.strftime("%Y-%m-%d %H:%M:%S") if saved.time else ""
        inner = [path for path in sorted(saved.path.rglob("*")) if _is_file(path)]
        for path in inner or [saved.path]:
            size, digest = _size_and_hash(path, hashed)
            name = redact_text(path.relative_to(folder).as_posix())
            yield SavedFile(
                name, f"{saved.kind}{step}", size, time, digest, _recorded(path)
            )
    for checkpoint in list_checkpoints(folder):
        kind = "state" + (f": {checkpoint.problem}" if checkpoint.problem else "")
        for name, size, digest in _manifest(checkpoint.path):
            shown = (checkpoint.path / name).relative_to(folder).as_posix()
            yield SavedFile(redact_text(shown), redact_text(kind), size, "", digest, "")


def _size_and_hash(path: Path, hashed: bool) -> tuple[int, str]:
    """A file may vanish meanwhile: a run that goes on removes old files."""
    try:
        return path.stat().st_size, sha256_of(path) if hashed else ""
    except OSError:
        return 0, ""


def _recorded(path: Path) -> str:
    if path.suffix != ".safetensors":
        return ""
    try:
        return str(read_metadata(path).get("sha256", ""))[:64]
    except (OSError, ValueError, RecursionError, AttributeError):
        return ""


def _manifest(checkpoint: Path) -> Iterator[tuple[str, int, str]]:
    try:
        for name, entry in read_object(checkpoint / MANIFEST)["files"].items():
            yield (str(name), int(entry["size"]), str(entry["sha256"]))
    except (ValueError, LookupError, TypeError, AttributeError):
        return


# ------------------------------------------------------------ which file


def which_file(folder: Path) -> dict[str, str]:
    """Facts about the saved files whose validation losses are as good as the lowest;
    empty where the losses are not known."""
    names = {
        file.step: file.path.name
        for file in reversed(list_network_files(folder))
        if file.step is not None
    }
    losses = read_losses_by_image(folder)
    as_good = as_good_as_the_lowest(losses, candidates=names)
    if not as_good:
        return {}
    use = as_good.earliest
    last = max(losses)
    steps = ", ".join(f"{step:,}" for step in as_good.steps)
    images = len(losses[use])
    return {
        "As good by validation": f"steps {steps} ({CONFIDENCE:.0%} interval, {images} images)",
        "Earliest of these": redact_text(names[use]),
        "Steps spent beyond it": f"{last - use:,} of {last:,}",
    }


# ------------------------------------------------------------ texts


def settings_text(folder: Path) -> str:
    """config.yaml without secrets; empty where it is missing, and a comment where it is
    too large to be a job."""
    try:
        with open_regular(folder / CONFIG) as file:
            data = file.read(_MOST_CONFIG_BYTES + 1)
        # A file that is cut off could end in half a secret, which is not found.
        if len(data) > _MOST_CONFIG_BYTES:
            return (
                f"# {CONFIG} has more than {_MOST_CONFIG_BYTES} bytes and is not shown"
            )
        return redact(data.decode("utf-8", errors="replace"))
    except OSError:
        return ""


def plan_text(folder: Path) -> str | None:
    """The plan that the latest start wrote at the head of the log; None where the log
    has no plan."""
    try:
        with open_regular(folder / LOG) as file:
            head = file.read(_PLAN_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return None
    plan, end, _ = head.partition("\ndevice ")
    return redact_text(plan) if end else None


def event_row(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """Time, event, step and details of a redacted row of events.jsonl."""
    details = [
        f"{key}: {_in_words(value)}"
        for key, value in row.items()
        if key not in ("time", "event", "step")
    ]
    step = row.get("step")
    time = str(row.get("time", "")).replace("T", " ").removesuffix("Z")
    return (
        time,
        str(row.get("event", "")),
        "" if step is None else str(step),
        "; ".join(d for d in details if d),
    )


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) if value else "none"
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
