"""`config.defaults` under each process: mappings merge at every depth, all else is replaced."""

from __future__ import annotations

JOB = """
job: extension
config:
  name: test
  defaults:
    datasets: [{folder_path: photos, num_repeats: 2}, {folder_path: photos}]
    model: {name_or_path: ./model, model_kwargs: {match_target_res: true}}
    train: {steps: 7, lr: 0.5, ema_config: {use_ema: true, ema_decay: 0.5}}
    validation: {fraction: 0.1, every: 5, timesteps: 3}
    stop_when: {below: 1, smooth: 4}
  process:
    - {type: sd_trainer, name: a}
    - type: sd_trainer
      name: b
      datasets: [{folder_path: photos}]
      train: {ema_config: {ema_decay: 0.9}, lr: 0}
      validation: {folder_path: photos}
      stop_when: {threshold: 2}
    - {type: drop_in, train: {steps: 1, mine: [1]}, datasets: none}
    - {type: tiny_model, path: tiny}
"""


def test_what_a_process_does_not_give_comes_from_the_defaults(load) -> None:
    section = load(JOB).processes[0].section
    assert (len(section.datasets), section.datasets[0].num_repeats) == (2, 2)
    assert (section.train.steps, section.train.lr, section.train.ema_config.ema_decay) == (7, 0.5, 0.5)
    assert (section.validation.fraction, section.stop_when.below, section.stop_when.smooth) == (0.1, 1, 4)


def test_mappings_merge_at_every_depth_and_lists_and_zeros_replace(load) -> None:
    section = load(JOB).processes[1].section
    assert [dataset.num_repeats for dataset in section.datasets] == [None]
    assert (section.train.steps, section.train.lr) == (7, 0)
    assert (section.train.ema_config.use_ema, section.train.ema_config.ema_decay) == (True, 0.9)
    assert (section.stop_when.below, section.stop_when.smooth) == (2, 4)


def test_a_list_of_sections_that_is_replaced_is_told(load) -> None:
    (told,) = (line for line in load(JOB).warnings if "process[1].datasets" in line)
    assert told.endswith("replaces the whole list of config.defaults.datasets, line 6: nothing of it is taken over.")
    assert not [line for line in load(JOB).warnings if "process[0]" in line]


def test_where_two_keys_exclude_each_other_the_process_wins(load) -> None:
    validation = load(JOB).processes[1].section.validation
    assert (validation.folder_path, validation.fraction, validation.every, validation.timesteps) == (
        "photos",
        None,
        5,
        3,
    )


def test_an_unchecked_section_is_given_the_merged_mapping(load) -> None:
    raw = load(JOB).processes[2].raw
    assert (raw["train"]["steps"], raw["train"]["lr"], raw["train"]["mine"]) == (1, 0.5, [1])
    assert raw["datasets"] == "none"
    assert raw["train"]["ema_config"] == {"use_ema": True, "ema_decay": 0.5}


def test_a_process_that_knows_none_of_them_is_left_alone(load) -> None:
    assert load(JOB).processes[3].section.path == "tiny"


def test_a_default_is_known_though_every_process_that_knows_it_adds_to_it(load, mistakes) -> None:
    """`tiny_model` knows no `train`; both trainers have one of their own."""
    both = JOB.replace("name: a}", "name: a, train: {batch_size: 2}}")
    train = load(both).processes[0].section.train
    assert (train.batch_size, train.steps) == (2, 7)
    checked = "".join(line for line in both.splitlines(keepends=True) if "drop_in" not in line)  # it takes anything
    assert mistakes(checked.replace("steps: 7", "stpes: 7")) == [
        "8:13: config.defaults.train.stpes: unknown key. Did you mean 'steps'?"
    ]


def test_the_defaults_of_one_process_are_not_changed_by_another(load) -> None:
    first, second = load(JOB), load(JOB.replace("name: a}", "name: a, train: {ema_config: {use_ema: false}}}"))
    assert first.processes[1].raw == second.processes[1].raw
