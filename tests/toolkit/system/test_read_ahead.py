"""A second Ctrl-C waits for nothing that a thread waits for."""

import pytest

from tests.processes import interrupting
from toolkit.data.streams import shards
from toolkit.system.read_ahead import loaded_ahead


@pytest.mark.parametrize(
    "ahead",
    [
        lambda hold: loaded_ahead(hold, [0], workers=1),
        lambda hold: shards.read_ahead(map(hold, [0]), lambda: None),
    ],
)
def test_ctrl_c_waits_for_no_thread(ahead) -> None:
    with interrupting() as hold:
        next(ahead(hold))
