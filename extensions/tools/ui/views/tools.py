"""The pages /tools and /tools/{uid}: each tool of the command line as a form.

A form is checked as the command line would check it, and its command is then put into
the queue. The forms are described by `extensions.tools.ui.forms`, which runs in a
separate process. No tool runs in the page.

`extensions.tools.ui.app` serves the views. `extensions.tools.ui.views.after` calls
`asked` to check its own command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from extensions.tools.shared.html_page import texts
from extensions.tools.ui.forms import Field, ask, suggestions
from extensions.tools.ui.queue import WAITING
from extensions.tools.ui.state import Form, Ui, posted, render, ui_of
from extensions.tools.ui.views.queue import queue_of
from toolkit.errors import RunError, UserError

MOST_FIELDS = 400
MOST_FIRST = 7
"""Fields that are shown at first of a tool that needs none."""


def index(request: Request) -> Response:
    """All tools, each with what it is for, by what a person wants."""
    tools = _tools(ui_of(request))
    of = texts()["tools"]["of"]
    groups = {
        group: {uid: tools[uid] for uid in uids if uid in tools}
        for group, uids in of.items()
    }
    known = {uid for uids in of.values() for uid in uids}
    rest = {uid: tool for uid, tool in tools.items() if uid not in known}
    return render(request, "tools.html.j2", groups=groups | {"rest": rest})


def show(request: Request) -> Response:
    """The form of one; the address may fill fields:
    `/tools/grid?lora=a.safetensors&lora=b.safetensors`."""
    return _form(
        request,
        {key: request.query_params.getlist(key) for key in request.query_params},
    )


@posted(fields=MOST_FIELDS)
def send(request: Request, form: Form) -> Response:
    """Checks a form and puts its command into the queue; with mistakes it is shown
    again."""
    ui = ui_of(request)
    uid = request.path_params["uid"]
    fields = _tool(ui, uid)["fields"]
    given = {
        f["key"]: _given(f, [str(text) for text in form.data.getlist(f["key"])])
        for f in fields
    }
    missing = texts()["tools"]["required"]
    wrong = [
        (f["key"], missing) for f in fields if f["required"] and not given[f["key"]]
    ]
    argv = [
        f"{f['flag']}={text}"
        for f in fields
        if given[f["key"]] != _default(f)
        for text in given[f["key"]]
    ]
    try:
        wrong = wrong or asked({"uid": uid, "argv": argv})
        if not wrong:
            first = next((Path(text.partition("=")[2]).name for text in argv), "")
            queue_of(ui).add([uid, *argv], f"{uid} {first}", unless=(WAITING,))
    except UserError as error:
        wrong = [("", str(error))]
    if wrong:
        return _form(request, given, wrong, 400)
    queue_of(ui).start_runner()
    return RedirectResponse("/queue", 303)


def _given(field: Field, sent: list[str]) -> list[str]:
    """The values of a field, one for each flag."""
    # the form sends false, and true besides where its box is checked
    if field["kind"] == "bool":
        return [str("true" in sent).lower()] if sent else _default(field)
    if field["many"]:
        sent = [line for text in sent for line in text.splitlines()]
    return [text.strip() for text in sent if text.strip()]


def _default(field: Field) -> list[str]:
    return [text for text in field["default"] if text]


def _form(
    request: Request, given: dict[str, list[str]], wrong: Any = (), code: int = 200
) -> Response:
    """given: key -> its texts. wrong: (flag or key, message)."""
    ui = ui_of(request)
    uid = request.path_params["uid"]
    tool = _tool(ui, uid)
    fields = tool["fields"]
    places = {place: f["key"] for f in fields for place in (f["flag"], f["key"])}
    mistakes: dict[str, list[str]] = {}
    for place, message in wrong:
        mistakes.setdefault(places.get(place, ""), []).append(message)
    values = {f["key"]: given.get(f["key"], _default(f)) for f in fields}
    chosen = texts()["tools"]["first"].get(uid, ())
    by_key = {field["key"]: field for field in fields}
    first = [by_key[key] for key in chosen if key in by_key]
    first = first or [field for field in fields if field["required"]]
    first = first or [field for field in fields if not field["is_deep"]][:MOST_FIRST]
    first += [
        f
        for f in fields
        if f not in first and (values[f["key"]] != _default(f) or f["key"] in mistakes)
    ]
    return render(
        request,
        "tool.html.j2",
        code,
        uid=uid,
        tool=tool,
        values=values,
        mistakes=mistakes,
        groups=(first, [field for field in fields if field not in first]),
        places=suggestions(ui.runs(), ui.datasets),
    )


def _tool(ui: Ui, uid: str) -> Any:
    """Raises HTTPException 404 for an unknown one."""
    try:
        return _tools(ui)[uid]
    except KeyError as error:
        raise HTTPException(404, f"tool {uid!r}") from error


def _tools(ui: Ui) -> dict[str, Any]:
    if "tools" not in ui.memory:
        ui.memory["tools"] = asked(None)
    tools: dict[str, Any] = ui.memory["tools"]
    return tools


def asked(request: dict[str, object] | None) -> Any:
    """What the tools' own process says of a form, as `forms.ask`. Raises HTTPException
    503 where it does not answer."""
    try:
        return ask(request)
    except RunError as error:
        raise HTTPException(503, str(error)) from error
