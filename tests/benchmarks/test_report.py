import json

from benchmarks import report


def test_the_last_line_says_what_ran_on_what(capsys) -> None:
    report.card("step", "a small model")
    report.finish("step", ratio=0.123456789, nested={"ms": [1.23456789]})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step | a small model"
    found = json.loads(lines[-1])
    assert found["ratio"] == 0.12346
    assert found["nested"] == {"ms": [1.2346]}
    assert {
        "bench",
        "date",
        "commit",
        "cpu",
        "cores",
        "python",
        *report.LIBRARIES,
    } <= found.keys()
