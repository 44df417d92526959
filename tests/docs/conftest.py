"""A small job, loaded: the fixtures of the tests of the config."""

from tests.toolkit.config.conftest import faults, load, mistakes, section  # noqa: F401
