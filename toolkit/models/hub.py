"""Downloads models, encoders, LoRAs and single files from the Hugging Face hub.

It logs size and target first, resumes interrupted downloads, and turns every failure
into one UserError with the key of the job. It loads nothing; the cache is searched
without a connection in `toolkit.config.sections.model_files`. `loading` calls it for
models, `toolkit.train.base_model` and the trainer for single files and LoRAs, tools for
their text encoders.

    folder = download("Qwen/Qwen-Image-Edit-2511", revision=None)
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from toolkit.config.sections.model_files import (
    INDEX,
    ModelFolder,
    cached_index,
    cached_snapshot,
    downloaded_bytes,
    hub_cache,
    hub_lora,
    is_needed,
    lora_among,
    needed_files,
    no_index,
    quantization_fault,
    unneeded_files,
    where_else,
)
from toolkit.errors import UserError, first_line
from toolkit.files import now
from toolkit.files.writing import free_space, readable_size
from toolkit.models.families import why_no_room

logger = logging.getLogger(__name__)

KEY = "model.name_or_path"

CONFIGS = [INDEX, "*/config.json"]
"""Files of a hub model that say how its weights are stored."""


def download(name: str, revision: str | None, given: Collection[str] = ()) -> Path:
    """The local snapshot of the hub model `name` at `revision` (a branch, tag or
    commit; None: main).

    given: parts whose weights are not needed. HF_HUB_OFFLINE and HF_HOME are respected.
    Raises UserError when the hub refuses, the model does not exist, the hub cannot be
    reached, the disk is too small, or another program has quantized the weights. The
    configs show that before any weights are downloaded.
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
        total = _print_download_size(name, revision, given)
        wanted = needed_files()
        unneeded = unneeded_files(given)
        with _watched(name, total):
            return Path(
                snapshot_download(
                    name,
                    revision=revision,
                    allow_patterns=wanted,
                    ignore_patterns=unneeded,
                )
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
        logger.info(f"downloading {name} to {hub_cache()}")
        with _watched(name):
            return Path(snapshot_download(name, **files))


@contextmanager
def _asking(name: str, revision: str | None, key: str = KEY) -> Iterator[None]:
    """Turns errors of the client library into a UserError."""
    place = f"{key}: {name}"
    try:
        yield
    except HFValidationError as error:
        raise UserError(
            f"{place}: neither a local folder nor a model id of the hub: {first_line(error)}"
        ) from error
    except GatedRepoError as error:
        raise UserError(f"{place}: {_TOKEN_HELP} ({first_line(error)})") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{place}: has no revision {revision!r}.") from error
    except RepositoryNotFoundError as error:
        message = f"{place}: the hub has no such model, or it is private. {_TOKEN_HELP} {where_else(name)}"
        raise UserError(message.rstrip()) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HTTPError, OSError) as error:
        message = (
            f"{place}: not complete in {constants.HF_HUB_CACHE}, and the hub cannot be used: {first_line(error)}. "
            f"Download it by hand with `hf download {name}`, or give the path of a local folder. {where_else(name)}"
        )
        raise UserError(message.rstrip()) from error


def download_file(name: str, key: str) -> Path:
    """The local copy of one file of a hub repository, `owner/repo/path/of/file`.

    key: names the setting in messages. Raises UserError when there is no such file, or
    the hub cannot be reached.
    """
    owner, repo, file = name.split("/", 2)
    place = f"{key}: {name}"
    repository = f"{owner}/{repo}"
    try:
        return Path(hf_hub_download(repository, file, local_files_only=True))
    except LocalEntryNotFoundError:
        logger.info(f"downloading {file} of {repository}")
    except HFValidationError as error:
        raise UserError(
            f"{place}: neither a local file nor one of the hub: {first_line(error)}"
        ) from error
    try:
        with _watched(repository):
            return Path(hf_hub_download(repository, file))
    except GatedRepoError as error:
        raise UserError(f"{place}: {_TOKEN_HELP} ({first_line(error)})") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{place}: the hub has no such repository, or it is private. {_TOKEN_HELP}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise _out_of_reach(place, error) from error
    except EntryNotFoundError as error:
        raise UserError(f"{place}: {repository} has no such file.") from error
    except (OfflineModeIsEnabled, HTTPError, OSError) as error:
        raise _out_of_reach(place, error) from error


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
            return Path(snapshot_download(repository, allow_patterns=[file])) / file


def _out_of_reach(place: str, error: Exception) -> UserError:
    return UserError(
        f"{place}: not in {constants.HF_HUB_CACHE}, and the hub cannot be used: {first_line(error)}. "
        "Download the file by hand and give its path."
    )


_TOKEN_HELP = "Accept its terms on its page on the hub and set HF_TOKEN to a token of yours that may read it."


LOOK_EVERY_S = 0.5
"""Seconds between two looks at the progress of a download."""


@contextmanager
def _watched(name: str, total: int | None = None) -> Iterator[None]:
    """Reports the progress of the download in the block, by the size of the files in
    the cache. This works for every transport of the client library. Where nothing
    listens for progress, the library's own bars show it.

    total: bytes; None: not known.
    """
    if not now.is_heard():
        enable_progress_bars()
        yield
        return
    disable_progress_bars()
    ended = Event()

    def look() -> None:
        while True:
            with suppress(OSError):  # a file that got its name meanwhile
                done = downloaded_bytes(name)
                now.tell(
                    "downloading",
                    *now.of_bytes(done if total is None else min(done, total), total),
                )
            if ended.wait(LOOK_EVERY_S):
                return

    watching = Thread(target=look, daemon=True, name="download")
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def _print_download_size(
    name: str, revision: str | None, given: Collection[str] = ()
) -> int:
    """Logs size, target and free space before a download. Returns its bytes. Raises
    UserError when there is not enough space."""
    info = HfApi().model_info(name, revision=revision, files_metadata=True)
    total = sum(
        file.size or 0
        for file in info.siblings or []
        if is_needed(file.rfilename, given)
    )
    target = hub_cache()
    free = free_space(target) + downloaded_bytes(name)
    logger.info(
        f"downloading {name}: {total / 1e9:.1f} GB to {target} ({readable_size(free)} free)"
    )
    message = why_no_room(name, total, free, target)
    if message:
        raise UserError(message)
    return total
