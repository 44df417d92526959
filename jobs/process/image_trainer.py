"""Base class of trainers on images, in folders or in a stream of shards.

It implements those steps of `Trainer` that all trainers on images share: the plan,
encoding and its cache, batches, samples, and validation. A subclass says how the run is
planned (`planner_class`) and what is learned (`fit`).

Scanning and batches are in `toolkit/data`, the loop in `toolkit/train`. This module
connects them. The trainers in `extensions/` subclass it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, Protocol, TypeVar, cast

from torch import Tensor

from jobs.process.trainer import Trainer
from toolkit.config.reading.process import JobContext
from toolkit.contracts.data import Batch, BatchSource, BatchSpec, BucketedSample, Sample
from toolkit.contracts.model import DiffusionModel
from toolkit.data.batches.dataloader import stream_source
from toolkit.data.batches.epoch_order import EpochSource, epoch_batches
from toolkit.data.batches.image_data import ImageData
from toolkit.data.batches.latent_cache import (
    CacheEntry,
    CacheStores,
    EncodedDataset,
    ItemEncoder,
    encode_items,
    fill_texts,
)
from toolkit.data.batches.stream_latents import StreamLatents
from toolkit.data.scan.fingerprint import DatasetHashes
from toolkit.data.scan.moved import RunOrder
from toolkit.files.tensor_cache import ForgetfulCache
from toolkit.plan.memory import machine_of
from toolkit.plan.planning import Planner
from toolkit.plan.run_plan import RunPlan
from toolkit.rounding import ceil_divide
from toolkit.system.device import DTYPES
from toolkit.system.read_ahead import loaded_ahead
from toolkit.train.accumulation import split_spec, splits_per_micro_batch
from toolkit.train.run import Run
from toolkit.train.sampling import (
    Sampler,
    sample_prompts,
)
from toolkit.train.validation import Validator

BatchT = TypeVar("BatchT", bound=Batch, covariant=True)


class Loader(Protocol[BatchT]):
    """Makes batches; each is a pure function of its spec.

    Example::

        class Names:
            def load(self, spec: BatchSpec) -> NamesBatch:
                return NamesBatch(spec, [items[index].sample.name for index in spec.items])
    """

    def load(self, spec: BatchSpec) -> BatchT: ...


class StreamLoader(Loader[BatchT], Protocol[BatchT]):
    """Makes the batches of a stream.

    Example::

        batch = loader.trial(images=4)  # as large as any batch of the stream
    """

    def trial(self, images: int) -> BatchT:
        """A batch of so many images at the largest size, to see whether it fits into
        the memory."""


class ImageTrainer(Trainer):
    """A trainer on images.

    Example::

        class SdTrainerProcess(ImageTrainer):
            planner_class = SdPlanner

            def fit(self, run: Run) -> None: ...
    """

    section: Any
    """An ImageTrainingSection and TrainerConfig."""

    data: ImageData

    planner_class: ClassVar[type[Planner[Any]]]

    model: DiffusionModel
    """What `encode_images` encodes with; `open_model` sets it."""

    predict: Callable[..., Tensor] | None = None
    """Replaces `model.predict_velocity` in work that only rank 0 does."""

    # What `encode_images` makes.

    stores: CacheStores

    dataset: EncodedDataset | StreamLatents
    """What makes batches of latents: an encoded dataset, or the encoder of a stream."""

    sampler: Sampler | None
    validator: Validator | None

    _texts: list[Sequence[CacheEntry]]
    """Texts that are to be encoded together."""

    @cached_property
    def planner(self) -> Planner[Any]:
        """Plans the run on the device of the job."""
        return self.planner_class(
            self.section,
            JobContext(self.job.name, measures_memory=True),
            machine_of(self.section.device),
        )

    def scan(self) -> ImageData:
        """The images of the datasets at their sizes. Raises DataErrors that name every
        bad file."""
        return self.planner.scan()

    def fingerprint(self) -> DatasetHashes:
        """The hashes by which a resume notices that images have changed."""
        return self.data.hashes()

    def restore_order(self, order: RunOrder) -> None:
        """Puts the images in the order in which the run began."""
        self.data = self.data.in_order(order)

    def make_plan(self) -> RunPlan:
        """The plan of the run for the scanned images. `scan` must have run."""
        return self.planner.plan(self.data)

    def written_at_begin(self) -> None:
        """Saves the scan cache for later starts."""
        self.data.scan.scan_cache.save()

    # ------------------------------------------------------------ encoding

    @property
    def caches_latents(self) -> bool:
        """False where the encoder of images is trained: they are encoded at each
        use."""
        return True

    def extra_prompts(self, sample: Sample) -> Mapping[str, str]:
        """Further prompts of a sample by name, the same names for all
        (`encode_items`)."""
        return {}

    def encode_images(self) -> None:
        """Encodes images and texts of the dataset, the samples and the validation
        split, then unloads the encoders that training does not need."""
        self.stores = CacheStores(self.training_folder)
        self.sampler = self.validator = None
        self._texts = []
        self._encode_dataset()
        if self.process_group.is_main_process:
            self._encode_samples()
            self._encode_validation()
        self._encode_texts()
        self._unload_encoders()

    def _encode_texts(self) -> None:
        """All that were collected, in one pass through the text encoder. Several ranks
        encode a share each, and then what the cache does not keep for all."""
        fill_texts(self._texts, self.model, self.progress)
        self._texts = []
        if not isinstance(self.dataset, EncodedDataset):
            self.status.finish()
            return
        if not self.process_group.is_single_process:
            self.process_group.all_gather_object("encoded")
            fill_texts(
                [entry.texts() for entry in self.dataset.entries],
                self.model,
                self.progress,
            )
        self.items_encoded = len(self.dataset.items)
        what = (
            "latents and text embeddings" if self.caches_latents else "text embeddings"
        )
        self.status.finish(f"{what} of {self.items_encoded} items are ready")

    def _unload_encoders(self) -> None:
        """Unloads the encoders that training does not need. Images that are made from
        now on need the VAE."""
        if isinstance(self.dataset, EncodedDataset):  # a stream needs all encoders
            needed = {
                "text_encoder": self.dataset.needs_text_encoder,
                "vae": bool(self.sampler),
            }
            keep = [
                name
                for encoder, names in self.model.family.encoder_parts.items()
                if needed[encoder]
                for name in names
            ]
            self.model.unload_encoders(keep=keep)

    def _encode_dataset(self) -> None:
        section = self.section
        group = self.process_group
        model = self.model
        stores = self.stores
        dtype = DTYPES[section.train.dtype]
        extra_prompts = self.extra_prompts
        if stream := self.data.stream:
            encoder = ItemEncoder(model, dtype)
            self.dataset = StreamLatents(
                stream,
                model,
                encoder,
                self.seed,
                stores.on_disk,
                extra_prompts,
            )
            return
        items = self.data.items
        of_sample = stores.of_samples(section)
        latents = self.caches_latents
        # each rank encodes its share first; the cache on disk is then complete
        if not group.is_single_process:
            share = items[group.rank :: group.world_size]
            encode_items(
                share,
                model,
                of_sample,
                dtype,
                self.progress,
                extra_prompts,
                latents,
                later=self._texts,
            )
            group.all_gather_object("encoded")
        texts = self._texts if group.is_single_process else []
        self.dataset = encode_items(
            items,
            model,
            of_sample,
            dtype,
            self.progress,
            extra_prompts,
            latents,
            later=texts,
        )

    def _encode_samples(self) -> None:
        section = self.section
        pictures = section.sample_pictures()
        if section.train.disable_sampling or not pictures:
            return
        caches = self.stores.on_disk
        if not self.caches_latents:
            caches = caches._replace(latents=ForgetfulCache())
        self.sampler = Sampler(
            self.model,
            sample_prompts(pictures, section.trigger_word, self.model.family),
            self.dataset.encoder,
            caches,
            self.predict,
            self.watch_sampling,
        )
        self.sampler.encode(self.progress, self._texts)

    def _encode_validation(self) -> None:
        section = self.section
        model = self.model
        split = self.data.split
        measured = section.validation
        if not split or not measured:
            return
        stores = self.stores
        of_sample = (
            stores.of_samples(section)
            if split.from_training
            else lambda _: stores.on_disk
        )
        dtype = DTYPES[section.train.dtype]
        held_out = encode_items(
            split.items, model, of_sample, dtype, self.progress, later=self._texts
        )
        self.validator = Validator(model, held_out, measured.timesteps, self.predict)

    def measure_validation(
        self, should_stop: Callable[[], bool]
    ) -> dict[str, float] | None:
        """The losses of the validator; None after a stop."""
        assert self.validator is not None
        return self.validator.losses(should_stop)

    # ------------------------------------------------------------ batches

    def batches(
        self,
        run: Run,
        loader: Loader[BatchT],
        cost: Callable[[BucketedSample], int],
        group_by_length: bool = False,
        prefetched: bool = True,
    ) -> tuple[BatchSource, Callable[[], BatchT]]:
        """The batches of the run, epoch after epoch; and what makes the largest one of
        a rank, for a trial.

        loader: makes them; of a stream a `StreamLoader`. cost: pixels of an item in the
        model. prefetched: False: batches are made between the steps.
        """
        data = self.data
        group = self.process_group
        seed = run.seed
        size = self.section.train.batch_size
        workers = (
            max(dataset.num_workers for dataset in self.section.datasets)
            if prefetched
            else 0
        )
        splits = splits_per_micro_batch(run.grad_accum_steps, group.world_size)
        if data.stream:
            source = stream_source(
                data.stream, seed, size, loader.load, workers, run.should_stop
            )
            return source, partial(
                cast("StreamLoader[BatchT]", loader).trial, ceil_divide(size, splits)
            )
        of_epoch = partial(
            epoch_batches, data.items, size, seed, group_by_length=group_by_length
        )

        def largest() -> BatchT:
            specs = [split_spec(spec, splits)[-1] for spec in of_epoch(run.state.epoch)]

            def batch_cost(spec: BatchSpec) -> float:
                return sum(cost(data.items[index]) for index in spec.items)

            return loader.load(max(specs, key=batch_cost))

        return EpochSource(
            of_epoch, partial(loaded_ahead, loader.load, workers=workers)
        ), largest
