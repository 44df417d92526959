"""bitsandbytes (1.5 s, 44 MB) is not imported for models that do not need it."""

import pytest

from tests.processes import python


@pytest.mark.slow
@pytest.mark.parametrize("module", ["autoencoders", "latent_flow.transformers"])
def test_bitsandbytes_stays_out(module: str) -> None:
    python(
        f"import sys, extensions.from_scratch.{module}\nassert 'bitsandbytes' not in sys.modules"
    )
