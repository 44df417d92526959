"""The sentence for each way in which a download from the hub fails: what happened, at
which address, through which proxy or on which disk, and what to do about it.

Nothing is downloaded here: `toolkit.models.hub` does that.

    try:
        snapshot_download(name)
    except CAUSES as error:
        raise failed_download(key, error, name) from error
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import ssl
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from socket import gaierror
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from toolkit.config.sections.model_files import (
    downloaded_bytes,
    hub_cache,
    is_offline,
    where_else,
)
from toolkit.errors import DownloadError, UserError, first_line, install_command
from toolkit.files.redact import redact_text
from toolkit.files.writing import free_space, nearest_folder, readable_size

_InvalidURL = import_module(HTTPError.__module__.partition(".")[0]).InvalidURL
"""From httpx2; older client libraries bring httpx instead."""

CAUSES = (
    *(HTTPError, EntryNotFoundError, _InvalidURL),
    *(OSError, ImportError, ValueError, RuntimeError),
)
"""What the client library, its transports and its Xet storage raise."""

TOKEN_HELP = "Accept its terms on its page on the hub and set HF_TOKEN to a token of yours that may read it."


_FULL = (errno.ENOSPC, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_OF_THE_DISK = (*_FULL, *_FORBIDDEN, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)
_SCHEMES = ("http", "https", "socks5", "socks5h")


def failed_download(
    key: str, error: Exception, name: str, revision: str | None = None, file: str = ""
) -> UserError:
    """The error that ends the program: the key of the job, the name, and why.

    A DownloadError where a later try may bring it: the network, the disk and the hub's
    own faults. Another UserError where a name, a token or a variable has to be corrected
    first.
    """
    kind = UserError if _is_mistake(error) else DownloadError
    asked = f"{name}/{file}" if file else name
    return kind(f"{key}: {asked}: {why_not_downloaded(error, name, revision, file)}")


_MISTAKES = {
    *("HFValidationError", "EntryNotFoundError", "OfflineModeIsEnabled"),
    *("InvalidURL", "UnsupportedProtocol", "ImportError", "ValueError"),
    "FileNotFoundError",
}
"""Exceptions, by name, that come again until somebody changes a name or a variable: a
ValueError is a proxy of an unknown kind, a FileNotFoundError the file of
SSL_CERT_FILE."""


def _is_mistake(error: Exception) -> bool:
    chain = [*_chain(error)]
    for one in chain:
        if isinstance(one, HfHubHTTPError):
            return one.response.status_code in (401, 403, 404)
    return is_offline() or any(_kind(one) in _MISTAKES for one in chain)


def why_not_downloaded(
    error: Exception, name: str, revision: str | None = None, file: str = ""
) -> str:
    """Why the hub model `name`, or one file of it, has not been downloaded, and the
    remedy, in words that follow the name."""
    chain = [*_chain(error)]
    if isinstance(error, HFValidationError):
        what = "file nor one of the hub" if file else "folder nor a model id of the hub"
        return f"neither a local {what}: {first_line(error)}"
    for one in chain:
        if isinstance(one, HfHubHTTPError):
            return _answered(one, name, revision, file)
    if is_offline() or any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        what = f"not complete in {hub_cache()}, and the hub cannot be used: HF_HUB_OFFLINE is set"
        other = "" if file else where_else(name)
        return (
            f"{what}. Unset it, {_by_hand(f'{name} {file}'.rstrip())} {other}".rstrip()
        )
    is_network = any(_kind(one) in _OF_THE_NETWORK for one in chain)
    for one in chain:
        number = _number(one)
        if not is_network and number in _OF_THE_DISK:
            return _of_the_disk(number, getattr(one, "filename", None), name)
    return _of_the_way(chain, name, is_network)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it comes from, the nearest first."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _by_hand(name: str) -> str:
    return (
        f"or bring it by hand: `hf download {name}` where the hub can be reached, "
        "and give the path of the copy (docs/models.md#downloads)."
    )


def _kind(error: BaseException) -> str:
    return type(error).__name__


_CUT = ("ReadError", "RemoteProtocolError", "WriteError", "IncompleteRead")
_OF_THE_NETWORK = (
    *_CUT,
    *("ProxyError", "ConnectError", "UnsupportedProtocol"),
    *("ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout"),
)
"""Exceptions of httpx2, by name."""


def is_cut(error: BaseException) -> bool:
    """Whether the connection ended in the middle of a download that had begun."""
    return any(
        _kind(one) in (*_CUT, "ReadTimeout") or "Consistency check failed" in str(one)
        for one in _chain(error)
    )


def _number(error: BaseException) -> int | None:
    """The number of the system's error; Xet storage has it in its text alone."""
    said = re.search(r"\(os error (\d+)\)", str(error))
    return int(said[1]) if said else getattr(error, "errno", None)


# ---------------------------------------------------------------- the hub's answers


def _answered(error: HfHubHTTPError, name: str, revision: str | None, file: str) -> str:
    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return f"has no revision {revision!r}."
    if isinstance(error, EntryNotFoundError):
        return f"{name} has no such file."
    if isinstance(error, GatedRepoError) or status == 403:
        return f"{address()} refuses it ({status}). {TOKEN_HELP} ({first_line(error)})"
    if status in (401, 404):
        what = "repository" if file else "model"
        at = f" at {address()}" if os.environ.get("HF_ENDPOINT") else ""
        text = f"the hub has no such {what}{at}, or it is private. {TOKEN_HELP}"
        return text if file else f"{text} {where_else(name)}".rstrip()
    if status == 407:
        return _proxy_refuses(f"{status} {error.response.reason_phrase}")
    if status == 429:
        after = error.response.headers.get("Retry-After", "")
        wait = f"{after} seconds" if after.isdigit() else "some minutes"
        return (
            f"{address()} takes no more requests from here for now (429). Start again in {wait}: "
            "what has arrived is kept. HF_TOKEN with a token of yours raises the limit."
        )
    if status >= 500:
        return (
            f"{address()} has a fault of its own ({status}). Start again later: what has arrived "
            f"is kept. Or set HF_ENDPOINT to another address of the hub, {_by_hand(name)}"
        )
    return f"{address()} answers {status}: {first_line(error)}"


# ---------------------------------------------------------------- the way to the hub


def address() -> str:
    """The address that is asked, with the variable that gives it."""
    given = " (HF_ENDPOINT)" if os.environ.get("HF_ENDPOINT") else ""
    return f"{redact_text(constants.ENDPOINT)}{given}"


def _proxy() -> tuple[str, str]:
    """The variable of the proxy for that address, and its value without a password;
    empty: there is none."""
    parts = urlsplit(constants.ENDPOINT)
    proxies = getproxies()
    kind = next((one for one in (parts.scheme, "all") if proxies.get(one)), "")
    if not kind or (parts.hostname and proxy_bypass(parts.hostname)):
        return "", ""
    names = [name for name in os.environ if name.lower() == f"{kind}_proxy"]
    url = re.sub(r"(?<=//)[^/]*@|^[^/]*@", "", proxies[kind])
    return (names[0] if names else "the proxy of this system"), url


def _proxy_refuses(why: str) -> str:
    variable, url = _proxy()
    user = f" (with a password: {variable}=http://USER:PASSWORD@HOST:PORT)"
    return (
        f"{address()} is not reached: the proxy in {variable} ({url}) answers '{why}'. "
        f"Correct {variable}{user if '407' in why or 'assword' in why else ''}, or unset it."
    )


def _of_the_way(chain: list[BaseException], name: str, is_network: bool) -> str:
    """Why the hub has not been reached, the most certain cause first."""
    root, kinds = chain[-1], [_kind(one) for one in chain]
    why = first_line(Exception(str(root) or _kind(root)))
    variable, url = _proxy()
    scheme, _, host = url.rpartition("://")
    mirror = f"set HF_ENDPOINT to a mirror, {_by_hand(name)}"
    if "socksio" in why:
        install = install_command("socksio")
        return f"{variable} is a SOCKS proxy ({url}), and the package 'socksio' is not installed. Run: {install}"
    if scheme and scheme not in _SCHEMES:
        good = "socks5" if "socks" in scheme else "http"
        return f"{variable} is {url!r}, and there is no such kind of proxy. Write {variable}={good}://{host}"
    if urlsplit(constants.ENDPOINT).scheme not in ("http", "https"):
        given = constants.ENDPOINT
        good = given.rpartition("://")[2] or "huggingface.co"
        return f"HF_ENDPOINT is {given!r}, no address. Write HF_ENDPOINT=https://{good}"
    if "InvalidURL" in kinds:
        place = f"{variable or 'HF_ENDPOINT'} is {url or constants.ENDPOINT!r}"
        return f"{place}, no address ({why}). Correct it, or unset it."
    certificates = os.environ.get("SSL_CERT_FILE", "")
    if certificates and not Path(certificates).is_file():
        return f"SSL_CERT_FILE is {certificates!r}, and there is no such file. Correct it, or unset it."
    if "ProxyError" in kinds:
        return _proxy_refuses(why)
    if any(isinstance(one, ssl.SSLError) for one in chain):
        through = f" through the proxy in {variable} ({url})" if variable else ""
        return (
            f"the certificate of {address()}{through} is not trusted: {why}. Set the clock if it is wrong. A network "
            f"that reads the traffic has a certificate of its own: set SSL_CERT_FILE to its file, or {mirror}"
        )
    if is_cut(chain[0]):
        there = f"{readable_size(downloaded_bytes(name))} are in {hub_cache()}"
        return f"the download from {address()} was cut off ({why}). {there}: start again, and it continues with them."
    if is_network and variable:
        return (
            f"{address()} is not reached: the proxy in {variable} ({url}) gives no connection ({why}). "
            f"Start the proxy, correct {variable}, or unset it."
        )
    if not is_network:
        what = f"not complete in {hub_cache()}, and {address()} cannot be used: {why}"
        return f"{what}. Correct HF_ENDPOINT if it is set, {_by_hand(name)}"
    happened = "does not answer"
    if any(isinstance(one, gaierror) for one in chain):
        happened = "is not found"
    elif any(isinstance(one, ConnectionRefusedError) for one in chain):
        happened = "refuses the connection"
    return (
        f"{address()} {happened} ({why}). Check the network, its name server and HF_ENDPOINT; where the hub is "
        f"blocked, set HTTPS_PROXY to a proxy, {mirror}"
    )


# ---------------------------------------------------------------- the disk


def _of_the_disk(number: int, path: str | None, name: str) -> str:
    cache = hub_cache()
    folder = nearest_folder(Path(path) if isinstance(path, str) else cache)
    other = "set HF_HOME to a folder on another disk"
    there = f"{readable_size(downloaded_bytes(name))} of it are there, and the next start continues"
    if number in _FULL:
        what = f"the disk of {cache} is full ({readable_size(free_space(cache))} free)"
        return f"{what}; {there}. Free some space, or {other}."
    if number == errno.EDQUOT:
        what = f"your quota on the disk of {cache} is used up, whatever free space it shows"
        return f"{what}; {there}. Enlarge the volume, or {other}."
    if number == errno.EROFS:
        return f"{folder} is read-only. Mount it for writing, or {other}."
    if number in _FORBIDDEN:
        if not hasattr(os, "getuid"):  # Windows
            return (
                f"{folder} may not be written. Allow it in its properties, or {other}."
            )
        owner, user = folder.stat().st_uid, os.getuid()
        quoted = shlex.quote(str(folder))
        if owner == user:
            what = (
                f"{folder} may not be written, though it belongs to this user ({user})"
            )
            return f"{what}. Run `chmod u+rwx {quoted}`, look at its mount, or {other}."
        what = f"{folder} may not be written: it belongs to user {owner}, and this is user {user}"
        return f"{what}. Run `sudo chown -R {user} {quoted}`, or {other}."
    return f"{cache} cannot be made: {os.strerror(number)}. Remove what is there, or {other}."
