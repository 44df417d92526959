"""The timer and the progress bar of a process."""

from __future__ import annotations

import pytest

from extensions.compat.ai_toolkit_process import ProgressBar, Timer


def test_a_timer_prints_the_mean_of_each_name(capsys) -> None:
    now = iter([0.0, 1.0, 3.0, 5.0, 10.0, 16.0])  # outer, with inner of 2 s in it, then inner of 6 s
    timer = Timer("job timer", clock=lambda: next(now))
    with timer("outer"), timer("inner"):
        pass
    with timer("inner"):
        pass
    timer.print()
    assert capsys.readouterr().out.splitlines() == [
        "job timer:",
        "  5.0000 s outer (mean of 1)",
        "  4.0000 s inner (mean of 2)",
    ]
    timer.reset()
    with pytest.raises(ValueError, match="'inner' was not started"):
        timer.stop("inner")


def test_a_progress_bar_is_a_status_line(capsys) -> None:
    bar = ProgressBar(total=3, desc="images")
    bar.update()
    bar.reset(total=5)
    bar.set_postfix_str("2 new")
    bar.close()
    bar.update(4)
    assert capsys.readouterr().out.splitlines() == ["1/3 images", "0/5 images | 2 new", "4/5 images | 2 new"]


def test_one_without_a_total_counts(capsys) -> None:
    bar = ProgressBar()
    bar.update(2)
    assert capsys.readouterr().out == "2\n"
