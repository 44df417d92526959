"""The table of trackers."""

from __future__ import annotations

import pytest

from toolkit.config.output import PACKAGES
from toolkit.train.trackers.tracker import TRACKERS, Tracker


def test_the_config_knows_the_package_of_every_tracker() -> None:
    assert TRACKERS.keys() == PACKAGES.keys()


@pytest.mark.parametrize("name", TRACKERS)
def test_every_name_leads_to_a_tracker(name: str) -> None:
    assert issubclass(TRACKERS.load(name), Tracker)
