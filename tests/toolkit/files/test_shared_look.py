"""One look for all who ask at the same time."""

from __future__ import annotations

import threading
import time

import pytest

from toolkit.files.shared_look import SharedLook


def ask_at_once(shared: SharedLook[int], many: int) -> list[int]:
    barrier, found = threading.Barrier(many), list[int]()

    def one() -> None:
        barrier.wait()
        found.append(shared.now())

    threads = [threading.Thread(target=one) for _ in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_who_asks_at_once_shares_a_look_and_nobody_gets_one_that_began_before() -> None:
    looks: list[int | None] = []

    def look(before: int | None) -> int:
        looks.append(before)
        time.sleep(0.1)
        return len(looks)

    shared = SharedLook(look)
    assert len(ask_at_once(shared, 40)) == 40 and len(looks) <= 3
    last = len(looks)
    assert shared.now() == last + 1 and looks[-1] == last, (
        "what came meanwhile is seen, and the look before is known"
    )


def test_a_look_that_fails_is_nobody_elses() -> None:
    fails = True

    def look(before: int | None) -> int:
        if fails:
            raise FileNotFoundError
        return 1

    shared = SharedLook(look)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            shared.now()
    fails = False
    assert shared.now() == 1
    fails = True
    with pytest.raises(FileNotFoundError):
        shared.now()
