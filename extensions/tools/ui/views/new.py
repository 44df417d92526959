"""The editor for jobs: a form of the usual keys, the YAML, the result of a dry run, and
the start.

There is one form. Each of its buttons sends all of it, and so does each change while a
script runs. It also carries the values that its fields had when it was shown. A value
that differs was changed by hand and is written into the YAML. All other fields are read
from the YAML. So neither side overwrites the other.

A form that was sent is answered by a redirect to its draft (`extensions.tools.ui.drafts`)
where it is shown, so the way back and a reload send nothing again.

The YAML is edited by `extensions.tools.ui.job_text` and checked by
`extensions.tools.ui.commands`. A job that is started is put into the queue. The page
of a finished run uses parts of this module (`save_new`, `short`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from extensions.tools.shared.effort import EFFORTS, USUAL
from extensions.tools.shared.examples import (
    EXAMPLES,
    MASCOTS,
    MODELS,
    WITHOUT_GPU,
    all_models,
    are_photographs,
    written_job,
)
from extensions.tools.shared.html_page import texts
from extensions.tools.shared.pairs import found_pairs
from extensions.tools.ui import drafts
from extensions.tools.ui.chosen import chosen_file
from extensions.tools.ui.commands import (
    UNCHECKED,
    Checked,
    Key,
    Message,
    check_job,
    import_text,
    keys_of,
    typed,
)
from extensions.tools.ui.datasets import (
    DEFAULT_VIEW,
    names,
    open_dataset,
    read_dataset,
    thumbs,
)
from extensions.tools.ui.job_text import PROMPTS, JobText
from extensions.tools.ui.path import dataset_at, job_name, path_of
from extensions.tools.ui.queue import RUNNING, WAITING, never_ends, queued_tools
from extensions.tools.ui.state import Form, Ui, inside, posted, refusals, render, ui_of
from extensions.tools.ui.views.queue import enqueue
from toolkit.config.reading.loader import folder_name_error
from toolkit.config.reading.located import dotted
from toolkit.config.reading.redacted_copy import saved_text
from toolkit.config.sections.dataset import CAPTION_SUFFIXES
from toolkit.config.sections.model_files import INDEX, hub_cache
from toolkit.contracts.data import PLACEHOLDERS
from toolkit.data.scan.words import usual_word
from toolkit.errors import UserError
from toolkit.files.redact import redact_text
from toolkit.files.writing import (
    CONFIG_SUFFIXES,
    folder_lock,
    open_regular,
    short,
    write_text,
)
from toolkit.memory.estimate import GB
from toolkit.plan.cards import asked_card
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
START = "network.pretrained_lora_path"
WRITTEN = (NAME, FOLDER, TRIGGER, MODEL, CONTROL, INSTRUCTION)
"""Fields whose values `run.py new` takes as well."""

TEXTS = (*WRITTEN, START)
CARDS = (4, 6, 8, 12, 16, 24, 32, 48, 80)
"""GB of the GPUs that a plan is compared with."""

RHYTHM = (NUMBERS[0], *NUMBERS[3:])
"""The numbers that the dial (`effort`) sets."""

KEPT = ("card", "effort", "file", "loaded", "version", "tab", "wanted", "import_text")
"""Values that the form carries in addition to the fields and the YAML."""

DRAFTED = (
    *("card", "effort", "file", "loaded", "version", "wanted", "import_text"),
    *("fields", "shown", "told", "theirs"),
)
"""Values of the editor that a draft keeps, in addition to the YAML and the tab."""

MOST_SHOWN = 14
"""Images of the dataset above the form."""

MOST_CHECKS = 24
"""Results of checks that wait for the redirect which shows them."""

MOST_BYTES = 2**19
"""Maximum size of a job in bytes. Parsing that much YAML takes a second."""

TINY = EXAMPLES / MASCOTS
"""The model that can be trained on any machine. It draws flat mascots only."""

FIELDS = {
    FOLDER: "folder", CONTROL: "control", NAME: "name", TRIGGER: "trigger", INSTRUCTION: "instruction", MODEL: "model",
    START: "start", "card": "card", "prompts": "prompts", **{key: str(number) for number, key in enumerate(NUMBERS, 1)},
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

    effort: str = ""
    """A key of EFFORTS. Empty: the numbers are one's own."""

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

    checked: Checked = UNCHECKED
    import_text: str = ""
    theirs: str | None = None
    """The text of the file, if somebody else has changed it."""

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
        self.shown = {key: _value(self.job, key) for key in keys}
        self.shown |= {"prompts": "\n".join(self.job.prompts()), "card": self.card}
        self.shown["effort"] = self.effort
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


def _value(job: JobText, key: str) -> str:
    """The value of a key as a field shows it: a list of one number as this number."""
    return re.sub(r"^\[([\d. ]+)\]$", r"\1", job.get(job.path(key)))


def _card_here() -> str:
    """GB of the GPU that jobs on this machine are made for. Empty: it has no GPU."""
    gpu = round(least_memory() / GB)
    if gpu:
        return str(max((card for card in CARDS if card <= gpu), default=CARDS[0]))
    return ""


def _card_of(job: JobText) -> str:
    """GB of the card that a plan of the job is for where there is no GPU. Empty: the
    job names none."""
    with suppress(UserError):
        return str(asked_card(_value(job, "card")).memory_gb)
    return ""


# ---------------------------------------------------------------- the first form


def show(request: Request) -> Response:
    """GET /new: a new job, for `dataset` if it is given.

    `example`, `from` (a run) or `job` (a job file) give a copy of another job under a new
    name, and `draft` a form that was sent.
    """
    ui = ui_of(request)
    asked = request.query_params
    if "draft" in asked:
        return _draft(request, asked["draft"])
    editor = Editor(JobText(""), tab=secrets.token_urlsafe(8))
    if "from" in asked:
        run = ui.run(asked["from"])
        if run.config is None:
            raise HTTPException(404, texts()["new"]["no_config"])
        editor.job = _copied(ui, inside(run.folder, run.config.name))
    elif "example" in asked:
        editor.job = _copied(ui, inside(EXAMPLES, asked["example"]))
    elif "job" in asked:
        editor.job = _copied(ui, inside(ui.jobs, asked["job"]))
    else:
        dataset = asked.get("dataset", "")
        editor.card, editor.effort = _card_here(), USUAL
        chosen = chosen_for(ui, dataset) if dataset else {}
        is_small = not (editor.card or are_photographs(chosen.get(FOLDER, "")))
        model = short(TINY) if is_small else MODELS[0].id
        fields = {**_named_after(ui, dataset), MODEL: model, **chosen}
        editor.job = _begun(fields, chosen, editor.card)
    return _page(request, editor, offered=drafts.known(ui))


def _draft(request: Request, id_: str) -> Response:
    """The form as it was sent, checked now unless that was done a moment ago. Raises
    HTTPException 404 for a draft that is not kept any more."""
    ui = ui_of(request)
    known = drafts.read(ui, id_)
    if not isinstance(known.get("yaml"), str):
        raise HTTPException(404, texts()["new"]["draft_gone"])
    values = {key: known[key] for key in DRAFTED if key in known}
    editor = Editor(JobText(known["yaml"]), tab=id_, **values)
    if known.get("keys"):
        editor.keys = _other_keys(ui, editor)
    checked = ui.memory.get("checks", {}).pop(id_, None)
    editor.checked = checked or _checked(ui, editor, id_)
    return _page(request, editor, int(known.get("status", 200)))


def _other_keys(ui: Ui, editor: Editor) -> tuple[Key, ...]:
    """The keys that have no field of their own. Raises RuntimeError as `keys_of`."""
    type_ = editor.job.get(editor.job.path("type")) or "sd_trainer"
    keys = keys_of(ui.memory, type_)
    return tuple(k for k in keys if k.name not in (*TEXTS, *NUMBERS))


def _checked(ui: Ui, editor: Editor, tab: str) -> Checked:
    name = editor.file_name or f"job{_YAML[0]}"
    return check_job(ui.memory, editor.job.text, name, tab, editor.other_card)


def _keep_draft(ui: Ui, editor: Editor, status: int = 200, done: bool = False) -> bool:
    """Keeps the form as a draft. False: it is not kept, because it holds a secret or was
    not sent by the page."""
    values = {key: getattr(editor, key) for key in DRAFTED}
    values |= {
        "yaml": editor.job.text,
        "name": editor.job.get(editor.job.path(NAME)),
        "keys": editor.keys is not None,
        "status": status,
        "done": done,
    }
    is_secret = without_secrets(editor.job.text).text != editor.job.text
    return not is_secret and drafts.keep(ui, editor.tab, values)


def _copied(ui: Ui, path: Path) -> JobText:
    """The job of a file under a new name."""
    job = without_secrets(read_job(path))
    name = job.get(job.path(NAME))
    new = unused_name(ui, name)
    try:
        return _comments_of(job.set(job.path(NAME), new, True), name, new)
    except ValueError:  # the file is not a job, and the check will say so
        return job


def _named_after(ui: Ui, dataset: str) -> dict[str, str]:
    """Name and trigger word of a new job. dataset: empty: it has none."""
    name = job_name(dataset)
    return {NAME: unused_name(ui, name), TRIGGER: _unknown_word(name)}


def _begun(fields: Mapping[str, str], chosen: Mapping[str, str], card: str) -> JobText:
    """The new job of a dataset, with the fields of the form (TEXTS), and further keys
    that were chosen on the page of the dataset (`chosen_for`). Raises UserError as
    `written_job` does."""
    values = {**chosen, **{key: fields.get(key, "") for key in (*TEXTS, "effort")}}
    job = _made(values, card)
    for key in chosen:
        if _listed(job.get(job.path(key))) != _listed(values[key]):
            job = _put(job, key, values[key], key in TEXTS)
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
    word = data.view["trigger"]
    if not (word or data.is_pairs):  # pairs begin with what is to be done
        word, _ = usual_word([each.caption for each in data.images if each.caption])
    if (word and word not in PLACEHOLDERS) or data.is_pairs:
        chosen[TRIGGER] = word
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
    """As `typed`; a list of one text as this text."""
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    return typed(value)


def opened(request: Request) -> Response:
    """GET /jobs/{file}: the editor with a job file of the page's folder."""
    ui = ui_of(request)
    name = request.path_params["file"]
    text = read_job(inside(ui.jobs, name))
    editor = Editor(
        without_secrets(text),
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


def without_secrets(text: str) -> JobText:
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

    here = rf"(?m)(#.*)(?<=[\s/]){copied_from}"
    return JobText(re.sub(here, lambda at: f"{at[1]}{folder}/{new}/", job.text))


def _unknown_word(name: str) -> str:
    """A trigger word that no model knows, made from a name: `annsmt` of Anna Smith.

    With the name of a real person the model would also draw whom it knows by that name,
    and the parts of a name are separate words in a prompt.
    """
    letters = "".join(re.findall(r"[a-z0-9]", name.lower()))
    return (letters[:1] + re.sub(r"[aeiou]", "", letters[1:]))[:6].ljust(4, "x")


def unused_name(ui: Ui, name: str) -> str:
    """A name like this one that no run and no job file has."""
    stem = re.sub(r"_\d+$", "", name)
    for candidate in (name, *(f"{stem}_{number}" for number in range(2, 10_000))):
        file = ui.jobs / f"{candidate}{_YAML[0]}"
        if not file.exists() and not (ui.output / candidate).exists():
            return candidate
    return name


# ---------------------------------------------------------------- what is sent


@posted(files=1, fields=2000, part_size=MOST_BYTES)
def act(request: Request, sent: Form) -> Response:
    """POST /new: a button of the form (`BUTTONS`), or a change in it."""
    action, _, key = sent.get("action", "").partition(":")
    return BUTTONS.get(action, check)(request, sent, key)


def check(
    request: Request, sent: Form, key: str = "", also: Mapping[str, str] = {}
) -> Response:
    """A change: the form comes back checked. also: fields that a button sets."""
    sent |= also
    return _checked_form(request, _edited(ui_of(request), sent))


def look(request: Request, sent: Form, key: str) -> Response:
    """The script checks a form that nobody has touched, which is not a draft."""
    ui = ui_of(request)
    editor = _edited(ui, sent)
    editor.checked = _checked(ui, editor, editor.tab)
    return _page(request, editor)


def search(request: Request, sent: Form, key: str) -> Response:
    """All other keys, with the words that were typed, or a key in a message."""
    wanted = key or sent.get("wanted", "")
    return check(request, sent, also={"all": "1", "wanted": wanted})


def take_small(request: Request, sent: Form, key: str) -> Response:
    """The small model, which the plan has offered."""
    return check(request, sent, also={f"other:{MODEL}": short(TINY)})


def rename(request: Request, sent: Form, key: str) -> Response:
    """A new job file with an unused name."""
    name = unused_name(ui_of(request), sent.get(f"key:{NAME}", ""))
    fields = {f"key:{NAME}": name, "file": "", "loaded": "", "version": ""}
    return check(request, sent, also=fields)


def take_import(request: Request, sent: Form, key: str) -> Response:
    """The job that a file or command of another program becomes."""
    editor = _edited(ui_of(request), sent)
    upload = sent.data.get("import_file")
    content, name = editor.import_text, ""
    if isinstance(upload, UploadFile) and upload.filename:
        name = upload.filename
        content = upload.file.read().decode("utf-8", "replace") or content
    _import(editor, content, name)
    return _checked_form(request, editor)


def discard(request: Request, sent: Form, key: str) -> Response:
    """Removes a draft."""
    drafts.drop(ui_of(request), key)
    return RedirectResponse("/new", 303)


def finish(request: Request, sent: Form, key: str, starts: bool = False) -> Response:
    """Saves the job, and starts it if it `starts`; or the form says why not."""
    ui = ui_of(request)
    editor = _edited(ui, sent)
    _keep_draft(ui, editor)  # first, as the check takes its time
    # No later check of the tab may end the one before a start.
    editor.checked = _checked(ui, editor, "")
    try:
        answer = _save_job(ui, editor, starts)
    except HTTPException as error:
        editor.told.append(error.detail)
        status = error.status_code
        return _answer(request, editor, _keep_draft(ui, editor, status), status)
    _keep_draft(ui, editor, done=True)
    return answer


BUTTONS: dict[str, Callable[[Request, Form, str], Response]] = {
    "look": look,
    "search": search,
    "small": take_small,
    "rename": rename,
    "import": take_import,
    "discard": discard,
    "save": finish,
    "start": partial(finish, starts=True),
}
"""Value of a button -> what it does, with what follows a colon in that value."""


def _edited(ui: Ui, sent: Form) -> Editor:
    """The editor of a form, with its changes in the text."""
    carried: dict[str, Any] = {key: sent.get(key, "").strip() for key in KEPT}
    editor = Editor(JobText(sent.get("yaml", "")), **carried)
    try:
        if editor.wanted or sent.get("all"):
            editor.keys = _other_keys(ui, editor)
        _take(ui, editor, sent)
    except RuntimeError as error:
        editor.told.append(str(error))
    return editor


def _checked_form(request: Request, editor: Editor) -> Response:
    ui = ui_of(request)
    is_kept = _keep_draft(ui, editor)  # first, as the check takes its time
    editor.checked = _checked(ui, editor, editor.tab)
    return _answer(request, editor, is_kept)


def _answer(
    request: Request, editor: Editor, is_kept: bool, status: int = 200
) -> Response:
    """The form: a redirect to its draft, or the page itself where none is kept."""
    if not is_kept:
        editor.told += [texts()["new"]["not_kept"]] if editor.tab else []
        return _page(request, editor, status)
    checks: dict[str, Checked] = ui_of(request).memory.setdefault("checks", {})
    checks[editor.tab] = editor.checked
    for old in [*checks][:-MOST_CHECKS]:
        checks.pop(old, None)
    return RedirectResponse(f"/new?draft={editor.tab}", 303)


def _save_job(ui: Ui, editor: Editor, starts: bool) -> Response:
    """Saves a job, and puts it into the queue if it `starts`. Raises HTTPException for
    one that cannot be saved or would not start."""
    words = texts()["new"]
    plan = editor.checked.plan
    if not editor.file_name:
        raise HTTPException(400, words["bad_file"])
    if starts and (plan is None or why_not_started(plan)):
        raise HTTPException(400, words["not_started"])
    path = save(ui, editor, editor.file_name)
    if not (starts and plan):
        return RedirectResponse(f"/jobs/{path.name}", 303)
    # If the text is new, a running entry has read another one.
    same = (WAITING, RUNNING) if editor.is_as_saved else (WAITING,)
    entry = enqueue(ui, [str(path)], plan["job"], unless=same)
    return RedirectResponse(f"/queue/{entry.id}", 303)


@dataclass(frozen=True)
class Change:
    """The value that a field of the form was shown with, and the one that it has."""

    shown: str
    sent: str


def _take(ui: Ui, editor: Editor, sent: Mapping[str, str]) -> None:
    """Applies the changes of the form to the text. Changes that cannot be applied are
    reported and stay in their fields."""
    given = _given(sent)
    try:
        shown = json.loads(sent["shown"])
        editor.shown = {str(key): str(value) for key, value in shown.items()}
    except (KeyError, ValueError, AttributeError, RecursionError):
        editor.shown = given  # the form is not from this page
    if editor.job.root is None:
        editor.fields = given
        return
    changes = _changes(ui, editor, given)
    if {MODEL, "card", FOLDER, CONTROL} & changes.keys():
        with suppress(UserError, OSError, ValueError):  # the check reports a bad model
            editor.job = _remade(ui, editor.job, editor.shown, _now(editor, changes))
    rank, alpha = editor.job.path(RANK), editor.job.path("network.linear_alpha")
    is_equal = editor.job.get(rank) == editor.job.get(alpha)
    if RANK in changes and is_equal and changes[RANK].sent.strip():
        with suppress(ValueError):  # both stay equal, and so does the strength
            editor.job = editor.job.set(alpha, changes[RANK].sent, False)
    kinds = {key.name: key.is_text for key in editor.keys or ()}
    for key, change in changes.items():
        try:
            is_text = key in TEXTS or kinds.get(key, False)
            editor.job = _put(editor.job, key, change.sent, is_text)
        except ValueError:
            editor.fields[key] = change.sent
    if editor.fields:
        editor.told.append(
            texts()["new"]["by_hand"].format(keys=", ".join(editor.fields))
        )


def _given(sent: Mapping[str, str]) -> dict[str, str]:
    """Field -> its value as it was sent."""
    given = {
        key.removeprefix("key:"): value
        for key, value in sent.items()
        if key.startswith("key:")
    }
    given |= {key: sent[key] for key in ("prompts", "card", "effort") if key in sent}
    others = {
        key: sent.get(f"other:{key}", "").strip()
        for key in (FOLDER, CONTROL, MODEL, START)
    }
    return given | {key: value for key, value in others.items() if value}


def _changes(ui: Ui, editor: Editor, given: Mapping[str, str]) -> dict[str, Change]:
    """Field -> its change: by hand, then what follows such a change or the dial."""

    def found(values: Mapping[str, str]) -> dict[str, Change]:
        return {
            key: Change(editor.shown.get(key, ""), value)
            for key, value in values.items()
            if _words(value) != _words(editor.shown.get(key, ""))
        }

    changes = found(given)
    changes = changes | found(_following(ui, editor, changes)) | changes
    now = _now(editor, changes)
    if "effort" in changes and now["effort"]:
        with suppress(UserError, OSError, ValueError):
            new = _begun(now, _chosen_in(ui, now.get(FOLDER, "")), now.get("card", ""))
            numbers = {key: Change("", new.get(new.path(key))) for key in RHYTHM}
            changes = numbers | changes
    elif any(
        editor.job.get(editor.job.path(key)) != editor.shown.get(key) or key in changes
        for key in RHYTHM
    ):
        editor.effort = ""
    return changes


def _now(editor: Editor, changes: Mapping[str, Change]) -> dict[str, str]:
    """The values of all fields after these changes."""
    return editor.shown | {key: change.sent for key, change in changes.items()}


def _following(ui: Ui, editor: Editor, changes: Mapping[str, Change]) -> dict[str, str]:
    """Fields that follow a change of the images or of the control images: field ->
    value. Name and trigger word follow while they are those of a new job."""
    was = editor.shown
    if CONTROL in changes:
        word = was.get(TRIGGER, "") or _unknown_word(was.get(NAME, ""))
        return {TRIGGER: "" if changes[CONTROL].sent else word}
    if FOLDER not in changes:
        return {}
    before, after = (
        _named_after(ui, _set_of(ui, folder)) | _chosen_in(ui, folder)
        for folder in (changes[FOLDER].shown, changes[FOLDER].sent)
    )
    fields = {key: after.get(key, "") for key in (CONTROL, INSTRUCTION)}
    get, path = editor.job.get, editor.job.path
    return fields | {
        key: after[key] for key in (NAME, TRIGGER) if get(path(key)) == before[key]
    }


def _set_of(ui: Ui, folder: str) -> str:
    """Name of the dataset of a folder. Any other folder has its own name."""
    known = {keys["folder_path"]: name for name, keys in _sets(ui).items()}
    return known.get(folder, Path(folder).name)


def _chosen_in(ui: Ui, folder: str) -> dict[str, str]:
    """As `chosen_for`, for a folder of images. Empty: it is not a dataset's."""
    name = _set_of(ui, folder)
    chosen = chosen_for(ui, name) if name in _sets(ui) else {}
    return chosen if chosen.get(FOLDER) == folder else {}


def _words(value: str) -> list[list[str]]:
    """The words of each line that has any: texts with the same words are the same."""
    return [line.split() for line in value.splitlines() if line.strip()]


def _put(job: JobText, key: str, value: str, is_text: bool) -> JobText:
    """The job with the value of a field. An empty value removes the key. Raises
    ValueError as `JobText.set` does."""
    if key in ("card", "effort"):
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
        fields.get(key, "") for key in WRITTEN
    )
    is_suffixed = "datasets[].image_suffix" in fields
    suffix = "" if is_suffixed else fields.get("datasets[].control_suffix", "")
    pairs = found_pairs(folder, _listed(control), _listed(suffix)) if folder else None
    gpu = int(card) if card in map(str, CARDS) else WITHOUT_GPU
    trigger = trigger or ("" if pairs else name)
    effort = fields.get("effort", "")
    asked = effort if effort in EFFORTS else USUAL
    return JobText(
        written_job(name, folder, trigger, model, gpu, pairs, instruction, asked)
    )


def _listed(value: str) -> list[str]:
    """The texts of a field that contains one text, or a list of texts as YAML."""
    items = JobText(f"value: {value}").data(("value",)) if value[:1] == "[" else value
    return [
        str(item) for item in (items if isinstance(items, list) else [items]) if item
    ]


def _remade(
    ui: Ui, job: JobText, was: Mapping[str, str], now: Mapping[str, str]
) -> JobText:
    """The job for other images, another model or GPU.

    Values that are still as they were written for the old one are replaced by the values
    for the new one. If nobody has edited the job, that is all of it. Raises UserError as
    `written_job` does.
    """
    new = _begun(now, _chosen_in(ui, now.get(FOLDER, "")), now.get("card", ""))
    chosen = _chosen_in(ui, was.get(FOLDER, ""))
    # A job of no card was written for WITHOUT_GPU.
    cards = [was["card"]] if was.get("card") else map(str, (WITHOUT_GPU, *CARDS))
    befores = []
    for card in cards:
        # The GPU is too small for that model, or a list was edited.
        with suppress(UserError, ValueError):
            filled = [_begun(was, chosen, card), new]
            befores.append(filled[0].leaves())
            for key in _typed_keys(filled[0], was):
                typed = was.get(key, "")
                filled = [_put(text, key, typed, key in TEXTS) for text in filled]
            if filled[0].text.split() == job.text.split():
                return filled[1]
    after = new.leaves()
    for path in dict.fromkeys(chain(*befores, after)):
        value = after.get(path)
        of_job = path
        if path[:2] == ("config", "process"):
            # The job may have other processes before the one that trains.
            of_job = (*path[:2], job.trainer, *path[3:])
        now_is = job.data(of_job)
        if now_is == value or now_is not in [before.get(path) for before in befores]:
            continue
        with suppress(ValueError):  # the list that contains it was edited
            if path in after:
                job = job.set(of_job, _as_typed(value), isinstance(value, str))
            else:
                job = job.remove(of_job)
    return job


def _typed_keys(old: JobText, was: Mapping[str, str]) -> list[str]:
    """The fields of the form that a user has changed in a job that was written as
    `old`."""
    typed = (*NUMBERS, START)
    keys = [key for key in typed if was.get(key, "") != _value(old, key)]
    if _words(was.get("prompts", "")) != _words("\n".join(old.prompts())):
        keys.append("prompts")
    return keys


def _import(editor: Editor, content: str, file_name: str) -> None:
    """Converts a file or command of another program, and puts the job into the
    editor."""
    job_text, messages = import_text(content, file_name)
    job = JobText(job_text)
    if job.root is not None:
        editor.job = job
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
    with refusals(), folder_lock(ui.jobs):
        if path.exists() or path.is_symlink():
            theirs = read_job(path)
            editor.is_as_saved = editor.job.text == theirs
            is_loaded = name == editor.loaded and _hash(theirs) == editor.version
            if not editor.is_as_saved and not is_loaded:
                editor.theirs = theirs
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
    taken = texts()["new"]["taken"].format(name=plan["job"])
    # A job is done when all of its runs are finished.
    reasons = [taken] if _beginnings(plan) == {"complete"} else []
    for process in plan["processes"]:
        reasons += process.get("will_not_start", ())
    return [*reasons, *filter(None, [never_ends(plan)])]


def _beginnings(plan: Mapping[str, Any]) -> set[str]:
    """How a start would begin the runs of a job, in the words of `StartOutlook`."""
    processes = plan["processes"]
    return {each["start"]["what"] for each in processes if each.get("start")}


# ---------------------------------------------------------------- what is shown


def _page(
    request: Request,
    editor: Editor,
    status: int = 200,
    offered: Sequence[tuple[str, dict[str, Any]]] = (),
) -> Response:
    """offered: drafts to go on with."""
    ui = ui_of(request)
    editor.read()
    if keys := editor.keys:
        wanted = editor.wanted.lower()
        editor.keys = tuple(k for k in keys if wanted in f"{k.name} {k.about}".lower())
    plan = editor.checked.plan
    refusals = why_not_started(plan) if plan else []
    needs_gpu = []
    if any(TO_TRY in reason for reason in refusals):  # what else it lacks is moot here
        taken = texts()["new"]["taken"].partition("{")[0]
        needs_gpu = [reason for reason in refusals if not reason.startswith(taken)]
    is_taken = plan and {"complete", "refused"} & _beginnings(plan)
    if plan:
        plan = plan | {"processes": [_PROCESS | each for each in plan["processes"]]}
    faults, errors = _errors_by_field(editor)
    sets: dict[str, dict[str, Any]] = ui.shared("sets", partial(_sets, ui))
    controls = {
        place: os.path.relpath(place, ui.datasets)
        for keys_of_set in sets.values()
        for place in keys_of_set.get("control_path", (keys_of_set["folder_path"],))
    }
    data = dataset_at(ui, editor.fields.get(FOLDER, ""))
    data = read_dataset(ui, data.name) if data else None
    is_tiny = Path(editor.fields.get(MODEL, "")).name == MASCOTS
    is_warned = is_tiny and are_photographs(editor.fields.get(FOLDER, ""))
    jobs = [path for path in ui.jobs.glob("*") if path.suffix in _YAML]
    return render(
        request,
        "new.html.j2",
        status,
        e=editor,
        offered=offered,
        path=path_of(data, "job"),
        images=[thumbs(data, image) for image in data.images[:MOST_SHOWN]]
        if data
        else [],
        image_count=len(data.images) if data else 0,
        efforts=EFFORTS,
        faults=faults,
        errors=errors,
        focus=next(filter(None, faults), "") if status == 400 else "",
        hints={MODEL: texts()["new"]["tiny_of_photographs"]} if is_warned else {},
        plan=plan,
        refusals=[reason for reason in refusals if reason not in needs_gpu],
        needs_gpu=needs_gpu,
        main=next((each for each in reversed(plan["processes"]) if each["start"]), None)
        if plan
        else None,
        card_gb=int(editor.other_card or _card_here() or _card_of(editor.job) or 0),
        memory_parts=_memory_parts,
        card_name=lambda card: re.sub("^an? ", "", card).replace(
            " ", "\N{NO-BREAK SPACE}"
        ),
        done_at=lambda seconds: datetime.now(UTC) + timedelta(seconds=seconds),
        plain=plain,
        words_of=_words_of,
        ids={
            field_: f"f-{name}"
            for field_, name in FIELDS.items()
            if "." in field_ or field_ == TRIGGER
        },
        free_name=unused_name(ui, plan["job"]) if plan and is_taken else "",
        has_download="download" in queued_tools(),
        cards=CARDS,
        is_here=least_memory() > 0 and not editor.other_card,
        has_gpu=least_memory() > 0,
        gb=GB,
        numbers=NUMBERS,
        folders=[(keys["folder_path"], name) for name, keys in sets.items()],
        controls=[*controls.items()],
        models=ui.shared("models", partial(_models, ui)),
        loras=ui.kept("loras", partial(_loras, ui)),
        jobs=sorted(path.name for path in jobs if path.is_file()),
        examples=sorted(path.name for path in EXAMPLES.glob(f"*{_YAML[0]}")),
    )


def _memory_parts(memory: Mapping[str, Any]) -> dict[str, int]:
    """What fills the GPU at its peak: part -> bytes, by the groups of the page."""
    groups: dict[str, str] = texts()["new"]["memory_parts"]["of"]
    parts = {"model": 0, "step": 0, "lora": 0}
    for name, size in memory["phases"].get(memory["device_phase"], {}).items():
        parts[groups.get(name, "step")] += size
    return {part: size for part, size in parts.items() if size}


def plain(line: str) -> str:
    """A warning of the plan in one sentence without numbers of the program. Empty: it is
    said best as it is."""
    for pattern, sentence in texts()["new"]["plain"].items():
        if found := re.search(pattern, line):
            return str(sentence).format(*found.groups())
    return ""


_PROCESS = dict.fromkeys(("start", "time", "no_time", "disk", "model", "memory"))
"""Keys of a process in the plan that the template names."""


def _errors_by_field(
    editor: Editor,
) -> tuple[dict[str, str], list[tuple[Message, str, str]]]:
    """The errors of the check: field -> text, and each message with the id and the
    label of its field. An empty field belongs to no field of the form."""
    faults = dict[str, str]()
    errors = []
    places = {dotted(editor.job.path(key)): key for key in editor.fields}
    places |= {dotted(editor.job.path(".".join(path))): "prompts" for path in PROMPTS}
    field_ = ""
    for message in editor.checked.errors:
        if field_ and not (message.key or message.line):
            # It is about a file of the folder that the error before names.
            faults[field_] += f"\n{message.message}"
        else:
            field_ = _field_of(message, places, bool(editor.fields.get(FOLDER)))
            missing = _words_of(field_).get("missing")
            if missing and not editor.fields.get(field_, "").strip():
                message = replace(message, message=missing)
            faults.setdefault(field_, message.message)
        label = _words_of(field_).get("label", "")
        errors.append((message, FIELDS.get(field_, ""), label))
    return faults, errors


def _field_of(message: Message, places: Mapping[str, str], has_folder: bool) -> str:
    """The field of the form that a message is about. Empty: it has none. places: key of
    the job -> field."""
    if not has_folder and re.search(r"(^|\.)datasets(\[0\])?$", message.place):
        return FOLDER
    for place, key in places.items():
        if re.match(rf"{re.escape(place)}(\W|$)", message.place):
            return key
    return ""


def _words_of(key: str) -> dict[str, str]:
    """The texts of a field of the form: its label and help."""
    fields: dict[str, dict[str, str]] = texts()["new"]["fields"]
    return fields.get(FIELDS.get(key, ""), fields.get(key, {}))


def _sets(ui: Ui) -> dict[str, dict[str, Any]]:
    """Name of a dataset -> its section of a job (`Dataset.section`). Empty where their
    folder cannot be read."""
    sets: dict[str, dict[str, Any]] = {}
    try:
        known = names(ui)
    except HTTPException:
        return sets
    for name in known:
        with suppress(HTTPException):
            sets[name] = open_dataset(ui, name, names_only=True).section()
    return sets


def _models(ui: Ui) -> dict[str, list[tuple[str, str]]]:
    """The models on this machine (`here`) and the published ones: the name in a job, and
    the title."""
    near = chain(
        [TINY / INDEX],
        Path("models").glob(f"*/{INDEX}"),
        ui.output.glob(f"*/{INDEX}"),
        ui.output.glob(f"*/*/{INDEX}"),
    )
    here = [short(index.parent) for index in near if index.is_file()]
    cached = hub_cache().glob(f"models--*/snapshots/*/{INDEX}")
    folders = sorted({index.parents[2].name for index in cached})
    here += [name.removeprefix("models--").replace("--", "/") for name in folders]
    titles = {model.id: model.title for model in all_models()}
    published = [(id_, title) for id_, title in titles.items() if id_ not in here]
    titles[short(TINY)] = texts()["new"]["tiny"]
    known = [(name, titles.get(name, name)) for name in dict.fromkeys(here)]
    return {"here": known, "published": published}


def _loras(ui: Ui) -> list[tuple[str, str]]:
    """The LoRA file of each run that its page recommends: the path in a job, and the
    title."""
    files = filter(None, (chosen_file(run.folder) for run in ui.runs()))
    return [
        (short(file.path), f"{file.path.parent.name}: {file.name}") for file in files
    ]
