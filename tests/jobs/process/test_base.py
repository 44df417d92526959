"""How a process reads its section."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import pytest

from jobs.process import BaseExtensionProcess, BaseProcess
from toolkit.errors import UserError


def process(**section: object) -> BaseProcess:
    job = SimpleNamespace(name="job", meta={"by": ["me"]})
    return BaseExtensionProcess(2, job, OrderedDict(type="x", **section))


def test_what_it_is_given() -> None:
    made = process(a=1)
    assert (made.process_id, made.name, made.job.name) == (2, "job", "job")
    assert made.config == made.raw_process_config == {"type": "x", "a": 1}
    assert made.section is None
    assert made.performance_log_every == 0
    assert (made.timer.name, made.progress_bar.n) == ("job timer", 0)
    with pytest.raises(AttributeError, match="'BaseExtensionProcess' object has no attribute 'tymer'"):
        _ = made.tymer
    made.run()
    made.on_error(ValueError())


@pytest.mark.parametrize(("given", "name"), [("own", "own"), (None, "job"), ("", "job")])
def test_its_name_is_its_own_or_the_jobs(given: str | None, name: str) -> None:
    assert process(name=given).name == name


def test_meta_is_a_copy_that_can_be_added_to() -> None:
    made = process()
    made.add_meta(OrderedDict(step=3))
    made.meta["by"].append("you")
    assert made.meta == {"by": ["me", "you"], "step": 3}
    assert made.job.meta == {"by": ["me"]}


def test_get_conf_follows_a_dotted_path_through_lists_too() -> None:
    made = process(train={"lr": 1e-4}, datasets=[{"folder_path": "a"}])
    assert made.get_conf("train.lr") == 1e-4
    assert made.get_conf("datasets.0.folder_path") == "a"
    for absent in ("train.lr.x", "train.x", "datasets.1.folder_path", "datasets.x", "x.y"):
        assert made.get_conf(absent, "default") == "default"


def test_null_counts_as_missing_and_zero_does_not() -> None:
    made = process(null=None, zero=0, off=False, empty="")
    assert made.get_conf("null", 5) == 5
    assert [made.get_conf(key, 5) for key in ("zero", "off", "empty")] == [0, False, ""]


def test_a_missing_required_key_is_named() -> None:
    with pytest.raises(UserError, match=r"^process\[2\]\.a\.b: required"):
        process(a={"b": None}).get_conf("a.b", required=True)


def test_as_type_converts_values_and_defaults() -> None:
    made = process(lr="1e-4")
    assert made.get_conf("lr", as_type=float) == 1e-4
    assert made.get_conf("steps", "10", as_type=int) == 10
    assert made.get_conf("steps", as_type=int) is None
    assert made.get_conf("lr", as_type=lambda text: text.upper()) == "1E-4"


@pytest.mark.parametrize("as_type", [int, float, lambda value: value.no_such()])
def test_as_type_that_refuses_names_key_and_value(as_type) -> None:
    with pytest.raises(UserError, match=r"process\[2\]\.lr: 'fast'"):
        process(lr="fast").get_conf("lr", as_type=as_type)


def test_text_is_no_truth_value() -> None:
    assert process(on=True).get_conf("on", as_type=bool) is True
    with pytest.raises(UserError, match="'false' is text"):
        process(on="false").get_conf("on", as_type=bool)
