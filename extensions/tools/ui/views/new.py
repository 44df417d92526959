"""New job: the usual keys as a form, the YAML beside it, what the command line says of
it, and the start.

There is one form, and each of its buttons, like each change while a script runs, sends
all of it. It carries the values that its fields had when it was shown: one that differs
was changed by hand and goes into the YAML, and all others are read from the YAML. So
neither side overwrites the other, and the page keeps nothing between requests.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from extensions.tools.shared.examples import (
    EXAMPLES,
    MASCOTS,
    MODELS,
    WITHOUT_GPU,
    are_photographs,
    written_job,
)
from extensions.tools.shared.html_page import texts
from extensions.tools.shared.keys import name_like
from extensions.tools.shared.pairs import found_pairs
from extensions.tools.ui.commands import (
    Checked,
    Key,
    Message,
    check_job,
    import_text,
    keys_of,
)
from extensions.tools.ui.datasets import DEFAULT_VIEW, open_dataset, read_dataset
from extensions.tools.ui.job_text import PROMPTS, JobText
from extensions.tools.ui.queue import RUNNING, WAITING, never_ends
from extensions.tools.ui.state import Form, Ui, conflicts, inside, posted, render, ui_of
from extensions.tools.ui.views.queue import enqueue
from toolkit.config.reading.loader import folder_name_error
from toolkit.config.reading.located import KeyPath, dotted
from toolkit.config.reading.redacted_copy import saved_text
from toolkit.config.sections.model_files import INDEX, hub_cache
from toolkit.errors import UserError
from toolkit.files.redact import redact_text
from toolkit.files.writing import CONFIG_SUFFIXES, folder_lock, open_regular, write_text
from toolkit.memory.estimate import GB
from toolkit.system.nvidia import TO_TRY, least_memory

NAME = "config.name"
FOLDER = "datasets[].folder_path"
TRIGGER = "trigger_word"
MODEL = "model.name_or_path"
CONTROL = "datasets[].control_path"
INSTRUCTION = "datasets[].default_caption"
RANK = "network.linear"
NUMBERS = (
    "train.steps",
    RANK,
    "datasets[].resolution",
    "save.save_every",
    "sample.sample_every",
)
TEXTS = (NAME, FOLDER, TRIGGER, MODEL, CONTROL, INSTRUCTION)
CARDS = (4, 6, 8, 12, 16, 24, 32, 48, 80)
"""GB of the GPUs that a plan is compared with."""

KEPT = ("card", "file", "loaded", "version", "tab", "wanted", "import_text")
"""What the form carries besides the fields and the YAML."""

MOST_BYTES = 2**19
"""Maximum size of a job: parsing so much YAML takes a second."""

TINY = EXAMPLES / MASCOTS
"""The model that trains on any machine, and draws flat mascots only."""

FIELDS = {
    FOLDER: "folder", CONTROL: "control", NAME: "name", TRIGGER: "trigger", INSTRUCTION: "instruction", MODEL: "model",
    "card": "card", "prompts": "prompts", **{key: str(number) for number, key in enumerate(NUMBERS, 1)},
}  # fmt: skip
"""Field of the form -> what its id ends with; that of most is its name in the texts."""

_YAML = CONFIG_SUFFIXES[:2]


@dataclass
class Editor:
    """What the page shows."""

    job: JobText
    card: str = ""
    """GB of the GPU that the job was made for; empty: not made here."""

    file: str = ""
    """Name of the job file; empty: after the job."""

    loaded: str = ""
    version: str = ""
    """The file that was loaded, and the hash of what it held then."""

    tab: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    """The displayed values; before `read` only submitted values that are not in the
    text."""

    keys: tuple[Key, ...] | None = None
    wanted: str = ""
    """What keys are searched for."""

    told: list[str] = field(default_factory=list)
    checked: Checked | None = None
    import_text: str = ""
    theirs: str | None = None
    """What the file holds, where another has changed it."""

    their_version: str = ""
    is_as_saved: bool = False
    """Whether the file held the same text already."""

    shown: dict[str, str] = field(default_factory=dict)
    """What the fields would be by the text."""

    def read(self) -> None:
        """The fields from the text, where it can be read; those that could not be put
        into it stay as they are."""
        if self.job.root is None:
            return
        keys = [*TEXTS, *NUMBERS, *(key.name for key in self.keys or ())]
        self.shown = {key: self.job.get(self.job.path(key)) for key in keys}
        self.shown |= {"prompts": "\n".join(self.job.prompts()), "card": self.card}
        self.fields = self.shown | self.fields

    @property
    def other_card(self) -> str:
        """GB of the card that times are calculated for; empty: that of this machine."""
        if self.card in map(str, CARDS) and self.card != _card_here():
            return self.card
        return ""

    @property
    def file_name(self) -> str:
        """Name of the job file; empty: the given name is not valid."""
        name = self.file or f"{self.job.get(self.job.path(NAME))}{_YAML[0]}"
        is_bad = (
            Path(name).suffix not in _YAML
            or folder_name_error(name)
            or name.startswith((".", "-"))
        )
        return "" if is_bad else name


def _card_here() -> str:
    """GB of the GPU that jobs of this machine are made for; empty: there is none."""
    gpu = round(least_memory() / GB)
    if gpu:
        return str(max((card for card in CARDS if card <= gpu), default=CARDS[0]))
    return ""


# ---------------------------------------------------------------- what the page begins
# with


def show(request: Request) -> Response:
    """A new job; `example`, `from` (a run), `job` (a job file): a copy of another,
    under a name of its own."""
    ui = ui_of(request)
    asked = request.query_params
    editor = Editor(JobText(""), tab=secrets.token_urlsafe(8))
    if "from" in asked:
        run = ui.run(asked["from"])
        path = run.config and inside(run.folder, run.config.name)
    elif {"example", "job"} & asked.keys():
        if "example" in asked:
            path = inside(EXAMPLES, asked["example"])
        else:
            path = inside(ui.jobs, asked["job"])
    else:
        dataset = asked.get("dataset", "")
        editor.card = _card_here()
        chosen = chosen_for(ui, dataset) if dataset else {}
        is_small = not (editor.card or are_photographs(chosen.get(FOLDER, "")))
        model = short(TINY) if is_small else MODELS[0].id
        editor.job = _begun(
            {**_named_after(ui, dataset), MODEL: model}, chosen, editor.card
        )
        return _page(request, editor)
    if path is None:
        raise HTTPException(404, texts()["new"]["no_config"])
    job = _without_secrets(read_job(path))
    try:
        name = job.get(job.path(NAME))
        new = unused_name(ui, name)
        editor.job = _comments_of(job.set(job.path(NAME), new, True), name, new)
    except ValueError:  # a file that is not a job: the check says so
        editor.job = job
    return _page(request, editor)


def _named_after(ui: Ui, dataset: str) -> dict[str, str]:
    """Name and trigger word of a new job of a dataset; empty: of none."""
    name = re.sub(
        r"^\d+_(?=.)", "", dataset
    )  # a number at the beginning is the repeats
    name = name_like(name, "my_character")
    return {NAME: unused_name(ui, name), TRIGGER: _unknown_word(name)}


def _begun(fields: Mapping[str, str], chosen: Mapping[str, str], card: str) -> JobText:
    """The job that a dataset begins with. fields: its name, trigger word and model.
    chosen: of `chosen_for`."""
    job = _made({**fields, **chosen}, card)
    for key, value in chosen.items():
        if _listed(job.get(job.path(key))) != _listed(value):
            job = _put(job, key, value, key in TEXTS)
    return job


def chosen_for(ui: Ui, name: str) -> dict[str, str]:
    """Key of a job -> what the page of a dataset has for it, as a form shows it."""
    try:
        data = read_dataset(ui, name)
    except HTTPException:
        return {FOLDER: str(ui.datasets / name)}
    chosen = {}
    for key, value in data.section().items():
        chosen[f"datasets[].{key}"] = _as_typed(value)
    if data.view["trigger"] or data.is_pairs:
        chosen[TRIGGER] = data.view["trigger"]
    if data.view["resolution"] != DEFAULT_VIEW["resolution"]:
        chosen["datasets[].resolution"] = str(data.view["resolution"])
    suffixes = set()
    for image in data.images:
        if image.captions:
            suffixes.add(Path(image.captions[0]).suffix)
    if ".json" in suffixes:
        chosen["datasets[].caption_ext"] = json.dumps(sorted(suffixes))
    return chosen


def _as_typed(value: Any) -> str:
    """A text, a list of one as its text, and all others as YAML."""
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def opened(request: Request) -> Response:
    """A job file of the page's folder."""
    ui = ui_of(request)
    name = request.path_params["file"]
    text = read_job(inside(ui.jobs, name))
    editor = Editor(
        _without_secrets(text),
        file=name,
        loaded=name,
        version=_hash(text),
        tab=secrets.token_urlsafe(8),
    )
    if editor.job.text != text:
        editor.version = ""  # what is shown must not replace what it was made of
        editor.told.append(texts()["new"]["has_secrets"])
    return _page(request, editor)


def read_job(path: Path) -> str:
    try:
        with open_regular(path) as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise HTTPException(
                413, texts()["new"]["too_large"].format(file=path.name, most=MOST_BYTES)
            )
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:  # what cannot be shown is not to be saved over
        raise HTTPException(
            400, texts()["new"]["no_text"].format(file=path.name)
        ) from error
    except OSError as error:
        raise HTTPException(404, f"{path.name}: {error.strerror}") from error


def _without_secrets(text: str) -> JobText:
    job = JobText(text)
    is_job = job.root is not None and isinstance(job.data(("config",)), dict)
    return JobText(
        saved_text(text, job.root, None, rewrite=False)
        if job.root and is_job
        else redact_text(text)
    )


def _comments_of(job: JobText, name: str, new: str) -> JobText:
    """The job with its run's folder in comments where they name that of the job that it
    was copied from."""
    folder = job.get(job.path("training_folder")) or "output"
    text = re.sub(
        rf"(?m)(#.*)(?<=[\s/]){re.escape(f'{folder}/{name}/')}",
        lambda match: f"{match[1]}{folder}/{new}/",
        job.text,
    )
    return JobText(text)


def _unknown_word(name: str) -> str:
    """A word that no model knows, made of a name: `annsmt` of Anna Smith. A real
    person's name would bring along whom the model takes for it, and words of it are
    separate in a prompt."""
    letters = "".join(re.findall(r"[a-z0-9]", name.lower()))
    return (letters[:1] + re.sub(r"[aeiou]", "", letters[1:]))[:6].ljust(4, "x")


def unused_name(ui: Ui, name: str, text_of: Callable[[str], str] | None = None) -> str:
    """A name like this one that no run and no job file has. text_of: makes the job of a
    name; a file that holds just that is the job's own, of a button that was pressed
    twice."""
    stem = re.sub(r"_\d+$", "", name)

    def taken(candidate: str) -> bool:
        file = ui.jobs / f"{candidate}{_YAML[0]}"
        is_others = file.exists() and (
            text_of is None or text_of(candidate) != read_job(file)
        )
        return is_others or (ui.output / candidate).exists()

    names = (name, *(f"{stem}_{number}" for number in range(2, 10_000)))
    return next((candidate for candidate in names if not taken(candidate)), name)


# ---------------------------------------------------------------- what is sent


@posted(files=1, fields=2000, part_size=MOST_BYTES)
def act(request: Request, sent: Form) -> Response:
    """What a button of the form does, or a change in it."""
    ui = ui_of(request)
    action = sent.get("action", "check")
    if action.startswith("search:"):  # a key in a message
        action, sent["wanted"] = "search", action.removeprefix("search:")
    if action == "small":  # the model of the plan's offer
        action, sent[f"other:{MODEL}"] = "check", short(TINY)
    if action == "rename":  # as a job file of its own
        sent[f"key:{NAME}"] = unused_name(ui, sent.get(f"key:{NAME}", ""))
        action, sent["file"], sent["loaded"], sent["version"] = "check", "", "", ""
    replaced = sent.get("version_of_theirs")
    if replaced:  # the file is to be replaced as it was shown
        action, sent["loaded"], sent["version"] = (
            "save",
            sent.get("their_file", ""),
            replaced,
        )
    carried: dict[str, Any] = {key: sent.get(key, "").strip() for key in KEPT}
    editor = Editor(JobText(sent.get("yaml", "")), **carried)
    try:
        if editor.wanted or sent.get("all") or action == "search":
            keys = keys_of(
                ui.memory, editor.job.get(editor.job.path("type")) or "sd_trainer"
            )
            editor.keys = tuple(
                key for key in keys if key.name not in (*TEXTS, *NUMBERS)
            )
        _take(ui, editor, sent)
    except RuntimeError as error:
        editor.told.append(str(error))
    if action == "import":
        upload = sent.data.get("import_file")
        content, name = (
            (upload.file.read(), upload.filename)
            if isinstance(upload, UploadFile)
            else (b"", "")
        )
        _import(editor, content.decode("utf-8", "replace"), name or "")
    status = 200
    try:
        tab = (
            "" if action in ("save", "start") else editor.tab
        )  # no later check may end the one before a start
        name = editor.file_name or f"job{_YAML[0]}"
        editor.checked = check_job(
            ui.memory, editor.job.text, name, tab, editor.other_card
        )
        if action in ("save", "start"):
            if not editor.file_name:
                raise HTTPException(400, texts()["new"]["bad_file"])
            plan = editor.checked.plan
            if action == "start" and (
                plan is None or why_not_started(plan) or _is_complete(plan)
            ):
                raise HTTPException(400, texts()["new"]["not_started"])
            path = save(ui, editor, editor.file_name)
            if action == "save":
                return RedirectResponse(f"/jobs/{path.name}", 303)
            if editor.checked.plan:
                name = editor.checked.plan["job"]
            else:
                name = path.stem
            known = (
                (WAITING, RUNNING) if editor.is_as_saved else (WAITING,)
            )  # the one that runs has read another text
            entry = enqueue(ui, [str(path)], name, unless=known)
            return RedirectResponse(f"/queue/{entry.id}", 303)
    except HTTPException as error:
        status = error.status_code
        editor.told.append(error.detail)
    return _page(request, editor, status)


def _take(ui: Ui, editor: Editor, sent: Mapping[str, str]) -> None:
    """Applies the changes of the form to the text. Those that cannot be applied are
    reported and stay in their fields."""
    given = {}
    for key, value in sent.items():
        if key.startswith("key:"):
            given[key.removeprefix("key:")] = value
    given |= {key: sent[key] for key in ("prompts", "card") if key in sent}
    given |= {
        key: other
        for key in (FOLDER, CONTROL, MODEL)
        if (other := sent.get(f"other:{key}", "").strip())
    }
    try:
        editor.shown = {
            str(key): str(value) for key, value in json.loads(sent["shown"]).items()
        }
    except (
        KeyError,
        ValueError,
        AttributeError,
        RecursionError,
    ):  # of no page of ours: there is the text alone
        editor.shown = dict(given)
    changed = {}
    for key, value in given.items():
        if _words(value) != _words(editor.shown.get(key, "")):
            changed[key] = value
    if editor.job.root is None:
        editor.fields = given
        return
    taken_over = dict[str, str]()
    if FOLDER in changed and CONTROL not in changed:  # another dataset brings its own
        name = _set_of(ui, changed[FOLDER])
        chosen = chosen_for(ui, name) if name else {}
        if name:
            with suppress(UserError, OSError, ValueError):
                taken_over = _taken_over(ui, editor, name, chosen)
        from_dataset = {key: chosen.get(key, "") for key in (CONTROL, INSTRUCTION)}
        changed |= {
            key: value
            for key, value in from_dataset.items()
            if value != editor.shown.get(key, "")
        }
    editor.fields = changed
    if {MODEL, "card", FOLDER, CONTROL} & changed.keys():
        with suppress(
            UserError, OSError, ValueError
        ):  # a model that is none: the check says so
            editor.job = _remade(editor.job, editor.shown, changed)
    for key, value in taken_over.items():
        if key not in changed and editor.job.get(editor.job.path(key)) != value:
            with suppress(ValueError):
                editor.job = _put(editor.job, key, value, key in TEXTS)
    kinds = {key.name: key.is_text for key in editor.keys or ()}
    rank, alpha = (
        editor.job.path(f"network.{key}") for key in ("linear", "linear_alpha")
    )
    if (
        RANK in changed
        and editor.job.get(rank) == editor.job.get(alpha)
        and changed[RANK].strip()
    ):
        with suppress(
            ValueError
        ):  # where both are equal they stay so, and the strength of the network with them
            editor.job = editor.job.set(alpha, changed[RANK], False)
    for key, value in changed.items():
        with suppress(ValueError):
            editor.job = _put(
                editor.job, key, value, key in TEXTS or kinds.get(key, False)
            )
            editor.fields = {
                field_: text for field_, text in editor.fields.items() if field_ != key
            }
    if editor.fields:
        editor.told.append(
            texts()["new"]["by_hand"].format(keys=", ".join(editor.fields))
        )


def _set_of(ui: Ui, folder: str) -> str:
    """Name of the dataset of a folder; empty: it is none."""
    if folder:
        return next(
            (name for name, keys in _sets(ui).items() if keys["folder_path"] == folder),
            "",
        )
    return ""


def _taken_over(
    ui: Ui, editor: Editor, name: str, chosen: Mapping[str, str]
) -> dict[str, str]:
    """Key -> value of what a new job of another dataset begins with, where the job has
    what one of the dataset that was chosen before begins with: nobody has typed there.
    Raises UserError as `written_job`."""
    before = _set_of(ui, editor.shown.get(FOLDER, ""))
    chosen_before = chosen_for(ui, before) if before else {}
    model = {MODEL: editor.shown.get(MODEL, "")}
    card = editor.shown.get("card", "")
    was, new = (
        _begun(_named_after(ui, each) | model, of_page, card)
        for each, of_page in ((before, chosen_before), (name, chosen))
    )
    all_keys = {NAME: "", TRIGGER: "", **chosen_before, **chosen}
    keys = [key for key in all_keys if key not in (FOLDER, CONTROL, INSTRUCTION)]
    found = {}
    for key in keys:
        found[key] = [job.get(job.path(key)) for job in (editor.job, was, new)]
    return {
        key: after for key, (now, old, after) in found.items() if now == old != after
    }


def _words(value: str) -> list[list[str]]:
    return [line.split() for line in value.splitlines() if line.strip()]


def _put(job: JobText, key: str, value: str, is_text: bool) -> JobText:
    """The job with the value of a field; an empty one takes its key out. Raises
    ValueError as `JobText.set`."""
    if key == "card":
        return job
    if key == "prompts":
        return job.set_prompts([" ".join(words) for words in _words(value)])
    is_text = is_text and not (key == CONTROL and value.startswith("["))
    if value.strip():
        return job.set(job.path(key), value, is_text)
    return job.remove(job.path(key))


def _made(fields: Mapping[str, str], card: str) -> JobText:
    """The job that `run.py new` writes. Raises UserError as `written_job`."""
    name, folder, trigger, model, control, instruction = (
        fields.get(key, "") for key in TEXTS
    )
    if "datasets[].image_suffix" not in fields:
        suffix = _listed(fields.get("datasets[].control_suffix", ""))
    else:
        suffix = []
    if folder:
        pairs = found_pairs(folder, _listed(control), suffix)
    else:
        pairs = None
    gpu = int(card) if card in map(str, CARDS) else WITHOUT_GPU
    trigger = trigger or ("" if pairs else name)
    return JobText(written_job(name, folder, trigger, model, gpu, pairs, instruction))


def _listed(value: str) -> list[str]:
    """The texts of a field that holds one, or a list of them as YAML."""
    if value.startswith("["):
        read = JobText(f"value: {value}").data(("value",))
    else:
        read = value
    return [str(item) for item in (read if isinstance(read, list) else [read]) if item]


def _remade(
    job: JobText, was: Mapping[str, str], changed: Mapping[str, str]
) -> JobText:
    """The job for another model or card: where it still is as it was written for the
    old one, what is written for the new; that is all of it, as long as nobody wrote
    into it. Raises UserError as `written_job`."""
    fresh = {}
    for key in (FOLDER, CONTROL, INSTRUCTION, MODEL):
        fresh[key] = changed.get(key, was.get(key, ""))
    if (fresh[FOLDER], fresh[CONTROL]) != (was.get(FOLDER, ""), was.get(CONTROL, "")):
        fresh[TRIGGER] = was.get(TRIGGER, "") or _unknown_word(was.get(NAME, ""))
        fresh |= {TRIGGER: ""} if fresh[CONTROL] else {}
    new = _made({**was, **fresh}, changed.get("card", was.get("card", "")))
    olds = []
    for card in [was["card"]] if was.get("card") else map(str, CARDS):
        with suppress(UserError):  # too small for that model
            olds.append(_made(was, card))
    for old in olds:
        typed_keys = [
            key for key in NUMBERS if was.get(key, "") != old.get(old.path(key))
        ]
        typed_keys += (
            ["prompts"]
            if _words(was.get("prompts", "")) != _words("\n".join(old.prompts()))
            else []
        )
        filled = [old, new]
        with suppress(ValueError):
            for key in typed_keys:
                filled = [_put(text, key, was.get(key, ""), False) for text in filled]
            if filled[0].text.split() == job.text.split():
                return filled[1]
    befores = [dict(_leaves(old.data(()))) for old in olds]
    after = dict(_leaves(new.data(())))
    for path in dict.fromkeys(path for leaves in (*befores, after) for path in leaves):
        value = after.get(path)
        of_job = path
        if path[:2] == (
            "config",
            "process",
        ):  # it may have other processes before the one that trains
            of_job = (*path[:2], job.trainer, *path[3:])
        now = job.data(of_job)
        if now == value or now not in [before.get(path) for before in befores]:
            continue
        with suppress(ValueError):  # in a list that has become another since
            is_text = isinstance(value, str)
            if is_text:
                given = str(value)
            else:
                given = json.dumps(value, ensure_ascii=False)
            if path in after:
                job = job.set(of_job, given, is_text)
            else:
                job = job.remove(of_job)
    return job


def _leaves(data: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Each value that is not a section, with its path."""
    is_list = isinstance(data, list) and all(isinstance(item, dict) for item in data)
    if isinstance(data, dict) or is_list:
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _leaves(value, (*path, key))
    else:
        yield path, data


def _import(editor: Editor, content: str, file_name: str) -> None:
    """Puts what another program's file is here into the editor."""
    job_text, messages = import_text(content or editor.import_text, file_name)
    if JobText(job_text).root is not None:
        editor.job = JobText(job_text)
        editor.fields = {}
        editor.card = editor.file = editor.loaded = editor.version = ""
    else:
        messages += job_text or texts()["new"]["not_imported"]
    editor.told += filter(None, [messages.strip()])


def save(ui: Ui, editor: Editor, name: str) -> Path:
    """Writes the job file. Raises HTTPException 409 where it holds what this page did
    not load."""
    ui.jobs.mkdir(parents=True, exist_ok=True)
    path = inside(ui.jobs, name)
    with conflicts(), folder_lock(ui.jobs):
        if path.exists() or path.is_symlink():
            theirs = read_job(path)
            editor.is_as_saved = editor.job.text == theirs
            if not editor.is_as_saved and (
                name != editor.loaded or _hash(theirs) != editor.version
            ):
                editor.theirs = theirs
                editor.their_version = _hash(theirs)
                raise HTTPException(409, texts()["new"]["conflict"].format(file=name))
        write_text(path, editor.job.text)
    return path


def save_new(ui: Ui, name: str, text: str) -> Path:
    """Writes a job file of a name that none has. Raises HTTPException as `save`."""
    return save(ui, Editor(JobText(text)), name)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def why_not_started(plan: Mapping[str, Any]) -> list[str]:
    refused = []
    for process in plan["processes"]:
        for reason in process.get("will_not_start", ()):
            refused.append(reason)
    return [*refused, *filter(None, [never_ends(plan)])]


def _is_complete(plan: Mapping[str, Any]) -> bool:
    """Whether all runs of a job are there and finished: its name is taken."""
    return _beginnings(plan) == {"complete"}


def _beginnings(plan: Mapping[str, Any]) -> set[str]:
    """What a start does with the runs of a job, as `StartOutlook` names it."""
    return {
        process["start"]["what"]
        for process in plan["processes"]
        if process.get("start")
    }


# ---------------------------------------------------------------- what is shown


def _page(request: Request, editor: Editor, status: int = 200) -> Response:
    ui = ui_of(request)
    editor.read()
    wanted = editor.wanted.lower()
    keys = []
    for key in editor.keys or ():
        if wanted in f"{key.name} {key.about}".lower():
            keys.append(key)
    editor.keys = tuple(keys) if editor.keys is not None else None
    plan = editor.checked.plan if editor.checked else None
    for process in plan["processes"] if plan else ():
        process.update(
            {
                key: process.get(key)
                for key in ("start", "time", "no_time", "disk", "model", "memory")
            }
        )
    places = {dotted(editor.job.path(key)): key for key in [*editor.fields]}
    places |= {dotted(editor.job.path(".".join(path))): "prompts" for path in PROMPTS}
    faults = dict[str, str]()
    errors = list[tuple[Message, str]]()
    before = ""
    for message in editor.checked.errors if editor.checked else ():
        field_ = next(
            (
                key
                for place, key in places.items()
                if re.match(rf"{re.escape(place)}(\W|$)", message.key)
            ),
            "",
        )
        if re.search(r"(^|\.)datasets(\[0\])?$", message.key) and not editor.fields.get(
            FOLDER
        ):
            field_ = FOLDER
        if before and not (
            message.key or message.line
        ):  # a file of the folder that the error before names
            faults[before] += f"\n{message.text}"
        else:
            before = field_
            if field_ and not editor.fields.get(field_, "").strip():
                missing = _words_of(field_).get("missing")
            else:
                missing = ""
            message = replace(message, text=missing or message.text)
            faults.setdefault(field_, message.text)
        errors.append((message, field_))
    sets: dict[str, dict[str, Any]] = ui.shared("sets", partial(_sets, ui))
    controls = (
        place
        for keys in sets.values()
        for place in keys.get("control_path", (keys["folder_path"],))
    )
    models = ui.shared("models", partial(_models, ui))
    hints = {}
    if Path(editor.fields.get(MODEL, "")).name == MASCOTS and are_photographs(
        editor.fields.get(FOLDER, "")
    ):
        hints = {MODEL: texts()["new"]["tiny_of_photographs"]}
    refusals = why_not_started(plan) if plan else []
    if plan and _is_complete(plan):
        refusals.insert(0, texts()["new"]["taken"].format(name=plan["job"]))
    is_taken = plan and (_is_complete(plan) or "refused" in _beginnings(plan))
    return render(
        request,
        "new.html.j2",
        status,
        e=editor,
        faults=faults,
        errors=[
            (message, FIELDS.get(key, ""), _words_of(key).get("label", ""))
            for message, key in errors
        ],
        focus=next(filter(None, faults), "") if status == 400 else "",
        hints=hints,
        plan=plan,
        refusals=refusals,
        ids={
            key: f"f-{name}"
            for key, name in FIELDS.items()
            if "." in key or key == TRIGGER
        },
        free_name=unused_name(ui, plan["job"]) if plan and is_taken else "",
        offers_small=any(TO_TRY in reason for reason in refusals),
        cards=CARDS,
        has_gpu=least_memory() > 0,
        gb=GB,
        numbers=NUMBERS,
        folders=[(keys["folder_path"], name) for name, keys in sets.items()],
        controls=[
            (place, os.path.relpath(place, ui.datasets))
            for place in dict.fromkeys(controls)
        ],
        models=models,
        jobs=sorted(
            path.name
            for path in ui.jobs.glob("*")
            if path.suffix in _YAML and path.is_file()
        ),
        examples=sorted(path.name for path in EXAMPLES.glob(f"*{_YAML[0]}")),
    )


def _words_of(key: str) -> dict[str, str]:
    """The words of a field of the form: its label and help."""
    fields: dict[str, dict[str, str]] = texts()["new"]["fields"]
    return fields.get(FIELDS.get(key, ""), fields.get(key, {}))


def _sets(ui: Ui) -> dict[str, dict[str, Any]]:
    """Name of a dataset -> the keys that its folders and its page ask for."""
    sets = {}
    for name in _subfolders(ui.datasets):
        with suppress(HTTPException):
            sets[name] = open_dataset(ui, name, names_only=True).section()
    return sets


def _models(ui: Ui) -> dict[str, list[tuple[str, str]]]:
    """Models of this machine, and published ones: what a job writes, and what it is
    called."""
    near = [TINY / INDEX, *Path("models").glob(f"*/{INDEX}")]
    for depth in ("*", "*/*"):
        for index in ui.output.glob(f"{depth}/{INDEX}"):
            near.append(index)
    here = [short(index.parent) for index in near if index.is_file()]
    for folder in _subfolders(hub_cache()):
        if folder.startswith("models--") and any(
            (hub_cache() / folder).glob(f"snapshots/*/{INDEX}")
        ):
            here.append(folder.removeprefix("models--").replace("--", "/"))
    titles = {
        short(TINY): texts()["new"]["tiny"],
        **{model.id: model.title for model in MODELS},
    }
    return {
        "here": [(name, titles.get(name, name)) for name in dict.fromkeys(here)],
        "published": [
            (model.id, model.title) for model in MODELS if model.id not in here
        ],
    }


def short(path: Path) -> str:
    """Relative to the working directory where it lies in it."""
    here = Path.cwd()
    if path.is_relative_to(here):
        return str(path.relative_to(here))
    return str(path)


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
    except OSError:
        return []
