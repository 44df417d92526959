"""The lower part of a run's page: new images with its LoRA files, and their comparison.

Forms put `run.py generate`, `grid` and `best` into the queue. The images that exist are
shown with their settings. No image is made by the page itself.

`extensions.tools.ui.app` serves the views. `extensions.tools.ui.tries` makes the
commands, and the upper part of the page is `extensions.tools.ui.views.run`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from extensions.tools.shared.html_page import texts
from extensions.tools.shared.run_job import loras_by_step, validation_every
from extensions.tools.shared.run_records import modified_at
from extensions.tools.ui import comfyui, uploads
from extensions.tools.ui.chosen import MEASURED, Chosen, chosen_file
from extensions.tools.ui.decoder import decoder
from extensions.tools.ui.entries import job_of, learned_from
from extensions.tools.ui.job_text import JobText
from extensions.tools.ui.path import Step, dataset_at, path_of
from extensions.tools.ui.queue import DONE, RUNNING, STOPPED, WAITING, trains_elsewhere
from extensions.tools.ui.state import (
    Form,
    Ui,
    inside,
    posted,
    refusals,
    render,
    run_id,
    whole,
)
from extensions.tools.ui.tries import (
    COMPARED,
    TRIED,
    TrySettings,
    settings_of,
    tried_in,
)
from extensions.tools.ui.views import run as run_view
from extensions.tools.ui.views import tools
from extensions.tools.ui.views.first_minute import first_minute
from extensions.tools.ui.views.new import FOLDER
from extensions.tools.ui.views.pictures import LARGE, picture
from extensions.tools.ui.views.queue import last_start, queue_of
from extensions.tools.ui.views.resume import origin_of, saved_job
from toolkit.errors import UserError
from toolkit.files.redact import redact_text
from toolkit.files.writing import read_object, short
from toolkit.train.run_reader import RunInfo, RunStatus, list_network_files

MOST_SEEDS = 4
"""Images of one press of the button."""

MOST_LEARNED = 10
"""Images of the dataset beside the samples of one prompt."""

MOST_CELLS = 400
"""Images of a comparison that are shown."""

CLEARLY = 0.02
"""Part by which a number of a file is lower than that of another one, at least, to be
called so."""

SENT = "control"
"""Folder in TRIED: control images that were sent to the page."""


def page(request: Request) -> Response:
    """The page of a run."""
    ui, run = run_view.asked_run(request)
    file = request.query_params.get("file", "")
    values = _values(ui, run, {"file": file} if file else None)
    put = Path(request.query_params.get("comfyui", "")).name
    if os.path.isfile(os.path.join(values["comfyui"], put)):
        values["put"] = put
    return run_view.page(request, **values)


def _values(
    ui: Ui, run: RunInfo, given: dict[str, str] | None = None, faults: Any = None
) -> dict[str, Any]:
    """What the template names of the parts of this module. given: the form as it was
    sent. faults: field -> message."""
    settings = settings_of(run)
    values: dict[str, Any] = {"try_settings": settings, "try_faults": faults or {}}
    chosen, saved = chosen_file(run.folder), saved_job(run)
    runs = run.status is RunStatus.RUNNING
    values["origin"] = None if runs or saved is None else origin_of(ui, run, saved)
    started = last_start(ui, run)
    saved = saved or job_of(started)  # the first seconds have no copy of the job
    words = started.argv if started else ()
    keys = ("--set=model.", "--set=train.")
    less = [word[6:] for word in words if word.startswith(keys)]
    values |= {"started": started, "less": less}
    values["learned"] = partial(learned_from, ui, saved, MOST_LEARNED)
    values |= {"chosen": chosen, "path": _path(ui, run, saved, chosen)}
    values |= {"early": first_minute(ui, run, saved), "put": ""}
    values["comfyui"] = comfyui.kept_folder(ui)
    if settings is None:
        return values
    return values | {
        "given": _form(settings, chosen) | (given or {}),
        "sent": _sent(run),
        **_tried(ui, run),
        **_compared(ui, run),
    }


def _path(
    ui: Ui, run: RunInfo, saved: JobText | None, chosen: Chosen | None
) -> list[Step]:
    """The path as the page of a run draws it."""
    address = _address(ui, run)
    folder = saved.get(saved.path(FOLDER)) if saved else ""
    is_used = run.status is RunStatus.FINISHED and chosen is not None
    links = {
        "job": f"/new?{urlencode({'from': run_id(ui, run.folder)})}",
        "run": address,
        "use": f"{address}#{'first' if is_used else 'files'}",
    }
    return path_of(dataset_at(ui, folder), "use" if is_used else "run", links)


def _form(settings: TrySettings, chosen: Chosen | None) -> dict[str, str]:
    """The form at first: the file that is recommended, and the prompt and size of the
    run's first sample."""
    name = chosen.path.name if chosen else ""
    first = settings.first
    return {
        "file": name if name in settings.files else settings.files[0],
        "strength": "1",
        "count": "1",
        "prompt": settings.prompt,
        "seed": str(first.seed) if first else "42",
        "width": str(first.width) if first else "",
        "height": str(first.height) if first else "",
        "control": "0" if first and first.ctrl_img else "",
    }


def _sent(run: RunInfo) -> list[str]:
    """Names of the control images that were sent, the latest first."""
    folder = run.folder / TRIED / SENT
    files = [path for path in folder.glob("*") if path.is_file()]
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
    entries = queue.entries()
    training = [run.name for run in trains_elsewhere(ui.runs(), entries)]
    behind = [entry.name for entry in entries if entry.state == RUNNING] + training
    outputs = {f"--output={output}", f"--run={output}"}
    states = []
    for entry in entries:
        if entry.argv[:1] != (tool,) or outputs.isdisjoint(entry.argv):
            continue
        if entry.state in (DONE, STOPPED):
            break
        is_open = entry.state in (RUNNING, WAITING)
        tail = "" if is_open else queue.tail(entry.id, 600)
        told = tail.strip().rpartition("\n")[2] or entry.why
        states.append({"entry": entry, "behind": behind, "told": told})
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
    words = texts()["after"]
    strength = number(form.get("strength", ""))
    faults: dict[str, str] = {}
    controls, fault = _controls(ui, run, settings, form)
    if strength is None:
        faults["strength"] = words["strength_wrong"]
    if not form.get("seed", "").strip():
        faults["seed"] = words["seed_missing"]
    if fault:
        faults["control"] = fault
    count = whole(form.get("count", "1"), 1, MOST_SEEDS)
    if count is None:
        faults["count"] = words["count_wrong"].format(most=MOST_SEEDS)
    if not faults and count:
        lora = f"{short(run.folder / form['file'])}:{strength:g}"
        output = short(run.folder / TRIED)
        argv = settings.command(lora, output, form, _seeds(form, count), controls)
        wrong = tools.asked({"uid": "generate", "argv": argv[1:]})
        names = {"--reference": "control"}
        faults = {
            names.get(place, place.removeprefix("--")): message
            for place, message in reversed(wrong)
        }
    if faults:
        return run_view.page(request, code=400, **_values(ui, run, dict(form), faults))
    _enqueue(ui, (argv, f"{words['try']}: {run.name}"))
    return RedirectResponse(f"{_address(ui, run)}#try", 303)


def _seeds(form: Form, count: int) -> list[str]:
    """The seed of each image of a form. A text that is not a seed stays as it is, and
    the check of the command says so."""
    seed = whole(form.get("seed", ""), 0, 2**62)
    if seed is None:
        return [form.get("seed", "")]
    return [str(seed + offset) for offset in range(count)]


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
    sent = uploads.of_form(form.data.getlist("image"))
    if form.get("control") == "send" or (sent and not form.get("control")):
        if not sent:
            return [], texts()["after"]["send_none"]
        return _take(ui, run, sent[: settings.most_controls])
    kind, _, name = form.get("control", "").partition(":")
    if kind == SENT and name in _sent(run):
        return [Path(short(run.folder / TRIED / SENT / name))], ""
    if not form.get("control"):
        return [], ""
    known: dict[int | None, list[Path]] = dict(enumerate(run_view.references(ui, run)))
    images = [] if name else known.get(whole(kind), [])
    return images, "" if images else texts()["after"]["control_wrong"]


def _take(
    ui: Ui, run: RunInfo, sent: Sequence[uploads.Incoming]
) -> tuple[list[Path], str]:
    """Keeps images that were sent; the text is the first refusal."""
    folder = run.folder / TRIED / SENT
    home = ui.own / "uploads"
    for place in (folder, home):
        place.mkdir(parents=True, exist_ok=True)
    for file in sent:
        if not uploads.is_image(file.name):
            return [], texts()["after"]["send_no_image"].format(name=file.name)
    outcomes = [*uploads.take_all(sent, home, folder, decoder(ui), takes_zip=False)]
    for outcome in outcomes:
        if outcome["state"] == "refused":
            return [], f"{outcome['name']} {outcome['text']}"
    return [Path(short(folder / outcome["text"])) for outcome in outcomes], ""


def _enqueue(ui: Ui, *commands: tuple[list[str], str]) -> None:
    """Puts commands with their names before whatever waits: somebody looks at the page.
    They wait while a run trains."""
    queue = queue_of(ui)
    with refusals():
        waiting = [entry for entry in queue.entries() if entry.state == WAITING]
        first = next((entry.id for entry in waiting if not entry.yields), "")
        for argv, name in commands:
            entry = queue.add(argv, name, unless=(WAITING, RUNNING), yields=True)
            with suppress(UserError):  # what it was to come before has begun meanwhile
                queue.move(entry.id, first)
    queue.start_runner()


def _address(ui: Ui, run: RunInfo) -> str:
    return f"/runs/{quote(run_id(ui, run.folder), safe='')}"


def tried(request: Request) -> Response:
    """The images alone, for the script that keeps them current."""
    ui, run = run_view.asked_run(request)
    id_ = run_id(ui, run.folder)
    shown = {"here": _address(ui, run), "id": id_, **_tried(ui, run)}
    return render(request, "tried.html.j2", **shown)


def tried_image(request: Request) -> Response:
    """A copy of an image of TRIED or COMPARED, or of a control image that was sent."""
    _, run = run_view.asked_run(request)
    folder = {TRIED: TRIED, COMPARED: COMPARED, SENT: f"{TRIED}/{SENT}"}.get(
        request.path_params["folder"]
    )
    if folder is None:
        raise HTTPException(404, "no such image")
    path = inside(run.folder / folder, request.path_params["name"])
    return picture(request, path, LARGE)


# ------------------------------------------------------------ use


@posted()
def put_into_comfyui(request: Request, form: Form) -> Response:
    """Copies a LoRA file of the run into the folder of ComfyUI."""
    ui, run = run_view.asked_run(request)
    files = {file.path.name: file.path for file in list_network_files(run.folder)}
    path = files.get(form.get("file", ""), run.folder)
    if path.suffix != ".safetensors" or not path.is_file():
        raise HTTPException(404, "no such file")
    inside(run.folder, path.name)
    with refusals():
        name = comfyui.put(ui, path)
    return RedirectResponse(f"{_address(ui, run)}?comfyui={quote(name)}#use", 303)


# ------------------------------------------------------------ compare


@posted()
def compare(request: Request, form: Form) -> Response:
    """Puts a grid of all files and `best` into the queue."""
    ui, run = run_view.asked_run(request)
    settings = settings_of(run)
    loras = [f"--lora={short(file.path)}" for file in loras_by_step(run.folder)]
    words = texts()["after"]
    if settings is None or len(loras) < 2:
        raise HTTPException(409, words["too_few"])
    with refusals():
        prompts = settings.write_prompts()
    grid = ["grid", *loras, f"--prompts={short(prompts)}"]
    grid += [f"--trigger-word={settings.trigger_word}"] if settings.trigger_word else []
    grid += [f"--output={short(run.folder / COMPARED)}"]
    best = ["best", f"--run={short(run.folder)}"]
    _enqueue(
        ui,
        (grid, f"{words['compare_name']}: {run.name}"),
        (best, f"{words['compare_numbers']}: {run.name}"),
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
    columns = ["", *(file.path.name for file in loras_by_step(run.folder))]
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
    held out), `reason` and `rows` of file, step and loss; empty: nothing."""
    report = read_object(folder / MEASURED)
    files = report.get("files")
    rows = [row for row in files if _is_row(row)] if isinstance(files, list) else []
    if "recommended" not in report:
        return {}
    keys = ("recommended", "reason", "measured_on")
    told = {key: redact_text(str(report.get(key) or "")) for key in keys}
    if rows and told["recommended"]:
        told["verdict"], told["step"] = _verdict(rows, told["recommended"])
    elif told["recommended"]:
        return {}
    return {"rows": rows, **told}


def _verdict(rows: list[dict[str, Any]], recommended: str) -> tuple[str, Any]:
    """The key of the sentence that says how the recommended file differs from the last
    one, and its step."""
    steps = [row for row in rows if isinstance(row.get("step"), int)]
    last = max(steps, key=lambda row: row["step"], default=rows[-1])
    best = next((row for row in rows if row["file"] == recommended), last)
    if best is last:
        return "last", last.get("step")
    is_closer = best["loss"] < last["loss"] * (1 - CLEARLY)
    return "closer" if is_closer else "as_good", best.get("step")


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("file"), str)
        and _is_number(row.get("loss"))
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e12
