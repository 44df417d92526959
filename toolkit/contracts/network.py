"""The contract of a network: the trained parameters of a model.

A `Network` is an adapter on a frozen model, or the model itself. A trainer creates it
from the `network` section, attaches it to the model, trains its `parameters`, and saves
what `export` returns. The kinds are listed in `network_kinds.py`.

`toolkit/networks` implements the contract. `extensions/sd_trainer` and `toolkit/train`
use it. Optimizers and file names of a run are not part of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from toolkit.contracts.model import DiffusionModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from toolkit.system.sharded_param import RowShard


class Network(ABC):
    """The trained parameters: an adapter on a frozen model, or the model itself.

    Example::

        network = KINDS["lora"].load().from_config(section.network, targets, seed, dtype)
        network.attach(model.network_module)
        optimizer = build_optimizer("adamw", network.parameters().values(), 1e-4, {})
    """

    @classmethod
    def from_config(
        cls, settings: Any, targets: Sequence[str], seed: int, dtype: torch.dtype
    ) -> Self:
        """The network of a `network:` section, on these modules; its compute dtype is
        `dtype`."""
        raise NotImplementedError

    @staticmethod
    @abstractmethod
    def trainable_modules(model: DiffusionModel) -> Sequence[str]:
        """Full dotted names, inside `network_module`, of the modules this kind can
        train."""

    @abstractmethod
    def attach(self, model: torch.nn.Module) -> None:
        """Adds the trainable parameters to `model` and freezes the rest. The output of
        the model stays the same."""

    def fuse_projections(self, groups: Iterable[Sequence[str]]) -> None:  # noqa: B027 - most kinds make no use of it
        """Optional optimisation: fuses the projections of layers that share an input
        (`DiffusionModel.fused_projection_groups`); `toolkit.contracts.model.project`
        then gives what they share. Must not change results.
        """

    def cast_by_block(self, blocks: Iterable[torch.nn.Module]) -> None:  # noqa: B027 - most kinds make no use of it
        """Optional optimisation: what each of these modules computes with is cast at
        once (`toolkit.models.folder_model.call_block`). Must not change results."""

    @abstractmethod
    def load_pretrained(self, deltas: Mapping[str, Any]) -> None:
        """Initialises the network from a file's deltas
        (`toolkit.networks.lora_formats.LayerDelta` by module)."""

    @abstractmethod
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Trainable parameters by a name that is stable across runs; float32 unless
        `train.full_bf16`."""

    def buffers(self) -> dict[str, Tensor]:
        """Tensors of an adapter that are not trained, but are part of its files and
        checkpoints; named as in `parameters`. Empty for most kinds."""
        return {}

    def sharded_params(self) -> dict[str, RowShard]:
        """Tensors of `parameters` and `export` that are sharded, by name.

        A network with sharded parameters uses the same names in `export` and
        `parameters`.
        """
        return {}

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Disables dropout inside the block; for sampling and validation during
        training."""
        yield

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Disables the network inside the block, as peft's `disable_adapter`. No effect
        where the model itself is trained."""
        yield

    def after_step(self, step_ok: Tensor) -> dict[str, Tensor]:
        """Post-processes the weights after an optimizer step (max norm, say), without
        waiting for the device.

        step_ok: 0-dim bool; where it is false nothing may change, bit for bit. Returns
        0-dim metrics to log.
        """
        return {}

    def lora_b_parameters(self) -> frozenset[str]:
        """Names of the parameters with LoRA+'s own learning rate (the up matrices);
        empty where there are none.

        Source: https://arxiv.org/abs/2402.12354 (its B).
        """
        return frozenset()

    @abstractmethod
    def export(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """`weights` (named as in `parameters`) and the buffers under the names of the
        saved file."""
