"""How much a new job trains: the one dial of `run.py new` and of the page.

`written_job` (`examples`) writes what is usual for a model. `with_effort` turns that into
less or more, by the number of images. Files and samples come after shares of the run, so
they follow its planned time as well. Imports no torch.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, get_args

from extensions.tools.shared.pairs import listed

EffortName = Literal["quick", "usual", "careful"]


class Effort(NamedTuple):
    """Factors of what is usual.

    >>> EFFORTS["careful"].steps
    2
    """

    steps: float
    """Factor of the steps."""

    pauses: float
    """Factor of the steps between two saved files and between two sets of samples."""


EFFORTS: dict[str, Effort] = dict(
    zip(
        get_args(EffortName),
        (Effort(0.25, 0.5), Effort(1, 1), Effort(2, 2)),
        strict=True,
    )
)
USUAL = "usual"

MANY = 50
"""Images from which on the steps grow with them: each is then seen as often."""

MOST = 3
"""Times as many steps, for however many images."""

KEYS = ("steps", "save_every", "sample_every")


def with_effort(text: str, effort: str, folder: str) -> str:
    """A written job with other steps. folder: of its images.

    >>> with_effort("  steps: 2000\\n  save_every: 250 # of steps\\n", "quick", "")
    '  steps: 500 \\n  save_every: 125 # of steps\\n'
    """
    asked = EFFORTS[effort]
    share = min(MOST, max(1.0, images_in(folder) / MANY))
    for key in KEYS:
        factor = share * (asked.steps if key == KEYS[0] else asked.pauses)

        def scaled(match: re.Match[str], factor: float = factor) -> str:
            value = int(match[2]) * factor
            return match[
                1
            ] + f"{value if value < 1000 else float(f'{value:.2g}'):.0f}".ljust(
                len(match[2])
            )

        if factor != 1:
            text = re.sub(rf"(?m)^( +{key}: )(\d+)", scaled, text)
    return text


def images_in(folder: str) -> int:
    """The images of a folder and of its subfolders; 0 where there are none."""
    return sum(len(names) for each in listed(folder) for names in each.images.values())
