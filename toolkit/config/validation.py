"""`validation`: the loss on images that are not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, model_validator

from toolkit.config.base import StrictModel
from toolkit.config.compat.data import VALIDATION
from toolkit.config.control_slots import Slots
from toolkit.config.dataset import DatasetConfig, Extensions, Resolution
from toolkit.config.diagnostics import Diagnostics
from toolkit.config.field_types import PathStr
from toolkit.config.located import ConfigNode

OF_THE_FOLDER = (
    "control_path", "control_optional", "resolution", "caption_ext", "default_caption", "trigger_word",
)  # fmt: skip
"""Keys that say something of `folder_path`."""


LOSS = "validation/loss"
"""The mean over all images and noise levels; `validation/loss_t0.125` and so on are those of one level."""


def noise_levels(count: int) -> tuple[float, ...]:
    """The middles of `count` equal parts of (0, 1)."""
    return tuple((index + 0.5) / count for index in range(count))


def loss_at(level: float) -> str:
    """The name of the loss at one noise level."""
    return f"{LOSS}_t{level:g}"


class ValidationConfig(StrictModel):
    """`validation`: the loss on images that are not trained on, with the weights that would be saved.

    Noise and noise levels are the same each time, nothing is dropped or weighted, so that two numbers compare. The
    weights of the lowest loss are kept as `<name>_best.safetensors`.
    """

    every: int = Field(default=0, ge=0)
    """Optimizer steps between two. One before step 1 and one after the last are always made; 0: no others."""

    every_n_epochs: int = Field(default=0, ge=0)
    """The same in epochs; where both are given, both count. 0: no others."""

    folder_path: PathStr | None = None
    """Folder of the images, by the rules of a dataset. Either this or `fraction`."""

    fraction: float | None = Field(default=None, gt=0, le=0.5)
    """Share of the images of all datasets that is held out, at all sizes; at least one image, no regularisation images.
    Drawn by the names of file and folder, so the same at each start. 0 is an error: leave the section out."""

    timesteps: int = Field(default=4, ge=1, le=1000)
    """Noise levels per image, evenly spaced: 4 are 0.125, 0.375, 0.625 and 0.875. Each costs a forward pass."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the noise and of what `fraction` draws; 0 is a valid seed. It is apart from `training_seed`, so
    that runs of different seeds compare."""

    control_path: Slots = ()
    """References of the images in `folder_path`, as in a dataset."""

    control_optional: bool = False
    """Of `folder_path`: images without a partner are measured without that reference instead of being errors."""

    resolution: Resolution | None = None
    """Of `folder_path`: size in pixels, one or a list. Not given: every size the datasets train at."""

    caption_ext: Extensions | None = None
    """Of `folder_path`. Not given: that of the first dataset."""

    default_caption: str | None = None
    """Of `folder_path`. Not given: that of the first dataset."""

    trigger_word: str | None = None
    """Of `folder_path`. Not given: that of the first dataset, else the process's."""

    foreign: ClassVar = VALIDATION

    @classmethod
    def rewrite(cls, entries: dict[str, ConfigNode], diagnostics: Diagnostics) -> dict[str, ConfigNode]:
        """The process's own source comes before one of `config.defaults`."""
        sources = [key for key in ("folder_path", "fraction") if key in entries]
        if len(sources) == 2:
            dropped = [key for key in sources if entries[key].from_defaults]
            if len(dropped) == 1:
                del entries[dropped[0]]
        return entries

    @model_validator(mode="after")
    def _one_source(self) -> ValidationConfig:
        # Not in the job's checks: after a wrong value is reported it is left out, and would be missed there.
        if self.folder_path is None and self.fraction is None:
            raise ValueError(
                "names no images. Give 'folder_path', or the 'fraction' of the training images to hold out."
            )
        if self.folder_path is not None and self.fraction is not None:
            raise ValueError("'folder_path' and 'fraction' cannot be combined. Remove one of them.")
        return self

    def dataset(self, datasets: Sequence[DatasetConfig]) -> DatasetConfig:
        """`folder_path` as a dataset; what it does not say comes from `datasets`, those that are trained on."""
        first = next((dataset for dataset in datasets if not dataset.is_reg), datasets[0])
        sizes = dict.fromkeys(size for dataset in datasets if not dataset.is_reg for size in dataset.resolution)
        settings = {"background": first.background} | {key: getattr(self, key) for key in OF_THE_FOLDER}
        settings |= {key: getattr(first, key) for key, value in settings.items() if value is None}
        settings["resolution"] = self.resolution or tuple(sizes) or first.resolution
        return DatasetConfig(folder_path=self.folder_path, num_repeats=1, **settings)
