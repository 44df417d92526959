"""Where the program's own folders are, and how the config a user names is found."""

from __future__ import annotations

from pathlib import Path

from toolkit.errors import UserError

TOOLKIT_ROOT = Path(__file__).resolve().parent.parent
EXTENSIONS_ROOT = TOOLKIT_ROOT / "extensions"
CONFIG_ROOT = TOOLKIT_ROOT / "config"

CONFIG_SUFFIXES = (".yaml", ".yml", ".json", ".jsonc")


def find_config(argument: str) -> Path:
    """The config file meant by `argument`: the path as given, else with a suffix or in a `config` folder.

    Raises UserError that lists every place it looked.
    """
    given = Path(argument).expanduser()
    bases = dict.fromkeys([given, Path("config") / given, CONFIG_ROOT / given])
    places = [Path(f"{base}{suffix}") for base in bases for suffix in ("", *CONFIG_SUFFIXES)]
    for place in places:
        # Not `is_file()`: a pipe such as /dev/stdin is a fine source too.
        if place.exists() and not place.is_dir():
            return place
    what = "is a folder, not a config file" if given.is_dir() else "no such config"
    looked = "".join(f"\n  {base} (also with {', '.join(CONFIG_SUFFIXES)})" for base in bases)
    raise UserError(f"{argument}: {what}. Working directory: {Path.cwd()}. Looked for:{looked}")
