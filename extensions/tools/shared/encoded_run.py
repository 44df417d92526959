"""Loads the model of a run, and encodes images for it as a training encodes them.

The caches of the run on disk are used and filled. This module trains nothing, and it
leaves the encoders loaded: the caller frees them once it has encoded its own texts.

`best` measures saved LoRAs on a model that is loaded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from toolkit.config.sections.trainer import DiffusionSection
from toolkit.contracts.data import BucketedSample
from toolkit.contracts.model import DiffusionModel
from toolkit.contracts.training import Progress
from toolkit.data.batches.latent_cache import (
    CacheEntry,
    CacheStores,
    EncodedDataset,
    encode_items,
)
from toolkit.models.families import model_bytes
from toolkit.system.device import DTYPES, check_device, pick_device, use_device
from toolkit.train.base_model import load_base_model


class EncodedRun(NamedTuple):
    """A loaded model and its encoded images. The encoders are still loaded.

    Example::

        model, dataset, device, dtype = encoded_run(training, items, "cuda", progress)
        model.unload_encoders()
    """

    model: DiffusionModel
    dataset: EncodedDataset
    device: torch.device
    dtype: torch.dtype


def encoded_run(
    training: DiffusionSection,
    items: Sequence[BucketedSample],
    device: str,
    progress: Progress,
    later: list[Sequence[CacheEntry]] | None = None,
) -> EncodedRun:
    """Loads the model and encodes the items with the run's cache on disk. device: as
    the `device` key of a job. later: as in `encode_items`."""
    check_device(device, model_bytes(training.model))
    used = use_device(pick_device(device))
    dtype = DTYPES[training.train.dtype]
    model = load_base_model(
        training.model, used, dtype, training_folder=training.training_folder, keep=True
    )
    stores = CacheStores(Path(training.training_folder).expanduser()).on_disk
    dataset = encode_items(items, model, lambda _: stores, dtype, progress, later=later)
    return EncodedRun(model, dataset, used, dtype)
