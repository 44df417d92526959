"""A small job, loaded: the fixtures of the tests of the config."""

from tests.toolkit.config.conftest import (  # noqa: F401
    faults,
    load,
    mistakes,
    model_folder,
    section,
)
