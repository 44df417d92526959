"""A dataset of the hub as a folder of the hub cache.

`hub_dataset` recognises an id or an address, `from_cache` returns the folder of a
snapshot, and `hub_fault` says what is missing there. Nothing here opens a connection:
`download` returns the command with which the user gets the files.

`dataset.py` uses it for `folder_path`; `model_files.py` uses the search in the cache.
"""

from __future__ import annotations

import re
from pathlib import Path

_ADDRESS = re.compile(
    r"(?:https?://(?:www\.)?huggingface\.co/datasets/|hf://datasets/)"
)
_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*?)(?:/tree/[^/]+|@[^/]+)?(/.*)?", re.ASCII)
_FOLDERS = (
    "data",
    "dataset",
    "datasets",
    "images",
    "input",
    "model",
    "models",
    "output",
    "outputs",
    "photos",
    "pictures",
    "spaces",
    "train",
)
"""First parts of a path that mean a folder here."""

_SCHEME = re.compile(r"[a-z][a-z0-9+]*://")


def hub_dataset(path: str) -> tuple[str, str]:
    """The id that a path means that leads nowhere here, and the path inside the
    dataset; empty for another path.

    Example: `https://huggingface.co/datasets/owner/name/tree/main/data` is `owner/name`
    and `data`.
    """
    begin = _ADDRESS.match(path)
    match = _ID.fullmatch(path[begin.end() :].rstrip("/") if begin else path)
    if not match or "--" in match[1] or ".." in match[1]:
        return "", ""
    owner = match[1].split("/")[0]
    if not begin and (
        owner.lower() in _FOLDERS
        or Path(owner).exists()
        or Path(path).expanduser().exists()
    ):
        return "", ""
    return match[1], (match[2] or "").strip("/")


def _repository(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}"


def snapshot_in(home: Path) -> Path | None:
    """The files of a repository in the hub cache: of the commit that `main` was at the
    download, else of the only one. home: its folder there."""
    try:
        commit = (home / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        commits = [folder.name for folder in home.glob("snapshots/*")]
        commit = commits[0] if len(commits) == 1 else ""
    folder = home / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def from_cache(path: str) -> str:
    """The folder in the hub cache that a path means which leads nowhere here; any other
    path as it is."""
    repo, inside = hub_dataset(path)
    folder = snapshot_in(_repository(repo)) if repo else None
    return str(folder / inside) if folder else path


def hub_remedy(path: str) -> str:
    """The remedy for a missing path that may mean a dataset of the hub; empty for any
    other path."""
    repo, _ = hub_dataset(path)
    return (
        f" If it is a dataset of the hub, run '{download(repo)}' first." if repo else ""
    )


def hub_fault(path: str) -> str:
    """The fault of an address, or of a dataset in the hub cache, with its remedy; empty
    for any other path. path: as `from_cache` leaves it."""
    if path.startswith("file://"):
        return f"{path!r} is an address. Write {path.removeprefix('file://')!r}."
    if _SCHEME.match(path):
        repo, _ = hub_dataset(path)
        how = (
            f"Run '{download(repo)}', and start again"
            if repo
            else "Download it, and give the folder"
        )
        return f"{path!r} is an address, and its files are not here. {how}; a 'url' streams tar files."
    home, snapshots, _ = path.partition("/snapshots/")
    name = Path(home).name
    if (
        snapshots
        and name.startswith("datasets--")
        and next(Path(home).glob("blobs/*.incomplete"), None)
    ):
        repo = name.removeprefix("datasets--").replace("--", "/", 1)
        return f"the download of {repo!r} was interrupted ({home}). Run '{download(repo)}' again."
    return ""


def download(repo: str) -> str:
    """The command that downloads a dataset of the hub, for messages.

    >>> download("anna/photos")
    'hf download --repo-type dataset anna/photos'
    """
    return f"hf download --repo-type dataset {repo}"
