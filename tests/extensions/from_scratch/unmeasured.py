"""What stands for the counting of weights, with which models from nothing plan their
memory."""

from extensions.from_scratch.plan import StepBytes
from toolkit.plan.run_plan import SaveSize

MEASURE = "extensions.from_scratch.plan.MEASURE"
UNMEASURED = "tests.extensions.from_scratch.unmeasured:step_of_nothing"
"""In the place of MEASURE: jobs from scratch do without counting, which takes longer
than small ones do.

Whole jobs that measure their memory are in test_image_trainer.py beside this file."""


def step_of_nothing(*_: object) -> StepBytes:
    return StepBytes(
        trained={}, weights=0, gradients=0, optimizer=0, average=0, save=SaveSize(0, 0)
    )
