"""`sample.also[].model`: samples of another model of the family, with the network that
is trained.

The weights of the other transformer wait in CPU memory. While samples are generated
with it they replace the weights of the trained model: tensor by tensor, in the same
storage, so that quantized layers, adapters and compiled programs, which hold these
tensors, compute with the other model. Text encoder and VAE stay the same.

Used by `extensions.sd_trainer.process`, and by tools that compare files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolkit.config.sections.trainer import DiffusionSection
from toolkit.contracts.model import DiffusionModel
from toolkit.errors import UserError
from toolkit.train.base_model import load_base_model

logger = logging.getLogger(__name__)


class OtherWeights:
    """The weights of a module, and the weights of other modules that can replace them.

    >>> trained = nn.Linear(2, 2)
    >>> other = nn.Linear(2, 2)
    >>> weights = OtherWeights(trained)
    >>> weights.add("sample.also[0].model", other)
    >>> with weights.using("sample.also[0].model"):
    ...     torch.equal(trained.weight, other.weight)
    True
    """

    def __init__(self, module: nn.Module) -> None:
        """module: with its own layers alone; adapters may be attached to it later."""
        self._own = _tensors(module)
        self._others: dict[str, dict[str, Tensor]] = {}

    def add(self, key: str, module: nn.Module) -> None:
        """Keeps the weights of another module, on the CPU. Raises UserError, which
        names the key, unless its tensors have the same names, shapes and dtypes."""
        tensors = _tensors(module)
        unlike = sorted(tensors.keys() ^ self._own.keys())
        if not unlike:
            for name, tensor in self._own.items():
                other = tensors[name]
                if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
                    unlike.append(name)
        if unlike:
            raise UserError(
                f"{key}: its weights are not those of the trained model ({unlike[0]}). Give a model of it."
            )
        self._others[key] = {name: tensor.cpu() for name, tensor in tensors.items()}

    @contextmanager
    def using(self, key: str) -> Iterator[None]:
        """Inside the block the weights of this key are in the module; its own with a
        key that has none. They are exchanged in place, and back also after an error."""
        if key not in self._others:
            yield
            return
        self._exchange(key)
        try:
            yield
        finally:
            self._exchange(key)

    @torch.no_grad()
    def _exchange(self, key: str) -> None:
        others = self._others[key]
        for name, tensor in self._own.items():
            before = tensor.to("cpu", copy=True)
            tensor.copy_(others[name])
            others[name] = before


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    return dict([*module.named_parameters(), *module.named_buffers()])


def load_other_models(section: DiffusionSection, model: DiffusionModel) -> OtherWeights:
    """The transformers of `sample.also[].model`, prepared like the one of `model`. Its
    network is not attached yet."""
    others = OtherWeights(model.network_module)
    dtype = next(model.network_module.parameters()).dtype
    for key, way in section.deployments().items():
        if way.model:
            logger.info(f"{key}: loading the transformer of {way.model}")
            other = load_base_model(
                section.other_model(way), torch.device("cpu"), dtype
            )
            others.add(key, other.network_module)
    return others
