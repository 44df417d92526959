"""The short names of `train.optimizer`, those of packages that are not installed here
marked to be skipped."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from toolkit.optim.optimizer_args import EXTRAS, OPTIMIZERS

INSTALLED = [
    name
    for name, path in OPTIMIZERS.items()
    if find_spec(path.partition(":")[0].partition(".")[0])
]
"""The short names whose package is installed here."""

SHORT_NAMES = [
    name
    if name in INSTALLED
    else pytest.param(
        name, marks=pytest.mark.skip(reason=f"needs the package {EXTRAS[name][1]}")
    )
    for name in OPTIMIZERS
]
