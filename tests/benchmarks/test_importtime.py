import pytest

from benchmarks import importtime

# toolkit.a imports torch, which imports numpy; peft comes while the program runs.
OUTPUT = """\
import time: self [us] | cumulative | imported package
import time:       100 |        100 |       numpy.core
import time:       200 |        300 |     numpy
import time:      1000 |       1300 |   torch
import time:        50 |       1350 | toolkit.a
a line of something else
import time:       400 |        400 | peft
"""


def test_each_package_has_the_time_of_its_own_modules() -> None:
    found = importtime.parse(OUTPUT)
    assert found.packages == {
        "torch": 1e-3,
        "peft": 4e-4,
        "numpy": 3e-4,
        "toolkit": 5e-5,
    }
    assert found.modules == 5
    assert found.total_s == pytest.approx(1.75e-3)


def test_an_import_belongs_to_the_package_that_asked_for_it() -> None:
    assert importtime.parse(OUTPUT).asked == {
        ("torch", "toolkit.a"): 1.3e-3,
        ("peft", "code while it runs"): 4e-4,
        ("numpy", "torch"): 3e-4,
    }
