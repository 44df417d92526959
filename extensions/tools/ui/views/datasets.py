"""The pages /datasets and /datasets/{name}, and the requests that change a dataset.

A dataset is shown with its images, captions, crops and findings. Captions are edited
one by one or many at a time, files are uploaded, and images are moved to the trash.
Folders are read and changed by `extensions.tools.ui.datasets`, and new files are checked
by `extensions.tools.ui.uploads`.

`extensions.tools.ui.app` serves the views.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from extensions.tools.shared.findings import CHECKS, alike_in, kinds
from extensions.tools.shared.html_page import texts
from extensions.tools.ui import datasets, state, uploads
from extensions.tools.ui.datasets import (
    Conflict,
    Dataset,
    below,
    open_dataset,
    read_dataset,
)
from extensions.tools.ui.decoder import decoder
from extensions.tools.ui.path import path_of
from extensions.tools.ui.state import (
    Form,
    done,
    refusals,
    render,
    ui_of,
    wants_json,
    whole,
)
from extensions.tools.ui.views.pictures import picture
from extensions.tools.ui.views.queue import enqueue
from toolkit.config.reading.loader import folder_name_error, windows_name_error
from toolkit.config.sections.model_files import CAPTIONER
from toolkit.contracts.data import Focus, ResizeCrop, Size
from toolkit.data.scan.captions import CaptionError
from toolkit.data.scan.crops import CropError
from toolkit.data.scan.folder import FoundImage
from toolkit.data.scan.found import repeats_of
from toolkit.data.scan.items import SIZE_MULTIPLE
from toolkit.files.archives import SUFFIX
from toolkit.files.writing import fsync, locked
from toolkit.rounding import ceil_divide

PER_PAGE = 60
THUMB_SIDE = 400
"""Pixels of the longer side of a small image."""

CROP_STEPS = 200
"""Places of the frame of what is trained."""

LEAST_ROOM = 0.01
"""Part of a side that has to be cut off for the frame to be moved."""

MOST_CAPTION = uploads.MOST_BYTES[".txt"]
MOST_SHOWN = 200
"""Changed captions in a preview; all are applied."""

MOST_ALIKE = 12
"""Pairs of images that look the same, and small images of a kind, in the findings."""

MOST_TAGS = 60
"""Tags that are listed, the most frequent ones."""

MOST_NAMED = 30
"""Files that did not arrive whose names are shown."""

_QUERY = (
    "q",
    "only",
    "has",
    "page",
    "check",
    "deleted",
    "entry",
    "changed",
    "failed",
    "undone",
    "write",
)
posted = partial(state.posted, files=1000, fields=6000, part_size=4 * MOST_CAPTION)


def _back(request: Request, data: Dataset, **query: object) -> Response:
    """To the page of a dataset."""
    given = urlencode({key: value for key, value in query.items() if value})
    address = f"/datasets/{quote(data.name, safe='')}"
    return done(request, f"{address}?{given}" if given else address, **query)


def _opened(request: Request) -> Dataset:
    return open_dataset(ui_of(request), request.path_params["d"])


def _named(request: Request) -> Dataset:
    """A dataset whose files were not read: thousands of files that are sent one by one
    would each wait for that."""
    ui = ui_of(request)
    name = request.path_params["d"]
    if not os.path.isdir(below(ui.datasets, name)):  # or too long for a name
        raise HTTPException(404, f"{name} is not there")
    return Dataset(ui, name)


def _read(request: Request) -> Dataset:
    return read_dataset(ui_of(request), request.path_params["d"])


# ---------------------------------------------------------------- all


def index(
    request: Request,
    status: int = 200,
    faults: dict[str, str] | None = None,
    form: dict[str, str] | None = None,
) -> Response:
    """All datasets, the form for a new one, and what was deleted. faults: field of the
    form -> what is wrong."""
    ui = ui_of(request)
    rows = []
    for name in datasets.names(ui):
        try:
            rows.append(datasets.summary(ui, name))
        except HTTPException as error:
            rows.append({"name": name, "fault": error.detail})
    return render(
        request,
        "datasets.html.j2",
        status,
        rows=rows,
        folder=ui.datasets,
        faults=faults or {},
        form={"name": "", "kind": request.query_params.get("kind", "character")}
        | (form or {}),
        trash=ui.shared("trash", partial(datasets.trashed, ui)),
        back=request.query_params.get("back", ""),
        stay=request.query_params.get("stay", "0"),
    )


@posted()
def create(request: Request, form: Form) -> Response:
    """A new, empty folder; repeats are in its name. One of pairs has a subfolder for
    each side."""
    ui = ui_of(request)
    words = texts()["datasets"]
    name = form.get("name", "").strip()
    is_pairs = form.get("kind") == "pairs"
    repeats = form.get("repeats", "").strip() or "1"
    count = 1 if is_pairs else whole(repeats, 1, uploads.MOST_REPEATS)
    bad_repeats = words["bad_repeats"].format(most=uploads.MOST_REPEATS)
    fault = (
        folder_name_error(name)
        or windows_name_error(name)
        or (name[:1] == "." and words["hidden_name"])
    )
    faults = dict[str, str]()
    if count is None:
        faults["repeats"] = bad_repeats
    elif count > 1 and not repeats_of(name):
        name = f"{count}_{name}"
    if fault or repeats_of(name) > uploads.MOST_REPEATS:
        faults["name"] = fault or bad_repeats
    try:
        if not faults:
            (ui.datasets / name).mkdir(parents=True)
            for side in (datasets.BEFORE, datasets.AFTER) if is_pairs else ():
                (ui.datasets / name / side).mkdir()
            fsync(ui.datasets)
            return _back(request, open_dataset(ui, name))
    except FileExistsError:
        faults["name"] = words["exists"].format(name=name)
    except OSError as error:
        faults["name"] = f"{error.strerror}"
    return index(request, 400, faults, form)


@posted()
def restore(request: Request, form: Form) -> Response:
    """Brings back an entry of the trash."""
    with refusals(form.get("entry", "")):
        back, stay = datasets.restore(ui_of(request), form.get("entry", ""))
    address = f"/datasets?back={back}&stay={stay}#trash"
    return done(request, address, back=back, stay=stay)


# ---------------------------------------------------------------- one


def show(request: Request) -> Response:
    """The images of a dataset that pass the filter."""
    return _page(request, _read(request))


def _page(
    request: Request,
    data: Dataset,
    status: int = 200,
    outcomes: Sequence[uploads.Outcome] = (),
    faults: dict[str, str] | None = None,
    form: Form | None = None,
) -> Response:
    """outcomes: the result for each file that was sent. faults: field -> message. form:
    the form as it was sent."""
    query = {key: request.query_params.get(key, "") for key in _QUERY}
    chosen = _filtered(data, query)
    pages = max(1, ceil_divide(len(chosen), PER_PAGE))
    page = whole(query["page"], 1, pages) or (pages if query["page"] else 1)
    found = _kinds(data)
    shown = chosen[(page - 1) * PER_PAGE : page * PER_PAGE]
    return render(
        request,
        "dataset.html.j2",
        status,
        data=data,
        path=path_of(data),
        cards=[_card(data, image) for image in shown],
        count=len(chosen),
        page=page,
        pages=pages,
        address=lambda page: f"?{urlencode(_where(query) | {'page': page})}",
        tags=data.tags[:MOST_TAGS],
        query=query,
        orphans=[_orphan(data, path) for path in data.orphans] if page == 1 else [],
        kinds=found,
        kind_of="pairs" if data.is_pairs or data.sides else "images",
        rare={
            kind["check"]
            for kind in found
            if 3 * len(kind["images"]) <= len(data.images)
        },
        most_alike=MOST_ALIKE,
        faults={p: text for p, text in data.faults.items() if p not in data.sizes},
        folders=[name for name in datasets.names(data.ui) if name != data.name],
        target=_target(data).name,
        counts={
            os.path.basename(listing.folder): sum(map(len, listing.images.values()))
            for listing in data.listings[1:]
        },
        most=uploads.MOST_BYTES,
        piece=uploads.PIECE,
        skipped=uploads.LEFT_OUT,
        per_page=PER_PAGE,
        captioner=CAPTIONER.rpartition("/")[2],
        multiple=SIZE_MULTIPLE,
        crop_steps=CROP_STEPS,
        told=outcomes,
        bad=faults or {},
        view=data.view | (form or {}),
        step=_last_step(data),
        announced=_announced(data).read(),
        most_named=MOST_NAMED,
    )


def _filtered(data: Dataset, query: Any) -> list[FoundImage]:
    """The images that `q`, `only` and `has`, a tag, ask for."""
    wanted, tag = (query.get(key, "").casefold() for key in ("q", "has"))
    only = query.get("only", "")
    if not (wanted or only or tag):
        return data.images

    def checks_of(image: FoundImage) -> set[str]:
        return {row["check"] for row in data.findings["by_file"].get(image.path, ())}

    keeps: Callable[[FoundImage], bool | str] = {
        "missing": lambda image: not image.caption,
        "broken": lambda image: (
            isinstance(data.sizes.get(image.path), str) or _fault(data, image)
        ),
        "found": lambda image: image.path in data.findings["by_file"],
        "alone": lambda image: not image.references,
    }.get(only, lambda image: only not in CHECKS or only in checks_of(image))
    return [
        image
        for image in data.images
        if keeps(image)
        and (not tag or tag in map(str.casefold, datasets.tags_of(image.caption)))
        and (
            wanted in image.caption.casefold()
            or wanted in data.id_of(image.path).casefold()
        )
    ]


def _fault(data: Dataset, image: FoundImage) -> str:
    return next(
        (
            data.faults[path]
            for path in (image.path, *image.captions, image.table)
            if path in data.faults
        ),
        "",
    )


def _card(data: Dataset, image: FoundImage) -> dict[str, Any]:
    """An image as the template shows it. `frame`: left, top, width and height of what
    is trained, in its pixels. `moves`: how far the frame can be moved and in which
    direction (0: across, 1: down), and the place where it is, of CROP_STEPS."""
    frame = None
    crop = None
    moves = None
    size = data.sizes[image.path]
    if isinstance(size, Size):
        crop = data.crop(size).at(image.focus)
        scale = crop.scaled.width / size.width, crop.scaled.height / size.height
        frame = [
            round(place / scale[axis % 2], 1)
            for axis, place in enumerate((crop.left, crop.top, *crop.bucket))
        ]
        axis = _axis(crop)
        room = round(size[axis] - frame[2 + axis], 1)
        if room >= LEAST_ROOM * size[axis]:
            moves = axis, room, round(image.focus[axis] * CROP_STEPS)
    return {
        "id": data.id_of(image.path),
        "image": image,
        "size": size if isinstance(size, Size) else None,
        "fault": size if isinstance(size, str) else "",
        "shape": _shape(size) if isinstance(size, Size) else 20,
        "note": _fault(data, image),
        "bucket": crop and crop.bucket,
        "frame": frame,
        "moves": moves,
        "version": datasets.caption_version(image),
        "findings": data.findings["by_file"].get(image.path, []),
        "before": [_place(data, path) for path in image.references],
        "mask": _place(data, image.mask) if image.mask else None,
        "stem": Path(image.path).stem,
        "table": data.id_of(image.table) if image.table else "",
    }


def _axis(crop: ResizeCrop) -> int:
    """The direction in which an image is cut most: 0 across, 1 down."""
    across, down = (crop.scaled[axis] - crop.bucket[axis] for axis in (0, 1))
    return int(down > across)


def _shape(size: Size) -> int:
    """Width by height of the place of an image in a row, in twentieths, of which
    `datasets.css` has a class each: no page may hold styles. A very long or tall image
    has edges in it."""
    return round(20 * min(max(size.width / size.height, 0.6), 2.4))


def _kinds(data: Dataset) -> list[dict[str, Any]]:
    """The findings by their kind: the line, what to do, the names of images and of other
    files, and pairs of images that look the same. What was deleted since is left out."""
    by_file = data.findings["by_file"]
    found = kinds(
        (row["check"], path, row["message"])
        for path, rows in by_file.items()
        if path in data.sizes or os.path.lexists(path)
        for row in rows
        if os.path.lexists(alike_in(row["message"]) or data.folder)
    )
    return [
        {
            "check": kind.check,
            "line": kind.line,
            "remedy": kind.remedy,
            "images": [data.id_of(path) for path in kind.files if path in data.sizes],
            "others": [
                (data.id_of(path), "; ".join(messages))
                for path, messages in kind.files.items()
                if path not in data.sizes
            ],
            "pairs": [
                (data.id_of(one), data.id_of(other))
                for one, other in kind.alike
                if one in data.sizes and other in data.sizes
            ],
        }
        for kind in found
    ]


def _place(data: Dataset, path: str) -> list[str]:
    """The dataset of a file, and its name in it."""
    return os.path.relpath(path, data.ui.datasets).split(os.sep, 1)


def _orphan(data: Dataset, path: str) -> dict[str, Any]:
    """A file without its partner, as the template shows it. `id`: by which it can be
    deleted here; empty: elsewhere."""
    is_own = path.startswith(f"{data.folder}{os.sep}")
    return {
        "place": _place(data, path),
        "id": data.id_of(path) if is_own else "",
        "stem": Path(path).stem,
    }


@posted()
def set_view(request: Request, form: Form) -> Response:
    """How the dataset is looked at and trained: its references, its masks, its size,
    the instruction of its pairs."""
    data = _opened(request)
    words = texts()["datasets"]
    faults = dict[str, str]()
    view: dict[str, Any] = {
        key: form[key].strip()
        for key in ("references", "masks", "instruction")
        if key in form
    }
    if "resolution" in form:
        resolution = whole(form["resolution"], 32, 8192)
        if resolution is None:
            faults["resolution"] = words["bad_resolution"]
        else:
            view["resolution"] = resolution
    for key in ("references", "masks"):
        place, suffix = data.partner(view.get(key, ""))
        named = (stem for listing in data.listings for stem in listing.images)
        if not place and suffix and not any(suffix in stem for stem in named):
            faults[key] = words["bad_partner"].format(value=suffix)
    if faults:
        return _page(request, _read(request), 400, faults=faults, form=form)
    with refusals(data.name):
        datasets.keep_view(data, view)
    return _back(request, data)


@posted()
def check(request: Request, form: Form) -> Response:
    """Starts lint."""
    data = _opened(request)
    with refusals(data.name):
        datasets.lint(data)
    return _back(request, data)


def check_state(request: Request) -> Response:
    """Whether lint is at work."""
    findings = _read(request).findings
    return JSONResponse({"status": findings["status"], "count": findings["count"]})


@posted()
def captioning(request: Request, form: Form) -> Response:
    """Puts the writing of the captions that are missing into the queue."""
    data = _opened(request)
    given = {
        key: form.get(key, "").strip() for key in ("trigger-word", "prompt", "model")
    }
    flags = [f"--{key}={value}" for key, value in given.items() if value]
    flags += ["--limit=1"] if form.get("limit") else []
    flags += ["--recursive"] if not (data.listings[0].images or data.sides) else []
    name = texts()["datasets"]["captioning_name"].format(name=data.name)
    try:
        enqueue(data.ui, ["caption", data.section()["folder_path"], *flags], name)
    except HTTPException as error:
        if wants_json(request):
            raise
        return _page(
            request,
            _read(request),
            error.status_code,
            faults={"captioning": error.detail},
        )
    with refusals(data.name):  # the job asks for the word that the captions hold
        datasets.keep_view(data, {"trigger": given["trigger-word"]})
    return done(request, "/queue")


@posted()
def crop(request: Request, form: Form) -> Response:
    """Moves the frame of what is trained of an image (`name`) to a place (`at`)."""
    data = _read(request)
    image = _ticked(data, [form.get("name")])[0]
    size = data.sizes[image.path]
    at = whole(form.get("at", ""), 0, CROP_STEPS)
    if at is None or not isinstance(size, Size):
        raise HTTPException(400, texts()["datasets"]["crop"]["wrong"])
    places = list(image.focus)
    places[_axis(data.crop(size))] = at / CROP_STEPS
    try:
        with refusals(data.name):
            datasets.set_crop(image, Focus(*places))
    except CropError as error:
        file = datasets.crop_file(image).name
        raise HTTPException(409, f"{file} {error}") from error
    return _back(request, data, **_where(form))


# ---------------------------------------------------------------- captions


def _ticked(
    data: Dataset, names: Iterable[object], orphans: Iterable[str] = ()
) -> list[FoundImage]:
    """The images of these names. orphans: paths of others that are meant too. Raises
    HTTPException 404 where there are none of them."""
    wanted = set(names)
    others = (
        FoundImage(path, 1, "", (), "", (), "", shares_stem=True) for path in orphans
    )
    ticked = [
        image
        for image in chain(data.images, others)
        if data.id_of(image.path) in wanted
    ]
    if ticked:
        return ticked
    raise HTTPException(404, texts()["datasets"]["none_chosen"])


@posted()
def save_caption(request: Request, form: Form) -> Response:
    """Replaces a caption. `version`: of the file as it was read; or `was`: the text as
    it was."""
    data = _read(request)
    text = form.get("caption", "").strip()
    words = texts()["datasets"]
    image = _ticked(data, [form.get("name")])[0]
    if "\0" in text or len(text.encode()) > MOST_CAPTION:
        raise HTTPException(400, words["bad_caption"])
    if image.table:
        raise HTTPException(
            409, words["in_table"].format(table=data.id_of(image.table))
        )
    version = form.get("version") or datasets.version_with(image, form.get("was", ""))
    try:
        with refusals(data.name):
            version = datasets.set_caption(data, image, text, version)
    except CaptionError as error:
        raise HTTPException(409, error.reason) from error
    except Conflict as error:
        both = {
            "name": form["name"],
            "yours": text,
            "theirs": str(error),
            "version": datasets.caption_version(image),
        }
        if wants_json(request):
            return JSONResponse({"detail": words["conflict"], **both}, 409)
        return render(request, "captions.html.j2", 409, data=data, conflict=both)
    if wants_json(request):
        return JSONResponse({"version": version, "step": _last_step(data)})
    return _back(request, data, **_where(form))


def _last_step(data: Dataset) -> str:
    """The change of captions that Undo takes back; empty: there is none."""
    steps = datasets.steps(data)
    return steps[-1].stem if steps else ""


@posted()
def undo(request: Request, form: Form) -> Response:
    """Takes a change of captions back, of one image or of many."""
    data = _read(request)
    with refusals(data.name):
        versions, failed = datasets.undo(data, form.get("step", ""))
    if wants_json(request):
        captions = {
            data.id_of(image.path): image.caption for image in _read(request).images
        }
        now = {
            name: [version, captions.get(name, "")]
            for name, version in versions.items()
        }
        return JSONResponse({"now": now, "failed": failed, "step": _last_step(data)})
    return _back(request, data, **_where(form), undone=len(versions), failed=failed)


def _where(form: Mapping[str, str]) -> dict[str, str]:
    """The filter and the page where a form was sent."""
    keys = ("q", "only", "has", "page", "check")
    return {key: form[key] for key in keys if form.get(key)}


@posted()
def change(request: Request, form: Form) -> Response:
    """Search and replace, a tag for many: first what would become of the captions,
    then, if it is still that, done."""
    data, names = _read(request), form.data.getlist("chosen")
    # A tag that is to be added is for those without it.
    where = {**form, "has": ""} if form.get("op") == "add" else form
    shown = _ticked(data, names) if names else _filtered(data, where)
    images = [image for image in shown if not image.table and not _fault(data, image)]
    changes = [
        (each, new)
        for each in images
        if (new := datasets.changed_caption(each.caption, form)) != each.caption
    ]
    rows = [
        (data.id_of(each.path), datasets.caption_version(each), each.caption, new)
        for each, new in changes
    ]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
    given = form.get("apply")
    if given == digest:
        failed = 0
        with refusals(data.name):
            datasets.keep_captions(data, (image for image, _ in changes))
            datasets.keep_step(data, changes)
            for (image, new), (_, version, _, _) in zip(changes, rows, strict=True):
                try:
                    datasets.set_caption(data, image, new, version, is_kept=True)
                except (Conflict, CaptionError):
                    failed += 1
        where = _where(form) | {"has": ""}  # which may be in no caption any more
        return _back(request, data, **where, changed=len(rows) - failed, failed=failed)
    return render(
        request,
        "captions.html.j2",
        409 if given else 200,
        data=data,
        rows=[
            (name, *_difference(before, after))
            for name, _, before, after in rows[:MOST_SHOWN]
        ],
        count=len(rows),
        of=len(images),
        digest=digest,
        form=form,
        chosen=names,
        is_late=given is not None,
        conflict=None,
    )


def _difference(before: str, after: str) -> tuple[str, str, str, str]:
    """What both begin with, what of each differs, and what both end with."""
    start = _common(before, after)
    end = _common(before[start:][::-1], after[start:][::-1])
    cut = len(before) - end
    return (
        before[:start],
        before[start:cut],
        after[start : len(after) - end],
        before[cut:],
    )


def _common(one: str, other: str) -> int:
    """Number of letters with which both begin."""
    return len(os.path.commonprefix([one, other]))  # noqa: RUF071 - texts, not paths


@posted()
def delete(request: Request, form: Form) -> Response:
    """Moves the ticked images into the trash, with their captions."""
    data = _read(request)
    images = _ticked(data, form.data.getlist("chosen"), data.orphans)
    with refusals(data.name):
        entry, moved = datasets.trash(data, images)
    if not moved:
        raise HTTPException(404, texts()["datasets"]["none_chosen"])
    return _back(request, data, **_where(form), deleted=moved, entry=entry)


# ---------------------------------------------------------------- files that come


def _target(data: Dataset, into: str = "") -> Path:
    """The folder that new files go to: the one that is named ("." is that of the
    dataset; one with repeats is made), else where its images are, else a subfolder with repeats, else itself."""
    if into:
        folder = data.folder if into == "." else below(data.folder, into)
    else:
        if not data.listings:
            data = open_dataset(data.ui, data.name, names_only=True)
        listings = data.listings
        if data.sides:
            return data.folder / data.sides[1]
        with_images = (listing.folder for listing in listings if listing.images)
        with_repeats = (
            listing.folder for listing in listings[1:] if repeats_of(listing.folder)
        )
        folder = Path(next(chain(with_images, with_repeats), data.folder))
    is_new = repeats_of(into) in range(1, uploads.MOST_REPEATS + 1)
    if is_new and not folder_name_error(into):
        folder.mkdir(exist_ok=True)
    if not folder.is_dir():
        raise HTTPException(404, f"{into} is not there")
    return folder


def _announced(data: Dataset) -> uploads.Announced:
    return uploads.Announced(data.ui.own / "uploads" / f"{data.name}.list")


@posted()
def announce(request: Request, form: Form) -> Response:
    """Names the files that are about to be sent (`name`, in the folder `into`), or those
    that will not be (`not`); `all` there takes back all of them."""
    data = _named(request)
    into = form.get("into", "")
    with refusals(data.name), data.ui.locked():
        if form.get("not") == "all":
            _announced(data).forget()
        _announced(data).end(into, map(str, form.data.getlist("not")))
        if "name" in form:
            _announced(data).begin(into, map(str, form.data.getlist("name")))
    return _back(request, data)


def _part(request: Request, data: Dataset) -> uploads.Part:
    query = request.query_params
    size = whole(query.get("size", ""), 0, 10**15)
    try:
        if size is None:
            raise uploads.Refused("has no size. Give it in bytes")
        name = uploads.checked_name(query.get("name", ""))
        uploads.check_size(name, size, data.ui.own)
    except uploads.Refused as error:
        raise HTTPException(422, str(error)) from error
    place = "/".join((data.name, query.get("into", ""), query.get("key", "")))
    return uploads.Part(data.ui.own / "uploads", place, name, size)


def upload_state(request: Request) -> Response:
    """How many bytes of a file were received, and the result once it is complete. `key`
    tells files of one name and size apart."""
    data = _named(request)
    part = _part(request, data)
    progress = data.ui.memory.get(("upload", part.path.name))
    # it is whole, and reading it all for its hash would take its time
    if progress and progress["state"] == "checking":
        return JSONResponse(
            {
                "offset": part.size,
                "told": {"state": "checking", "count": len(progress["files"])},
            }
        )
    return JSONResponse(part.state() | {"told": progress})


async def upload(request: Request) -> Response:
    """A piece of a file; after the last one the file is taken, a zip file in the
    background."""
    piece = bytearray()
    async for chunk in request.stream():
        piece += chunk
        if len(piece) > uploads.PIECE:
            raise HTTPException(413, f"a piece has at most {uploads.PIECE} bytes")
    return await run_in_threadpool(_add, request, piece)


def _add(request: Request, piece: bytearray) -> Response:
    data = _named(request)
    progress = dict[str, Any]()
    part = _part(request, data)
    query = request.query_params
    into = query.get("into", "")
    key = ("upload", part.path.name)
    offset = whole(query.get("offset", ""), 0, part.size)
    is_last = offset is not None and offset + len(piece) == part.size
    target = _target(data, into) if into or is_last else data.folder
    try:
        with refusals(part.name), data.ui.locked(), ExitStack() as held:
            # Whoever takes a whole part has its lock meanwhile, which another page of
            # this folder sees.
            is_begun = part.path.exists()
            is_free = held.enter_context(locked(part.path)) if is_begun else True
            running = data.ui.memory.get(key, {"state": "", "files": []})
            if running["state"] == "checking" or is_free is False:
                progress = {"state": "checking", "count": len(running["files"])}
                return JSONResponse(
                    {
                        "detail": "is being looked at",
                        "offset": part.size,
                        "told": progress,
                    },
                    409,
                )
            uploads.clean(part.path.parent)
            here = part.add(
                -1 if offset is None else offset, piece, query.get("hash", "")
            )
            if here < part.size:
                return JSONResponse({"offset": here})
            progress = data.ui.memory[key] = {"state": "checking", "files": []}
            if not is_begun:
                held.enter_context(locked(part.path))
            taking = held.pop_all()
    except uploads.Refused as error:
        return JSONResponse({"detail": str(error), **part.state()}, 409)

    def take() -> None:
        try:
            with taking:
                uploads.take(
                    part.path,
                    part.name,
                    target,
                    decoder(data.ui),
                    progress["files"].append,
                )
            with suppress(OSError):  # it is here, whatever is told of it
                _announced(data).end(into, [query.get("sent", part.name)])
        finally:
            progress["state"] = "done"

    if part.name.lower().endswith(SUFFIX):
        Thread(target=take, daemon=True).start()
        return JSONResponse(
            {"offset": here, "told": {"state": "checking", "count": 0}}, 202
        )
    take()
    return JSONResponse({"offset": here, "told": progress})


@posted()
def upload_form(request: Request, form: Form) -> Response:
    """Whole files, without a script."""
    data = _named(request)
    home = ui_of(request).own / "uploads"
    files = uploads.of_form(form.data.getlist("file"))
    target = _target(data, form.get("into", ""))
    with refusals(data.name):
        home.mkdir(parents=True, exist_ok=True)
        outcomes = [*uploads.take_all(files, home, target, decoder(data.ui))]
        _announced(data).end(form.get("into", ""), (file.name for file in files))
    is_refused = any(outcome["state"] == "refused" for outcome in outcomes)
    return _page(
        request,
        _read(request),
        422 if is_refused else 200,
        outcomes=outcomes,
    )


# ---------------------------------------------------------------- images


def image(request: Request) -> Response:
    """An image as its file is, of the type that it holds."""
    return _shown(request, 0)


def thumb(request: Request) -> Response:
    """A small copy of an image."""
    return _shown(request, THUMB_SIDE)


def _shown(request: Request, side: int) -> Response:
    ui = ui_of(request)
    name = f"{request.path_params['d']}/{request.path_params['name']}"
    path = below(ui.datasets, name)
    try:
        return picture(request, path, side)
    except HTTPException as error:
        if error.status_code == 415:
            datasets.remember_fault(ui, str(path), error.detail)
        raise
