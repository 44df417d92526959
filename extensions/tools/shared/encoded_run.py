"""The model of a run on a device, and images encoded for it as a training encodes
them."""

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
    """Its encoders are still loaded."""

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
    """Loads the model and encodes the items, with the run's cache on disk. device: as
    the `device` key of a job. later: as of `encode_items`."""
    check_device(device, model_bytes(training.model))
    used = use_device(pick_device(device))
    dtype = DTYPES[training.train.dtype]
    model = load_base_model(
        training.model, used, dtype, training_folder=training.training_folder, keep=True
    )
    stores = CacheStores(Path(training.training_folder).expanduser()).on_disk
    dataset = encode_items(items, model, lambda _: stores, dtype, progress, later=later)
    return EncodedRun(model, dataset, used, dtype)
