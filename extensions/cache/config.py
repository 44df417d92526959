"""The section of `type: cache`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from toolkit.config.base import ForeignNames
from toolkit.config.located import ConfigNode, Diagnostics
from toolkit.config.normalise import place_in
from toolkit.config.process import JobContext
from toolkit.config.sections import DiffusionSection
from toolkit.files import CACHE_FOLDER

if TYPE_CHECKING:
    from toolkit.data.run_plan import RunPlan


class CacheConfig(DiffusionSection):
    """`type: cache`: encodes the datasets of a training job and stops.

    It takes every key of `sd_trainer`; those that only concern training are checked and not used.
    """

    process_types: ClassVar[tuple[str, ...]] = ("cache",)

    foreign: ClassVar = ForeignNames(shapes={"dtype": "train.dtype"})

    @classmethod
    def rewrite(cls, entries: dict[str, ConfigNode], diagnostics: Diagnostics) -> dict[str, ConfigNode]:
        """Accepts `dtype` in the process itself, so that a cache needs no `train` section."""
        dtype = entries.pop("dtype", None)
        if dtype is not None:
            place_in(entries, "train", "dtype", dtype, diagnostics)
        return entries

    def outputs_exist(self, job: JobContext) -> bool:
        """Whether the cache folder exists; training encodes what is missing in it."""
        return (Path(self.training_folder).expanduser() / CACHE_FOLDER).is_dir()

    def plan(self, job: JobContext) -> RunPlan:
        """The plan: what there is to encode."""
        from extensions.cache.plan import plan_cache

        return plan_cache(self, job)

    @property
    def dtype(self) -> str:
        """Dtype of the cached tensors."""
        return self.train.dtype
