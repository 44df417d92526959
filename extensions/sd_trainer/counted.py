"""What a section trains, counted from the model's config files. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from toolkit.models.families import family_for
from toolkit.models.family import ModelFamily
from toolkit.network_kinds import KINDS
from toolkit.networks.targets import chosen_targets
from toolkit.optim.lr_groups import group_of_layers
from toolkit.optim.state_size import Shape, optimizer_bytes
from toolkit.parts import rows_each


@dataclass(frozen=True)
class Trained:
    """The weights that are trained."""

    layers: tuple[str, ...]
    """Full names of the layers they belong to."""

    shapes: tuple[Shape, ...]
    """Of each matrix; a module's biases and norms are one vector."""

    written: int
    """Weights in what users take away: of the whole model where it is trained itself."""

    @property
    def weights(self) -> int:
        return sum(map(prod, self.shapes))

    @property
    def largest(self) -> int:
        """Weights of the largest matrix."""
        return max(map(prod, self.shapes))

    def optimizer_bytes(self, train: Any) -> int:
        """Of the state that a `train:` section's optimizer keeps."""
        return optimizer_bytes(train.optimizer, train.optimizer_params, self.shapes)

    def state_bytes(self, train: Any) -> int:
        """Of all that a resume needs: raw weights, their average, the optimizer's state."""
        per_weight = (2 if train.full_bf16 else 4) + 4 * train.ema_config.use_ema
        return self.weights * per_weight + self.optimizer_bytes(train)


def count_trained(config: Any, processes: int = 1) -> Trained:
    """processes: that share the blocks out; of a model that is trained itself, the shapes are the rows of the first.

    Raises UserError when the section chooses no layer, or a pattern of `train.lr_groups` matches none.
    """
    family, folder = family_for(config.model), config.model.folder()
    candidates = (family.modules if config.network.trains_model else family.linear_layers)(folder)
    chosen = chosen_targets(config.network, list(candidates))
    group_of_layers(config.train.lr_groups, chosen)
    if config.network.trains_model:
        shapes = tuple(_module_shapes(family, folder, chosen, processes))
        return Trained(tuple(chosen), shapes, sum(candidates.values()))
    shapes_of = partial(KINDS[config.network.type].layer_shapes, config.network)
    shapes = tuple(shape for name in chosen for shape in shapes_of(*candidates[name]).values())
    return Trained(tuple(chosen), shapes, sum(map(prod, shapes)))


def _module_shapes(family: ModelFamily, folder: Any, chosen: list[str], processes: int) -> Iterator[Shape]:
    modules, layers, in_blocks = family.modules(folder), family.every_linear_layer(folder), family.linear_layers(folder)
    for name in chosen:
        sharers = processes if name in in_blocks else 1
        inputs, outputs = layers.get(name, (0, 0))
        if inputs:
            yield (rows_each(outputs, sharers), inputs)
        yield (rows_each(modules[name] - inputs * outputs, sharers),)
