"""The names and settings of noise levels and losses, without torch.

The tables list the values of `train.timestep_type`, `train.weighting_scheme` and
`train.loss_type`, and the keys that each of them uses. `FlowSettings` has these keys
with their defaults. The last part counts how many noise levels share a forward pass.

`toolkit/config/sections/train.py` checks a job against the tables; `loss.py` and
`timesteps.py` have the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

_WIDTH = ("sigmoid_scale",)
_NORMAL = ("logit_mean", "logit_std")

TIMESTEP_TYPES: dict[str, tuple[str, ...]] = {
    "sigmoid": _WIDTH,
    "linear": (),
    "uniform": (),
    "weighted": (),
    "sigma": (),
    "shift": ("discrete_flow_shift",),
    "model_shift": _WIDTH,
    "flux_shift": _WIDTH,
    "logsnr": _NORMAL,
    "lognorm_blend": (),
    "qinglong_flux": _WIDTH + _NORMAL,
    "qinglong_model": _WIDTH,
}
"""`train.timestep_type` -> keys of `train` that matter to it and not to all.
`flow/timesteps.py` has the formulas."""

WEIGHTING_SCHEMES = {
    "none": "none",
    "sigma_sqrt": "sigma_sqrt",
    "logit_normal": "none",
    "mode": "none",
    "cosmap": "cosmap",
    "bell": "bell",
}
"""`train.weighting_scheme` -> function of `flow/loss.py`. logit_normal and mode change
what `timestep_type sigma` samples, and weight all alike."""

LOSS_TYPES = ("mse", "mae", "huber")
"""`train.loss_type`: functions of `flow/loss.py`."""

HUBER_SCHEDULES = ("constant", "exponential", "snr")
"""`train.huber_schedule`: functions of `flow/loss.py`."""


@dataclass(frozen=True)
class FlowSettings:
    """What each key means: docs/config.md, section `train`.

    >>> FlowSettings(loss_type="huber").huber_c
    0.1
    """

    timestep_type: str = "sigmoid"
    sigmoid_scale: float = 1.0
    discrete_flow_shift: float | None = None
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    weighting_scheme: str = "none"
    content_or_style: str = "balanced"
    min_timestep: float = 0.0
    max_timestep: float = 1000.0
    preserve_distribution_shape: bool = False
    num_timestep_buckets: int = 0
    linear_timesteps: bool = False
    linear_timesteps2: bool = False
    loss_type: str = "mse"
    huber_schedule: str = "constant"
    huber_c: float = 0.1
    huber_scale: float = 1.0

    @staticmethod
    def named_in(section: object) -> dict[str, Any]:
        """The values a section has under these names, as keyword arguments.

        Raises AttributeError when the section lacks one of the fields.
        """
        return {
            field.name: getattr(section, field.name) for field in fields(FlowSettings)
        }


# ------------------------------------------------------------ several noise levels in
# one pass A model whose text and references see neither the target nor its noise level
# (`ModelFacts.shares_prefix`) can share one pass over them: the sequence is the prefix
# and K noisy targets, each of which sees the prefix and itself. The gradient is that of
# K passes.

NoiseLevels = int | tuple[int, ...] | Literal["auto"]
"""`train.noise_levels_per_sample`."""

MOST_NOISE_LEVELS = 32

AUTO_LEVELS = 4
"""Levels that `auto` takes where text and references are at least as long as the
target."""


def levels_of(setting: NoiseLevels, references: int, prefix: int, target: int) -> int:
    """Noise levels of an image with so many references, prefix tokens (text and
    references) and target tokens.

    "auto" gives `AUTO_LEVELS` where the prefix is at least as long as the target, else
    1. A number applies to every image. A tuple is indexed by the number of references;
    its last entry applies to all larger numbers.

    >>> levels_of("auto", references=1, prefix=4096, target=4096)
    4
    >>> levels_of((1, 2, 4), references=7, prefix=4096, target=4096)
    4
    """
    if setting == "auto":
        return AUTO_LEVELS if prefix >= target else 1
    if isinstance(setting, int):
        return setting
    return setting[min(references, len(setting) - 1)]


def most_levels(setting: NoiseLevels) -> int:
    """The largest number of noise levels that an image may have with this setting.

    >>> most_levels((1, 4, 2))
    4
    """
    if setting == "auto":
        return AUTO_LEVELS
    return setting if isinstance(setting, int) else max(setting)


def cost_of(levels: int, prefix: int, target: int) -> float:
    """Tokens of one pass with so many levels, as a share of the tokens of separate
    passes: (prefix + levels target) / (levels (prefix + target)).

    It is 1 for one level and for an empty prefix. Raises ZeroDivisionError when
    `levels`, or both lengths, are 0.

    >>> cost_of(4, prefix=4096, target=4096)
    0.625
    """
    return (prefix + levels * target) / (levels * (prefix + target))


def describe_levels(counts: Sequence[tuple[int, int, float]]) -> str:
    """A plan's line. counts: references, levels and `cost_of` of each kind of image;
    duplicates are listed once.

    >>> describe_levels([(1, 4, 0.75)])
    'noise levels per sample: 1 control image: 4 levels cost 0.75 of 4 passes'
    """
    groups = []
    for references, levels, cost in sorted(set(counts)):
        what = f"{references} control image{'s' * (references != 1)}"
        if levels > 1:
            groups.append(f"{what}: {levels} levels cost {cost:.2f} of {levels} passes")
        else:
            groups.append(f"{what}: 1 level")
    return f"noise levels per sample: {'; '.join(groups)}"
