"""`type: sd_trainer`: wires the toolkit together. Each step of `run` is a room of its own."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from extensions.sd_trainer.events import EventLog
from extensions.sd_trainer.frozen import block_quantizer
from extensions.sd_trainer.int8_products import choose_int8_products
from extensions.sd_trainer.memory import block_engine, blocks_on_host, settle, telling_of_memory
from extensions.sd_trainer.memory_check import machine_of, memory_hook
from extensions.sd_trainer.observers import log_of, observers
from extensions.sd_trainer.plan import plan_items, refuse_full_disk
from extensions.sd_trainer.resumption import Resumption
from extensions.sd_trainer.trained import attach_network, base_merging, build_roles, starting_point
from jobs.process import BaseTrainProcess
from toolkit import interrupt
from toolkit.config.process import JobContext
from toolkit.contracts import BatchSpec, Item, ModelAdapter, Network, Size
from toolkit.data.batches import BatchLoader, LatentBatch
from toolkit.data.captions import inject_trigger
from toolkit.data.encode import EncodedDataset, encode_items
from toolkit.data.folder import Scan
from toolkit.data.held_out import scan_job
from toolkit.data.manifest import Manifest
from toolkit.data.order import EpochSource, epoch_batches
from toolkit.data.plan import RunPlan
from toolkit.data.stores import CacheStores
from toolkit.device import DTYPES, pick_device, set_up_cuda
from toolkit.errors import EXIT_DONE, Stopped
from toolkit.flow.settings import FlowSettings
from toolkit.log import StatusLine, copy_output
from toolkit.memory.advice import memory_advice
from toolkit.memory.compiling import check_backend
from toolkit.memory.quantize import quantizer
from toolkit.memory.sharding import block_sharing, gather_ahead
from toolkit.models.families import family_for
from toolkit.models.opening import checked_family, open_adapter
from toolkit.train.changes import flat
from toolkit.train.checkpoint import recorded_seed
from toolkit.train.flow_step import FlowMatchingStep
from toolkit.train.hooks.status import is_finished
from toolkit.train.hooks.stop_when import reached
from toolkit.train.int8_choice import first_use
from toolkit.train.lock import locked
from toolkit.train.lockstep import Follower, LeadingAdapter, follow
from toolkit.train.loop import probe, train
from toolkit.train.loss_scale import LossScaler
from toolkit.train.results import fetch_interval
from toolkit.train.resume import choose_state
from toolkit.train.run import Hook, Run
from toolkit.train.sampling import PIXELS_PER_LATENT, PIXELS_PER_TOKEN, SamplePrompt, Sampler
from toolkit.train.state_folder import read_document, remove_leftovers, state_root, step_of
from toolkit.train.validation import Validator
from toolkit.train.windows import cut_into, parts


class SdTrainerProcess(BaseTrainProcess):
    """Trains a network on folders of images; see README.md in this folder for the files it leaves.

    Of several operating-system processes the first alone writes, draws and measures.
    """

    runs_everywhere = True

    def run(self) -> None:
        with interrupt.deferred() as self.request:
            manifest = Manifest.beside(self.section.training_folder)
            scan, items, self.held_out = scan_job(self.section, family_for(self.section.model), manifest)
            machine = machine_of(self.section)
            plan = plan_items(self.section, JobContext(self.job.name), scan, items, self.held_out, machine)
            self.request.check()
            self.team = self.job.team
            self.team.memory_advice = memory_advice(self.section)
            with self._folder(), telling_of_memory(self.team.memory_advice):
                state = self.team.from_first(self._state_to_begin_with)
                with copy_output(self.save_root / "log.txt") if self.team.is_first else nullcontext():
                    self.status = StatusLine()
                    self._run(scan, items, plan, state)
            self.request.check()

    def _folder(self) -> AbstractContextManager[None]:
        """Owns the run's folder, which the first process does for all."""
        return locked(self.save_root, self.print) if self.team.is_first else nullcontext()

    def _state_to_begin_with(self) -> Path | None:
        remove_leftovers(state_root(self.save_root))
        return choose_state(self.save_root, self.section.resume, self.job.options.restart, self.print)

    def _run(self, scan: Scan, items: tuple[Item, ...], plan: RunPlan, state: Path | None) -> None:
        self.print(plan.render())
        if self.team.from_first(lambda: self._nothing_left(state, plan.optimizer_steps)):
            self.print(f"{self.save_root} is complete at step {step_of(state)}: nothing to do.")
            return
        if self.team.is_first:
            refuse_full_disk(self.section, self.save_root)
            checked_family(self.section.model)
        resumption = Resumption.of(state, self.section, scan, self.job.options.allow_change, self.print)
        self.team.require_same(dict(flat(resumption.record["settings"])))
        if self.team.is_first:
            super().run()  # the config is written only now: a job that is refused leaves the run as it was
            scan.manifest.save()
        self._train(items, plan, resumption)

    def _nothing_left(self, state: Path | None, steps: int) -> bool:
        """Whether the run is complete: all steps are done, or `stop_when` would end the run here again."""
        if state is None or not is_finished(self.save_root):
            return False
        step, extra = step_of(state), read_document(state)["state"]["extra"]
        return step >= steps or reached(self.section.stop_when, step, extra) is not None

    def _train(self, items: tuple[Item, ...], plan: RunPlan, resumption: Resumption) -> None:
        seed = self._seed(resumption.state)
        start = None if resumption.state else starting_point(self.section, self.print)
        adapter = self._open_model()
        stores = CacheStores(self.training_folder, self.print)
        dataset = self._encode(items, adapter, stores)
        sampler = self._sampler(adapter, dataset, stores)
        validator = self._validator(adapter, stores)
        adapter.drop_encoders(keep=self._encoders_in_use(dataset, sampler))
        network = attach_network(self.section, adapter, seed, start, self.print)
        if self._is_shared_out:
            gather_ahead(adapter.blocks())
        self.engine = block_engine(self.section, adapter, self.device, self.print)
        shared_out = network.shared_out()
        self.team.copy_from_first([p for name, p in network.parameters().items() if name not in shared_out])
        run = self._run_of(network, self._observers(network, sampler, validator, plan), plan, seed)
        if run.in_lockstep:
            follow(Follower(adapter, network, run))
        run.record = resumption.record
        resumption.apply(run, self.print)
        self.team.require_same(_beginning(run))
        self._loop(run, items, BatchLoader(dataset, seed), adapter, network)

    # ------------------------------------------------------------ model and data

    def _open_model(self) -> ModelAdapter:
        self.device = self.team.device(pick_device(self.section.device, self.print))
        self.print(f"device {self.device}, {self.section.train.dtype}")
        train = self.section.train
        check_backend(train.compile, self.device)
        set_up_cuda(self.device, train.cuda_allow_tf32, train.cuda_cudnn_benchmark, self.print)
        weights_dtype = DTYPES[self.section.weights_dtype()]
        merging = base_merging(self.section, self.print)
        of_blocks = block_quantizer(self.section, self.print)
        model, dtype = self.section.model, self._dtype
        args = quantizer, self.print, weights_dtype, merging, of_blocks, blocks_on_host(self.section, self.print)
        sharing = None
        if self._is_shared_out:
            sharing = block_sharing(self.device, dtype, self.team.size, self.team.exchange)
        return open_adapter(model, self.device, dtype, *args, sharing)

    @property
    def _is_shared_out(self) -> bool:
        """Whether each process has a part of the model only."""
        return self.section.train.parallel == "fsdp" and not self.team.alone

    @property
    def _dtype(self):
        return DTYPES[self.section.train.dtype]

    def _encode(self, items: tuple[Item, ...], adapter: ModelAdapter, stores: CacheStores) -> EncodedDataset:
        of_sample = stores.of_samples(self.section)
        if not self.team.alone:  # each encodes its share first: what is on disk then is there for all
            share = items[self.team.rank :: self.team.size]
            encode_items(share, adapter, of_sample, self._dtype, self._progress)
            self.team.gather("encoded")
        dataset = encode_items(items, adapter, of_sample, self._dtype, self._progress)
        self.status.finish(f"latents and text embeddings of {len(items)} items are ready")
        return dataset

    def _validator(self, adapter: ModelAdapter, stores: CacheStores) -> Validator | None:
        if not self.held_out or not self.team.is_first:
            return None
        of_sample = stores.of_samples(self.section) if self.held_out.from_training else lambda _: stores.on_disk
        dataset = encode_items(self.held_out.items, adapter, of_sample, self._dtype, self._progress)
        self.status.finish()
        return Validator(self._led(adapter), dataset, self.section.validation.timesteps, self.section.validation.seed)

    def _led(self, adapter: ModelAdapter) -> ModelAdapter | LeadingAdapter:
        """The adapter for what only the first process does."""
        return LeadingAdapter(adapter, self.team) if self._is_shared_out else adapter

    def _sampler(self, adapter: ModelAdapter, dataset: EncodedDataset, stores: CacheStores) -> Sampler | None:
        prompts = self._sample_prompts()
        if not prompts or self.section.train.disable_sampling or not self.team.is_first:
            return None
        sampler = Sampler(self._led(adapter), prompts, dataset.encoder, stores.on_disk)
        sampler.encode(self._progress)
        self.status.finish()
        return sampler

    def _sample_prompts(self) -> list[SamplePrompt]:
        """Of `sample`, then of `first_sample`."""
        sections = [given for given in (self.section.sample, self.section.first_sample) if given]
        return [
            SamplePrompt(
                prompt=inject_trigger(item.prompt, self.section.trigger_word, add=False),
                negative=inject_trigger(item.neg, self.section.trigger_word, add=False),
                size=Size(_floor(item.width), _floor(item.height)),
                seed=item.seed,
                guidance_scale=item.guidance_scale,
                steps=item.sample_steps,
                flow_shift=item.flow_shift,
                references=tuple(Path(path).expanduser() for path in item.ctrl_img),
            )
            for section in sections
            for item in section.pictures()
        ]

    @staticmethod
    def _encoders_in_use(dataset: EncodedDataset, sampler: Sampler | None) -> list[str]:
        """Parts that training still needs: a text encoder for shuffled captions, the VAE to see samples."""
        text = ["text_encoder", "tokenizer", "processor"] if dataset.needs_text_encoder else []
        return text + (["vae"] if sampler else [])

    def _progress(self, what: str, done: int, total: int) -> None:
        self.status.update(f"{what} {done}/{total}")
        self.request.check()  # what is encoded by now stays in the cache

    # ------------------------------------------------------------ the run

    def _seed(self, state: Path | None) -> int:
        """The given seed, the one the run began with, or a random one, which is printed so that it can be repeated."""
        drawn = self.team.from_first(lambda: secrets.randbelow(2**31 - 1) + 1)
        seed = self.training_seed or (recorded_seed(state) if state else drawn)
        self.print(f"training_seed {seed}")
        return seed

    def _run_of(self, network: Network, hooks: list[Hook], plan: RunPlan, seed: int) -> Run:
        return Run(
            name=self.name,
            folder=self.save_root,
            steps=plan.optimizer_steps,
            accumulation=self.section.train.gradient_accumulation,
            seed=seed,
            roles=build_roles(self.section, network, plan.optimizer_steps, seed, self.team),
            batches_per_epoch=plan.micro_batches_per_epoch,
            hooks=hooks,
            loss_scaler=LossScaler(self.device) if self.section.train.dtype == "float16" else None,
            fetch_every=fetch_interval(self.device),
            team=self.team,
            in_lockstep=self._is_shared_out,
            log=log_of(hooks),
        )

    def _observers(
        self, network: Network, sampler: Sampler | None, validator: Validator | None, plan: RunPlan
    ) -> list[Hook]:
        if not self.team.is_first:
            return []
        log_every = self.section.logging.log_every
        self.status = StatusLine(every_s=0) if log_every else self.status
        if sampler:
            sampler.stop_asked = lambda: self.request.asked
        return observers(self.section, network, sampler, validator, self.save_root, self.status, self.meta, plan)

    def _memory_check(self, items: tuple[Item, ...]) -> list[Hook]:
        event = EventLog(self.save_root / "events.jsonl").add
        return memory_hook(self.section, items, lambda: self.engine.level, self.device, self.status.note, event)

    # ------------------------------------------------------------ the loop

    def _loop(
        self, run: Run, items: tuple[Item, ...], loader: BatchLoader, adapter: ModelAdapter, network: Network
    ) -> None:
        settings = self.section.train
        workers = max(dataset.num_workers for dataset in self.section.datasets)
        batches_of_epoch = partial(epoch_batches, items, settings.batch_size, run.seed)
        uses = sum(item.sample.repeats for item in items)
        step = FlowMatchingStep(adapter, run.seed, samples_per_epoch=uses, **FlowSettings.named_in(settings))
        run.stop_asked = lambda: self.request.asked
        run.memory_advice = self.team.memory_advice
        if self.team.alone:
            run.hooks = [*run.hooks, *self._memory_check(items)]
        if run.state.step < run.steps:
            cut = cut_into(run.accumulation, self.team.size)
            own = (parts(spec, cut)[-1] for spec in batches_of_epoch(run.state.epoch))
            largest = max(own, key=partial(_cost, items, adapter))
            batch = loader.load(largest)
            self._choose_int8_products(adapter, network, step, loader, batches_of_epoch)
            remembered = sum(role.state_bytes for role in run.roles.values())
            settle(self.engine, self.section, adapter, network, batch, remembered, self.team.gather)
            # Of a model that is shared out no process repeats a pass by itself.
            if note := probe(run, batch, step, *([] if self._is_shared_out else [self.engine.save_more])):
                self.print(note)

        def load(specs: Iterable[BatchSpec]) -> Iterator[LatentBatch]:
            return loader.prefetch(step.look_ahead(specs, partial(_latent_size, items)), workers)

        train(run, EpochSource(batches_of_epoch, load), step)
        self._agree_on_the_end(run)
        if run.stop_reason:
            self.print(f"stopped by {run.stop_reason}")
            raise Stopped(EXIT_DONE)  # asked for by the user: the job ends here, and well

    def _choose_int8_products(
        self,
        adapter: ModelAdapter,
        network: Network,
        step: FlowMatchingStep,
        loader: BatchLoader,
        batches_of_epoch: Callable[[int], Sequence[BatchSpec]],
    ) -> None:
        """By the first item of the first epoch, wherever the run goes on."""

        def first() -> tuple[LatentBatch, Tensor]:
            batch = loader.load(first_use(batches_of_epoch(0)))
            return batch, step.draws(batch.spec, batch.latents_BCHW.shape[1:])[0]

        choose_int8_products(self.section, adapter, network, self.device, first, self.team, self.print)

    def _agree_on_the_end(self, run: Run) -> None:
        """A stop that one process has heard of is one of all. Nobody goes before the first has saved."""
        told = self.team.gather((run.stop_reason, self.request.exit_code))
        run.stop_reason = next((reason for reason, _ in told if reason), None)
        self.request.exit_code = next((code for _, code in told if code is not None), None)


def _beginning(run: Run) -> dict[str, Any]:
    """What has to be the same in all processes, so that they share out the same batches."""
    state = run.state
    begun = {"the step to go on from": state.step, "its place in the data": state.cursor}
    return {"the dataset": run.record["dataset"], "the seed": run.seed, "the number of steps": run.steps, **begun}


def _cost(items: Sequence[Item], adapter: ModelAdapter, spec: BatchSpec) -> int:
    """Pixels the transformer sees of a batch, references at their usual area: what its memory grows with."""
    usual = Size(1024, 1024)
    return sum(
        prod(items[index].crop.bucket)
        + len(items[index].sample.controls) * prod(adapter.reference_size(usual, items[index].crop.bucket))
        for index in spec.items
    )


def _latent_size(items: Sequence[Item], spec: BatchSpec) -> Size:
    bucket = items[spec.items[0]].crop.bucket
    return Size(bucket.width // PIXELS_PER_LATENT, bucket.height // PIXELS_PER_LATENT)


def _floor(pixels: int) -> int:
    """The next size below that the model can draw, as diffusers' pipeline rounds."""
    return pixels // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN
