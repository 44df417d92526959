"""The marks of tests of the core that need a part."""

import pytest

from toolkit.registry import FOREIGN_KEYS, is_present

needs_foreign_names = pytest.mark.skipif(
    not is_present(FOREIGN_KEYS),
    reason="has keys under the names of other programs, which a part knows",
)


def needs_part(name: str) -> pytest.MarkDecorator:
    """The mark of a test that uses the part `extensions.<name>`, such as "tools.grid"."""
    return pytest.mark.skipif(
        not is_present(f"extensions.{name}"), reason=f"needs the part {name}"
    )
