"""What all trainers share: the list of steps from a checked section to a finished run.

A trainer fills in what is its own: what it scans, which model it opens, what is trained of it, and the passes of its
loop. The lock of the folder, the choice of a checkpoint, the comparison with the job that made it, hooks, signals, and
the end are here. `tests/jobs/process/test_trainer.py` has a small one.
"""

from __future__ import annotations

import logging
import secrets
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch

from jobs.process.train import BaseTrainProcess
from toolkit import run_files, signals
from toolkit.config.sections import TrainerConfig
from toolkit.data.fingerprint import DatasetHashes
from toolkit.data.run_plan import RunPlan
from toolkit.device import pick_device
from toolkit.distributed import ProcessGroup
from toolkit.errors import EXIT_DONE, Interrupted, RunError
from toolkit.log import StatusLine, tee_output
from toolkit.signals import StopRequest
from toolkit.train.callbacks.early_stopping import stop_reason
from toolkit.train.callbacks.save import PrepareNetwork
from toolkit.train.callbacks.standard import Reporting, Samples, Validation, log_of, standard_hooks
from toolkit.train.callbacks.status import is_finished, recorded_end
from toolkit.train.checkpoint_state import saved_seed
from toolkit.train.checkpoint_store import checkpoint_dir, read_checkpoint_json, remove_partial_writes, step_of
from toolkit.train.config_diff import ConfigChange, flatten_config
from toolkit.train.lock import run_lock
from toolkit.train.loss_scale import LossScaler
from toolkit.train.metrics_buffer import metrics_sync_interval
from toolkit.train.optimizer_step import Role
from toolkit.train.resume import select_checkpoint
from toolkit.train.resumption import ResumePlan
from toolkit.train.run import Callback, Run

logger = logging.getLogger(__name__)

DataT = TypeVar("DataT")
"""What `scan` found."""

ModelT = TypeVar("ModelT")
"""What `open_model` opened."""


@dataclass(frozen=True)
class Setup(Generic[DataT]):
    """What is decided before the model is opened."""

    data: DataT
    plan: RunPlan
    resumption: ResumePlan
    seed: int
    device: torch.device
    request: StopRequest
    """Whether a signal asks for an end."""

    status: StatusLine

    def progress(self, what: str, done: int, total: int) -> None:
        """Shows how far something is; ends the process where a signal asks for it."""
        self.status.update(f"{what} {done}/{total}")
        self.request.check()  # what is encoded by now stays in the cache


@dataclass(frozen=True)
class Attached:
    """What is trained."""

    roles: dict[str, Role]


EncodedT = TypeVar("EncodedT")
"""What `encode` made of the data."""

AttachedT = TypeVar("AttachedT", bound=Attached)


class Trainer(BaseTrainProcess, Generic[DataT, ModelT, EncodedT, AttachedT]):
    """A process that trains: each step of `run` is a method, and what one decides the next ones are given.

    Of several operating-system processes the first alone writes, draws and measures.
    """

    runs_everywhere = True

    section: TrainerConfig

    def run(self) -> None:
        with signals.defer_signals() as request:
            data = self.scan()
            plan = self.make_plan(data)
            request.check()
            with self.own_folder():
                checkpoint = self.team.run_on_rank0_and_broadcast(self.choose_checkpoint)
                with self.copied_output():
                    logger.info(plan.render())
                    if not self.team.run_on_rank0_and_broadcast(lambda: self.is_complete(checkpoint, plan)):
                        setup = self.set_up(data, plan, checkpoint, request)
                        with self.recorded_end():
                            model = self.open_model(setup)
                            encoded = self.encode(setup, model)
                            attached = self.attach(setup, model, encoded)
                            callbacks = (
                                self.build_callbacks(setup, encoded, attached) if self.team.is_main_process else []
                            )
                            run = self.build_run(setup, model, attached, callbacks)
                            self.go_on(setup, run)
                            self.fit(setup, run, model, encoded, attached)
                            self.end(run, request)
            request.check()

    # ------------------------------------------------------------ what is the trainer's own

    @abstractmethod
    def scan(self) -> DataT:
        """Finds the data, before anything expensive. Raises what is wrong with it."""

    @abstractmethod
    def fingerprint(self, data: DataT) -> DatasetHashes:
        """What the data holds, by which a later start says what was added, removed and edited."""

    @abstractmethod
    def make_plan(self, data: DataT) -> RunPlan:
        """What the run will do: printed at its begin, and the same that `--dry-run` shows."""

    @abstractmethod
    def open_model(self, setup: Setup[DataT]) -> ModelT:
        """The model, and what else decides how training begins."""

    def encode(self, setup: Setup[DataT], model: ModelT) -> EncodedT:
        """Makes what is computed once, before training; by default there is nothing, and the data stays as it is."""
        return cast("EncodedT", setup.data)

    @abstractmethod
    def attach(self, setup: Setup[DataT], model: ModelT, encoded: EncodedT) -> AttachedT:
        """What is trained, with its optimizers."""

    @abstractmethod
    def weights_writer(self, setup: Setup[DataT], attached: AttachedT, reporting: Reporting) -> PrepareNetwork:
        """What copies the weights for the files of a step, and gives what writes them."""

    def validation(self, setup: Setup[DataT], encoded: EncodedT, attached: AttachedT) -> Validation | None:
        """What is measured on data that is not trained on."""
        return None

    def samples(self, setup: Setup[DataT], encoded: EncodedT, attached: AttachedT) -> Samples | None:
        """What is drawn."""
        return None

    @abstractmethod
    def fit(self, setup: Setup[DataT], run: Run, model: ModelT, encoded: EncodedT, attached: AttachedT) -> None:
        """Trains, by `toolkit.train.loop.train`, with the trainer's batches and its `TrainStep`."""

    # ------------------------------------------------------------ what may differ

    def memory_advice(self) -> str:
        """What the user can change after an out-of-memory error, most effective first."""
        return ""

    def refuse(self, data: DataT, plan: RunPlan) -> None:
        """Raises UserError for what rules the run out, before its folder is written to (room on the disk, say)."""

    def corrections(self, data: DataT, revision: int) -> list[ConfigChange]:
        """What the program computes otherwise for this job than the one that recorded `revision`."""
        return []

    def written_at_begin(self, data: DataT) -> None:
        """What is kept of the scan, once the run has begun."""

    # ------------------------------------------------------------ the steps

    @property
    def team(self) -> ProcessGroup:
        """The processes that train together."""
        return self.job.process_group

    @contextmanager
    def own_folder(self) -> Iterator[None]:
        """Owns the run's folder, which the first process does for all; memory that runs out inside ends with advice."""
        self.team.oom_hint = self.memory_advice()
        with (
            run_lock(self.save_root) if self.team.is_main_process else nullcontext(),
            oom_as_run_error(self.team.oom_hint),
        ):
            yield

    def choose_checkpoint(self) -> Path | None:
        """The state to go on from; None begins anew."""
        remove_partial_writes(checkpoint_dir(self.save_root))
        return select_checkpoint(self.save_root, self.section.resume, self.job.options.restart)

    def copied_output(self) -> AbstractContextManager[Any]:
        """What is printed goes to log.txt too."""
        return tee_output(self.save_root / run_files.LOG) if self.team.is_main_process else nullcontext()

    def recorded_end(self) -> AbstractContextManager[None]:
        """run.json says how a run ended that fails before its hooks could."""
        return recorded_end(self.save_root, self.name) if self.team.is_main_process else nullcontext()

    def is_complete(self, checkpoint: Path | None, plan: RunPlan) -> bool:
        """Whether nothing is left to do: all steps are done, or `stop_when` would end the run here again."""
        if checkpoint is None or not is_finished(self.save_root):
            return False
        step, extra = step_of(checkpoint), read_checkpoint_json(checkpoint)["state"]["extra"]
        if step < plan.optimizer_steps and stop_reason(self.section.stop_when, step, extra) is None:
            return False
        logger.info(f"{self.save_root} is complete at step {step}: nothing to do.")
        return True

    def set_up(self, data: DataT, plan: RunPlan, checkpoint: Path | None, request: StopRequest) -> Setup[DataT]:
        """Compares the job with the checkpoint, and writes the folder's first files.

        Raises UserError where they do not go together: a job that is refused leaves the run as it was.
        """
        if self.team.is_main_process:
            self.refuse(data, plan)
        resumption = ResumePlan.of(
            checkpoint,
            self.section,
            self.fingerprint(data),
            self.job.options.allow_change,
            lambda revision: self.corrections(data, revision),
        )
        self.team.assert_equal_across_ranks(dict(flatten_config(resumption.record["settings"])))
        if self.team.is_main_process:
            self.write_config()
            self.written_at_begin(data)
        seed = self._seed(checkpoint)
        device = self.team.device(pick_device(self.section.device))
        return Setup(data, plan, resumption, seed, device, request, StatusLine())

    def _seed(self, checkpoint: Path | None) -> int:
        """The given seed, the one the run began with, or a random one, which is printed so that it can be repeated."""
        drawn = self.team.run_on_rank0_and_broadcast(lambda: secrets.randbelow(2**31 - 1) + 1)
        seed = self.training_seed or (saved_seed(checkpoint) if checkpoint else drawn)
        logger.info(f"training_seed {seed}")
        return seed

    def build_callbacks(self, setup: Setup[DataT], encoded: EncodedT, attached: AttachedT) -> list[Callback]:
        """Who watches the run, in the order they are called; only the first process has any."""
        status = StatusLine(every_s=0) if self.section.logging.log_every else setup.status
        reporting = Reporting.of(self.section, self.save_root, status)
        return standard_hooks(
            self.section,
            reporting,
            self.weights_writer(setup, attached, reporting),
            self.validation(setup, encoded, attached),
            self.samples(setup, encoded, attached),
        )

    def build_run(self, setup: Setup[DataT], model: ModelT, attached: AttachedT, callbacks: list[Callback]) -> Run:
        """The run before its first step."""
        return Run(
            name=self.name,
            folder=self.save_root,
            steps=setup.plan.optimizer_steps,
            grad_accum_steps=self.section.train.gradient_accumulation,
            seed=setup.seed,
            roles=attached.roles,
            batches_per_epoch=setup.plan.micro_batches_per_epoch,
            callbacks=callbacks,
            checkpoint_metadata=setup.resumption.record,
            oom_hint=self.team.oom_hint,
            loss_scaler=LossScaler(setup.device) if self.section.train.dtype == "float16" else None,
            metrics_sync_interval=metrics_sync_interval(setup.device),
            process_group=self.team,
            should_stop=lambda: setup.request.requested,
            log=log_of(callbacks),
        )

    def go_on(self, setup: Setup[DataT], run: Run) -> None:
        """Puts the checkpoint into the run; from here on all processes stand at the same place."""
        setup.resumption.apply(run)
        self.team.assert_equal_across_ranks(_beginning(run))

    def end(self, run: Run, request: StopRequest) -> None:
        """Synchronises the stop reason; all ranks wait until rank 0 has saved."""
        told = self.team.all_gather_object((run.stop_reason, request.exit_code))
        run.stop_reason = next((reason for reason, _ in told if reason), None)
        request.exit_code = next((code for _, code in told if code is not None), None)
        if run.stop_reason:
            logger.info(f"stopped by {run.stop_reason}")
            raise Interrupted(EXIT_DONE)  # asked for by the user: the job ends here, and well


@contextmanager
def oom_as_run_error(advice: str) -> Iterator[None]:
    """Memory that runs out inside the block, wherever nothing better is known to do, ends the run with advice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        # After the GPU's name PyTorch tells of its allocator.
        reason = str(error).partition(" GPU ")[0].strip(" .\n") or "Out of memory"
        raise RunError(f"{reason}. {advice}") from error


def _beginning(run: Run) -> dict[str, Any]:
    """What has to be the same in all processes, so that they share out the same batches."""
    state = run.state
    begun = {"the step to go on from": state.step, "its place in the data": state.cursor}
    return {
        "the dataset": run.checkpoint_metadata["dataset"],
        "the seed": run.seed,
        "the number of steps": run.steps,
        **begun,
    }
