import pytest

from benchmarks.figures import ui


@pytest.mark.slow
def test_reports_every_figure_of_the_page(
    report_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ui, "WATCH_S", 3.0)
    sizes = (
        "--runs",
        "3",
        "--lines",
        "2000",
        "--samples",
        "40",
        "--watchers",
        "4",
        "--repeats",
        "2",
        "--clients",
        "3",
    )
    report = report_of(ui.main, *sizes)
    assert report["bench"] == "ui"
    pages = report["pages_of_runs_ms"]
    assert pages.keys() == set(ui.PAGES)
    for times in (
        *pages.values(),
        *(report[name] for name in ("page_ms", "curves_ms", "part_of_curves_ms")),
    ):
        assert times["warm"] > 0
    assert 0 < report["clients_s"]["median"] <= report["clients_s"]["longest"]
    assert 0 < report["line_seen_after_s"] < 3
    assert 0 < report["resident_mb"]["idle"] <= report["resident_mb"]["after"]
    assert report["static_gzip_kb"] < 300
