"""The small training of the loop's tests."""

from tests.toolkit.train.conftest import result, toy  # noqa: F401
