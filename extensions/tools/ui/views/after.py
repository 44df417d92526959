"""The lower part of a run's page: new images with its LoRA files, and their comparison.

Forms put `run.py generate`, `grid` and `best` into the queue. `bake` writes a file with
strengths per block. The images that exist are shown with their settings. No image is
made by the page itself.

`extensions.tools.ui.app` serves the views. `extensions.tools.ui.tries` makes the
commands, and the upper part of the page is `extensions.tools.ui.views.run`.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath
from secrets import token_hex
from typing import Any
from urllib.parse import quote

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from extensions.tools.shared.html_page import texts
from extensions.tools.shared.run_job import validation_every
from extensions.tools.shared.run_records import modified_at
from extensions.tools.ui import commands, uploads
from extensions.tools.ui.chosen import MEASURED, chosen_file
from extensions.tools.ui.decoder import decoder
from extensions.tools.ui.queue import DONE, RUNNING, STOPPED, WAITING, trains_elsewhere
from extensions.tools.ui.state import (
    Form,
    Ui,
    conflicts,
    inside,
    posted,
    render,
    run_id,
    whole,
)
from extensions.tools.ui.tries import (
    COMPARED,
    TRIED,
    TrySettings,
    compared_files,
    settings_of,
    tried_in,
)
from extensions.tools.ui.views import run as run_view
from extensions.tools.ui.views import tools
from extensions.tools.ui.views.new import short
from extensions.tools.ui.views.queue import queue_of
from toolkit.errors import UserError
from toolkit.files.redact import redact_text
from toolkit.files.writing import folder_lock, link, read_object
from toolkit.train.run_reader import RunInfo

MOST_SEEDS = 4
"""Images of one press of the button."""

MOST_CELLS = 400
"""Images of a comparison that are shown."""

BAKE_S = 300
"""Seconds that the writing of a file with strengths per block may take."""

SENT = "control"
"""Folder in TRIED: control images that were sent to the page."""


def page(request: Request) -> Response:
    """The page of a run."""
    ui, run = run_view.asked_run(request)
    file = request.query_params.get("file", "")
    return run_view.page(request, **_values(ui, run, {"file": file} if file else None))


def _values(
    ui: Ui, run: RunInfo, given: dict[str, str] | None = None, faults: Any = None
) -> dict[str, Any]:
    """What the template names of the parts of this module. given: the form as it was
    sent. faults: field -> message."""
    settings = settings_of(run)
    values: dict[str, Any] = {"try_settings": settings, "try_faults": faults or {}}
    if settings is not None:
        values |= {
            "given": _form(run, settings) | (given or {}),
            "sent": _sent(run),
            **_tried(ui, run),
        }
        values["groups"] = settings.groups()
        values |= _compared(ui, run)
    return values


def _form(run: RunInfo, settings: TrySettings) -> dict[str, str]:
    """The form at first: the file that is recommended, and the prompt and size of the
    run's first sample."""
    chosen = chosen_file(run.folder)
    first = settings.first
    if chosen and chosen.path.name in settings.files:
        file = chosen.path.name
    else:
        file = settings.files[0]
    values = {
        "file": file,
        "strength": "1",
        "seed": "42",
        "count": "1",
        "prompt": settings.prompt,
        "control": "",
    }
    if first is None:
        return values | {"width": "", "height": ""}
    values |= {
        "width": str(first.width),
        "height": str(first.height),
        "seed": str(first.seed),
    }
    return values | {"control": "0" if first.ctrl_img else ""}


def _sent(run: RunInfo) -> list[str]:
    """Names of the control images that were sent, the latest first."""
    folder = run.folder / TRIED / SENT
    if folder.is_dir():
        files = [path for path in folder.glob("*") if path.is_file()]
    else:
        files = []
    return [path.name for path in sorted(files, key=modified_at, reverse=True)]


def _tried(ui: Ui, run: RunInfo) -> dict[str, Any]:
    return {
        "tried": tried_in(run.folder / TRIED),
        "tries": _states(ui, "generate", short(run.folder / TRIED)),
    }


def _states(ui: Ui, tool: str, output: str) -> list[dict[str, Any]]:
    """The commands of a tool for a folder that wait, run, or have failed since the last
    one that was done: each with its `entry`, and what it waits for (`behind`), or its
    last words (`told`)."""
    queue = queue_of(ui)
    states = list[dict[str, Any]]()
    entries = queue.entries()
    training = [run.name for run in trains_elsewhere(ui.runs(), entries)]
    behind = [entry.name for entry in entries if entry.state == RUNNING] + training
    for entry in entries:
        if entry.argv[:1] != (tool,) or not {
            f"--output={output}",
            f"--run={output}",
        } & set(entry.argv):
            continue
        if entry.state in (DONE, STOPPED):
            break
        if entry.state in (RUNNING, WAITING):
            last_line = ""
        else:
            last_line = queue.tail(entry.id, 600).strip().rpartition("\n")[2]
        states.append(
            {"entry": entry, "behind": behind, "told": last_line or entry.why}
        )
    return states


# ------------------------------------------------------------ try it


def _asked_file(request: Request, form: Form) -> tuple[Ui, RunInfo, TrySettings]:
    """The run of a form, and what can be tried of it. Raises HTTPException for a file
    that it does not have."""
    ui, run = run_view.asked_run(request)
    settings = settings_of(run)
    if settings is None or (form.get("file") or "") not in settings.files:
        raise HTTPException(404, "no such file")
    return ui, run, settings


@posted(files=10, fields=30, part_size=2**16)
def try_it(request: Request, form: Form) -> Response:
    """Puts an image of the form into the queue, before the runs that wait there."""
    ui, run, settings = _asked_file(request, form)
    images = whole(form.get("count", ""), 1, MOST_SEEDS) or 1
    seed = whole(form.get("seed", ""), 0, 2**62)
    faults = {} if seed is not None else {"seed": texts()["after"]["seed_wrong"]}
    strength = number(form.get("strength", ""))
    faults |= (
        {} if strength is not None else {"strength": texts()["after"]["strength_wrong"]}
    )
    blocks, wrong_blocks = _blocks(form)
    controls, fault = _controls(ui, run, settings, form)
    faults |= wrong_blocks | ({"control": fault} if fault else {})
    if not faults:
        file = short(run.folder / form["file"])
        output = short(run.folder / TRIED)
        sides = (form.get("width", "").strip(), form.get("height", "").strip())
        seeds = [(seed or 0) + offset for offset in range(images)]
        prompt = form.get("prompt", "").strip()
        argv = settings.command(
            file, output, prompt, f"{strength:g}", sides, seeds, controls, blocks
        )
        wrong = tools.asked({"uid": "generate", "argv": argv[1:]})
        names = {"--reference": "control"}
        faults = {
            names.get(place, place.removeprefix("--")): message
            for place, message in reversed(wrong)
        }
    if faults:
        return run_view.page(request, 400, **_values(ui, run, dict(form), faults))
    _enqueue(ui, argv, f"{texts()['after']['try']}: {run.name}")
    return RedirectResponse(f"{_address(ui, run)}#try", 303)


def _blocks(form: Form) -> tuple[list[str], dict[str, str]]:
    """The strengths of blocks of a form that are not 1, as `--blocks` takes them, and
    what is wrong with them."""
    given = {
        key.removeprefix("blocks:"): number(text)
        for key, text in form.items()
        if key.startswith("blocks:")
    }
    wrong = [
        f"{group}: {texts()['after']['strength_wrong']}"
        for group, strength in given.items()
        if strength is None
    ]
    entries = [
        f"{group}:{strength:.6f}"
        for group, strength in given.items()
        if strength is not None and strength != 1
    ]
    return entries, {"blocks": wrong[0]} if wrong else {}


@posted(files=10, fields=30, part_size=2**16)
def bake(request: Request, form: Form) -> Response:
    """Writes the file of the form with its strengths per block as a new file of the
    run."""
    ui, run, settings = _asked_file(request, form)
    blocks, faults = _blocks(form)
    if not faults and not blocks:
        faults = {"blocks": texts()["after"]["blocks_none"]}
    if not faults:
        part = run.folder / f"part_{token_hex(8)}.safetensors"
        try:
            paths = [str(run.folder / form["file"]), str(part)]
            code, _, stderr = commands.run_py(
                "scale",
                *paths,
                *(f"--blocks={block}" for block in blocks),
                limit_s=BAKE_S,
            )
            if not code:
                name = _named(part, Path(settings.files[0]).stem)
                return RedirectResponse(
                    f"{_address(ui, run)}?file={quote(name, safe='')}#try", 303
                )
        finally:
            part.unlink(missing_ok=True)
        faults = {
            "blocks": stderr.strip().rpartition("\n")[2] or texts()["after"]["late"]
        }
    return run_view.page(request, 400, **_values(ui, run, dict(form), faults))


def _named(part: Path, stem: str) -> str:
    """Gives a file the first free name of its kind, or that of one with the same
    content; no file is replaced."""
    with conflicts(), folder_lock(part.parent):
        for place in count(1):
            path = part.with_name(f"{stem}_blocks_{place}.safetensors")
            if path.is_file() and filecmp.cmp(part, path, shallow=False):
                return path.name
            if not os.path.lexists(path):
                link(part, path)
                return path.name
    raise AssertionError


def number(text: str) -> float | None:
    """A strength of a form, -100 to 100; None for any other text."""
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        return None
    return value if -100 <= value <= 100 else None


def _controls(
    ui: Ui, run: RunInfo, settings: TrySettings, form: Form
) -> tuple[list[Path], str]:
    """The control images of a form, and what is wrong with them."""
    sent = [
        file
        for file in form.data.getlist("image")
        if isinstance(file, UploadFile) and file.filename
    ]
    if form.get("control") == "send" or (sent and not form.get("control")):
        if not sent:
            return [], texts()["after"]["send_none"]
        return _take(ui, run, sent[: settings.most_controls])
    kind, _, name = form.get("control", "").partition(":")
    if kind == SENT and name in _sent(run):
        return [Path(short(run.folder / TRIED / SENT / name))], ""
    place = whole(kind)
    known = run_view.references(ui, run)
    return (known[place] if place is not None and place < len(known) else []), ""


def _take(ui: Ui, run: RunInfo, sent: Sequence[UploadFile]) -> tuple[list[Path], str]:
    """Keeps images that were sent; the text is the first refusal."""
    folder = run.folder / TRIED / SENT
    home = ui.own / "uploads"
    for place in (folder, home):
        place.mkdir(parents=True, exist_ok=True)
    files = []
    for file in sent:
        name = str(file.filename)
        files.append(
            uploads.Incoming(
                name,
                PurePosixPath(),
                name,
                file.size or 0,
                partial(getattr, file, "file"),
            )
        )
        if not uploads.is_image(name):
            return [], texts()["after"]["send_no_image"].format(name=name)
    outcomes = list(uploads.take_all(files, home, folder, decoder(ui), takes_zip=False))
    refused = [
        f"{outcome['name']} {outcome['text']}"
        for outcome in outcomes
        if outcome["state"] == "refused"
    ]
    names = [
        outcome["text"] if outcome["state"] in ("same", "renamed") else outcome["name"]
        for outcome in outcomes
    ]
    return [Path(short(folder / name)) for name in names], " ".join(refused[:1])


def _enqueue(ui: Ui, *commands: Sequence[str] | str) -> None:
    """Puts commands, each followed by its name, before whatever waits: somebody looks
    at the page. They wait while a run trains."""
    queue = queue_of(ui)
    with conflicts():
        first = next(
            (
                entry.id
                for entry in queue.entries()
                if entry.state == WAITING and not entry.yields
            ),
            "",
        )
        for argv, name in zip(commands[::2], commands[1::2], strict=True):
            entry = queue.add(
                list(argv), str(name), unless=(WAITING, RUNNING), yields=True
            )
            with suppress(UserError):  # what it was to come before has begun meanwhile
                queue.move(entry.id, first)
    queue.start_runner()


def _address(ui: Ui, run: RunInfo) -> str:
    return f"/runs/{quote(run_id(ui, run.folder), safe='')}"


def tried(request: Request) -> Response:
    """The images alone, for the script that keeps them current."""
    ui, run = run_view.asked_run(request)
    return render(
        request,
        "tried.html.j2",
        here=_address(ui, run),
        id=run_id(ui, run.folder),
        **_tried(ui, run),
    )


def tried_image(request: Request) -> Response:
    """An image of TRIED or COMPARED, or a control image that was sent; always made
    small, so that it is an image whatever the file holds."""
    ui, run = run_view.asked_run(request)
    folder = run.folder / request.path_params["folder"]
    name = request.path_params["name"]
    if request.path_params["folder"] not in (TRIED, COMPARED, SENT):
        raise HTTPException(404, "no such image")
    if folder.name == SENT:
        folder = run.folder / TRIED / SENT
    side = request.query_params.get("side", "")
    return run_view.image(ui, inside(folder, name), 400 if side == "400" else 960)


# ------------------------------------------------------------ compare


@posted()
def compare(request: Request, form: Form) -> Response:
    """Puts a grid of all files and `best` into the queue."""
    ui, run = run_view.asked_run(request)
    settings = settings_of(run)
    files = [file.path for file in compared_files(run.folder)]
    if settings is None or len(files) < 2:
        raise HTTPException(409, texts()["after"]["too_few"])
    with conflicts():
        prompts = settings.write_prompts()
    output = run.folder / COMPARED
    grid = [
        "grid",
        *(f"--lora={short(file)}" for file in files),
        f"--prompts={short(prompts)}",
    ]
    grid += [f"--trigger-word={settings.trigger_word}"] if settings.trigger_word else []
    words, numbers = (texts()["after"][key] for key in ("compare", "compare_numbers"))
    best = ["best", f"--run={short(run.folder)}"]
    _enqueue(
        ui,
        [*grid, f"--output={short(output)}"],
        f"{words}: {run.name}",
        best,
        f"{numbers}: {run.name}",
    )
    return RedirectResponse(f"{_address(ui, run)}#compared", 303)


def compared(request: Request) -> Response:
    """The comparison alone, for the script that keeps it current."""
    ui, run = run_view.asked_run(request)
    shown = {
        "here": _address(ui, run),
        "chosen_file": chosen_file(run.folder),
        **_compared(ui, run),
    }
    return render(request, "compared.html.j2", **shown)


def _compared(ui: Ui, run: RunInfo) -> dict[str, Any]:
    """The images of all files, by prompt and file, and the numbers of `best`."""
    images = tried_in(run.folder / COMPARED, MOST_CELLS)
    columns = ["", *(file.path.name for file in compared_files(run.folder))]
    cells: dict[tuple[str, tuple[str, ...], int], dict[str, str]] = {}
    for image in images:
        row = cells.setdefault((image.prompt, image.controls, image.seed), {})
        row[image.files[0][0] if image.files else ""] = image.name
    rows = [
        (prompt, [names.get(column) for column in columns])
        for (prompt, *_), names in sorted(cells.items())
    ]
    grid = _states(ui, "grid", short(run.folder / COMPARED))
    return {
        "comparison": {"columns": columns, "rows": rows} if rows else None,
        "measured": _measured(run.folder),
        "every": validation_every(run.total_steps or 0),
        "comparing": [*grid, *_states(ui, "best", short(run.folder))],
        "file_names": columns[1:],
    }


def _measured(folder: Path) -> dict[str, Any]:
    """What `best` has found: `recommended` (empty: it cannot tell, as no images are
    held out), `reason` and `rows` of file, step, loss and drift; empty: nothing."""
    report = read_object(folder / MEASURED)
    files = report.get("files")
    if isinstance(files, list):
        rows = [row for row in files if isinstance(row, dict)]
    else:
        rows = []
    shown = [
        {key: row.get(key) for key in ("file", "step", "loss", "drift")} for row in rows
    ]
    shown = [
        row
        for row in shown
        if isinstance(row["file"], str)
        and all(_is_number(row[k]) for k in ("loss", "drift"))
    ]
    texts_ = {
        key: redact_text(str(report.get(key) or ""))
        for key in ("recommended", "reason", "measured_on")
    }
    return texts_ | {"rows": shown} if shown else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e12
