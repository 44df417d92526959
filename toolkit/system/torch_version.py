"""Which versions of PyTorch the program runs on, and the settings of PyTorch's
allocator in each.

Imports no torch: the allocator reads its settings when torch is imported. So `run`
calls `prepare_allocator` and `check_torch_version` before anything else imports it.
Differences between versions in functions are in `torch_compat`. The plan asks
`pins_exactly` through `host_memory`.
"""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import PackageNotFoundError, version

from toolkit.errors import UserError, install_command

OLDEST, NEWEST = (2, 11), (2, 15)
"""The oldest and the newest version that the program was run on."""

PINNED_EXACT_ABOVE_MB = 256
"""MiB above which PyTorch is told to pin exactly the bytes of a tensor.

Below this size PyTorch rounds up to a power of two, so that freed memory can be reused.
Swapped blocks are larger, and never freed. Tensors that are copied at each step are
smaller; their memory must be reused, because pinning is slow."""

ALLOCATOR_SETTINGS = {
    "expandable_segments": ("True", (2, 1)),
    "pinned_max_round_threshold_mb": (PINNED_EXACT_ABOVE_MB, (2, 13)),
    "pinned_max_cached_size_mb": (PINNED_EXACT_ABOVE_MB, (2, 13)),
}
"""Setting -> its value, and the first version that knows it. An earlier version raises
at the first allocation on a GPU.

expandable_segments lets CUDA memory grow in place: batches of unlike sizes would leave
gaps into which no other batch fits. Pinned memory above the threshold is not rounded up
(a swapped block of 0.34 GB would take 0.54 GB). No memory above the threshold may be
kept for reuse either: PyTorch would reuse it without comparing sizes (pytorch
#192722)."""


def installed() -> str | None:
    """The installed version, as in "2.13.0+cpu"; None where PyTorch is not installed."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return None


def minor(installed: str | None) -> tuple[int, int]:
    """Major and minor number of a version; the newest supported one where it cannot be
    read.

    >>> minor("2.12.1+cu130")
    (2, 12)
    """
    match = re.match(r"(\d+)\.(\d+)", installed or "")
    return (int(match[1]), int(match[2])) if match else NEWEST


def _settings_of(installed: str | None) -> tuple[int, int]:
    """The version whose settings this one certainly knows: a build on the way to 2.13
    (2.13.0a0, 2.13.0.dev20260301) may lack the settings that 2.13 added."""
    major, number = minor(installed)
    is_finished = re.fullmatch(r"[\d.]*(\+.*)?", installed or "")
    return (major, number) if is_finished else (major, number - 1)


def check_torch_version() -> str | None:
    """A warning where the installed version is newer than the tested ones, else None.
    Raises UserError where it is older than the oldest."""
    here = installed()
    supported = f"{'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST))}"
    if minor(here) < OLDEST:
        wanted = f"torch=={'.'.join(map(str, NEWEST))}.0"
        raise UserError(
            f"PyTorch {here} is too old, this program runs on {supported}: {install_command(wanted)}"
        )
    if minor(here) > NEWEST:
        return f"PyTorch {here} is newer than those this program was tested with ({supported})."
    return None


def pins_exactly() -> bool:
    """Whether PyTorch can be told not to round pinned memory up."""
    return (
        _settings_of(installed())
        >= ALLOCATOR_SETTINGS["pinned_max_round_threshold_mb"][1]
    )


def casts_in_programs() -> bool:
    """Whether a compiled block may cast all of its adapters at once (`BlockCasts`). The
    compiled backward pass of 2.11 loses what is copied in place, so that gradients are
    zero. The gradients of these versions were compared; no other was tried."""
    return minor(installed()) in ((2, 13), (2, 15))


def prepare_allocator() -> None:
    """Sets PyTorch's allocator to the settings that the installed version knows, unless
    the user has set it. Called before torch is imported."""
    if (
        sys.platform == "linux"
        and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys()
    ):
        here = _settings_of(installed())
        settings = [
            f"{name}:{value}"
            for name, (value, since) in ALLOCATOR_SETTINGS.items()
            if here >= since
        ]
        os.environ["PYTORCH_ALLOC_CONF"] = ",".join(settings)
