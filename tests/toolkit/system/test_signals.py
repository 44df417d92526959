"""What Ctrl-C and SIGTERM do, with real signals sent to this process."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from toolkit.errors import EXIT_SIGINT, EXIT_SIGTERM, Interrupted
from toolkit.system import signals

SIGNALS = [
    (signal.SIGINT, EXIT_SIGINT),
    (signal.SIGTERM, EXIT_SIGTERM),
    (signal.SIGHUP, EXIT_SIGTERM),
]


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    of_parent = [signals.PARENT_GONE] if signals.PARENT_GONE is not None else []
    before = {
        number: signal.getsignal(number) for number in (*signals.EXIT_CODES, *of_parent)
    }
    hook = sys.unraisablehook
    signals.install()
    yield
    sys.unraisablehook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_stops_at_once_by_default(number: int, code: int) -> None:
    with pytest.raises(Interrupted) as caught:
        signal.raise_signal(number)
    assert caught.value.exit_code == code


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_the_first_signal_is_only_recorded_while_deferred_and_the_second_stops_at_once(
    number: int, code: int
) -> None:
    # the inner block shares the request
    with (
        signals.defer_signals() as request,
        signals.defer_signals(),
    ):
        assert not request.requested
        signal.raise_signal(number)
        assert request.requested and request.exit_code == code
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.exit_code == EXIT_SIGTERM
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(
    signals.PARENT_GONE is None, reason="only Linux tells of a parent's end"
)
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP, signals.PARENT_GONE])
def test_the_end_of_the_parent_or_terminal_requests_a_stop_once(first: int) -> None:
    """The system tells of each thread of a parent, and a terminal may close after
    Ctrl-C."""
    with signals.defer_signals() as request:
        signal.raise_signal(first)
        assert request.exit_code == EXIT_SIGTERM
        for again in (signals.PARENT_GONE, signal.SIGHUP) * 2:
            signal.raise_signal(again)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.skipif(
    signals.PARENT_GONE is None, reason="only Linux tells of a parent's end"
)
def test_the_end_of_the_parent_stops_at_once_by_default() -> None:
    with pytest.raises(Interrupted):
        signal.raise_signal(signals.PARENT_GONE)
    signal.raise_signal(signals.PARENT_GONE)


class SignalsWhenDeleted:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_a_second_signal_within_a_destructor_stops_all_the_same_and_prints_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Python drops what a destructor raises, and prints "Exception ignored in"."""
    with pytest.raises(Interrupted) as caught, signals.defer_signals():
        signal.raise_signal(signal.SIGINT)
        capsys.readouterr()
        SignalsWhenDeleted()
        time.sleep(60)
    assert caught.value.exit_code == EXIT_SIGINT
    assert capsys.readouterr().err == ""


class FailsWhenDeleted:
    def __del__(self) -> None:
        raise ValueError("in a destructor")


def test_other_exceptions_of_destructors_are_told_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[object] = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_type)
    )
    signals.install()
    FailsWhenDeleted()
    assert told == [ValueError]


def test_no_handler_for_exceptions_swallows_a_stop() -> None:
    assert not issubclass(Interrupted, Exception)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked on POSIX only")
def test_a_forked_worker_ignores_ctrl_c_and_can_be_terminated() -> None:
    with signals.defer_signals() as request:
        worker = multiprocessing.get_context("fork").Process(
            target=interrupt_itself_and_sleep
        )
        worker.start()
        worker.join(0.2)
        worker.terminate()
        worker.join(60)
    assert worker.exitcode == -signal.SIGTERM
    assert not request.requested


def interrupt_itself_and_sleep() -> None:
    signal.raise_signal(signal.SIGINT)
    time.sleep(60)


def test_install_outside_the_main_thread_does_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=signals.install)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_quiet_process_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for quiet in (True, False):
        signals.install(quiet)
        with signals.defer_signals():
            signal.raise_signal(signal.SIGTERM)
        assert ("Stopping" in capfd.readouterr().err) is not quiet


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_only_who_pressed_ctrl_c_is_told_to_press_it_again(
    number: int, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    signals.install()
    with signals.defer_signals():
        signal.raise_signal(number)
    assert ("Ctrl-C" in capfd.readouterr().err) is (number == signal.SIGINT)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_program_on_its_way_out_hears_no_signal(number: int, code: int) -> None:
    signals.ignore()
    signal.raise_signal(number)


def test_a_program_under_nohup_goes_on_without_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals.install()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
