"""Marks for tests that need an optional part of the program, or the stand-in for CUDA."""

import pytest
import torch

from tests.stand_in_cuda import COMPILER
from toolkit.registry import FOREIGN_KEYS, is_present

needs_foreign_names = pytest.mark.skipif(
    not is_present(FOREIGN_KEYS),
    reason="has keys under the names of other programs, which a part knows",
)

needs_stand_in = pytest.mark.skipif(
    COMPILER is None or torch.backends.cuda.is_built(),
    reason="the stand-in for CUDA requires a C++ compiler and a PyTorch without CUDA",
)


def needs_part(name: str) -> pytest.MarkDecorator:
    """The mark of a test that uses the part `extensions.<name>`, such as "tools.grid"."""
    return pytest.mark.skipif(
        not is_present(f"extensions.{name}"), reason=f"needs the part {name}"
    )
