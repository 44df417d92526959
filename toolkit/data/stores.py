"""Where a job keeps what its encoders computed: on disk beside the runs, shared by jobs, or in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from toolkit.config.datasets_job import DatasetsSection
from toolkit.contracts import Sample
from toolkit.data.cache import TensorCache
from toolkit.data.encode import Stores
from toolkit.data.manifest import CACHE_FOLDER


class CacheStores:
    """The stores of a job. Each dataset's flags decide whether its entries outlive the run."""

    def __init__(self, training_folder: Path) -> None:
        root = training_folder / CACHE_FOLDER
        self._disk = Stores(TensorCache(root / "latents"), TensorCache(root / "text"))
        self._memory = Stores(TensorCache(None), TensorCache(None))

    def of_samples(self, section: DatasetsSection) -> Callable[[Sample], Stores]:
        """The stores of each sample of `section.datasets`, by the flags of its dataset."""
        by_dataset = [
            Stores(
                latents=self._at(dataset.cache_latents and dataset.cache_latents_to_disk).latents,
                text=self._at(section.asked_text_cache(dataset) is not False).text,
            )
            for dataset in section.datasets
        ]
        return lambda sample: by_dataset[sample.dataset]

    def _at(self, outlives_the_run: bool) -> Stores:
        return self._disk if outlives_the_run else self._memory

    @property
    def on_disk(self) -> Stores:
        """For what always outlives the run: the sample prompts, and everything a `cache` process makes."""
        return self._disk
