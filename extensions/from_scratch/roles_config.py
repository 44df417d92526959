"""The base of both trainers' sections: roles, each with its own optimizer, and an
autoencoder that is trained.

A role is a set of weights with its own optimizer, learning rate and schedule. A setting
that is not given for a role comes from `train`. The module imports no torch and loads
no weights. `vae_config` and `flow_config` derive their sections from `RolesSection`;
`plan` and `trainer` read it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from extensions.from_scratch.autoencoder_config import AutoencoderConfig
from extensions.from_scratch.losses_config import (
    DISCRIMINATOR,
    DiscriminatorConfig,
    LossesConfig,
    discriminator_params,
)
from toolkit.config.reading.field_types import OneOf
from toolkit.config.reading.findings import below
from toolkit.config.reading.process import Diagnostic, JobContext
from toolkit.config.sections.output import SaveIntervalConfig
from toolkit.config.sections.train import OptimizerConfig, RoleOptimizerConfig
from toolkit.config.sections.trainer import ImageTrainingSection, TrainerConfig
from toolkit.data.batches.image_data import ImageData, open_stream
from toolkit.files.run_files import GRAPH
from toolkit.plan.run_plan import RunPlan
from toolkit.registry import load_object

if TYPE_CHECKING:
    from toolkit.data.streams.stream_dataset import StreamDataset


class SaveFoldersConfig(SaveIntervalConfig):
    """`save`: when weights and states are saved, how many are kept, and in which other
    files.

    Example:
        save: {save_every: 500, max_step_saves_to_keep: 4}
    """

    fluxflow_files: Annotated[Literal["none", "step", "last", "only"], OneOf()] = "none"
    """Also write the files that FluxFlow's guide names into the job's folder, the
    parent of the run's: weights in one file, metrics, learning rates, training
    position, samples. Set by a job that is read from a file of the guide: step, for one
    of several processes; last, for the last of them; only, for a single one."""


@dataclass(frozen=True)
class AutoencoderTraining:
    """How an autoencoder is trained, alone or along with a flow model.

    >>> training = AutoencoderTraining(AutoencoderConfig(), LossesConfig(), None)
    >>> training.model.train, training.losses.l1
    ('all', 1.0)
    """

    model: AutoencoderConfig
    losses: LossesConfig
    discriminator: DiscriminatorConfig | None
    place: str = ""
    """Key of the section with both, for messages, with a dot at its end."""


class RolesSection(ImageTrainingSection, TrainerConfig):
    """A training of several roles. `optimizers` has a field for each possible role.

    Example::

        for role in section.roles():
            optimizer = section.role_optimizer(role)
            print(role, optimizer.optimizer, optimizer.lr)
    """

    reads_streams = True

    planner: ClassVar[str]
    """Its `Planner`, as "module:Class"; it reads this section."""

    save: SaveFoldersConfig = Field(default_factory=SaveFoldersConfig)
    """When the weights are written, and how."""

    def diagrams_place(self, folder: Path) -> tuple[Path, str]:
        """FluxFlow's guide has the diagrams in the folder above, under its own
        names."""
        place = self.save.fluxflow_files
        if place == "none":
            return super().diagrams_place(folder)
        return folder.parent / GRAPH, "" if place == "only" else f"_{folder.name}"

    def plan(self, job: JobContext) -> RunPlan:
        """The run's plan: images, sizes, steps, memory. Raises DataErrors naming every
        offending file."""
        plan: RunPlan = load_object(self.planner)(self, job).dry_run()
        return plan

    def roles(self) -> tuple[str, ...]:
        """The names of the roles that are trained."""
        raise NotImplementedError

    def trained_autoencoder(self) -> AutoencoderTraining | None:
        """How the autoencoder is trained; None where it is frozen."""
        raise NotImplementedError

    def size_multiple(self) -> int:
        """Pixels; the sides of images are multiples of it. Raises RunError or UserError
        for a folder that cannot be read."""
        raise NotImplementedError

    def scan(self) -> ImageData:
        """The images. Raises DataErrors naming every offending file, UserError for a
        stream that cannot be read."""
        raise NotImplementedError

    def own_optimizer(self, role: str) -> RoleOptimizerConfig:
        """The role's entry of `optimizers`, as given."""
        optimizers: Any = getattr(self, "optimizers")  # noqa: B009 - a field of each subclass
        optimizer: RoleOptimizerConfig = getattr(optimizers, role)
        return optimizer

    def role_optimizer(self, role: str) -> RoleOptimizerConfig:
        """The optimizer of a role. Settings that its entry does not give come from
        `train`."""
        optimizer = self.own_optimizer(role)
        shared = {
            name: getattr(self.train, name) for name in OptimizerConfig.model_fields
        }
        shared |= self.role_defaults(role)
        given = optimizer.model_fields_set
        return optimizer.model_copy(
            update={name: value for name, value in shared.items() if name not in given}
        )

    def role_defaults(self, role: str) -> dict[str, Any]:
        """Settings of a role's optimizer that differ from `train` where its entry does
        not give them."""
        if role != DISCRIMINATOR:
            return {}
        return {
            "optimizer_params": discriminator_params(
                self.own_optimizer(role), self.train.optimizer
            )
        }

    def optimizers_used(self) -> Iterable[tuple[str, OptimizerConfig]]:
        """Key and optimizer of each role; settings that a role does not give are from
        `train`."""
        for role in self.roles():
            given = self.own_optimizer(role).model_fields_set
            yield f"optimizers.{role}" if given else "train", self.role_optimizer(role)

    def check_optimizers(self, roles: Collection[str]) -> Iterator[Diagnostic]:
        """Mistakes in the entries of these roles."""
        for role in roles:
            yield from below(
                "optimizers", below(role, self.role_optimizer(role).check_optimizer())
            )

    def stream(self) -> StreamDataset | None:
        """The stream, or None where the datasets are folders. Raises UserError where it
        cannot be read."""
        return open_stream(self, self.size_multiple())
