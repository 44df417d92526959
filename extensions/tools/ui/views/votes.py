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
from extensions.tools.shared.keys import name_like
from extensions.tools.shared.run_job import last_saved
from extensions.tools.shared.run_records import sample_rows
from extensions.tools.ui.commands import check_job
from extensions.tools.ui.datasets import MOST_SHARED, below
from extensions.tools.ui.preference_job import base_job, preference_job
from extensions.tools.ui.state import (
    Form,
    Ui,
    conflicts,
    inside,
    posted,
    render,
    ui_of,
    whole,
)
from extensions.tools.ui.tries import TRIED
from extensions.tools.ui.views.new import save_new, short, unused_name, why_not_started
from extensions.tools.ui.views.queue import enqueue, images_folder
from extensions.tools.ui.views.run import image, references
from extensions.tools.ui.votes import Ballot, Pair, pairs_of
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
        """LoRA files that a job may start from: those of the run, the last first, or
        those of the images, first the one whose images were liked most often."""
        if self.run:
            last = last_saved(self.run.folder)
            if last:
                files = [
                    last,
                    *reversed(
                        [file.path for file in list_network_files(self.run.folder)]
                    ),
                ]
            else:
                files = []
            return list(
                dict.fromkeys(
                    short(file) for file in files if file.suffix == ".safetensors"
                )
            )
        of = {
            file: lora
            for group in self.groups
            for file, lora in zip(group.files, group.lora, strict=True)
        }
        liked = Counter(
            lora for row in ballot.decided for lora in of.get(row["better"], ())
        )
        known = dict.fromkeys(chain(*of.values()))
        there = [
            lora
            for lora in known
            if lora.endswith(".safetensors") and Path(lora).expanduser().is_file()
        ]
        return sorted(there, key=lambda lora: -liked[lora])


def place_of(request: Request) -> Place:
    """The samples of a run, what was tried with its files, a dataset, or the images
    that an entry of the queue has made. Raises HTTPException 404 where there is
    none."""
    ui = ui_of(request)
    kind = request.path_params["kind"]
    id_ = request.path_params["id"]
    back = f"/{kind}/{quote(id_, safe='')}"
    address = f"/votes{back}"
    if kind == "runs":
        run = ui.run(id_)
        folder = inside(run.folder, SAMPLES)
        groups = joined(_of_samples(ui, run, folder))
        return Place(
            address,
            back,
            run.name,
            folder,
            groups,
            pairs_of(groups),
            run,
            short(run.folder),
        )
    tried = ui.run(id_) if kind == TRIED else None
    if tried:
        folder = inside(tried.folder, TRIED)
        title = tried.name
        back = f"/runs/{quote(id_, safe='')}"
    elif kind == "datasets":
        folder = below(ui.datasets, id_)
        title = id_
    elif kind == "queue":
        (folder, title), back = images_folder(ui, id_), "/queue"
    else:
        raise HTTPException(404, "no such place")
    if not folder.is_dir():
        raise HTTPException(404, "no such folder")
    shared: SharedLook[_Read] = ui.recent(
        "groups", folder, lambda: SharedLook(partial(_read, folder)), MOST_SHARED
    )
    with conflicts():
        _, groups, pairs = shared.now()
    source = next((lora[0] for group in groups for lora in group.lora if lora), "")
    return Place(address, back, title, folder, groups, pairs, tried, source)


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
    samples = []
    for row in rows:
        for sample in row.samples:
            if sample.prompt:
                samples.append((sample, row.index))
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
    is_there = (place.folder / CANDIDATES).is_file()
    if is_there:
        output = place.folder
    else:
        output = ui.datasets / f"{name_like(place.title, 'votes')}_votes"
    prompts = dict.fromkeys(group.prompt for group in place.groups[:MOST_PROMPTS])
    fields = {
        "source": place.source,
        "output": short(output),
        "prompt": [*prompts] or [""],
    }
    if place.source:
        return f"/tools/prefer?{urlencode(fields, doseq=True)}"
    return ""


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
    with conflicts():
        if choice == "undo":
            ballot.undo(whole(form.get("count", "")) or 0)
        elif not ballot.vote(
            frozenset((form.get("left", ""), form.get("right", ""))), choice
        ):
            raise HTTPException(409, texts()["votes"]["not_kept"])
    return RedirectResponse(place.address, 303)


def candidate(request: Request) -> Response:
    """One of the images."""
    place = place_of(request)
    name = request.path_params["name"]
    if not any(name in group.files for group in place.groups):
        raise HTTPException(404, "no such image")
    return image(ui_of(request), inside(place.folder, name), 0)


def control(request: Request) -> Response:
    """A control image; always made small, so that it is an image whatever the file
    holds."""
    place = place_of(request)
    wanted = request.path_params["digest"]
    named = (
        path
        for group in place.groups
        for path in group.control
        if digest(path) == wanted
    )
    path = next(named, None)
    if path is None:
        raise HTTPException(404, "no such image")
    return image(ui_of(request), place.folder / path, 960)


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
    before = name_like(place.title.removesuffix("_votes"), "votes").removesuffix(
        "_voted"
    )
    with conflicts():
        prompts = [*dict.fromkeys(row["prompt"] for row in ballot.decided)]
        job = base_job(
            place.run.config if place.run else None, lora, model, place.folder, prompts
        )
        text_of = partial(
            preference_job,
            job,
            table=short(ballot.file),
            lora=lora,
            pairs=len(ballot.decided),
        )
        name = unused_name(ui, f"{before}_voted", text_of)
        text = text_of(name)
    path = save_new(ui, f"{name}.yaml", text)
    checked = check_job(ui.memory, text, path.name, "")
    faults = [message.text for message in checked.errors] or (
        why_not_started(checked.plan) if checked.plan else []
    )
    if faults or checked.plan is None:
        return _page(request, place, 400, tuple(faults), path.name)
    enqueue(ui, [str(path)], checked.plan["job"])
    return RedirectResponse("/queue", 303)
