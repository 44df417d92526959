"""Steps one parameter of an optimizer at a time, with the same state as after a step of all."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer


class PerParameterStepper:
    """Steps single parameters of an optimizer whose step of a parameter depends on nothing but that parameter.

    During a step the optimizer has one parameter only. Its state stays in place and is saved as usual.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._group_of = {p: index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}

    def step(self, parameter: nn.Parameter) -> None:
        """The optimizer's step of `parameter` by its `grad`; all others stay as they are."""
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = [{**groups[self._group_of[parameter]], "params": [parameter]}]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups
