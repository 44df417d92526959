"""The machine, the page's own settings, and whether it lives."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from extensions.tools.ui.state import THEME_COOKIE, THEMES


def healthz(request: Request) -> Response:
    """For a supervisor: the page is up."""
    return PlainTextResponse("ok\n")


async def set_theme(request: Request) -> Response:
    """Light, dark, or as the system has it; then back to the page where it was chosen."""
    form = await request.form(max_files=0, max_fields=5)
    theme = str(form.get("theme", ""))
    answer = RedirectResponse(_local(str(form.get("back", "/"))), 303)
    answer.set_cookie(THEME_COOKIE, theme if theme in THEMES else THEMES[0], 10**8, samesite="strict")
    return answer


def _local(address: str) -> str:
    """An address of this server, whatever was given."""
    return "/" + address.lstrip("/\\") if address.isprintable() else "/"
