"""`${VAR}` and its forms: where they are filled in, and as what."""

from __future__ import annotations

import pytest

from tests.toolkit.config.conftest import trainer

JOB = "job: extension\nmeta: {t: '${A}'}\nconfig:\n  name: n\n  process:\n    - type: drop_in\n      x: %s\n"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${STEPS}", 100),
        ("'${STEPS}'", "100"),
        ("a${STEPS}b", "a100b"),
        ("${LR}", 1e-4),
        ("${WORD}", "yes"),
        ("${UNSET:-7}", 7),
        ("${UNSET:-}", None),
        ("${EMPTY:-x}", "x"),
        ("${EMPTY}", None),
        ("$${STEPS}", "${STEPS}"),
        ("[a, '${WORD}/${STEPS}']", ["a", "yes/100"]),
        ("plain # ${NOT_SET} in a comment", "plain"),
    ],
)
def test_an_unchecked_section_reads_what_would_stand_there(load, written: str, value: object) -> None:
    env = {"STEPS": "100", "LR": "1e-4", "WORD": "yes", "EMPTY": ""}
    assert load(JOB % written, env=env).processes[0].raw["x"] == value


def test_meta_and_the_saved_text_stay_unexpanded(load) -> None:
    job = load(JOB % "${A}", env={"A": "secret"})
    assert job.meta == {"t": "${A}"}
    assert job.unexpanded_text == JOB % "${A}"


def test_an_unset_variable_is_one_mistake_at_its_value(mistakes) -> None:
    assert mistakes(trainer("train:", "  steps: ${STEPS}"), env={}) == [
        "9:16: process[0].train.steps: the environment variable 'STEPS' is not set. Set it, or write ${STEPS:-default}."
    ]


def test_the_written_name_does_not_matter_when_another_is_given(load) -> None:
    assert load(JOB.replace("name: n", "name: ${UNSET}") % 1, env={}, name="given").name == "given"


def test_a_malformed_reference_is_a_mistake(mistakes) -> None:
    (line,) = mistakes(JOB % "${1 x}", env={})
    assert line == "7:10: process[0].x: '${1 x}' does not name an environment variable. Write ${NAME}."


def test_a_checked_section_gets_text_and_reads_it_as_its_type(section) -> None:
    env = {"N": "12", "OFF": "off", "RES": "512"}
    found = section(
        "trigger_word: ${N}",
        "train: {steps: '${N}', lr: '${LR:-1e-3}'}",
        "datasets: [{folder_path: photos, resolution: '${RES}', cache_latents: '${OFF}'}]",
        env=env,
    )
    assert (found.trigger_word, found.train.steps, found.train.lr) == ("12", 12, 1e-3)
    assert (found.datasets[0].resolution, found.datasets[0].cache_latents) == ((512,), False)
