"""Loads batches from the stores. Which caption a use gets is drawn here; nothing else is random.

Shape suffixes: B batch, C latent channels, H/W latent height and width, L text tokens, D width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from toolkit.contracts import Batch, BatchSpec, EncodedPrompt, PromptEmbeds, Sample
from toolkit.data.captions import caption_for_use
from toolkit.data.encode import EncodedDataset, ItemEntries

_AHEAD_PER_WORKER = 2


@dataclass(frozen=True)
class BatchLoader:
    """Batches of an encoded dataset; each is a pure function of its spec and the seed."""

    dataset: EncodedDataset
    seed: int

    encode_prompt: Callable[[str, Sample], EncodedPrompt] | None = None
    """Encodes a text that is not cached; by default from the dataset's own encoder."""

    def load(self, spec: BatchSpec) -> Batch:
        """The batch on the CPU, in the dtype it was stored in."""
        samples = [self.dataset.items[index].sample for index in spec.items]
        entries = [self.dataset.entries[index] for index in spec.items]
        read = self.dataset.read
        texts = [
            self._text(index, position, spec.epoch) for index, position in zip(spec.items, spec.positions, strict=True)
        ]
        return Batch(
            latents_BCHW=torch.stack([read(entry.latents) for entry in entries]),
            prompts=PromptEmbeds.stack(texts),
            references=tuple(tuple(map(read, entry.references)) for entry in entries),
            spec=spec,
            names=tuple(sample.image for sample in samples),
            loss_weight_B=torch.tensor([sample.loss_weight for sample in samples]),
            loss_mask_B1HW=self._masks(entries),
        )

    def prefetch(self, specs: Iterable[BatchSpec], workers: int) -> Iterator[Batch]:
        """The batches in the order of `specs`, loaded ahead by `workers` threads; 0 loads in this thread.

        The batches are the same for any number of workers. Closing the iterator ends the threads.
        """
        if workers == 0:
            yield from map(self.load, specs)
            return
        remaining = iter(specs)
        pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
        try:
            first = islice(remaining, workers * _AHEAD_PER_WORKER)
            queue: deque[Future[Batch]] = deque(pool.submit(self.load, spec) for spec in first)
            while queue:
                batch = queue.popleft().result()
                queue.extend(pool.submit(self.load, spec) for spec in islice(remaining, 1))
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _masks(self, entries: Sequence[ItemEntries]) -> Tensor | None:
        """Loss masks [B, 1, H, W]; an item without one counts whole. None when no item has one."""
        masks = [self.dataset.read(entry.mask) if entry.mask else None for entry in entries]
        given = [mask_1HW for mask_1HW in masks if mask_1HW is not None]
        if not given:
            return None
        whole_1HW = torch.ones_like(given[0])
        return torch.stack([whole_1HW if mask_1HW is None else mask_1HW for mask_1HW in masks])

    def _text(self, index: int, position: int, epoch: int) -> EncodedPrompt:
        """The text of one use: the cached caption, the cached empty one, or a text made now."""
        sample, entries = self.dataset.items[index].sample, self.dataset.entries[index]
        caption = caption_for_use(sample.caption, sample.rules, self.seed, epoch, position)
        if sample.rules.shuffle_tokens:
            encode_prompt = self.encode_prompt or self.dataset.encoder.encode_prompt
            return encode_prompt(caption, sample)
        entry = entries.caption if caption else entries.empty
        assert entry is not None, "encode_items stores the empty caption wherever it may be drawn"
        return self.dataset.read_prompt(entry)
