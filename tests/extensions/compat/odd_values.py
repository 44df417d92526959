"""Values that no key expects: whatever a reader is given, it answers with errors of the config."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from toolkit.errors import ConfigErrors

TOML = ["''", "'x'", "0", "-1", "1e30", "nan", "true", "[]", "[[1, 'a'], {}]", "{a = 1}"]
FLAGS = ["''", "x", "0", "-1", "1e30", "nan", "true", '"[1,"', "{}", "~/x/../y:z"]


def only_config_errors(load: Callable[[str, str], object], keys: Iterable[str], values: Iterable[str]) -> None:
    """Raises what is no ConfigErrors."""
    listed = list(values)
    for key in keys:
        for value in listed:
            with contextlib.suppress(ConfigErrors):
                load(key, value)
