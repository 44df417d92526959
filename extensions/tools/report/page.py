"""The page of a run: what `records` has read, as HTML. Its look and its script are in report.css and report.js."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from extensions.tools.report.records import (
    MOST_POINTS,
    DatasetImage,
    SampleRow,
    dataset_images,
    diagrams,
    events,
    sample_rows,
    saved_files,
    settings_text,
    trained_for,
)
from extensions.tools.shared.diagrams import History, read_history
from extensions.tools.shared.html_page import Content, Markup, element, embedded, link_to, page, table
from extensions.tools.shared.run_job import training_section
from toolkit.data.images import ImageError, open_image
from toolkit.errors import UserError
from toolkit.files.redact import redact_text
from toolkit.files.run_files import duration, final_files, read_status
from toolkit.files.writing import readable_size
from toolkit.train.next_commands import command, next_commands
from toolkit.train.run_reader import RunInfo, RunStatus, SampleImage

MOST_SAMPLES = 240
"""Samples that are put into the page; of more, only some steps."""

MOST_IMAGES = 300
"""Images of the dataset, events, files: rows of each table."""

SAMPLE_SIDE, THUMBNAIL_SIDE = 512, 112
"""Pixels of the longer side of a picture that is put into the page."""

_LONGEST_TEXT = 100_000

_HERE = Path(__file__).parent


def report_page(run: RunInfo, folder: Path, embed: bool = True, hashed: bool = True, share: bool = False) -> str:
    """The page of a run. folder: where the page will lie, for its links. The rest: as of `ReportConfig`."""
    pictures = Pictures(folder, embed)
    history = read_history(run.folder, MOST_POINTS)
    drawn = diagrams(history.curves)
    sections = {
        "Samples": _samples(run, pictures),
        "Curves": element("div", id="curves") if drawn else None,
        **({} if share else {"Dataset": _dataset(run, pictures), "Settings": _settings(run), "Events": _events(run)}),
        "Files": _files(run, hashed),
    }
    links = (element("a", title, href=f"#{title.lower()}") for title, body in sections.items() if body)
    body = (
        _summary(run, history, share),
        None if share else _result(run),
        element("nav", links),
        (_section(title, inside) for title, inside in sections.items()),
    )
    css, js = ((_HERE / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return page(redact_text(run.name), *body, css=css, js=js, data={"diagrams": drawn})


def _section(title: str, inside: Content) -> Markup:
    return element(
        "section", element("h2", title), inside or element("p", "None recorded.", class_="faint"), id=title.lower()
    )


class Pictures:
    """The addresses of pictures on a page; None for those that cannot be read."""

    def __init__(self, folder: Path, embed: bool) -> None:
        """folder: of the page."""
        self.folder, self.embed = folder, embed

    def address(self, path: Path, side: int) -> str | None:
        """side: as of `embedded`."""
        if not self.embed:
            return link_to(path, self.folder) if path.is_file() else None
        try:
            return embedded(open_image(path, "gray", at_least=2 * side), side)
        except ImageError:
            return None


# ------------------------------------------------------------ the head


def _summary(run: RunInfo, history: History, share: bool) -> Markup:
    """The facts of a run; only those that are recorded."""
    step = max((s for s in (run.step, history.last["step"] if history.last else None) if s is not None), default=None)
    status = _status(run)
    loss = "" if run.loss is None else f"{run.loss:.4g}"
    facts = {
        "Steps": "" if step is None else f"{step:,}" + (f" of {run.total_steps:,}" if run.total_steps else ""),
        "Images seen": "" if run.samples is None else f"{run.samples:,}",
        "Loss": loss and f"{loss}, mean of the last 50 steps",
        "Best validation": "" if run.best_loss is None else f"{run.best_loss:.4g} at step {run.best_step}",
        "Trained": trained_for(history),
        "Speed": "" if run.step_s is None else f"{run.step_s:.3g} s per step",
        "Skipped steps": str(run.skipped or ""),
        "Time left": "" if run.eta_s is None or status != RunStatus.RUNNING else duration(run.eta_s),
        "Began": run.started.strftime("%Y-%m-%d %H:%M UTC") if run.started else "",
        "Last written": run.updated.strftime("%Y-%m-%d %H:%M UTC") if run.updated else "",
        "Ended early": "" if share else redact_text(run.reason or ""),
    }
    good = {"finished": "good", "failed": "bad", "killed": "bad"}.get(status, "faint")
    told = (element("div", element("dt", name), element("dd", value)) for name, value in facts.items() if value)
    error = element("p", redact_text(run.error), class_="bad") if run.error and not share else None
    place = "" if share else f" · {redact_text(str(run.folder))}"
    status_line = element("p", element("strong", status, class_=good), place)
    return element("header", status_line, error, element("dl", told, class_="card facts"))


def _result(run: RunInfo) -> Markup | None:
    """The file of a finished run, and how it is used; without the path of the interpreter, for a page is passed on."""
    files = final_files(run.folder, run.name)
    if not files:
        return None
    try:
        section = training_section(run, check_files=False)
    except UserError:  # another trainer, or a job that is not read any more: the file is there all the same
        section = None
    lines = [line.replace(command(), "python run.py", 1) for line in next_commands(run.folder, run.name, section)]
    told = element("p", "The result is ", element("code", redact_text(str(files[0]))), ". Next:" * (len(lines) > 1))
    shown = element("pre", redact_text("\n".join(lines[:-1]))) if len(lines) > 1 else None
    return element("div", told, shown, class_="card")


def _status(run: RunInfo) -> str:
    """A run that writes its last report still holds its lock, and has told how it ended."""
    recorded = read_status(run.folder).get("status")
    if run.status is RunStatus.RUNNING and recorded in list(RunStatus):
        return str(recorded)
    return run.status.value


# ------------------------------------------------------------ samples


def _samples(run: RunInfo, pictures: Pictures) -> Markup | None:
    rows, count = sample_rows(run.folder, MOST_SAMPLES if pictures.embed else None)
    steps = sorted({sample.step for row in rows for sample in row.samples})
    if not steps:
        return None
    left_out = f"{len(steps)} of {count} steps are shown." if len(steps) < count else None
    last = len(steps) - 1
    slider = element(
        "input", type="range", id="step", min="0", max=str(last), value=str(last), aria_label="step of the samples"
    )
    control = element(
        "div",
        element("button", "Play", id="play", type="button"),
        slider,
        element("output", f"step {steps[last]:,}", id="step-shown"),
        class_="card control",
        hidden=last == 0,
    )
    figures = (_figure(row, steps, pictures) for row in rows)
    return Markup(
        element("p", left_out, class_="faint") * bool(left_out)
        + control
        + element("div", figures, id="samples-shown", data_steps=" ".join(map(str, steps)))
        + element("dialog", element("img", alt=""), element("p"), id="large")
    )


def _figure(row: SampleRow, steps: Sequence[int], pictures: Pictures) -> Markup:
    """The pictures of one prompt, of which the script shows one; without it the last is seen."""
    prompt = next((sample.prompt for sample in reversed(row.samples) if sample.prompt), None)
    shown = redact_text(prompt) if prompt else f"picture {row.index}"
    by_step: dict[int, SampleImage] = {sample.step: sample for sample in row.samples}
    images = (_sample(by_step.get(step), step, step != steps[-1], shown, pictures) for step in steps)
    return element("figure", images, element("figcaption", shown))


def _sample(sample: SampleImage | None, step: int, hidden: bool, prompt: str, pictures: Pictures) -> Markup:
    address = pictures.address(sample.path, SAMPLE_SIDE) if sample else None
    if address is None:
        return element("div", f"no picture at step {step:,}", class_="blank faint", data_step=step, hidden=hidden)
    image = element("img", src=address, alt=f"{prompt}, step {step}", loading="lazy")
    return element("button", image, type="button", class_="picture", data_step=step, hidden=hidden)


# ------------------------------------------------------------ tables


def _dataset(run: RunInfo, pictures: Pictures) -> Markup | None:
    images = dataset_images(run.folder)
    if not images:
        return None
    lost = sum(image.file is None for image in images)
    told = f"{len(images):,} images" + (f", {lost:,} of them not found where the run had them" if lost else "") + "."
    rows = (_dataset_row(image, pictures) for image in images[:MOST_IMAGES])
    return _tabled(["", "Image", "Caption"], rows, len(images), told, class_="dataset")


def _dataset_row(image: DatasetImage, pictures: Pictures) -> list[Content]:
    address = pictures.address(image.file, THUMBNAIL_SIDE) if image.file else None
    blank = element("div", class_="blank")
    return [element("img", src=address, alt="", loading="lazy") if address else blank, image.name, image.caption]


def _settings(run: RunInfo) -> Markup | None:
    text = settings_text(run.folder)
    if not text.strip():
        return None
    cut = "\n... (cut off here)" if len(text) > _LONGEST_TEXT else ""
    return element("pre", text[:_LONGEST_TEXT] + cut, class_="settings")


def _events(run: RunInfo) -> Markup | None:
    rows = events(run.folder)
    if not rows:
        return None
    latest = [[time, event, step, _clipped(details)] for time, event, step, details in reversed(rows[-MOST_IMAGES:])]
    return _tabled(["Time (UTC)", "Event", "Step", "Details"], latest, len(rows), "The latest first.", class_="events")


def _clipped(text: str, longest: int = 600) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


def _files(run: RunInfo, hashed: bool) -> Markup | None:
    found = list(islice(saved_files(run.folder, hashed), MOST_IMAGES + 1))
    if not found:
        return None
    rows = [
        [
            element("code", file.name),
            file.kind,
            readable_size(file.size),
            file.time,
            (
                element("code", file.sha256) if file.sha256 else None,
                element("div", "weights ", element("code", file.weights_sha256)) if file.weights_sha256 else None,
            ),
        ]
        for file in found[:MOST_IMAGES]
    ]
    more = f"The first {MOST_IMAGES}." if len(found) > MOST_IMAGES else None
    return _tabled(["File", "What", "Size", "Written (UTC)", "SHA-256"], rows, len(rows), more, class_="files")


def _tabled(
    head: Iterable[Content], rows: Iterable[Iterable[Content]], total: int, told: str | None = None, class_: str = ""
) -> Markup:
    """A table with a line above it that says what is left out."""
    left_out = f"{MOST_IMAGES} of {total:,} are listed." if total > MOST_IMAGES else ""
    line = " ".join(filter(None, (told, left_out)))
    return Markup((element("p", line, class_="faint") if line else "") + table(head, rows, class_=class_))
