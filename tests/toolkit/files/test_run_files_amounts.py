"""Estimates have two digits and no seconds."""

import pytest

from toolkit.files.run_files import about


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "under a minute"),
        (59, "under a minute"),
        (61, "about 1 min"),
        (742, "about 12 min"),
        (5399, "about 90 min"),
        (5400, "about 1.5 h"),
        (17_840, "about 5 h"),
        (83_000, "about 23 h"),
        (71.9 * 3600, "about 72 h"),
        (72 * 3600, "about 3 days"),
        (123 * 86400, "about 120 days"),
    ],
)
def test_an_estimate_is_rounded_honestly(seconds: float, words: str) -> None:
    assert about(seconds) == words
