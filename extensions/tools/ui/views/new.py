"""The editor for jobs: a form of the usual keys, the YAML, the result of a dry run, and
the start.

There is one form. Each of its buttons sends all of it, and so does each change while a
script runs. It also carries the values that its fields had when it was shown. A value
that differs was changed by hand and is written into the YAML. All other fields are read
from the YAML. So neither side overwrites the other, and the page keeps nothing between
requests.

The YAML is edited by `extensions.tools.ui.job_text` and checked by
`extensions.tools.ui.commands`. A job that is started is put into the queue. The pages
for votes and for a finished run use parts of this module (`save_new`, `short`).
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
from itertools import chain
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
from toolkit.config.sections.dataset import CAPTION_SUFFIXES
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
"""Values that the form carries in addition to the fields and the YAML."""

MOST_BYTES = 2**19
"""Maximum size of a job in bytes. Parsing that much YAML takes a second."""

TINY = EXAMPLES / MASCOTS
"""The model that can be trained on any machine. It draws flat mascots only."""

FIELDS = {
    FOLDER: "folder", CONTROL: "control", NAME: "name", TRIGGER: "trigger", INSTRUCTION: "instruction", MODEL: "model",
    "card": "card", "prompts": "prompts", **{key: str(number) for number, key in enumerate(NUMBERS, 1)},
}  # fmt: skip
"""Field of the form -> the end of its id, which for most fields is also the name in the
texts."""

_YAML = CONFIG_SUFFIXES[:2]


@dataclass
class Editor:
    """The state of the page: the text of the job, the fields, and the result of the
    check.

    Example::

        editor = Editor(JobText(text), file="cat.yaml")
        editor.read()
        print(editor.fields["train.steps"])
    """

    job: JobText
    card: str = ""
    """GB of the GPU that the job was made for. Empty: it was not made here."""

    file: str = ""
    """Name of the job file. Empty: the name of the job."""

    loaded: str = ""
    version: str = ""
    """The file that was loaded, and the hash of its text at that time."""

    tab: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    """The displayed values. Before `read` these are only the submitted values that could
    not be written into the text."""

    keys: tuple[Key, ...] | None = None
    wanted: str = ""
    """The text that keys are searched for."""

    told: list[str] = field(default_factory=list)
    """Messages above the form."""

    checked: Checked | None = None
    import_text: str = ""
    theirs: str | None = None
    """The text of the file, if somebody else has changed it."""

    their_version: str = ""
    is_as_saved: bool = False
    """Whether the file had the same text already."""

    shown: dict[str, str] = field(default_factory=dict)
    """The values of the fields by the text alone."""

    def read(self) -> None:
        """Reads the fields from the text, if it is valid YAML. Values that could not be
        written into it stay as they are."""
        if self.job.root is None:
            return
        keys = [*TEXTS, *NUMBERS, *(key.name for key in self.keys or ())]
        self.shown = {key: self.job.get(self.job.path(key)) for key in keys}
        self.shown |= {"prompts": "\n".join(self.job.prompts()), "card": self.card}
        self.fields = self.shown | self.fields

    @property
    def other_card(self) -> str:
        """GB of the GPU that times are calculated for. Empty: the GPU of this
        machine."""
        if self.card in map(str, CARDS) and self.card != _card_here():
            return self.card
        return ""

    @property
    def file_name(self) -> str:
        """Name of the job file. Empty: the given name is not valid."""
        name = self.file or f"{self.job.get(self.job.path(NAME))}{_YAML[0]}"
        if Path(name).suffix not in _YAML or name.startswith((".", "-")):
            return ""
        return "" if folder_name_error(name) else name


def _card_here() -> str:
    """GB of the GPU that jobs on this machine are made for. Empty: it has no GPU."""
    gpu = round(least_memory() / GB)
    if gpu:
        return str(max((card for card in CARDS if card <= gpu), default=CARDS[0]))
    return ""


# ---------------------------------------------------------------- the first form


def show(request: Request) -> Response:
    """GET /new: a new job, for `dataset` if it is given.

    `example`, `from` (a run) or `job` (a job file) give a copy of another job under a new
    name.
    """
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
        fields = {**_named_after(ui, dataset), MODEL: model}
        editor.job = _begun(fields, chosen, editor.card)
        return _page(request, editor)
    if path is None:
        raise HTTPException(404, texts()["new"]["no_config"])
    job = _without_secrets(read_job(path))
    try:
        name = job.get(job.path(NAME))
        new = unused_name(ui, name)
        editor.job = _comments_of(job.set(job.path(NAME), new, True), name, new)
    except ValueError:  # the file is not a job, and the check will say so
        editor.job = job
    return _page(request, editor)


def _named_after(ui: Ui, dataset: str) -> dict[str, str]:
    """Name and trigger word of a new job. dataset: empty: it has none."""
    name = re.sub(r"^\d+_(?=.)", "", dataset)  # the number of repeats is left out
    name = name_like(name, "my_character")
    return {NAME: unused_name(ui, name), TRIGGER: _unknown_word(name)}


def _begun(fields: Mapping[str, str], chosen: Mapping[str, str], card: str) -> JobText:
    """The new job of a dataset. fields: its name, trigger word and model. chosen: the
    result of `chosen_for`."""
    job = _made({**fields, **chosen}, card)
    for key, value in chosen.items():
        if _listed(job.get(job.path(key))) != _listed(value):
            job = _put(job, key, value, key in TEXTS)
    return job


def chosen_for(ui: Ui, name: str) -> dict[str, str]:
    """Key of a job -> the value chosen on the page of a dataset, as a form shows it."""
    try:
        data = read_dataset(ui, name)
    except HTTPException:
        return {FOLDER: str(ui.datasets / name)}
    chosen = {
        f"datasets[].{key}": _as_typed(value) for key, value in data.section().items()
    }
    if data.view["trigger"] or data.is_pairs:
        chosen[TRIGGER] = data.view["trigger"]
    if data.view["resolution"] != DEFAULT_VIEW["resolution"]:
        chosen["datasets[].resolution"] = str(data.view["resolution"])
    suffixes = {
        Path(image.captions[0]).suffix.lower()
        for image in data.images
        if image.captions
    }
    if not suffixes.issubset(CAPTION_SUFFIXES):
        chosen["datasets[].caption_ext"] = json.dumps(sorted(suffixes))
    return chosen


def _as_typed(value: Any) -> str:
    """A value as it is typed: a text as it is, a list of one text as this text, and
    anything else as YAML."""
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def opened(request: Request) -> Response:
    """GET /jobs/{file}: the editor with a job file of the page's folder."""
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
        editor.version = ""  # the text without secrets must not replace the file
        editor.told.append(texts()["new"]["has_secrets"])
    return _page(request, editor)


def read_job(path: Path) -> str:
    """The text of a job file. Raises HTTPException for a file that is missing, too large,
    or not UTF-8."""
    words = texts()["new"]
    try:
        with open_regular(path) as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            fault = words["too_large"].format(file=path.name, most=MOST_BYTES)
            raise HTTPException(413, fault)
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:  # a file that is not shown must not be replaced
        fault = words["no_text"].format(file=path.name)
        raise HTTPException(400, fault) from error
    except OSError as error:
        raise HTTPException(404, f"{path.name}: {error.strerror}") from error


def _without_secrets(text: str) -> JobText:
    """The text of a job with its secrets redacted."""
    job = JobText(text)
    if job.root and isinstance(job.data(("config",)), dict):
        return JobText(saved_text(text, job.root, None, rewrite=False))
    return JobText(redact_text(text))


def _comments_of(job: JobText, name: str, new: str) -> JobText:
    """The job with the folder of its run in the comments, in place of the folder of the
    job that it was copied from."""
    folder = job.get(job.path("training_folder")) or "output"
    copied_from = re.escape(f"{folder}/{name}/")

    def renamed(match: re.Match[str]) -> str:
        return f"{match[1]}{folder}/{new}/"

    text = re.sub(rf"(?m)(#.*)(?<=[\s/]){copied_from}", renamed, job.text)
    return JobText(text)


def _unknown_word(name: str) -> str:
    """A trigger word that no model knows, made from a name: `annsmt` of Anna Smith.

    With the name of a real person the model would also draw whom it knows by that name,
    and the parts of a name are separate words in a prompt.
    """
    letters = "".join(re.findall(r"[a-z0-9]", name.lower()))
    return (letters[:1] + re.sub(r"[aeiou]", "", letters[1:]))[:6].ljust(4, "x")


def unused_name(ui: Ui, name: str, text_of: Callable[[str], str] | None = None) -> str:
    """A name like this one that no run and no job file has.

    text_of: makes the text of the job of a name. A file with this text belongs to the
    same job, whose button was pressed twice, so its name can be used.
    """
    stem = re.sub(r"_\d+$", "", name)
    for candidate in (name, *(f"{stem}_{number}" for number in range(2, 10_000))):
        file = ui.jobs / f"{candidate}{_YAML[0]}"
        is_taken = file.exists()
        if is_taken and text_of is not None:
            is_taken = text_of(candidate) != read_job(file)
        if not is_taken and not (ui.output / candidate).exists():
            return candidate
    return name


# ---------------------------------------------------------------- what is sent


@posted(files=1, fields=2000, part_size=MOST_BYTES)
def act(request: Request, sent: Form) -> Response:
    """POST /new: a button of the form, or a change in it."""
    ui = ui_of(request)
    action = sent.get("action", "check")
    if action.startswith("search:"):  # a key in a message
        sent["wanted"] = action.removeprefix("search:")
        action = "search"
    if action == "small":  # the plan has offered the small model
        sent[f"other:{MODEL}"] = short(TINY)
        action = "check"
    if action == "rename":  # as a new job file
        sent[f"key:{NAME}"] = unused_name(ui, sent.get(f"key:{NAME}", ""))
        for key in ("file", "loaded", "version"):
            sent[key] = ""
        action = "check"
    replaced = sent.get("version_of_theirs")
    if replaced:  # the user has seen the other text and replaces it
        sent["loaded"] = sent.get("their_file", "")
        sent["version"] = replaced
        action = "save"
    carried: dict[str, Any] = {key: sent.get(key, "").strip() for key in KEPT}
    editor = Editor(JobText(sent.get("yaml", "")), **carried)
    try:
        if editor.wanted or sent.get("all") or action == "search":
            type_ = editor.job.get(editor.job.path("type")) or "sd_trainer"
            keys = keys_of(ui.memory, type_)
            others = [key for key in keys if key.name not in (*TEXTS, *NUMBERS)]
            editor.keys = tuple(others)
        _take(ui, editor, sent)
    except RuntimeError as error:
        editor.told.append(str(error))
    if action == "import":
        upload = sent.data.get("import_file")
        if isinstance(upload, UploadFile):
            content = upload.file.read().decode("utf-8", "replace")
            _import(editor, content, upload.filename or "")
        else:
            _import(editor, "", "")
    status = 200
    try:
        # No later check of the tab may end the one before a start.
        tab = "" if action in ("save", "start") else editor.tab
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
            name = editor.checked.plan["job"] if editor.checked.plan else path.stem
            # If the text is new, a running entry has read another one.
            same = (WAITING, RUNNING) if editor.is_as_saved else (WAITING,)
            entry = enqueue(ui, [str(path)], name, unless=same)
            return RedirectResponse(f"/queue/{entry.id}", 303)
    except HTTPException as error:
        status = error.status_code
        editor.told.append(error.detail)
    return _page(request, editor, status)


def _take(ui: Ui, editor: Editor, sent: Mapping[str, str]) -> None:
    """Applies the changes of the form to the text. Changes that cannot be applied are
    reported and stay in their fields."""
    given = {
        key.removeprefix("key:"): value
        for key, value in sent.items()
        if key.startswith("key:")
    }
    given |= {key: sent[key] for key in ("prompts", "card") if key in sent}
    for key in (FOLDER, CONTROL, MODEL):
        other = sent.get(f"other:{key}", "").strip()
        if other:
            given[key] = other
    try:
        shown = json.loads(sent["shown"])
        editor.shown = {str(key): str(value) for key, value in shown.items()}
    except (KeyError, ValueError, AttributeError, RecursionError):
        editor.shown = dict(given)  # the form is not from this page
    changed = {
        key: value
        for key, value in given.items()
        if _words(value) != _words(editor.shown.get(key, ""))
    }
    if editor.job.root is None:
        editor.fields = given
        return
    taken_over = dict[str, str]()
    if FOLDER in changed and CONTROL not in changed:
        # Another dataset has other control images and another instruction.
        name = _set_of(ui, changed[FOLDER])
        chosen = chosen_for(ui, name) if name else {}
        if name:
            with suppress(UserError, OSError, ValueError):
                taken_over = _taken_over(ui, editor, name, chosen)
        for key in (CONTROL, INSTRUCTION):
            if chosen.get(key, "") != editor.shown.get(key, ""):
                changed[key] = chosen.get(key, "")
    editor.fields = dict(changed)
    if {MODEL, "card", FOLDER, CONTROL} & changed.keys():
        with suppress(UserError, OSError, ValueError):  # the check reports a bad model
            editor.job = _remade(editor.job, editor.shown, changed)
    for key, value in taken_over.items():
        if key not in changed and editor.job.get(editor.job.path(key)) != value:
            with suppress(ValueError):
                editor.job = _put(editor.job, key, value, key in TEXTS)
    kinds = {key.name: key.is_text for key in editor.keys or ()}
    rank = editor.job.path(RANK)
    alpha = editor.job.path("network.linear_alpha")
    is_equal = editor.job.get(rank) == editor.job.get(alpha)
    if RANK in changed and is_equal and changed[RANK].strip():
        with suppress(ValueError):  # both stay equal, and so does the strength
            editor.job = editor.job.set(alpha, changed[RANK], False)
    for key, value in changed.items():
        is_text = key in TEXTS or kinds.get(key, False)
        with suppress(ValueError):
            editor.job = _put(editor.job, key, value, is_text)
            del editor.fields[key]
    if editor.fields:
        message = texts()["new"]["by_hand"]
        editor.told.append(message.format(keys=", ".join(editor.fields)))


def _set_of(ui: Ui, folder: str) -> str:
    """Name of the dataset of a folder. Empty: no dataset has this folder."""
    if folder:
        for name, keys in _sets(ui).items():
            if keys["folder_path"] == folder:
                return name
    return ""


def _taken_over(
    ui: Ui, editor: Editor, name: str, chosen: Mapping[str, str]
) -> dict[str, str]:
    """Key -> value of the new job of another dataset, for keys that nobody has edited.

    These are the keys whose value is still the one that a new job of the dataset before
    would have. Raises UserError as `written_job` does.
    """
    before = _set_of(ui, editor.shown.get(FOLDER, ""))
    chosen_before = chosen_for(ui, before) if before else {}
    model = {MODEL: editor.shown.get(MODEL, "")}
    card = editor.shown.get("card", "")
    old_job = _begun(_named_after(ui, before) | model, chosen_before, card)
    new_job = _begun(_named_after(ui, name) | model, chosen, card)
    taken_over = {}
    for key in {NAME: "", TRIGGER: "", **chosen_before, **chosen}:
        if key in (FOLDER, CONTROL, INSTRUCTION):
            continue
        old = old_job.get(old_job.path(key))
        new = new_job.get(new_job.path(key))
        if editor.job.get(editor.job.path(key)) == old and old != new:
            taken_over[key] = new
    return taken_over


def _words(value: str) -> list[list[str]]:
    """The words of each line that has any: texts with the same words are the same."""
    return [line.split() for line in value.splitlines() if line.strip()]


def _put(job: JobText, key: str, value: str, is_text: bool) -> JobText:
    """The job with the value of a field. An empty value removes the key. Raises
    ValueError as `JobText.set` does."""
    if key == "card":
        return job
    if key == "prompts":
        return job.set_prompts([" ".join(words) for words in _words(value)])
    is_text = is_text and not (key == CONTROL and value.startswith("["))
    if value.strip():
        return job.set(job.path(key), value, is_text)
    return job.remove(job.path(key))


def _made(fields: Mapping[str, str], card: str) -> JobText:
    """The job that `run.py new` writes. Raises UserError as `written_job` does."""
    name, folder, trigger, model, control, instruction = (
        fields.get(key, "") for key in TEXTS
    )
    if "datasets[].image_suffix" not in fields:
        suffix = _listed(fields.get("datasets[].control_suffix", ""))
    else:
        suffix = []
    pairs = found_pairs(folder, _listed(control), suffix) if folder else None
    gpu = int(card) if card in map(str, CARDS) else WITHOUT_GPU
    trigger = trigger or ("" if pairs else name)
    return JobText(written_job(name, folder, trigger, model, gpu, pairs, instruction))


def _listed(value: str) -> list[str]:
    """The texts of a field that contains one text, or a list of texts as YAML."""
    if value.startswith("["):
        items = JobText(f"value: {value}").data(("value",))
    else:
        items = value
    if not isinstance(items, list):
        items = [items]
    return [str(item) for item in items if item]


def _remade(
    job: JobText, was: Mapping[str, str], changed: Mapping[str, str]
) -> JobText:
    """The job for another model or GPU.

    Values that are still as they were written for the old one are replaced by the values
    for the new one. If nobody has edited the job, that is all of it. Raises UserError as
    `written_job` does.
    """
    fresh = {
        key: changed.get(key, was.get(key, ""))
        for key in (FOLDER, CONTROL, INSTRUCTION, MODEL)
    }
    if (fresh[FOLDER], fresh[CONTROL]) != (was.get(FOLDER, ""), was.get(CONTROL, "")):
        fresh[TRIGGER] = was.get(TRIGGER, "") or _unknown_word(was.get(NAME, ""))
        if fresh[CONTROL]:
            fresh[TRIGGER] = ""
    new = _made({**was, **fresh}, changed.get("card", was.get("card", "")))
    cards = [was["card"]] if was.get("card") else [*map(str, CARDS)]
    olds = []
    for card in cards:
        with suppress(UserError):  # the GPU is too small for that model
            olds.append(_made(was, card))
    for old in olds:
        typed_keys = _typed_keys(old, was)
        filled = [old, new]
        with suppress(ValueError):
            for key in typed_keys:
                filled = [_put(text, key, was.get(key, ""), False) for text in filled]
            if filled[0].text.split() == job.text.split():
                return filled[1]
    befores = [dict(_leaves(old.data(()))) for old in olds]
    after = dict(_leaves(new.data(())))
    for path in dict.fromkeys(chain(*befores, after)):
        value = after.get(path)
        of_job = path
        if path[:2] == ("config", "process"):
            # The job may have other processes before the one that trains.
            of_job = (*path[:2], job.trainer, *path[3:])
        now = job.data(of_job)
        if now == value or now not in [before.get(path) for before in befores]:
            continue
        with suppress(ValueError):  # the list that contains it was edited
            is_text = isinstance(value, str)
            given = str(value) if is_text else json.dumps(value, ensure_ascii=False)
            if path in after:
                job = job.set(of_job, given, is_text)
            else:
                job = job.remove(of_job)
    return job


def _typed_keys(old: JobText, was: Mapping[str, str]) -> list[str]:
    """The fields of the form that a user has changed in a job that was written as
    `old`."""
    keys = [key for key in NUMBERS if was.get(key, "") != old.get(old.path(key))]
    if _words(was.get("prompts", "")) != _words("\n".join(old.prompts())):
        keys.append("prompts")
    return keys


def _leaves(data: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Each value that is not a section, with its path."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(data, list) and all(isinstance(item, dict) for item in data):
        for index, value in enumerate(data):
            yield from _leaves(value, (*path, index))
    else:
        yield path, data


def _import(editor: Editor, content: str, file_name: str) -> None:
    """Converts a file or command of another program, and puts the job into the
    editor."""
    job_text, messages = import_text(content or editor.import_text, file_name)
    if JobText(job_text).root is not None:
        editor.job = JobText(job_text)
        editor.fields = {}
        editor.card = editor.file = editor.loaded = editor.version = ""
    else:
        messages += job_text or texts()["new"]["not_imported"]
    editor.told += filter(None, [messages.strip()])


def save(ui: Ui, editor: Editor, name: str) -> Path:
    """Writes the job file. Raises HTTPException 409 if its text is not the one that this
    page has loaded."""
    ui.jobs.mkdir(parents=True, exist_ok=True)
    path = inside(ui.jobs, name)
    with conflicts(), folder_lock(ui.jobs):
        if path.exists() or path.is_symlink():
            theirs = read_job(path)
            editor.is_as_saved = editor.job.text == theirs
            is_loaded = name == editor.loaded and _hash(theirs) == editor.version
            if not editor.is_as_saved and not is_loaded:
                editor.theirs = theirs
                editor.their_version = _hash(theirs)
                raise HTTPException(409, texts()["new"]["conflict"].format(file=name))
        write_text(path, editor.job.text)
    return path


def save_new(ui: Ui, name: str, text: str) -> Path:
    """Writes a new job file. Raises HTTPException as `save` does."""
    return save(ui, Editor(JobText(text)), name)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def why_not_started(plan: Mapping[str, Any]) -> list[str]:
    """The reasons why a job would not start, by its plan. Empty: it would start."""
    refused = []
    for process in plan["processes"]:
        for reason in process.get("will_not_start", ()):
            refused.append(reason)
    return [*refused, *filter(None, [never_ends(plan)])]


def _is_complete(plan: Mapping[str, Any]) -> bool:
    """Whether all runs of a job exist and are finished: its name is taken."""
    return _beginnings(plan) == {"complete"}


def _beginnings(plan: Mapping[str, Any]) -> set[str]:
    """How a start would begin the runs of a job, in the words of `StartOutlook`."""
    starts = [process.get("start") for process in plan["processes"]]
    return {start["what"] for start in starts if start}


# ---------------------------------------------------------------- what is shown


def _page(request: Request, editor: Editor, status: int = 200) -> Response:
    ui = ui_of(request)
    editor.read()
    wanted = editor.wanted.lower()
    keys = [
        key for key in editor.keys or () if wanted in f"{key.name} {key.about}".lower()
    ]
    editor.keys = tuple(keys) if editor.keys is not None else None
    plan = editor.checked.plan if editor.checked else None
    if plan:
        for process in plan["processes"]:
            for shown_key in ("start", "time", "no_time", "disk", "model", "memory"):
                process.setdefault(shown_key, None)
    faults, errors = _errors_by_field(editor)
    rows = []
    for message, field_ in errors:
        label = _words_of(field_).get("label", "")
        rows.append((message, FIELDS.get(field_, ""), label))
    sets: dict[str, dict[str, Any]] = ui.shared("sets", partial(_sets, ui))
    controls = {}
    for set_keys in sets.values():
        for place in set_keys.get("control_path", (set_keys["folder_path"],)):
            controls[place] = os.path.relpath(place, ui.datasets)
    models = ui.shared("models", partial(_models, ui))
    hints = {}
    is_tiny = Path(editor.fields.get(MODEL, "")).name == MASCOTS
    if is_tiny and are_photographs(editor.fields.get(FOLDER, "")):
        hints = {MODEL: texts()["new"]["tiny_of_photographs"]}
    refusals = why_not_started(plan) if plan else []
    if plan and _is_complete(plan):
        refusals.insert(0, texts()["new"]["taken"].format(name=plan["job"]))
    is_taken = plan and (_is_complete(plan) or "refused" in _beginnings(plan))
    ids = {
        field_: f"f-{name}"
        for field_, name in FIELDS.items()
        if "." in field_ or field_ == TRIGGER
    }
    jobs = [path for path in ui.jobs.glob("*") if path.suffix in _YAML]
    return render(
        request,
        "new.html.j2",
        status,
        e=editor,
        faults=faults,
        errors=rows,
        focus=next(filter(None, faults), "") if status == 400 else "",
        hints=hints,
        plan=plan,
        refusals=refusals,
        ids=ids,
        free_name=unused_name(ui, plan["job"]) if plan and is_taken else "",
        offers_small=any(TO_TRY in reason for reason in refusals),
        cards=CARDS,
        has_gpu=least_memory() > 0,
        gb=GB,
        numbers=NUMBERS,
        folders=[(keys["folder_path"], name) for name, keys in sets.items()],
        controls=[*controls.items()],
        models=models,
        jobs=sorted(path.name for path in jobs if path.is_file()),
        examples=sorted(path.name for path in EXAMPLES.glob(f"*{_YAML[0]}")),
    )


def _errors_by_field(
    editor: Editor,
) -> tuple[dict[str, str], list[tuple[Message, str]]]:
    """The errors of the check: field -> text, and each message with its field. A field
    that is empty belongs to no field of the form."""
    faults = dict[str, str]()
    errors = list[tuple[Message, str]]()
    places = {dotted(editor.job.path(key)): key for key in editor.fields}
    places |= {dotted(editor.job.path(".".join(path))): "prompts" for path in PROMPTS}
    before = ""
    for message in editor.checked.errors if editor.checked else ():
        field_ = _field_of(message, places)
        is_of_datasets = re.search(r"(^|\.)datasets(\[0\])?$", message.key)
        if is_of_datasets and not editor.fields.get(FOLDER):
            field_ = FOLDER
        if before and not (message.key or message.line):
            # The message is about a file of the folder that the error before names.
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
    return faults, errors


def _field_of(message: Message, places: Mapping[str, str]) -> str:
    """The field of the form that a message is about. Empty: it has none. places: key of
    the job -> field."""
    for place, key in places.items():
        if re.match(rf"{re.escape(place)}(\W|$)", message.key):
            return key
    return ""


def _words_of(key: str) -> dict[str, str]:
    """The texts of a field of the form: its label and help."""
    fields: dict[str, dict[str, str]] = texts()["new"]["fields"]
    return fields.get(FIELDS.get(key, ""), fields.get(key, {}))


def _sets(ui: Ui) -> dict[str, dict[str, Any]]:
    """Name of a dataset -> its section of a job (`Dataset.section`)."""
    sets = {}
    for name in _subfolders(ui.datasets):
        with suppress(HTTPException):
            sets[name] = open_dataset(ui, name, names_only=True).section()
    return sets


def _models(ui: Ui) -> dict[str, list[tuple[str, str]]]:
    """The models on this machine (`here`) and the published ones: the name in a job, and
    the title."""
    near = [TINY / INDEX, *Path("models").glob(f"*/{INDEX}")]
    for depth in ("*", "*/*"):
        near += ui.output.glob(f"{depth}/{INDEX}")
    here = [short(index.parent) for index in near if index.is_file()]
    for folder in _subfolders(hub_cache()):
        if not folder.startswith("models--"):
            continue
        if any((hub_cache() / folder).glob(f"snapshots/*/{INDEX}")):
            here.append(folder.removeprefix("models--").replace("--", "/"))
    titles = {model.id: model.title for model in MODELS}
    published = [(id_, title) for id_, title in titles.items() if id_ not in here]
    titles[short(TINY)] = texts()["new"]["tiny"]
    known = [(name, titles.get(name, name)) for name in dict.fromkeys(here)]
    return {"here": known, "published": published}


def short(path: Path) -> str:
    """A path as text, relative to the working directory if it is in it.

    >>> short(Path.cwd() / "output" / "cat")
    'output/cat'
    """
    here = Path.cwd()
    if path.is_relative_to(here):
        return str(path.relative_to(here))
    return str(path)


def _subfolders(folder: Path) -> list[str]:
    """Names of the visible subfolders, sorted. Empty if the folder cannot be read."""
    try:
        names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    except OSError:
        return []
    return sorted(name for name in names if not name.startswith("."))
