"""Base class of trainers: the steps from a checked section to a finished run.

A subclass implements what is specific: scanning the data, loading the model, what is
trained, and the train step. The lock of the folder, the choice of a checkpoint, the
comparison with the job that wrote it, callbacks, signals and the shutdown are here.
`tests/jobs/process/test_trainer.py` has a small example.
"""

from __future__ import annotations

import logging
import secrets
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jobs.process.base import BaseTrainProcess
from toolkit.config.sections.trainer import TrainerConfig
from toolkit.contracts.training import TrainState
from toolkit.data.scan.fingerprint import DatasetHashes
from toolkit.data.scan.moved import RunOrder
from toolkit.errors import EXIT_DONE, Interrupted, OutOfMemory, RunError, UserError
from toolkit.files import run_files
from toolkit.files.log import IN_LOG, StatusLine, tee_output
from toolkit.files.now import tell, told_to
from toolkit.files.writing import sha256_of, short, why_not_replaced
from toolkit.memory.compiling import Programs
from toolkit.memory.kept_times import remember_run_times
from toolkit.optim.optimizer_args import ArgumentError
from toolkit.optim.schedules import ScheduleArgs, build_schedule
from toolkit.optim.trial import LORA_SHAPES, measured_states, try_optimizer
from toolkit.plan.memory import machine_of
from toolkit.plan.next_commands import lead_on, next_commands
from toolkit.plan.planning import time_left, why_not_started
from toolkit.plan.run_plan import RunPlan
from toolkit.shortage import MEMORY, is_short_of, shortage
from toolkit.system import signals, threads
from toolkit.system.device import pick_device
from toolkit.system.signals import StopRequest
from toolkit.system.threads import ThreadChoice
from toolkit.train.callbacks.sample import Samples
from toolkit.train.callbacks.save import PrepareNetwork, SaveCallback
from toolkit.train.callbacks.standard import (
    callbacks_of_extensions,
    run_name,
    standard_callbacks,
)
from toolkit.train.callbacks.status import recorded_end
from toolkit.train.callbacks.threads import ThreadsCallback
from toolkit.train.callbacks.times import TimesCallback
from toolkit.train.callbacks.validation import Validation
from toolkit.train.checkpoint_state import saved_seed
from toolkit.train.checkpoint_store import (
    MANIFEST,
    check_writable,
    checkpoint_dir,
    remove_partial_writes,
    step_of,
    try_saving,
    verify,
)
from toolkit.train.config_diff import flatten_config
from toolkit.train.lock import run_lock
from toolkit.train.metrics_buffer import FETCH_EVERY
from toolkit.train.now import RunNow
from toolkit.train.optimizer_step import Role
from toolkit.train.resumption import ResumePlan, Start, archive_run, plan_start
from toolkit.train.run import Callback, Encoded, LossScaler, Run

logger = logging.getLogger(__name__)


COUNTED = {
    "latents": "images",
    "text embeddings": "captions",
    "text encoder layers": "layers of the text encoder",
    "control images of samples": "control images",
}
"""Word that `Progress` gets -> word for the things that a user counts; other words
stay."""

IN_THE_CACHE = " in the cache"


class Trainer(BaseTrainProcess):
    """A process that trains: each step of `run` is a method. What it makes is an
    attribute, which the next ones read, and which is gone once `run` ends.

    With several ranks only rank 0 writes, samples and validates.

    Example::

        process = Trainer(0, job, config)  # of a subclass; writes nothing yet
        process.run()
    """

    runs_everywhere = True

    section: TrainerConfig

    status: StatusLine
    """The last line of the terminal."""

    now: RunNow
    """What the run does, there and in run.json."""

    # In the order of the steps that make them.

    request: StopRequest
    """Whether a signal requests a stop."""

    data: Any
    """The result of `scan`."""

    plan: RunPlan
    resumption: ResumePlan
    seed: int
    device: torch.device

    items_encoded = 0
    """Items of the dataset that `encode` has made ready."""

    roles: dict[str, Role]
    """What is trained, with its optimizers; `attach` makes them."""

    in_progress: Run
    """The run; before `attach` one without roles."""

    @property
    def saves_folders(self) -> bool:
        """Whether the weights of a step are a folder, not a file."""
        return False

    @property
    def programs(self) -> Programs:
        """The compiled programs that a step runs; by default none."""
        return Programs()

    def run(self) -> None:
        """The whole run: scans, plans, decides where to start, and trains unless the
        run is complete. Signals are deferred until the run can stop."""
        group = self.process_group
        measured = measured_states(
            lambda: group.device(pick_device(self.section.device, quiet=True))
        )
        ends = self._attributes_until_the_end()
        with ends, self._listening(), measured, signals.defer_signals() as self.request:
            self.data = self.scan()
            self.plan = self.make_plan()
            self.request.check()
            with self.own_folder(self.request.check):
                # before the folder is written to and the model is loaded: their code
                # may fail
                self.hooks = callbacks_of_extensions(
                    self.section, group.is_main_process
                )
                start = group.run_on_rank0_and_broadcast(self.choose_start)
                self._see_state(start)
                with (
                    tee_output(self.save_root / run_files.LOG)
                    if group.is_main_process
                    else nullcontext()
                ):
                    logger.info(self.plan.summary(), extra={IN_LOG: self.plan.render()})
                    if not self.is_complete(start):
                        with self._failure_told(start):
                            self.set_up(start)
                            with (
                                self.recorded(start)
                                if group.is_main_process
                                else nullcontext()
                            ):
                                self.train()
                    self.request.check()
                    for file in run_files.final_files(self.save_root, self.name)[:1]:
                        logger.info(f"trained weights: {short(file)}")
                    first = lead_on(self.section) or next_commands(
                        self.save_root, self.name, self.section
                    )
                    logger.info(f"next: {first[0]}")
            self.request.check()

    @contextmanager
    def _attributes_until_the_end(self) -> Iterator[None]:
        """Removes the attributes that are set inside the block at its end: the next
        process needs the memory."""
        before = set(vars(self))
        try:
            yield
        finally:
            for name in vars(self).keys() - before:
                delattr(self, name)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        self.status = StatusLine()
        self.now = RunNow(self.status)
        with told_to(self.now):
            yield

    @contextmanager
    def recorded(self, start: Start) -> Iterator[None]:
        """Inside the block run.json says what the run does, and at its end how it
        ended."""
        done = step_of(start.checkpoint) if start.checkpoint else 0
        planned, _ = time_left(self.section, self.plan, done)
        self.now.plan(
            planned.parts if planned else {},
            self.plan.time.work.pictures if self.plan.time else 0,
            done,
        )
        tell("reading")
        with (
            recorded_end(self.save_root, self.name),
            self.now.written(self.save_root, self.name),
        ):
            yield

    @contextmanager
    def _failure_told(self, start: Start) -> Iterator[None]:
        """Tells the callbacks of extensions of an error inside the block. The program's
        own have not begun before the loop, which then tells all of them."""
        self.in_progress = Run(
            self.name,
            self.save_root,
            self.plan.optimizer_steps,
            grad_accum_steps=self.section.micro_batches_per_step,
            seed=self.training_seed or 0,
            roles={},
            state=TrainState(step_of(start.checkpoint) if start.checkpoint else 0),
        )
        try:
            yield
        except (Exception, SystemExit) as error:  # a stop is none
            if not self.in_progress.failed:
                self.in_progress.callbacks = self.hooks
                self.in_progress.fail(error)
            raise

    def train(self) -> None:
        """Loads the model, encodes the data, attaches the trained parts, loads a
        checkpoint where the run resumes, and runs the loop to its end."""
        self.open_model()
        begun = time.monotonic()
        self.encode()
        encoded = Encoded(self.items_encoded, time.monotonic() - begun)
        self.attach()
        self.in_progress = run = self.build_run()
        report = self.resumption.report_threads
        if self.chooses_threads():
            choice = ThreadChoice(threads.free_cores())
            run.callbacks = [*run.callbacks, ThreadsCallback(choice, report=report)]
        for callback in run.listening():
            with run.contained(callback):
                callback.on_encoded(run, encoded)
        self.load_checkpoint(run)
        if self.device.type == "cpu" and not self.chooses_threads():
            report(torch.get_num_threads())
        self.now.follow(run)
        self.now.step(run, None)
        self.fit(run)
        self.end(run)

    # ------------------------------------------------------------ what a subclass
    # implements

    @abstractmethod
    def scan(self) -> Any:
        """Finds the data, before anything expensive. Raises UserError for errors in
        it."""

    @abstractmethod
    def fingerprint(self) -> DatasetHashes:
        """Hashes of the data, from which a resume tells what was added, removed and
        edited."""

    @abstractmethod
    def make_plan(self) -> RunPlan:
        """The plan of the run. It is printed at the start, and by `--dry-run`."""

    @abstractmethod
    def open_model(self) -> None:
        """Loads the model, and what else training starts from."""

    def encode(self) -> None:
        """Precomputes what training reads from a cache, such as latents; by default
        nothing."""

    @abstractmethod
    def attach(self) -> None:
        """Creates what is trained, with its optimizers: sets `roles`."""

    @abstractmethod
    def weights_writer(self) -> PrepareNetwork:
        """Copies the weights for the files of a step, and returns what writes them
        (`PrepareNetwork`)."""

    def validation(self) -> Validation | None:
        """The measurement on the validation split; None: there is none."""
        return None

    def samples(self) -> Samples | None:
        """The sample images that are generated; None: none."""
        return None

    @abstractmethod
    def fit(self, run: Run) -> None:
        """Calls `toolkit.train.loop.train` with the trainer's batches and its
        `TrainStep`."""

    # ------------------------------------------------------------ what a subclass may
    # override

    def memory_advice(self) -> str:
        """The settings that the user can change after an out-of-memory error, most
        effective first."""
        return ""

    def refuse_parts(self) -> None:
        """Raises UserError for data or a model with which the run cannot work, before
        its folder is written to."""

    def refuse(self) -> None:
        """Raises UserError for a run that cannot work, before its folder is written to:
        memory, disk, `refuse_parts`, optimizers."""
        for reason in why_not_started(
            self.section, self.save_root, self.plan, machine_of(self.section.device)
        ):
            raise UserError(reason)
        self.refuse_parts()
        device = self.process_group.device(pick_device(self.section.device, quiet=True))
        for key, settings in self.section.optimizers_used():
            fields = ScheduleArgs.named_in(settings)
            schedule = build_schedule(
                settings.lr_scheduler,
                self.plan.optimizer_steps,
                params=settings.lr_scheduler_params,
                **fields,
            )
            try:
                trial = try_optimizer(
                    settings.optimizer,
                    settings.lr,
                    settings.optimizer_params,
                    device,
                    keeps_state=self.section.save.states != "never",
                    begins_at_zero=settings.lr * schedule(0) == 0,
                    shapes=self.trained_shapes(),
                )
            except UserError as error:
                field = (
                    "optimizer_params"
                    if isinstance(error, ArgumentError)
                    else "optimizer"
                )
                raise UserError(f"{key}.{field}: {error}") from error
            for line in trial.lines():
                logger.info(line)

    def trained_shapes(self) -> Iterable[tuple[int, ...]]:
        """Shapes of weights like those that are trained, for the trial of their
        optimizer."""
        return LORA_SHAPES

    def restore_order(self, order: RunOrder) -> None:
        """Puts the data into the order in which the run began: names of images, or
        entries of `datasets`, have changed since. Raises UserError by default."""
        raise UserError(
            f"{self.save_root}: the images are those of the run, in another order. With the names that they had it "
            "goes on; --restart moves the old run aside and starts over."
        )

    def check_base(self) -> None:
        """Raises UserError where the checkpoint was trained on another base model
        (`ResumePlan.check_base`)."""

    def written_at_begin(self) -> None:
        """Saves results of the scan, once the run has started."""

    def move_aside(self) -> None:
        """Moves the files of an earlier run to `<folder>.old-<n>` next to the run
        folder. Nothing is deleted. It has no effect where the folder does not exist."""
        if self.save_root.is_dir():
            with run_lock(self.save_root):
                archive_run(self.save_root)

    # ------------------------------------------------------------ the steps

    @contextmanager
    def own_folder(self, check: Callable[[], None]) -> Iterator[None]:
        """Locks the run's folder (rank 0). Where nothing else handles them, an error of
        the system about a file of the run (unreadable, no inodes left), and memory,
        threads or open files that run out, become RunErrors. check: raises when a stop
        is requested."""
        self.process_group.oom_hint = self.memory_advice
        try:
            with (
                run_lock(self.save_root, check)
                if self.process_group.is_main_process
                else nullcontext()
            ):
                yield
        except (OSError, RuntimeError, MemoryError) as error:
            fault = self._told(error)
            if fault is None:
                raise
            raise fault from error

    def _told(self, error: Exception) -> RunError | None:
        """The error that a user sees where it is not a defect of the program; None: it
        is one."""
        short = shortage(error)
        if isinstance(error, RuntimeError) and is_short_of(error) is MEMORY:
            # Behind the GPU's name PyTorch's message has details of its allocator;
            # other lines are for developers.
            reason = (
                str(error).partition(" GPU ")[0].partition("\n")[0].strip(" .")
                or "Out of memory"
            )
            return OutOfMemory(f"{reason}. {self.memory_advice()}")
        if short:
            return OutOfMemory(str(short)) if short is MEMORY else RunError(str(short))
        place = getattr(error, "filename", None)
        folder = self.training_folder
        if isinstance(place, str) and Path(place).absolute().is_relative_to(folder):
            return RunError(
                f"{place}: cannot be used: {getattr(error, 'strerror', error)}"
            )
        return None

    def choose_start(self) -> Start:
        """Decides how the run begins, and moves an old run aside that is in the way.

        Raises UserError or RunError where the job cannot go on in its folder
        (`plan_start`).
        """
        check_writable(checkpoint_dir(self.save_root))
        remove_partial_writes(checkpoint_dir(self.save_root))
        options = self.job.options
        folder = self.save_root
        resumes = self.section.resume == "auto" and not options.restart
        for hook in self.hooks:
            hook.before_start(folder, run_name(folder, self.section), resumes)
        start = plan_start(
            self.save_root,
            self.section,
            self.plan.optimizer_steps,
            self.fingerprint,
            options.restart,
            options.allow_change,
        )
        if start.moves_aside:
            archive_run(self.save_root)
        return start

    def _see_state(self, start: Start) -> None:
        """Raises RunError on a rank that does not see the state which rank 0 has
        verified, or sees another one."""
        if start.checkpoint is None or self.process_group.is_single_process:
            return
        if fault := verify(start.checkpoint, by_hash=False):
            raise RunError(
                f"{start.checkpoint.absolute()}: process {self.process_group.rank} does not see this state ({fault}). "
                "All machines need the same training_folder: give one that they share."
            )
        self.process_group.assert_equal_across_ranks(
            {str(start.checkpoint): sha256_of(start.checkpoint / MANIFEST)[:12]}
        )

    def is_complete(self, start: Start) -> bool:
        """Whether nothing is left to do: the same job has done all its steps, or
        `stop_when` would end it again."""
        if start.complete_at is None:
            return False
        if start.new_place:
            self.resumption = ResumePlan.of(start, self.section, self.fingerprint())
            self.check_base()
        logger.info(
            f"{short(self.save_root)} is complete at step {start.complete_at}: nothing to do."
        )
        return True

    def set_up(self, start: Start) -> None:
        """Refuses a run that cannot work, and writes the first files of the folder."""
        group = self.process_group
        writes = self.process_group.is_main_process
        stems: tuple[str, ...] = ()
        if self.saves_folders and writes:
            stems = (self.name, run_files.best_stem(self.name))
        for stem in stems:
            reason = why_not_replaced(self.save_root / stem, run_files.is_own_result)
            if reason:
                raise UserError(reason)
        if writes:
            self.refuse()
            sizes = self.plan.save_size
            try_saving(self.save_root, sizes.file + sizes.state if sizes else 0)
        self.resumption = ResumePlan.of(start, self.section, self.fingerprint())
        if self.resumption.order is not None:
            self.restore_order(self.resumption.order)
        settings = dict(flatten_config(self.resumption.record["settings"]))
        group.assert_equal_across_ranks(
            {"the run's folder": str(self.save_root), **settings}
        )
        if writes:
            self.write_config()
            self.written_at_begin()
        # The given seed, the one the run began with, or a random one, which is printed
        # so that it can be repeated.
        random_seed = group.run_on_rank0_and_broadcast(
            lambda: secrets.randbelow(2**31 - 1) + 1
        )
        self.seed = self.training_seed or (
            saved_seed(start.checkpoint) if start.checkpoint else random_seed
        )
        logger.info(f"training_seed {self.seed}")
        self.section = self.section.with_seed(self.seed)
        self.device = group.device(pick_device(self.section.device))
        logger.info(
            f"device {self.device}, {self.section.train.dtype}, PyTorch {torch.__version__}"
        )
        if self.chooses_threads():
            free = threads.free_cores()
            cores = threads.usable_cores()
            choice = "1" if free == 1 else "found by the first steps"
            logger.info(
                f"threads of the CPU: {choice} (free cores: {free} of {cores}); OMP_NUM_THREADS sets them"
            )
        # standard output is copied to the log by now
        self.status = self.now.line = StatusLine()

    def chooses_threads(self) -> bool:
        """Whether the number of threads is found by the program: on a CPU, alone,
        unless the environment says it."""
        return (
            self.device.type == "cpu"
            and self.process_group.is_single_process
            and not threads.is_given()
        )

    def progress(self, what: str, done: int, total: int) -> None:
        """Tells progress; raises Interrupted where a signal requests a stop. what: see
        `COUNTED`; with `IN_THE_CACHE` behind it that which was encoded before."""
        unit = COUNTED.get(what.removesuffix(IN_THE_CACHE), what)
        if what.endswith(IN_THE_CACHE):
            tell("reading", done, total, f"cached {unit}")
        else:
            tell("encoding", done, total, unit)
        self.request.check()  # what is already encoded stays in the cache

    def watch_sampling(self, index: int, step: int, steps: int) -> bool:
        """True where a signal requests a stop (`watch` of a `Sampler`)."""
        return self.request.requested

    def build_callbacks(self) -> list[Callback]:
        """The callbacks of the run, in call order; only rank 0 has any."""
        status = (
            StatusLine(every_s=0) if self.section.logging.log_every else self.status
        )
        validation = self.validation()
        samples = self.samples()
        # All of a validation and of an image comes from blocks of one kind.
        if validation:
            validation = replace(
                validation, measure=partial(self.programs.whole, validation.measure)
            )
        if samples:
            samples = replace(samples, draw=partial(self.programs.whole, samples.draw))
        writer = self.weights_writer()
        times = []
        time = self.plan.time
        if time and self.process_group.is_single_process:
            keep = TimesCallback(
                partial(remember_run_times, str(self.training_folder), time.key)
            )
            samples = (
                replace(samples, draw=keep.timed(samples.draw)) if samples else None
            )
            times = [keep]
        callbacks = standard_callbacks(
            self.section,
            self.save_root,
            status,
            writer,
            validation,
            samples,
            self.programs.used,
            self.now,
        )
        return [*callbacks, *times]

    def build_run(self) -> Run:
        """The `Run` before its first step. The program's callbacks are made on rank 0
        only."""
        own = self.build_callbacks() if self.process_group.is_main_process else []
        if self.process_group.is_main_process and not any(
            isinstance(one, SaveCallback) for one in own or ()
        ):
            raise RunError(
                f"{type(self).__name__}.build_callbacks returns {own!r}, without what saves the run: "
                f"return [*super().build_callbacks(), ...]"
            )
        callbacks = [*own, *self.hooks]
        run = Run(
            name=self.name,
            folder=self.save_root,
            steps=self.plan.optimizer_steps,
            grad_accum_steps=self.section.micro_batches_per_step,
            seed=self.seed,
            roles=self.roles,
            batches_per_epoch=self.plan.micro_batches_per_epoch,
            callbacks=callbacks,
            checkpoint_metadata=self.resumption.record,
            oom_hint=self.memory_advice,
            loss_scaler=LossScaler(self.device)
            if self.section.train.dtype == "float16"
            else None,
            metrics_sync_interval=1 if self.device.type == "cpu" else FETCH_EVERY,
            programs=self.programs,
            process_group=self.process_group,
            should_stop=lambda: self.request.requested,
        )
        run.status_fields[run_files.ORIGIN] = self._origin()
        if self.section.save.states == "never":
            run.status_fields[run_files.RECORD] = self.resumption.record
        return run

    def _origin(self) -> dict[str, str]:
        """The file of the job, for a later resume; of a start from the saved copy, the
        one that the copy came from. Empty where the file alone is not the job."""
        job = self.job.job_config
        file = job.path.absolute()
        if file == self.save_root / run_files.CONFIG:
            before = run_files.read_status(self.save_root).get(run_files.ORIGIN)
            return before if isinstance(before, dict) else {}
        return {"file": str(file), "cwd": str(Path.cwd())} if job.whole else {}

    def load_checkpoint(self, run: Run) -> None:
        """Loads the checkpoint into the run; from here on all ranks have the same
        state."""
        self.resumption.apply(run)
        shared = {  # what decides how the ranks split the same batches
            "the dataset": run.checkpoint_metadata["dataset"],
            "the seed": run.seed,
            "the number of steps": run.steps,
            "the step to resume from": run.state.step,
            "its place in the data": run.state.cursor,
        }
        self.process_group.assert_equal_across_ranks(shared)

    def end(self, run: Run) -> None:
        """Synchronises the stop reason; all ranks wait until rank 0 has saved."""
        reports = self.process_group.all_gather_object(
            (run.stop_reason, self.request.exit_code)
        )
        run.stop_reason = next((reason for reason, _ in reports if reason), None)
        self.request.exit_code = next(
            (code for _, code in reports if code is not None), None
        )
        if run.stop_reason:
            logger.info(f"stopped by {run.stop_reason}")
            # requested by the user: the job ends here without an error
            raise Interrupted(EXIT_DONE)
