import threading
import time
from collections.abc import Iterator

import pytest

from toolkit.system.read_ahead import loaded_ahead, thread_map


@pytest.mark.parametrize("at_once", [1, 7, 1000])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_what_is_found_comes_in_the_order_of_the_things(
    count: int, at_once: int
) -> None:
    assert list(thread_map(lambda number: number**2, range(count), at_once)) == [
        n**2 for n in range(count)
    ]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_change_neither_order_nor_results_and_their_errors_reach_the_caller(
    workers: int,
) -> None:
    def load(number: int) -> tuple[int, bool]:
        time.sleep(0.002 * (number % 3))
        return 60 // (
            20 - number
        ), threading.current_thread() is threading.main_thread()

    found = list(loaded_ahead(load, range(20), workers))
    assert found == [(60 // (20 - number), workers == 0) for number in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(loaded_ahead(load, range(30), workers))


def test_threads_load_ahead_but_not_everything_and_end_when_they_are_closed() -> None:
    asked: list[int] = []

    def things() -> Iterator[int]:
        for number in range(20):
            asked.append(number)
            yield number

    before = threading.active_count()
    found = loaded_ahead(lambda number: number, things(), 2)
    assert next(found) == 0 and 2 < len(asked) < 8 and threading.active_count() > before
    found.close()
    assert threading.active_count() == before
