"""`type: sd_trainer`: wires the toolkit together. Each step of `run` is a room of its own."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial
from math import prod
from pathlib import Path

from extensions.sd_trainer.observers import observers
from extensions.sd_trainer.plan import plan_items, refuse_full_disk
from extensions.sd_trainer.resumption import Resumption
from extensions.sd_trainer.trained import attach_network, build_roles, starting_point
from jobs.process import BaseTrainProcess
from toolkit import interrupt
from toolkit.config.process import JobContext
from toolkit.contracts import BatchSpec, Item, ModelAdapter, Network, Size
from toolkit.data.batches import BatchLoader
from toolkit.data.captions import inject_trigger
from toolkit.data.encode import EncodedDataset, encode_items
from toolkit.data.folder import Scan
from toolkit.data.items import scan_items
from toolkit.data.order import epoch_batches
from toolkit.data.plan import RunPlan
from toolkit.data.stores import CacheStores
from toolkit.device import DTYPES, pick_device
from toolkit.errors import EXIT_DONE, Stopped
from toolkit.flow.settings import FlowSettings
from toolkit.log import StatusLine, copy_output
from toolkit.memory.advice import memory_advice
from toolkit.memory.quantize import quantizer
from toolkit.models.families import family_for
from toolkit.models.opening import open_adapter
from toolkit.train.checkpoint import recorded_seed
from toolkit.train.flow_step import FlowMatchingStep
from toolkit.train.hook import Hook
from toolkit.train.hooks.status import is_finished
from toolkit.train.lock import locked
from toolkit.train.loop import probe, train
from toolkit.train.resume import choose_state
from toolkit.train.run import Run
from toolkit.train.sampling import PIXELS_PER_TOKEN, SamplePrompt, Sampler
from toolkit.train.state_folder import remove_leftovers, state_root, step_of


class SdTrainerProcess(BaseTrainProcess):
    """Trains a network on folders of images; see README.md in this folder for the files it leaves."""

    def run(self) -> None:
        with interrupt.deferred() as self.request:
            scan, items = scan_items(self.section, family_for(self.section.model).size_multiple)
            plan = plan_items(self.section, JobContext(self.job.name), scan, items)
            self.request.check()
            with locked(self.save_root, self.print):
                remove_leftovers(state_root(self.save_root))
                state = choose_state(self.save_root, self.section.resume, self.job.options.restart, self.print)
                with copy_output(self.save_root / "log.txt"):
                    self.status = StatusLine()
                    self._run(scan, items, plan, state)
            self.request.check()

    def _run(self, scan: Scan, items: tuple[Item, ...], plan: RunPlan, state: Path | None) -> None:
        self.print(plan.render())
        if state and step_of(state) >= plan.optimizer_steps and is_finished(self.save_root):
            self.print(f"{self.save_root} is complete at step {step_of(state)}: nothing to do.")
            return
        refuse_full_disk(self.section, self.save_root)
        resumption = Resumption.of(state, self.section, scan, self.job.options.allow_change, self.print)
        super().run()  # the config is written only now: a job that is refused leaves the run as it was
        self._train(scan, items, plan, resumption)

    def _train(self, scan: Scan, items: tuple[Item, ...], plan: RunPlan, resumption: Resumption) -> None:
        seed = self._seed(resumption.state)
        start = None if resumption.state else starting_point(self.section, self.print)
        adapter = self._open_model()
        stores = CacheStores(self.training_folder, self.print)
        dataset = self._encode(scan, items, adapter, stores)
        sampler = self._sampler(adapter, dataset, stores)
        adapter.drop_encoders(keep=self._encoders_in_use(dataset, sampler))
        network = attach_network(self.section, adapter, seed, start, self.print)
        run = self._run_of(network, self._observers(network, sampler), plan.optimizer_steps, seed)
        run.record = resumption.record
        resumption.apply(run, self.print)
        self._loop(run, items, BatchLoader(dataset, seed), adapter)

    # ------------------------------------------------------------ model and data

    def _open_model(self) -> ModelAdapter:
        self.device = pick_device(self.section.device, self.print)
        self.print(f"device {self.device}, {self.section.train.dtype}")
        return open_adapter(self.section.model, self.device, self._dtype, quantizer, self.print)

    @property
    def _dtype(self):
        return DTYPES[self.section.train.dtype]

    def _encode(
        self, scan: Scan, items: tuple[Item, ...], adapter: ModelAdapter, stores: CacheStores
    ) -> EncodedDataset:
        of_sample = stores.of_samples(scan, self.section)
        dataset = encode_items(items, adapter, of_sample, self._dtype, self._progress)
        self.status.finish(f"latents and text embeddings of {len(items)} items are ready")
        return dataset

    def _sampler(self, adapter: ModelAdapter, dataset: EncodedDataset, stores: CacheStores) -> Sampler | None:
        prompts = self._sample_prompts()
        if not prompts or self.section.train.disable_sampling:
            return None
        sampler = Sampler(adapter, prompts, dataset.encoder, stores.on_disk)
        sampler.encode(self._progress)
        self.status.finish()
        return sampler

    def _sample_prompts(self) -> list[SamplePrompt]:
        pictures = self.section.sample.pictures() if self.section.sample else ()
        return [
            SamplePrompt(
                prompt=inject_trigger(item.prompt, self.section.trigger_word, add=False),
                negative=inject_trigger(item.neg, self.section.trigger_word, add=False),
                size=Size(_floor(item.width), _floor(item.height)),
                seed=item.seed,
                guidance_scale=item.guidance_scale,
                steps=item.sample_steps,
                references=tuple(Path(path).expanduser() for path in item.ctrl_img),
            )
            for item in pictures
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
        seed = self.training_seed or (recorded_seed(state) if state else secrets.randbelow(2**31 - 1) + 1)
        self.print(f"training_seed {seed}")
        return seed

    def _run_of(self, network: Network, hooks: list[Hook], steps: int, seed: int) -> Run:
        return Run(
            name=self.name,
            folder=self.save_root,
            steps=steps,
            accumulation=self.section.train.gradient_accumulation,
            seed=seed,
            roles=build_roles(self.section.train, network, steps),
            hooks=hooks,
        )

    def _observers(self, network: Network, sampler: Sampler | None) -> list[Hook]:
        log_every = self.section.logging.log_every
        self.status = StatusLine(every_s=0) if log_every else self.status
        if sampler:
            sampler.stop_asked = lambda: self.request.asked
        return observers(self.section, network, sampler, self.save_root, self.status, self.meta)

    # ------------------------------------------------------------ the loop

    def _loop(self, run: Run, items: tuple[Item, ...], loader: BatchLoader, adapter: ModelAdapter) -> None:
        settings = self.section.train
        workers = max(dataset.num_workers for dataset in self.section.datasets)
        batches_of_epoch = partial(epoch_batches, items, settings.batch_size, run.seed)
        uses = sum(item.sample.repeats for item in items)
        step = FlowMatchingStep(adapter, run.seed, samples_per_epoch=uses, **FlowSettings.named_in(settings))
        run.stop_asked = lambda: self.request.asked
        run.memory_advice = memory_advice(self.section)
        if run.state.step < run.steps:
            largest = max(batches_of_epoch(run.state.epoch), key=partial(_cost, items, adapter))
            if note := probe(run, loader.load(largest), step):
                self.print(note)
        train(run, batches_of_epoch, partial(loader.prefetch, workers=workers), step)
        if run.stop_reason:
            self.print(f"stopped by {run.stop_reason}")
            raise Stopped(EXIT_DONE)  # asked for by the user: the job ends here, and well


def _cost(items: Sequence[Item], adapter: ModelAdapter, spec: BatchSpec) -> int:
    """Pixels the transformer sees of a batch, references at their usual area: what its memory grows with."""
    usual = Size(1024, 1024)
    return sum(
        prod(items[index].crop.bucket)
        + len(items[index].sample.controls) * prod(adapter.reference_size(usual, items[index].crop.bucket))
        for index in spec.items
    )


def _floor(pixels: int) -> int:
    """The next size below that the model can draw, as diffusers' pipeline rounds."""
    return pixels // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN
