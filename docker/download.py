"""What the scripts that fetch things share: addresses that may be asked, a token for them, and how a failure is said.

Standard library only. No message repeats an address or a token: either may hold a secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO
from urllib.parse import SplitResult, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

SECONDS = 30
"""Timeout of each network operation."""

FAILURES = (OSError, HTTPException, ValueError)
"""What opening or reading an address raises."""


class Mistake(Exception):
    """What is wrong with the variable, in one line."""


def open_url(url: str, variable: str, token: str = "", headers: Mapping[str, str] | None = None) -> HTTPResponse:
    """The answer of `url`, which the environment's `variable` gave, redirects followed.

    token: the value of `<variable's thing>_TOKEN`. It is sent as `Authorization: Bearer <token>`; with a colon it is a
    whole header, such as `PRIVATE-TOKEN: <token>`. A redirect to another host does not get it.
    Raises Mistake for an address that must not be asked, one of FAILURES for everything else.
    """
    check_address(url, variable)
    request = Request(url, headers={"User-Agent": "atelier", **(headers or {})})
    secret = token_header(token, variable) if token else None
    if secret:
        request.add_unredirected_header(*secret)
    return build_opener(CarefulRedirect(variable, secret)).open(request, timeout=SECONDS)


def token_header(token: str, variable: str) -> tuple[str, str]:
    """Name and value of the header that carries `token`."""
    if match := re.fullmatch(r"([A-Za-z][A-Za-z0-9-]*): *([!-~]+(?: [!-~]+)?)", token.strip()):
        return match[1], match[2]
    if re.fullmatch("[!-9;-~]+", token.strip()):
        return "Authorization", f"Bearer {token.strip()}"
    raise Mistake(f"the token for {variable} must be one word, or a header: 'Name: value'.")


def check_address(url: str, variable: str) -> SplitResult:
    """https only: what comes over http can be changed on its way. ALLOW_HTTP_LOCALHOST=1 is for tests."""
    try:
        parts = urlsplit(url)
        local = parts.scheme == "http" and parts.hostname == "127.0.0.1"
    except ValueError:
        raise Mistake(f"{variable} is not an address.") from None
    if parts.scheme != "https" and not (local and os.environ.get("ALLOW_HTTP_LOCALHOST") == "1"):
        raise Mistake(f"{variable} must start with https://")
    return parts


class CarefulRedirect(HTTPRedirectHandler):
    """Follows a redirect only to where the first address could have pointed; the token goes to its first host only."""

    def __init__(self, variable: str, secret: tuple[str, str] | None) -> None:
        self.variable, self.secret = variable, secret

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        target = check_address(newurl, f"{self.variable} was redirected: the new address")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        came_from = urlsplit(req.full_url)
        if request and self.secret and (target.scheme, target.netloc) == (came_from.scheme, came_from.netloc):
            request.add_unredirected_header(*self.secret)
        return request


def reason(error: BaseException) -> str:
    """Why an address could not be read, without the address: a status, the system's words, or the kind of error."""
    return str(getattr(error, "code", None) or getattr(error, "reason", None) or type(error).__name__)
