"""A second Ctrl-C waits for nothing that a thread waits for."""

from threading import Event

import pytest

from tests.processes import alarm, interrupting
from toolkit.data.streams import shards
from toolkit.system.read_ahead import loaded_ahead

AHEAD = [
    lambda work: loaded_ahead(work, [1, 2], workers=1),
    lambda work: shards.read_ahead(map(work, [1, 2]), lambda: None),
]


@pytest.mark.parametrize("ahead", AHEAD)
def test_ctrl_c_waits_for_no_thread(ahead) -> None:
    with interrupting() as hold:
        next(ahead(hold))


@pytest.mark.parametrize("ahead", AHEAD)
def test_closing_waits_for_no_thread(ahead) -> None:
    """So a run saves, or stops at once, beside a server that is silent."""
    begun, held = Event(), Event()
    items = ahead(lambda number: number == 1 or begun.set() or held.wait(30))
    next(items)
    begun.wait(30)
    with alarm(20):
        items.close()
    held.set()
