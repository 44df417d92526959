"""The access control of the page: every request is checked before a view sees it.

A token is sent as `Authorization: Bearer`, once as `?token=` (the answer sets a cookie
and redirects to the address without the token), or with the login form. The cookie is
derived from the token: it stays valid after a restart of the page with the same token,
and becomes invalid with a new one, which a page without a token of its own makes at each
start. Without any (`--no-token`) the page listens on this machine only.

The Host and Origin headers are checked in both cases, so a foreign page in the same
browser can neither read (DNS rebinding) nor change anything (cross-site requests).
There are no users and no rights: whoever has the token may do everything.

`extensions.tools.ui.app` puts the guard around the application.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import time
from collections import deque
from collections.abc import Callable
from urllib.parse import quote, urlencode

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from extensions.tools.ui.state import whole

COOKIE = "atelier_session"
COOKIE_S = 30 * 24 * 3600
OPEN = ("/healthz", "/login")
"""Addresses that need no token, besides the program's own files in /static/."""

HOSTS_VARIABLE = "APP_HOSTS"
"""Environment variable with further host names of this server, separated by commas."""

MOST_BYTES = 40 * 2**20
"""Maximum size of a request in bytes. Images are sent in smaller pieces."""

MOST_PATH = 4000
"""Maximum length of the path of an address. Python reads no number of more than 4,300
digits."""

MOST_FAILURES, FAILURES_S = 10, 60.0
"""A client that has sent so many wrong tokens in so many seconds has to wait."""

LoginPage = Callable[[Request, int, str], Response]

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; "
    "manifest-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers of every response. A page runs only the program's own scripts and loads
nothing from elsewhere."""


def session_of(token: str) -> str:
    """The value of the cookie that stands for the token: a keyed hash.

    >>> len(session_of("a long secret"))
    64
    """
    return hmac.new(token.encode(), b"atelier session 1", hashlib.sha256).hexdigest()


class Guard:
    """ASGI middleware that refuses requests without the token and from other sites.

    Example::

        guard = Middleware(Guard, token=ui.token, login_page=login_page)
        app = Starlette(routes=ROUTES, middleware=[guard])
    """

    def __init__(self, app: ASGIApp, token: str, login_page: LoginPage) -> None:
        """token: empty: none is asked for. login_page: makes the login page from the
        request, the status, and the key of the text that says what went wrong."""
        self._app = app
        self._login_page = login_page
        self._token = token.encode()
        self._session = session_of(token) if token else ""
        given = os.environ.get(HOSTS_VARIABLE, "").lower().split(",")
        self._hosts = {"localhost", *(name.strip() for name in given if name.strip())}
        self._failures: dict[str, deque[float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        request = Request(scope, _limited(receive))
        answer = self._refusal(request)
        if not answer and scope["path"] == "/login":
            answer = await self._login(request)
        await (answer or self._app)(scope, request.receive, _with_headers(send))

    def _refusal(self, request: Request) -> Response | None:
        """The answer to a request that is refused or redirected. None: the request may
        pass."""
        if not self._is_own_host(request.headers.get("host", "")):
            return PlainTextResponse(
                f"unknown Host; name it in {HOSTS_VARIABLE}\n", 421
            )
        if (whole(request.headers.get("content-length", "")) or 0) > MOST_BYTES:
            return PlainTextResponse("too large\n", 413)
        # The path that the routes see. `request.url` also contains the Host header.
        path = request.scope["path"]
        if len(path) > MOST_PATH:
            return PlainTextResponse("too long\n", 414)
        is_open = path in OPEN or path.startswith("/static/")
        if not (self._is_opened(request) or self._is_from_here(request)):
            return PlainTextResponse("asked for by another site\n", 403)
        if not self._token or is_open:
            return None
        sessions = (request.cookies.get(name, "") for name in _cookies(request))
        if any(
            hmac.compare_digest(s.encode(), self._session.encode()) for s in sessions
        ):
            return self._without_token(request)
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_bearer = scheme.lower() == "bearer"
        if not is_bearer:
            is_get = request.method == "GET"
            given = request.query_params.get("token", "") if is_get else ""
        if given and self._accepts(request, given):
            if is_bearer:
                return None
            return self._logged_in(request, self._without_token(request))
        if given and self._waits(request):
            return PlainTextResponse(
                "too many wrong tokens; wait a minute\n", 429, {"retry-after": "60"}
            )
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return self._login_page(request, 401, "wrong" if given else "")
        return PlainTextResponse(
            "a token is needed\n", 401, {"www-authenticate": "Bearer"}
        )

    async def _login(self, request: Request) -> Response:
        """The login form (GET), and the check of the token that it sends (POST)."""
        if not self._token:
            return RedirectResponse("/", 303)
        if request.method != "POST":
            return self._login_page(request, 200, "")
        try:
            given = (await request.form(max_files=0, max_fields=5)).get("token", "")
        except HTTPException as error:
            # A broken form. The application's own handlers do not see this request.
            return PlainTextResponse(f"{error.detail}\n", error.status_code)
        if self._accepts(request, str(given)):
            return self._logged_in(request)
        waits = self._waits(request)
        return self._login_page(
            request, 429 if waits else 401, "wait" if waits else "wrong"
        )

    def _accepts(self, request: HTTPConnection, given: str) -> bool:
        """Whether a text is the token. Wrong tokens are counted by client."""
        failures = self._failures.setdefault(
            _client(request), deque(maxlen=MOST_FAILURES)
        )
        if self._waits(request):
            return False
        if hmac.compare_digest(given.strip().encode(), self._token):
            failures.clear()
            return True
        failures.append(time.monotonic())
        if len(self._failures) > 10_000:
            # An attacker with many addresses must not fill the memory.
            self._failures = {_client(request): failures}
        return False

    def _waits(self, request: HTTPConnection) -> bool:
        """Whether a client has sent too many wrong tokens and has to wait."""
        failures = self._failures.get(_client(request), deque())
        return (
            len(failures) == MOST_FAILURES
            and time.monotonic() - failures[0] < FAILURES_S
        )

    def _logged_in(self, request: Request, answer: Response | None = None) -> Response:
        """The answer with the cookie. answer: None redirects to the first page."""
        answer = answer or RedirectResponse("/", 303)
        is_https = (
            request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
        )
        answer.set_cookie(
            _cookies(request)[0],
            self._session,
            COOKIE_S,
            httponly=True,
            samesite="strict",
            secure=is_https,
        )
        return answer

    @staticmethod
    def _without_token(request: Request) -> Response | None:
        """Redirects to the same address without its token, which must not stay in the
        browser's history. None: the address has no token."""
        if "token" not in request.query_params:
            return None
        rest = [
            (key, value)
            for key, value in request.query_params.multi_items()
            if key != "token"
        ]
        # "//elsewhere" would lead to another site
        path = "/" + quote(request.scope["path"].lstrip("/\\\t\r\n"))
        return RedirectResponse(f"{path}?{urlencode(rest)}" if rest else path, 303)

    def _is_own_host(self, host: str) -> bool:
        """Whether the Host header names this server, or is an IP address.

        Others can make a name point to this machine (DNS rebinding), but not an address.
        """
        before, _, port = host.lower().rpartition(":")
        name = before if port.isdigit() else host.lower()
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name in self._hosts or name.endswith(".proxy.runpod.net")
        return True

    @staticmethod
    def _is_opened(request: Request) -> bool:
        """Whether a request only reads, and a user has opened its address.

        A page of another site could load an address as an image or a script. It could
        not read the answer, but would make the program write hundreds of reports.
        """
        mode = request.headers.get("sec-fetch-mode")
        part = request.headers.get("sec-fetch-dest")
        is_part = mode not in (None, "navigate") or part not in (None, "document")
        return request.method in ("GET", "HEAD", "OPTIONS") and not is_part

    @staticmethod
    def _is_from_here(request: Request) -> bool:
        """Whether a request comes from a page of this server, or not from a browser."""
        origin = request.headers.get("origin")
        site = request.headers.get("sec-fetch-site")
        if origin is not None:
            host = request.headers.get("host", "")
            return origin.lower().partition("://")[2] == host.lower()
        return site in (None, "same-origin", "none")


def _cookies(request: HTTPConnection) -> list[str]:
    """Names of the cookie. Browsers send the cookies of a host to all of its ports, so
    that pages on two ports would log each other out."""
    _, _, port = request.headers.get("host", "").rpartition(":")
    return [f"{COOKIE}_{port}", COOKIE] if port.isdigit() else [COOKIE]


def _client(request: HTTPConnection) -> str:
    return request.client.host if request.client else ""


def _limited(receive: Receive) -> Receive:
    """Cuts a request after MOST_BYTES, also one that does not state its length."""
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MOST_BYTES:
            return {"type": "http.disconnect"}
        return message

    return counted


def protect(headers: MutableHeaders) -> None:
    """Adds the security headers to an answer, and `no-store` unless it says how it may
    be cached."""
    for name, value in (*HEADERS.items(), ("cache-control", "no-store")):
        headers.setdefault(name, value)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            protect(MutableHeaders(scope=message))
        await send(message)

    return sending
