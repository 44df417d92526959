"""Prints the jobs that the environment names, one per line, for start.sh to give to
run.py.

The first that is set counts: JOB_CONFIG_B64 (base64, of gzip too), JOB_CONFIG (a path
or a name, several between commas), JOB_CONFIG_YAML (the text). A text is written to
`<folder>/_env_<first 8 of its sha256>.yaml`. With JOB_CONFIG_SHA256 the bytes of each
job must have the sum at its place. Exit code 2 with one line says what is wrong; a line
never repeats a value, because a job may hold a secret.

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
from pathlib import Path

MOST_BYTES = 1_000_000
"""Maximum size of a job after unpacking; real jobs have a few thousand bytes."""


class Mistake(Exception):
    """A mistake of whoever set the variables."""


def main(folder: Path) -> int:
    try:
        print(*find_jobs(folder), sep="\n")
    except Mistake as error:
        print(f"start: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"start: the job cannot be written to {folder}: {error.strerror}",
            file=sys.stderr,
        )
        return 1
    return 0


def find_jobs(folder: Path) -> list[str]:
    """Paths or names for run.py, in order."""
    given = os.environ
    if given.get("JOB_CONFIG_B64"):
        text, variable = from_base64(given["JOB_CONFIG_B64"]), "JOB_CONFIG_B64"
    elif given.get("JOB_CONFIG"):
        names = names_in(given["JOB_CONFIG"])
        return [
            named_job(name, wanted)
            for name, wanted in zip(names, sums(len(names)), strict=True)
        ]
    else:
        text, variable = (
            os.fsencode(given.get("JOB_CONFIG_YAML", "")),
            "JOB_CONFIG_YAML",
        )
    return [write_job(folder, text, variable, *sums(1))]


def names_in(value: str) -> list[str]:
    """The jobs that JOB_CONFIG names: one per comma or line, unless the whole is the
    name of a file."""
    if Path(value).is_file():
        return [value]
    names = [name for part in re.split(r"[,\n]", value) if (name := part.strip())]
    if not names:
        raise Mistake("JOB_CONFIG names no job.")
    return names


def sums(count: int) -> list[str]:
    """What JOB_CONFIG_SHA256 wants of each of `count` jobs; empty for nothing."""
    wanted = os.environ.get("JOB_CONFIG_SHA256", "").lower().split()
    if any(not re.fullmatch("[0-9a-f]{64}", one) for one in wanted):
        raise Mistake(
            "JOB_CONFIG_SHA256 must be 64 hexadecimal digits (the output of sha256sum)."
        )
    if wanted and len(wanted) != count:
        raise Mistake(
            f"JOB_CONFIG_SHA256 has {len(wanted)} sums for {count} jobs: give one for each, in their order."
        )
    return wanted or [""] * count


def named_job(name: str, wanted: str) -> str:
    if wanted:
        try:
            check_sum(Path(name).read_bytes(), "JOB_CONFIG", wanted)
        except OSError as error:
            raise Mistake(
                f"JOB_CONFIG with JOB_CONFIG_SHA256: the file cannot be read: {error.strerror}"
            ) from None
    return f"./{name}" if name.startswith("-") else name  # not a flag


def from_base64(text: str) -> bytes:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Mistake(
            "JOB_CONFIG_B64 is not base64. Make it with: base64 -w0 my_job.yaml"
        ) from None
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as unpacked:
            return unpacked.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        raise Mistake(
            "JOB_CONFIG_B64 holds a damaged gzip file. Was the value cut?"
        ) from None


def write_job(folder: Path, data: bytes, variable: str, wanted: str) -> str:
    if len(data) > MOST_BYTES:
        raise Mistake(
            f"{variable}: the job is larger than {MOST_BYTES:,} bytes. Is it a YAML file?"
        )
    if not data.strip():
        raise Mistake(f"{variable}: the job is empty.")
    check_sum(data, variable, wanted)
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


def check_sum(data: bytes, variable: str, wanted: str) -> None:
    if wanted and (found := sha256(data).hexdigest()) != wanted:
        raise Mistake(
            f"{variable}: the job has sha256 {found}, JOB_CONFIG_SHA256 wants {wanted}. Which one is old?"
        )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
