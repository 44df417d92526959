import threading

import pytest

from toolkit.data.threads import thread_map


@pytest.mark.parametrize("at_once", [1, 7, 1000])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_what_is_found_comes_in_the_order_of_the_things(count: int, at_once: int) -> None:
    assert list(thread_map(lambda number: number**2, range(count), at_once)) == [n**2 for n in range(count)]


def test_other_threads_do_the_work_and_end_with_it() -> None:
    before = threading.active_count()
    assert threading.get_ident() not in set(thread_map(lambda _: threading.get_ident(), range(20), 1))
    assert threading.active_count() == before


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        list(thread_map(lambda number: 1 // number, [2, 1, 0], 1))
