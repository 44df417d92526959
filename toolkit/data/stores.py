"""Where a job keeps what its encoders computed: on disk beside the runs, shared by jobs, or in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.contracts import Sample
from toolkit.data.cache import TensorCache
from toolkit.data.encode import Stores
from toolkit.data.folder import Scan

FOLDER = "_cache"
"""Under the training folder; never inside the user's dataset."""


class CacheStores:
    """The stores of a job. Each dataset's flags decide whether its entries outlive the run."""

    def __init__(self, training_folder: Path, note: Callable[[str], None]) -> None:
        root = training_folder / FOLDER
        self._disk = Stores(TensorCache(root / "latents", note), TensorCache(root / "text", note))
        self._memory = Stores(TensorCache(None), TensorCache(None))

    def of_dataset(self, dataset: Any) -> Stores:
        """The stores of a `datasets[]` section."""
        latents = self._disk if dataset.cache_latents and dataset.cache_latents_to_disk else self._memory
        text = self._memory if dataset.cache_text_embeddings is False else self._disk
        return Stores(latents.latents, text.text)

    def of_samples(self, scan: Scan, datasets: tuple[Any, ...]) -> Callable[[Sample], Stores]:
        """The stores of each sample of a scan of these datasets."""
        return lambda sample: self.of_dataset(datasets[scan.dataset_of(sample)])

    @property
    def on_disk(self) -> Stores:
        """For what belongs to no dataset: the sample prompts."""
        return self._disk
