"""A run of a network that trains whole layers, between two of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from toolkit.contracts.training import TrainState
from toolkit.networks.full import FullNetwork
from toolkit.optim.ema import Ema
from toolkit.train.flow_step import NETWORK
from toolkit.train.optimizer_step import Role
from toolkit.train.run import Run


def run_of_full_network(
    model: nn.Module, layers: Sequence[str], folder: Path, with_ema: bool = True
) -> tuple[FullNetwork, Run]:
    """After 340 of 400 steps, in which all weights of the last of these layers have
    become 0.5."""
    network = FullNetwork(layers, torch.float32)
    network.attach(model)
    parameters = network.parameters()
    average = Ema(parameters, 0.9) if with_ema else None
    with torch.no_grad():
        parameters[f"{layers[-1]}.weight"].fill_(0.5)
    optimizer = torch.optim.SGD(parameters.values())
    role = Role(parameters, optimizer, 0.1, lambda step: 1.0, ema=average)
    state = TrainState(step=340, epochs_done=2)
    return network, Run("maya", folder, 400, 1, 1, roles={NETWORK: role}, state=state)
