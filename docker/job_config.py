"""Prints the job that the environment names, for start.sh to give to run.py.

The first that is set counts: JOB_CONFIG_B64 (base64, of gzip too), JOB_CONFIG_URL (https), JOB_CONFIG (a path or a
name), JOB_CONFIG_YAML (the text). A text is written to `<folder>/_env_<first 8 of its sha256>.yaml`. With
JOB_CONFIG_SHA256 the bytes of the job must have that sum. Exit code 2 with one line says what is wrong; a line
never repeats a value, because an address or a job may hold a secret.

Standard library only, so that it works before and without the packages of the trainer.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import os
import re
import sys
import zlib
from hashlib import sha256
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

MOST_BYTES = 1_000_000
"""Of a job after download and unpacking; real ones have a few thousand."""

SECONDS = 30
"""For each wait on the network."""


class Mistake(Exception):
    """What is wrong with the variable, in one line."""


def main(folder: Path) -> int:
    try:
        print(find_job(folder))
    except Mistake as error:
        print(f"start: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"start: the job cannot be written to {folder}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def find_job(folder: Path) -> str:
    """A path or name for run.py."""
    if os.environ.get("JOB_CONFIG_B64"):
        return write_job(folder, from_base64(os.environ["JOB_CONFIG_B64"]), "JOB_CONFIG_B64")
    if os.environ.get("JOB_CONFIG_URL"):
        return write_job(folder, from_url(os.environ["JOB_CONFIG_URL"]), "JOB_CONFIG_URL")
    if os.environ.get("JOB_CONFIG"):
        return named_job(os.environ["JOB_CONFIG"])
    return write_job(folder, os.fsencode(os.environ.get("JOB_CONFIG_YAML", "")), "JOB_CONFIG_YAML")


def named_job(name: str) -> str:
    if os.environ.get("JOB_CONFIG_SHA256"):
        try:
            check_sum(Path(name).read_bytes(), "JOB_CONFIG")
        except OSError as error:
            raise Mistake(f"JOB_CONFIG with JOB_CONFIG_SHA256: the file cannot be read: {error.strerror}") from None
    return f"./{name}" if name.startswith("-") else name  # not a flag


def from_base64(text: str) -> bytes:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Mistake("JOB_CONFIG_B64 is not base64. Make it with: base64 -w0 my_job.yaml") from None
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as unpacked:
            return unpacked.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        raise Mistake("JOB_CONFIG_B64 holds a damaged gzip file. Was the value cut?") from None


def from_url(url: str) -> bytes:
    check_address(url, "JOB_CONFIG_URL")
    request = Request(url, headers={"User-Agent": "atelier"})
    try:
        with build_opener(CarefulRedirect).open(request, timeout=SECONDS) as answer:
            return answer.read(MOST_BYTES + 1)
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "code", None) or getattr(error, "reason", None) or type(error).__name__
        raise Mistake(f"JOB_CONFIG_URL cannot be fetched: {reason}") from None


def check_address(url: str, variable: str) -> None:
    """https only: what comes over http can be changed on its way. ALLOW_HTTP_LOCALHOST=1 is for tests."""
    try:
        parts = urlsplit(url)
        local = parts.scheme == "http" and parts.hostname == "127.0.0.1"
    except ValueError:
        raise Mistake(f"{variable} is not an address.") from None
    if parts.scheme != "https" and not (local and os.environ.get("ALLOW_HTTP_LOCALHOST") == "1"):
        raise Mistake(f"{variable} must start with https://")


class CarefulRedirect(HTTPRedirectHandler):
    """Follows a redirect only to where the first address could have pointed."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        check_address(newurl, "JOB_CONFIG_URL was redirected: the new address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def write_job(folder: Path, data: bytes, variable: str) -> str:
    if len(data) > MOST_BYTES:
        raise Mistake(f"{variable}: the job is larger than {MOST_BYTES:,} bytes. Is it a YAML file?")
    if not data.strip():
        raise Mistake(f"{variable}: the job is empty.")
    check_sum(data, variable)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        raise Mistake(f"{variable}: the job is not UTF-8 text.") from None
    path = folder / f"_env_{sha256(data).hexdigest()[:8]}.yaml"
    if not path.is_file() or path.read_bytes() != data:
        partial = path.with_suffix(".partial")
        partial.write_bytes(data)
        partial.chmod(0o600)
        partial.replace(path)
    return str(path)


def check_sum(data: bytes, variable: str) -> None:
    wanted = os.environ.get("JOB_CONFIG_SHA256", "").strip().lower()
    if not wanted:
        return
    if not re.fullmatch("[0-9a-f]{64}", wanted):
        raise Mistake("JOB_CONFIG_SHA256 must be 64 hexadecimal digits (the output of sha256sum).")
    if (found := sha256(data).hexdigest()) != wanted:
        raise Mistake(f"{variable}: the job has sha256 {found}, JOB_CONFIG_SHA256 wants {wanted}. Which one is old?")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
