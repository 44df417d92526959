"""The page /votes: pairs of images to vote on, and the training from the votes.

The images are the samples of a run, images tried with its files, a dataset, or the
result of a command in the queue. Votes are kept by `extensions.tools.ui.votes`. The
job that learns from them is written by `extensions.tools.ui.preference_job`, checked,
and put into the queue.

`extensions.tools.ui.app` serves the views.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from urllib.parse import quote, urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from extensions.tools.shared.candidates import CANDIDATES, Group, joined, read_groups
from extensions.tools.shared.html_page import texts
from extensions.tools.shared.run_job import last_saved
from extensions.tools.shared.run_records import sample_rows
from extensions.tools.ui.commands import check_job
from extensions.tools.ui.datasets import MOST_SHARED, below
from extensions.tools.ui.preference_job import base_job, preference_job
from extensions.tools.ui.state import (
    Form,
    Ui,
    inside,
    posted,
    refusals,
    render,
    ui_of,
    whole,
)
from extensions.tools.ui.tries import TRIED
from extensions.tools.ui.views.new import save_new, short, unused_name, why_not_started
from extensions.tools.ui.views.pictures import LARGE, picture
from extensions.tools.ui.views.queue import enqueue, images_folder
from extensions.tools.ui.views.run import references
from extensions.tools.ui.votes import Ballot, Pair, pairs_of
from toolkit.config.reading.loader import name_like
from toolkit.config.sections.train import FEW_PAIRS
from toolkit.data.scan.directory import list_folder
from toolkit.files.run_files import SAMPLES
from toolkit.files.shared_look import SharedLook
from toolkit.train.run_index import is_fresh, mark_of
from toolkit.train.run_reader import RunInfo, list_network_files

MOST_PROMPTS = 20
"""Prompts that the form for more images is filled with."""


@dataclass
class Place:
    """A folder of images that can be voted on.

    Example::

        place = place_of(request)
        print(place.title, len(place.pairs), len(place.ballot.decided))
    """

    address: str
    back: str
    """The page that led here."""

    title: str
    folder: Path
    groups: tuple[Group, ...]
    pairs: list[Pair]
    run: RunInfo | None = None
    """Whose samples they are."""

    source: str = ""
    """What `run.py prefer` makes more of; empty: not known."""

    @property
    def ballot(self) -> Ballot:
        """The pairs and votes as the folder has them now."""
        return Ballot(self.folder, self.pairs)

    def loras(self, ballot: Ballot) -> list[str]:
        """LoRA files that a job may start from: the run's files, the last first. Without
        a run the files that made the images, first the one whose images were liked most
        often."""
        if self.run:
            last = last_saved(self.run.folder)
            saved = [file.path for file in list_network_files(self.run.folder)]
            files = map(short, [last, *reversed(saved)] if last else [])
            return [*dict.fromkeys(f for f in files if f.endswith(".safetensors"))]
        of = {
            file: lora
            for group in self.groups
            for file, lora in zip(group.files, group.lora, strict=True)
        }
        liked = Counter(
            lora for row in ballot.decided for lora in of.get(row["better"], ())
        )
        loras = [
            lora
            for lora in dict.fromkeys(chain(*of.values()))
            if lora.endswith(".safetensors") and Path(lora).expanduser().is_file()
        ]
        return sorted(loras, key=lambda lora: -liked[lora])


def place_of(request: Request) -> Place:
    """The samples of a run, what was tried with its files, a dataset, or the images
    that an entry of the queue has made. Raises HTTPException 404 where there is
    none."""
    ui = ui_of(request)
    kind = request.path_params["kind"]
    id_ = request.path_params["id"]
    quoted = quote(id_, safe="")
    place = partial(Place, address=f"/votes/{kind}/{quoted}", back=f"/{kind}/{quoted}")
    if kind == "runs":
        run = ui.run(id_)
        folder = inside(run.folder, SAMPLES)
        groups = joined(_of_samples(ui, run, folder))
        return place(
            title=run.name,
            folder=folder,
            groups=groups,
            pairs=pairs_of(groups),
            run=run,
            source=short(run.folder),
        )
    if kind == TRIED:
        run = ui.run(id_)
        folder = inside(run.folder, TRIED)
        place = partial(place, back=f"/runs/{quoted}", title=run.name, run=run)
    elif kind == "datasets":
        folder = below(ui.datasets, id_)
        place = partial(place, title=id_)
    elif kind == "queue":
        folder, name = images_folder(ui, id_)
        place = partial(place, back="/queue", title=name)
    else:
        raise HTTPException(404, "no such place")
    if not folder.is_dir():
        raise HTTPException(404, "no such folder")
    shared: SharedLook[_Read] = ui.recent(
        "groups", folder, lambda: SharedLook(partial(_read, folder)), MOST_SHARED
    )
    with refusals():
        _, groups, pairs = shared.now()
    source = next((lora[0] for group in groups for lora in group.lora if lora), "")
    return place(folder=folder, groups=groups, pairs=pairs, source=source)


_Read = tuple[object, tuple[Group, ...], list[Pair]]
"""What tells the version of the files that were read, the groups in them, and their
pairs."""


def _read(folder: Path, before: _Read | None) -> _Read:
    """The groups of a folder, read again when its files have changed: without a list
    each image says its own."""
    (mark,) = mark_of(str(folder), CANDIDATES)[1:]
    version: object = mark
    if not any(mark):
        version = hash(tuple(list_folder(str(folder)).versions.items()))
    if before and before[0] == version and not is_fresh((mark,)):
        return before
    groups = read_groups(folder)
    return version, groups, pairs_of(groups)


def _of_samples(ui: Ui, run: RunInfo, folder: Path) -> Iterator[Group]:
    """The samples of each prompt, the latest first."""
    rows, _ = sample_rows(run.folder)
    controls = references(ui, run)
    samples = [
        (sample, row.index) for row in rows for sample in row.samples if sample.prompt
    ]
    for sample, index in sorted(samples, key=lambda item: (-item[0].step, item[1])):
        given = controls[index] if index < len(controls) else []
        control = tuple(os.path.relpath(path, folder) for path in given)
        yield Group(
            sample.prompt or "",
            control,
            seed=(sample.step,),
            lora=((),),
            files=(sample.path.name,),
        )


def show(request: Request) -> Response:
    """The next pair without a vote."""
    return _page(request, place_of(request))


def _page(
    request: Request,
    place: Place,
    status: int = 200,
    faults: tuple[str, ...] = (),
    job: str = "",
) -> Response:
    ballot = place.ballot
    decided = len(ballot.decided)
    return render(
        request,
        "votes.html.j2",
        status,
        place=place,
        ballot=ballot,
        shown=ballot.next_pairs(2),
        decided=decided,
        few=FEW_PAIRS if decided < FEW_PAIRS else 0,
        loras=place.loras(ballot),
        more=_more(ui_of(request), place),
        digest=digest,
        faults=faults,
        job=job,
    )


def _more(ui: Ui, place: Place) -> str:
    """The form of `run.py prefer`, filled in for more images of these prompts; empty
    where the source is not known."""
    if not place.source:
        return ""
    output = place.folder
    if not (output / CANDIDATES).is_file():
        output = ui.datasets / f"{name_like(place.title, 'votes')}_votes"
    prompts = [*dict.fromkeys(group.prompt for group in place.groups[:MOST_PROMPTS])]
    fields = {
        "source": place.source,
        "output": short(output),
        "prompt": prompts or [""],
    }
    return f"/tools/prefer?{urlencode(fields, doseq=True)}"


def digest(path: str) -> str:
    """How a control image is called in addresses."""
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:16]


@posted()
def vote(request: Request, form: Form) -> Response:
    """Keeps a vote, or takes the last one back, and leads to the next pair. A button
    that was pressed twice counts once; another vote on the same pair is refused."""
    place = place_of(request)
    ballot = place.ballot
    choice = form.get("vote", "")
    names = frozenset((form.get("left", ""), form.get("right", "")))
    with refusals():
        if choice == "undo":
            ballot.undo(whole(form.get("count", "")) or 0)
        elif not ballot.vote(names, choice):
            raise HTTPException(409, texts()["votes"]["not_kept"])
    return RedirectResponse(place.address, 303)


def candidate(request: Request) -> Response:
    """One of the images."""
    place = place_of(request)
    name = request.path_params["name"]
    if not any(name in group.files for group in place.groups):
        raise HTTPException(404, "no such image")
    return picture(request, inside(place.folder, name))


def control(request: Request) -> Response:
    """A copy of a control image."""
    place = place_of(request)
    wanted = request.path_params["digest"]
    for path in chain.from_iterable(group.control for group in place.groups):
        if digest(path) == wanted:
            return picture(request, place.folder / path, LARGE)
    raise HTTPException(404, "no such image")


@posted()
def train(request: Request, form: Form) -> Response:
    """Writes the job that learns from the votes, checks it and puts it into the queue;
    with mistakes it is only written."""
    ui = ui_of(request)
    place = place_of(request)
    ballot = place.ballot
    lora = form.get("lora", "")
    if lora and lora not in place.loras(ballot):
        raise HTTPException(400, texts()["votes"]["no_lora"])
    if not ballot.decided:
        raise HTTPException(400, texts()["votes"]["none_decided"])
    model = next((group.model for group in place.groups if group.model), "")
    title = name_like(place.title.removesuffix("_votes"), "votes")
    with refusals():
        prompts = [*dict.fromkeys(row["prompt"] for row in ballot.decided)]
        config = place.run.config if place.run else None
        job = base_job(config, lora, model, place.folder, prompts)
        text_of = partial(
            preference_job,
            job,
            table=short(ballot.file),
            lora=lora,
            pairs=len(ballot.decided),
        )
        name = unused_name(ui, f"{title.removesuffix('_voted')}_voted", text_of)
        text = text_of(name)
    path = save_new(ui, f"{name}.yaml", text)
    checked = check_job(ui.memory, text, path.name, "")
    faults = [error.message for error in checked.errors]
    if checked.plan:
        faults = why_not_started(checked.plan)
    if faults or checked.plan is None:
        return _page(request, place, 400, tuple(faults), path.name)
    enqueue(ui, [str(path)], checked.plan["job"])
    return RedirectResponse("/queue", 303)
