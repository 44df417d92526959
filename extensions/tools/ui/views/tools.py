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
    """All tools, each with what it is for."""
    return render(request, "tools.html.j2", tools=_tools(ui_of(request)))


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
        field["key"]: _given(
            field, [str(text) for text in form.data.getlist(field["key"])]
        )
        for field in fields
    }
    missing = texts()["tools"]["required"]
    wrong = [
        (field["key"], missing)
        for field in fields
        if field["required"] and (not given[field["key"]])
    ]
    argv = []
    for f in fields:
        if given[f["key"]] != _default(f):
            for text in given[f["key"]]:
                argv.append(f"{f['flag']}={text}")
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
        if sent:
            return [str("true" in sent).lower()]
        return _default(field)
    texts_ = []
    for text in sent:
        for line in text.splitlines() if field["many"] else [text]:
            texts_.append(line)
    return [text.strip() for text in texts_ if text.strip()]


def _default(field: Field) -> list[str]:
    return [text for text in field["default"] if text]


def _form(
    request: Request, given: dict[str, list[str]], wrong: Any = (), code: int = 200
) -> Response:
    """given: key -> its texts. wrong: (flag or key, message)."""
    ui = ui_of(request)
    uid = request.path_params["uid"]
    tool = _tool(ui, uid)
    mistakes: dict[str, list[str]] = {}
    for place, message in wrong:
        named = [
            field["key"]
            for field in tool["fields"]
            if place and place in (field["key"], field["flag"])
        ]
        mistakes.setdefault(named[0] if named else "", []).append(message)
    fields = tool["fields"]
    values = {
        field["key"]: given.get(field["key"], _default(field)) for field in fields
    }
    first = [field for field in fields if field["required"]]
    first = first or [field for field in fields if not field["is_deep"]][:MOST_FIRST]
    first += [
        f
        for f in fields
        if f not in first and (values[f["key"]] != _default(f) or f["key"] in mistakes)
    ]
    shown = {"uid": uid, "tool": tool, "values": values, "mistakes": mistakes}
    shown |= {"groups": (first, [field for field in fields if field not in first])}
    return render(
        request,
        "tool.html.j2",
        code,
        **shown,
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
