"""Brings the datasets that the environment names into a folder, each once: an archive (https, the hub, or a file on the
volume) is downloaded, checked and unpacked; a dataset of the hub is downloaded.

DATASET_URL has the addresses, between spaces; DATASET_SHA256 the sum of each archive; DATASET_FOLDER a name for each,
otherwise that of the archive or repository; DATASET_TOKEN goes to https addresses, HF_TOKEN to the hub.

A folder appears under its name only when it is whole, with a note of where it came from (`.source.json`), by which a
restart knows that it is there. A download that broke off goes on where it stopped. Nothing that is there is ever
replaced. Exit code 2 with one line says what is wrong, 1 that another try may help.

Standard library only, but for datasets of the hub.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPResponse
from lzma import LZMAError
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit

from download import FAILURES, Mistake, open_url, reason

PAUSES = (1, 5, 15)
"""Seconds before each further try of a download whose connection broke."""

RESERVE = 1_000_000_000
"""Bytes of the volume that stay free: a disk that a dataset has filled cannot hold its results."""

PORTION = 1 << 20

ENDINGS = r"\.(zip|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz))$"

LEFT_OUT = (
    *(".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib", ".npy", ".npz"),  # may hold pickles
    *(".py", ".pyc", ".sh", ".so", ".exe", ".dll", ".bat", ".ipynb"),
)
"""Endings of files that can run code when something opens them; a dataset needs none."""

CLUTTER = re.compile(r"(^|/)(__MACOSX/|\._|\.DS_Store$|Thumbs\.db$|desktop\.ini$)")
"""What operating systems put into archives; `._a.jpg` is no picture."""

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, LZMAError, zlib.error, NotImplementedError, RuntimeError)
"""What reading an archive raises: cut off, a wrong sum, an unknown method, a password."""


DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class TryAgain(Exception):
    """What failed although nothing is wrong with the variables."""


@dataclass(frozen=True)
class Dataset:
    """One dataset as the environment gives it."""

    source: str
    wanted: str
    """The SHA-256 its archive must have; empty for any."""

    folder: Path

    @property
    def identity(self) -> str:
        """Same source, same text: without what signed addresses change each time, and no secret."""
        plain = self.source.split("?")[0].split("#")[0] if "://" in self.source else self.source
        return sha256(plain.encode()).hexdigest()

    def beside(self, kind: str) -> Path:
        """A hidden name beside the folder, for what is not whole yet."""
        return self.folder.with_name(f".{self.folder.name}.{self.identity[:8]}.{kind}")


def main(folder: Path) -> int:
    try:
        for dataset in wanted_datasets(folder):
            bring(dataset)
    except (Mistake, TryAgain) as error:
        say(str(error))
        return 2 if isinstance(error, Mistake) else 1
    except OSError as error:
        say(f"the dataset cannot be written to {folder}: {error.strerror or type(error).__name__}")
        return 1
    return 0


def wanted_datasets(folder: Path) -> list[Dataset]:
    sources = os.environ.get("DATASET_URL", "").split()
    sums = os.environ.get("DATASET_SHA256", "").lower().split()
    names = os.environ.get("DATASET_FOLDER", "").split()
    for variable, values in (("DATASET_SHA256", sums), ("DATASET_FOLDER", names)):
        if values and len(values) != len(sources):
            raise Mistake(f"{variable} has {len(values)} values for {len(sources)} datasets: give one for each.")
    if any(not re.fullmatch("[0-9a-f]{64}", one) for one in sums):
        raise Mistake("DATASET_SHA256 must be 64 hexadecimal digits (the output of sha256sum).")
    names = names or [name_of(source) for source in sources]
    if bad := [name for name in names if not re.fullmatch(r"\w[\w.-]{0,99}", name)]:
        raise Mistake(f"DATASET_FOLDER: {bad[0]!r} is no name of a folder: letters, digits, '_', '-' and '.'.")
    if len(set(names)) < len(names):
        raise Mistake("two datasets would have the same folder: give each a name in DATASET_FOLDER.")
    sums = sums or [""] * len(sources)
    return [Dataset(source, wanted, folder / name) for source, wanted, name in zip(sources, sums, names, strict=True)]


def name_of(source: str) -> str:
    """`mychar` of https://host/a/mychar.zip?signature, of hf://datasets/me/mychar@v1 and of uploads/mychar.tar.gz."""
    path = urlsplit(source).path if "://" in source else source
    last = re.sub(ENDINGS, "", unquote(path).rstrip("/").rpartition("/")[2], flags=re.IGNORECASE)
    if source.startswith("hf://"):
        last = last.split("@")[0]
    return re.sub(r"[^\w.-]+", "_", last).lstrip("._-") or "dataset"


def bring(dataset: Dataset) -> None:
    """Makes the folder of `dataset`, unless it is there."""
    note = dataset.folder / ".source.json"
    if dataset.folder.exists():
        there = read_json(note)
        if there.get("source") != dataset.identity or dataset.wanted not in ("", there.get("sha256")):
            raise Mistake(
                f"{dataset.folder} is there already and came from elsewhere. Give another name in DATASET_FOLDER, "
                "or delete the folder."
            )
        say(f"{dataset.folder} is there already.")
        return
    if os.path.lexists(dataset.folder):
        raise Mistake(f"{dataset.folder} is a link that leads nowhere. Delete it.")
    if hub := re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w.-]+))?/?", dataset.source):
        whole, found = from_hub(dataset, hub[1], hub[2]), ""
    else:
        archive, found = archive_of(dataset)
        whole = dataset.beside("unpacking")
        shutil.rmtree(whole, ignore_errors=True)
        try:
            unpack(archive, whole)
        except BaseException:
            shutil.rmtree(whole, ignore_errors=True)
            raise
        if archive == dataset.beside("download"):
            archive.unlink()
            dataset.beside("etag").unlink(missing_ok=True)
    files = [path for path in whole.rglob("*") if path.is_file()]
    if not files:
        shutil.rmtree(whole)
        raise Mistake(f"the dataset for {dataset.folder} holds no file of a dataset.")
    note_text = json.dumps({"source": dataset.identity, "sha256": found, "files": len(files)})
    (whole / note.name).write_text(note_text, encoding="utf-8")
    os.sync()
    whole.rename(dataset.folder)
    counts = Counter(path.relative_to(whole).parts[0] if path.parent != whole else "." for path in files)
    inside = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())[:20])
    say(f"{dataset.folder}: {len(files)} files ({inside})")


# ---- from where ----------------------------------------------------------------------------------------------------


def archive_of(dataset: Dataset) -> tuple[Path, str]:
    """The archive's file and its SHA-256, which is the wanted one."""
    source, token = dataset.source, os.environ.get("DATASET_TOKEN", "")
    if source.startswith("hf://"):
        file = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?/(.+)", source)
        if not file:
            raise Mistake("DATASET_URL: a dataset of the hub is hf://datasets/OWNER/NAME, with @REVISION if wanted.")
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        source = f"{hub}/datasets/{file[1]}/resolve/{file[2] or 'main'}/{quote(file[3])}"
        token = os.environ.get("HF_TOKEN", "")
    if "://" in source:
        path = dataset.beside("download")
        if not path.exists():
            download(source, token, dataset.beside("part"), dataset.beside("etag"))
            dataset.beside("part").rename(path)
    elif not (path := Path(source)).is_file():
        raise Mistake("DATASET_URL: neither an address (https:// or hf://) nor a file on the volume.")
    found = sha256_of(path)
    if dataset.wanted not in ("", found):
        if path == dataset.beside("download"):
            path.unlink()
        raise Mistake(f"the archive for {dataset.folder} has sha256 {found}, DATASET_SHA256 wants {dataset.wanted}.")
    return path, found


def download(url: str, token: str, path: Path, etag: Path) -> None:
    """Fetches `url` into `path`, from where an earlier try broke off if the server says that it is the same file."""
    for pause in (*PAUSES, None):
        try:
            download_rest(url, token, path, etag)
            return
        except HTTPError as error:
            if error.code < 500 and error.code not in (408, 416, 429):
                raise Mistake(f"DATASET_URL cannot be fetched: {error.code}") from None
            why = reason(error)
        except FAILURES as error:
            if isinstance(error, OSError) and (error.filename or error.errno in DISK_FAULTS):
                raise
            why = reason(error)
        if pause is None:
            raise TryAgain(f"DATASET_URL cannot be fetched: {why}. The next start resumes from here.")
        say(f"the download broke off ({why}); again in {pause} s.")
        time.sleep(pause)


def download_rest(url: str, token: str, path: Path, etag: Path) -> None:
    size = path.stat().st_size if path.exists() and etag.exists() else 0
    asked = {"Range": f"bytes={size}-", "If-Range": etag.read_text(encoding="utf-8")} if size else {}
    try:
        answer = open_url(url, "DATASET_URL", token, asked)
    except HTTPError as error:
        if error.code == 416:  # what is here is not a beginning of what is there
            etag.unlink()
        raise
    with answer:
        going_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {size}-")
        if not going_on:
            etag.unlink(missing_ok=True)
            if (known := answer.headers.get("ETag", "")).startswith('"'):  # a weak one promises no equal bytes
                etag.write_text(known, encoding="utf-8")
        length = answer.headers.get("Content-Length")
        check_space(path.parent, int(length or 0))
        with path.open("ab" if going_on else "wb") as file:
            received = copy_to(answer, file)
    if length and received != int(length):
        raise ConnectionError(f"{received:,} of {int(length):,} bytes came")


def copy_to(answer: HTTPResponse, file: IO[bytes]) -> int:
    received, told = 0, time.monotonic()
    while portion := answer.read(PORTION):
        file.write(portion)
        received += len(portion)
        if time.monotonic() - told > 30:
            told = time.monotonic()
            check_space(Path(file.name).parent, 0)
            say(f"downloaded {file.tell() / 1e9:.1f} GB")
    return received


def from_hub(dataset: Dataset, name: str, revision: str | None) -> Path:
    """Downloads a dataset's files from the hub; what an earlier try has brought is kept."""
    from huggingface_hub import snapshot_download

    if dataset.wanted:
        raise Mistake("DATASET_SHA256 is for archives. Name a commit instead: hf://datasets/OWNER/NAME@COMMIT")
    folder = dataset.beside("hub")
    patterns = [f"*{ending}" for ending in LEFT_OUT]
    try:
        snapshot_download(name, repo_type="dataset", revision=revision, local_dir=folder, ignore_patterns=patterns)
    except Exception as error:  # noqa: BLE001 - its own, httpx's and the system's
        answers = [getattr(one, "response", None) for one in (error, error.__cause__)]
        status = next((answer.status_code for answer in answers if answer is not None), "")
        said = f"the hub's dataset {name} cannot be fetched: {type(error).__name__} {status}".rstrip()
        if status in (401, 403, 404):
            raise Mistake(f"{said}. Is the name right, and does HF_TOKEN belong to somebody who may read it?") from None
        raise TryAgain(f"{said}. The next start resumes from here.") from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    if links := [path for path in folder.rglob("*") if path.is_symlink()]:
        raise Mistake(f"the hub's dataset {name} holds a link: {links[0].relative_to(folder)}")
    return folder


# ---- unpacking -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A file of an archive."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path) -> None:
    """Writes the files of a zip or tar archive below `folder`, which is new.

    Raises Mistake for a name that leads out of it, a link or a device, a damaged archive, and a full disk.
    """
    folder.mkdir()
    left_out: Counter[str] = Counter()
    try:
        for entry in entries(archive):
            parts = safe_parts(entry.name)
            if CLUTTER.search("/".join(parts)):
                continue
            if (ending := Path(parts[-1]).suffix.lower()) in LEFT_OUT:
                left_out[ending] += 1
                continue
            check_space(folder, entry.size)
            target = folder.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(target):
                raise Mistake(f"the archive holds {entry.name!r} twice.")
            with entry.open() as source, target.open("xb") as file:
                shutil.copyfileobj(source, file, PORTION)
    except DAMAGED as error:
        raise Mistake(f"the archive cannot be unpacked: {type(error).__name__}. Is it cut off, or encrypted?") from None
    if left_out:
        endings = ", ".join(f"{count} {ending}" for ending, count in sorted(left_out.items()))
        say(f"left out what can hold code: {endings}")


def entries(archive: Path) -> Iterator[Entry]:
    """The files of an archive, in its order. Raises Mistake for anything that is neither file nor folder."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                refuse_unless(kind in (0, stat.S_IFREG, stat.S_IFDIR), info.filename)
                if not info.is_dir():
                    yield Entry(info.filename, info.file_size, lambda info=info: packed.open(info))
        return
    with tarfile.open(archive) as packed_tar:
        for member in packed_tar:
            refuse_unless(member.isreg() or member.isdir(), member.name)
            if member.isreg():
                yield Entry(member.name, member.size, lambda member=member: packed_tar.extractfile(member))


def refuse_unless(plain: bool, name: str) -> None:
    if not plain:
        raise Mistake(f"the archive holds a link or a device: {name!r}. Pack files and folders only.")


def safe_parts(name: str) -> list[str]:
    """The parts of an entry's name, which lead to a place below the folder it is unpacked into."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    outside = not parts or ".." in parts or name[:1] in "/\\" or ":" in parts[0] or "\0" in name
    if outside:
        raise Mistake(f"the archive names a place outside of its folder: {name!r}.")
    return parts


def check_space(folder: Path, size: int) -> None:
    """Raises Mistake when `size` more bytes do not fit on the disk of `folder`."""
    if (free := shutil.disk_usage(folder).free) < size + RESERVE:
        raise Mistake(f"the volume has {free / 1e9:.1f} GB free; the dataset needs more, and 1 GB must stay free.")


def sha256_of(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while portion := file.read(PORTION):
            digest.update(portion)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, object]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def say(text: str) -> None:
    print(f"start: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
