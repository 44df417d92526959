"""Downloads models, encoders, LoRAs and single files from the Hugging Face hub.

It logs size and target first, resumes interrupted downloads, and turns every failure
into one error with the key of the job. It loads nothing; the cache is searched
without a connection in `toolkit.config.sections.model_files`. `loading` calls it for
models, `toolkit.train.base_model` and the trainer for single files and LoRAs, tools for
their text encoders.

    folder = download("Qwen/Qwen-Image-Edit-2511", revision=None)
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from threading import Event, Thread
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import (
    WeakFileLock,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
    filter_repo_objects,
)

from toolkit.config.sections.model_files import (
    INDEX,
    ModelFolder,
    cached_index,
    cached_snapshot,
    downloaded_bytes,
    hub_cache,
    hub_lora,
    lora_among,
    needed_files,
    no_index,
    quantization_fault,
    repository_folder,
    unneeded_files,
)
from toolkit.errors import UserError, first_line
from toolkit.files import now
from toolkit.files.writing import free_space, readable_size, sha256_of
from toolkit.models.families import why_no_room
from toolkit.models.hub_faults import CAUSES, failed_download, is_cut
from toolkit.system import signals
from toolkit.system.read_ahead import loaded_ahead

logger = logging.getLogger(__name__)

KEY = "model.name_or_path"

CONFIGS = [INDEX, "*/config.json"]
"""Files of a hub model that say how its weights are stored."""


def download(name: str, revision: str | None, given: Collection[str] = ()) -> Path:
    """The local snapshot of the hub model `name` at `revision` (a branch, tag or
    commit; None: main).

    given: parts whose weights are not needed. HF_HUB_OFFLINE and HF_HOME are respected.
    Raises UserError when the hub refuses, the model does not exist, the disk is too
    small, or another program has quantized the weights, which the configs show before
    any weights are downloaded; DownloadError when the hub cannot be reached, or the
    download breaks off.
    """
    folder = cached_snapshot(name, revision, given)
    if folder:
        return folder
    with _asking(name, revision):
        disable_progress_bars()  # a few small files
        configs = Path(
            snapshot_download(name, revision=revision, allow_patterns=CONFIGS)
        )
        if (configs / INDEX).is_file():
            fault = ModelFolder(configs, name).quantization_fault(given)
            if fault:
                raise UserError(f"{KEY}: {fault}")
        return _bring_told(
            *(name, revision, KEY),
            allow_patterns=needed_files(),
            ignore_patterns=unneeded_files(given),
        )


def download_anything(name: str, revision: str | None, key: str) -> Path:
    """The local copy of whatever the hub has under a name: a diffusers model, a text
    encoder, or one file, `owner/repo/path/of/file`.

    key: names the setting in messages. Raises UserError as `download`.
    """
    if name.count("/") > 1:
        return download_file(name, key)
    folder = cached_snapshot(name, revision)
    if folder and (folder / INDEX).is_file():
        return folder
    with _asking(name, revision, key):
        info = HfApi().model_info(name, revision=revision)
    files = {one.rfilename for one in info.siblings or []}
    if INDEX in files:
        return download(name, revision)
    if "config.json" in files and any(fnmatch(file, ENCODER_WEIGHTS) for file in files):
        return download_encoder(name, key)
    return download_lora(name, key)


def _bring(name: str, revision: str | None = None, **chosen: Any) -> Path:
    """The files of a hub repository. After a cut it goes on, as long as each attempt
    brings more."""

    def bring(name: str) -> Path:
        _finish_parts(name, revision, **chosen)
        return Path(snapshot_download(name, revision=revision, **chosen))

    while True:
        before = downloaded_bytes(name)
        try:
            # in a thread: those of huggingface_hub 2.4.0 keep Ctrl-C waiting for files
            [folder] = loaded_ahead(bring, [name], 1, signals.check)
            return folder
        except CAUSES as error:
            there = downloaded_bytes(name)
            if not is_cut(error) or there <= before:
                raise
            logger.warning(
                f"{name}: cut off ({first_line(error)}). {readable_size(there)} are there; it goes on"
            )


def fetch_index(name: str, revision: str | None) -> Path:
    """The model_index.json of the hub model `name`, downloaded alone when it is not in
    the cache. Raises UserError as `download`.

    It uses `snapshot_download`, which also keeps the list of the repository's files.
    Without that list an incomplete snapshot would look complete later.
    """
    index = cached_index(name, revision)
    if index:
        return index
    disable_progress_bars()  # one small file
    with _asking(name, revision):
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=[INDEX])
        )
    if not (folder / INDEX).is_file():
        raise UserError(f"{KEY}: {no_index(name, folder)}")
    return folder / INDEX


ENCODER_WEIGHTS = "model*.safetensors"

ENCODER_FILES = [
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors*",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "*_map.json",
]
"""Files that are needed from a hub repository of a text encoder with its tokenizer.
Other formats are not downloaded."""


def download_encoder(name: str, key: str, weights: bool = True) -> Path:
    """The local snapshot of the text encoder `name`, or of a tokenizer alone.

    key: names the setting in messages. weights: False leaves the weights out. Raises
    UserError as `download`.
    """
    files: dict[str, Any] = {"allow_patterns": ENCODER_FILES}
    if not weights:
        files["ignore_patterns"] = ENCODER_WEIGHTS
    with _asking(name, None, key):
        try:
            folder = Path(snapshot_download(name, **files, local_files_only=True))
            is_config = (folder / "config.json").is_file()
            if any(folder.glob(ENCODER_WEIGHTS)) or weights != is_config:
                return folder
        except LocalEntryNotFoundError:
            pass  # not in the cache: it is downloaded below
        configs = Path(snapshot_download(name, allow_patterns="config.json"))
        if weights:
            fault = quantization_fault(configs, "model")
            if fault:
                raise UserError(f"{key}: {fault}")
        return _bring_told(name, None, key, **files)


@contextmanager
def _asking(
    name: str, revision: str | None, key: str = KEY, file: str = ""
) -> Iterator[None]:
    """Turns errors of the client library into one with the key and the remedy."""
    try:
        yield
    except CAUSES as error:
        raise failed_download(key, error, name, revision, file) from error


def download_file(name: str, key: str) -> Path:
    """The local copy of one file of a hub repository, `owner/repo/path/of/file`.

    key: names the setting in messages. Raises UserError when there is no such file, and
    as `download`.
    """
    owner, repo, file = name.split("/", 2)
    repository = f"{owner}/{repo}"
    with _asking(repository, None, key, file):
        with suppress(LocalEntryNotFoundError):  # it is downloaded below
            return Path(hf_hub_download(repository, file, local_files_only=True))
        logger.info(f"downloading {file} of {repository}")
        with _watched(repository):
            _finish_parts(repository, None, allow_patterns=[file])
            return Path(hf_hub_download(repository, file))


def download_lora(name: str, key: str) -> Path:
    """The local copy of a LoRA, `owner/repo/file.safetensors`, or `owner/repo` where
    the repository has only one.

    key: names the setting in messages. Raises UserError as `download_file`, and where
    it is not clear which file is meant.
    """
    repository, file = hub_lora(name)
    if file:
        return download_file(name, key)
    with _asking(name, None, key):
        files = HfApi().list_repo_files(repository)
        try:
            file = lora_among(repository, files)
        except UserError as fault:
            raise UserError(f"{key}: {fault}") from fault
        logger.info(f"downloading {file} of {repository}")
        # `snapshot_download` also keeps the list of the repository's files.
        with _watched(repository):
            return _bring(repository, allow_patterns=[file]) / file


LOOK_EVERY_S = 0.5
"""Seconds between two looks at the progress of a download."""


@contextmanager
def _watched(name: str, total: int | None = None) -> Iterator[None]:
    """Reports the progress of the download in the block, by the size of the files in
    the cache, and warns once when the disk no longer has room for the rest. This works
    for every transport of the client library. Where nothing listens for progress, the
    library's own bars show it.

    total: bytes; None: not known.
    """
    if now.is_heard():
        disable_progress_bars()
    else:
        enable_progress_bars()
    ended = Event()

    def look() -> None:
        is_warned = total is None
        while True:
            with suppress(OSError):  # a file that got its name meanwhile
                _keep_parts(name)
                done = downloaded_bytes(name)
                now.tell(
                    "downloading",
                    *now.of_bytes(done if total is None else min(done, total), total),
                )
                left = (total or 0) - done
                message = why_no_room(name, left, free_space(hub_cache()), hub_cache())
                if message and not is_warned:
                    is_warned = True
                    logger.warning(f"the room runs out while it arrives: {message}")
            if ended.is_set():
                return
            ended.wait(LOOK_EVERY_S)

    watching = Thread(target=look, daemon=True, name="download")
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def _bring_told(name: str, revision: str | None, key: str, **chosen: Any) -> Path:
    """`_bring`, with size, target and free space in the log before, and the progress
    meanwhile. Raises UserError when there is not enough space."""
    _sweep(name)
    info = HfApi().model_info(name, revision=revision, files_metadata=True)
    wanted = filter_repo_objects(
        info.siblings or [], **chosen, key=lambda file: file.rfilename
    )
    total = sum(file.size or 0 for file in wanted)
    target = hub_cache()
    free = free_space(target) + downloaded_bytes(name)
    logger.info(
        f"downloading {name}: {total / 1e9:.1f} GB to {target} ({readable_size(free)} free)"
    )
    message = why_no_room(name, total, free, target)
    if message:
        raise UserError(f"{key}: {message}")
    with _watched(name, total):
        return _bring(name, revision, **chosen)


# ------------------------------------------------- files of which a part has arrived
#
# The client library writes each attempt at a file to a name of its own, and removes it
# when the attempt fails. So a second name keeps what has arrived:
# `blobs/<sha256>.part`. Only large files have such a sum; the others come again.

_SUM = "?" * 64
"""The name of a file that has one, as a pattern."""


def _blobs(name: str, pattern: str) -> Iterator[Path]:
    return (repository_folder(name) / "blobs").glob(pattern)


def _kept(attempt: Path) -> Path:
    """The second name of the file of an attempt, `<sha256>.<random>.incomplete`."""
    return attempt.with_name(f"{attempt.name.partition('.')[0]}.part")


@contextmanager
def _locked(name: str, blob: str, timeout: float | None = None) -> Iterator[None]:
    """As the client library locks a file while it brings it."""
    lock = hub_cache() / ".locks" / repository_folder(name).name / f"{blob}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock, timeout=timeout):
        yield


def _sweep(name: str) -> None:
    """Keeps one part of each large file of which a killed download has left parts, and
    removes the others."""
    for attempt in _blobs(name, "*.incomplete"):
        kept = _kept(attempt)
        with suppress(OSError), _locked(name, kept.stem, timeout=0.1):
            if fnmatch(kept.stem, _SUM) and not kept.exists():
                attempt.rename(kept)
            attempt.unlink(missing_ok=True)


def _keep_parts(name: str) -> None:
    """Gives what is arriving its second name, and takes it from what has arrived."""
    for attempt in _blobs(name, f"{_SUM}.*.incomplete"):
        with suppress(OSError):  # it has one, or this disk knows no second names
            _kept(attempt).hardlink_to(attempt)
    for part in _blobs(name, "*.part"):
        if part.with_suffix("").exists():
            part.unlink(missing_ok=True)


def _finish_parts(name: str, revision: str | None, **chosen: Any) -> None:
    """Asks for what is missing of each chosen file of which a part is here. A file with
    another sum in the end is removed, and so comes again."""
    _sweep(name)
    parts = [*_blobs(name, "*.part")]
    if not parts:
        return
    info = HfApi().model_info(name, revision=revision, files_metadata=True)
    files = {one.lfs.sha256: one for one in info.siblings or [] if one.lfs}
    names = (one.rfilename for one in files.values())
    wanted = {*filter_repo_objects(names, **chosen)}
    for part in parts:
        file = files.get(part.stem)
        if file and file.rfilename not in wanted:
            continue
        with _locked(name, part.stem):
            if file and part.exists() and not part.with_suffix("").exists():
                _finish(part, name, file, info.sha)
            part.unlink(missing_ok=True)


def _finish(part: Path, name: str, file: RepoSibling, commit: str | None) -> None:
    url = hf_hub_url(name, file.rfilename, revision=commit)
    there, size = part.stat().st_size, file.size or 0
    if not there:
        return
    logger.info(
        f"{file.rfilename}: {readable_size(there)} of {readable_size(size)} are there; it goes on with them"
    )
    if there <= size:
        with part.open("r+b") as opened:
            opened.seek(there)
            http_get(
                *(url, opened),
                resume_size=there,
                headers=build_hf_headers(),
                expected_size=size,
            )
    if sha256_of(part) == part.stem:
        part.rename(part.with_suffix(""))
    else:
        logger.warning(f"{file.rfilename}: the part was damaged: it is loaded again")
