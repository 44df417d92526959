"""Whole jobs of FluxFlow's guide: every configuration and command is planned, and what
can train is trained."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import run as command_line
from extensions.compat.fluxflow import sized, transformer_size
from extensions.compat.fluxflow_keys import guide_flags, keys, split_flags
from jobs import ExtensionJob
from jobs.dry_run import plan_job
from tests.conftest import ROOT
from tests.extensions.compat import fluxflow_guide as guide
from tests.extensions.from_scratch.unmeasured import MEASURE, UNMEASURED
from tests.faults.nursery import Child, Nursery
from tests.processes import output_of
from tests.running import lines
from toolkit.config import JobConfig, load_job
from toolkit.config.reading.foreign import COMMAND_LINE
from toolkit.config.reading.located import ConfigNode, SourceLocation
from toolkit.errors import ConfigErrors, RunError, UserError
from toolkit.extension import discover
from toolkit.files.log import shown

EXTENSIONS = discover()


def cases(table: dict[str, str]) -> list:
    return [pytest.param(text, id=name) for name, text in table.items()]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the data of the guide, in which no job measures its
    memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MEASURE, UNMEASURED)
    guide.write_data(tmp_path)
    return tmp_path


def read(text: str) -> JobConfig:
    Path("config.yaml").write_text(text, encoding="utf-8")
    return load_job("config.yaml", EXTENSIONS.find_config)


def read_command(command: str, *more: str) -> JobConfig:
    flags, _ = split_flags([*guide.arguments(command), *more], [])
    return load_job(COMMAND_LINE, EXTENSIONS.find_config, flags=flags)


def train(config: JobConfig) -> None:
    with shown():
        ExtensionJob(config, EXTENSIONS).run()


@pytest.mark.parametrize("text", cases(guide.FILES))
def test_every_file_is_planned(text: str, workplace: Path) -> None:
    plan = plan_job(read(text))
    assert plan.processes and not (workplace / "outputs").exists()


def test_the_plan_of_a_step_that_starts_from_another_says_what_learns_how_long(
    workplace: Path,
) -> None:
    _, second = plan_job(
        read(guide.short(guide.FILES["warmup, then gan"], 12))
    ).processes
    start, *rest = second.notes
    folder = "outputs/pipeline_training/vae_warmup/vae_warmup"
    assert (
        start
        == f"starts from {folder}, which an earlier process of the job writes: counted then"
    )
    assert rest == [
        "12 optimizer steps",
        "or until the mean of loss_recon is below 0.01",
        "vae: adamw, learning rate 1e-05, CosineAnnealingLR",
        "discriminator: adamw, learning rate 1e-05, CosineAnnealingLR",
    ]


@pytest.mark.parametrize("command", cases(guide.COMMANDS))
def test_every_command_is_planned(command: str, workplace: Path) -> None:
    assert plan_job(read_command(command)).processes[0].optimizer_steps


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    cases(
        {
            name: text
            for name, text in guide.FILES.items()
            if "steps:" in text and name not in ("warmup, then gan", "complete")
        }
    ),
)
def test_every_file_trains_two_batches_of_each_step(text: str, workplace: Path) -> None:
    """Two more are trained below."""
    config = read(guide.short(text))
    train(config)
    out = next((workplace / "outputs").glob("[!_]*"))
    names = [entry.name for entry in config.processes]
    for name in names:
        assert (out / f"flxflow_step_{name}_final.safetensors").is_file()
        metrics = out / "graph" / f"training_metrics_{name}.jsonl"
        assert len(metrics.read_text(encoding="utf-8").splitlines()) == 2
        assert len(names) > 1 or metrics.samefile(
            out / "graph" / "training_metrics.jsonl"
        )
    assert (out / "flxflow_final.safetensors").samefile(
        out / f"flxflow_step_{names[-1]}_final.safetensors"
    )
    assert (
        json.loads((out / "training_state.json").read_text(encoding="utf-8"))[
            "global_step"
        ]
        == 2
    )
    assert {path.name for path in (out / "samples").iterdir()}


SECRET = "hf_" + "q7" * 12


def files_with(secret: str) -> list[Path]:
    files = [path for path in Path().rglob("*") if path.is_file()]
    return [path for path in files if secret.encode() in path.read_bytes()]


def on_shards(command: str) -> str:
    """A command on a stream, with the shards of the test."""
    local = command.replace("hf://datasets/nyuuzyou/textureninja/", "shards/")
    if "webdataset_url" not in local:
        local += " --webdataset_url shards/*.tar"
    return local


def test_every_command_on_a_stream_is_planned(workplace: Path) -> None:
    guide.write_shards(workplace)
    for command in guide.STREAM_COMMANDS.values():
        (plan,) = plan_job(read_command(on_shards(command))).processes
        assert plan.stream.shards == 2, command
    command = on_shards(guide.STREAM_COMMANDS["another set"])
    config = read_command(command)
    assert (
        "the rate stays as it is: how many samples the stream has is not known"
        in "".join(config.warnings)
    )
    (sized_plan,) = plan_job(read_command(command, "--webdataset_size", "6")).processes
    assert sized_plan.optimizer_steps == 10 * 3
    (dataset,) = config.processes[0].section.datasets
    assert (dataset.webdataset.image_key, dataset.webdataset.caption_key) == (
        ("png",),
        "caption",
    )


@pytest.mark.slow
def test_an_epoch_of_a_stream_is_one_pass_over_all_shards(workplace: Path) -> None:
    guide.write_shards(workplace)
    command = on_shards(guide.STREAM_COMMANDS["another set"])
    command = command.replace("--n_epochs 10", "--n_epochs 2 --batch_size 1")
    flags = re.sub(r"--webdataset_token \S+", "", command.replace("--batch_size 2", ""))
    train(read_command(flags, "--webdataset_token", SECRET))
    out = workplace / "outputs" / "custom_dataset"
    assert len(lines(out / "graph" / "training_metrics.jsonl")) == 2 * 6
    assert (out / "flxflow_final.safetensors").is_file()
    assert files_with(SECRET) == []


@pytest.mark.slow
def test_the_second_stage_trains_on_the_first_and_the_third_trains_both(
    workplace: Path,
) -> None:
    """Every command of a flow model is planned on the first stage."""
    train(read_command(guide.STAGE_1, "--max_steps", "2"))
    for name in guide.FLOW_COMMANDS.keys() - {"stage 3"}:
        config = read_command(guide.FLOW_COMMANDS[name])
        assert config.processes[0].type == "flow_trainer", name
        assert config.processes[0].section.model.vae == "outputs/stage1_vae/train/train"
        assert plan_job(config).processes[0].optimizer_steps, name
    train(read_command(guide.STAGE_2, "--max_steps", "2", "--seed", "1"))
    out = workplace / "outputs" / "stage2_flow"
    whole = load_file(out / "flxflow_final.safetensors")
    assert {name.partition(".")[0] for name in whole} >= {
        "transformer",
        "text_encoder",
        "vae",
    }
    first = load_file(
        workplace / "outputs" / "stage1_vae" / "flxflow_final.safetensors"
    )
    assert all(
        torch.equal(whole[name], value)
        for name, value in first.items()
        if name.startswith("vae.encoder")
    )
    assert len(list((out / "samples").iterdir())) == 3
    line = json.loads(
        (out / "graph" / "training_metrics.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()[0]
    )
    assert {"loss_flow", "lr/flow", "lr/text_encoder"} <= line.keys()
    assert line["lr/text_encoder"] == pytest.approx(line["lr/flow"] / 10)
    train(read_command(guide.STAGE_3, "--max_steps", "2", "--seed", "1"))
    out = workplace / "outputs" / "stage3_joint"
    line = json.loads(
        (out / "graph" / "training_metrics.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()[-1]
    )
    names = (
        "loss_flow",
        "loss_recon",
        "loss_kl",
        "loss_gen",
        "loss_disc",
        "lr/vae",
        "lr/discriminator",
    )
    assert set(names) <= line.keys()
    joint = load_file(out / "flxflow_final.safetensors")
    assert any(
        not torch.equal(joint[name], whole[name])
        for name in whole
        if name.startswith("vae.encoder")
    )


FIRST = guide.short(guide.FILES["warmup, then gan"])


@pytest.mark.slow
def test_steps_leave_the_guides_files_and_a_second_start_does_nothing(
    workplace: Path, said: list[str]
) -> None:
    train(read(FIRST))
    out = workplace / "outputs" / "pipeline_training"
    found = {
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()
    }
    assert {
        "flxflow_step_vae_warmup_final.safetensors",
        "flxflow_step_vae_with_gan_final.safetensors",
        "flxflow_final.safetensors",
        "graph/training_metrics_vae_warmup.jsonl",
        "graph/training_metrics_vae_with_gan.jsonl",
        "samples/sample_vae_with_gan_epoch_1_batch_0_0.png",
        "training_state.json",
        "lr_sav.json",
    } <= found
    weights = load_file(
        out / "vae_with_gan" / "vae_with_gan" / "diffusion_pytorch_model.safetensors"
    )
    whole = load_file(out / "flxflow_final.safetensors")
    assert all(
        torch.equal(whole[f"vae.{name}"], value) for name, value in weights.items()
    )
    assert any(name.startswith("discriminator.") for name in whole)
    saved = (out / "vae_with_gan" / "config.yaml").read_text(encoding="utf-8")
    assert saved == FIRST
    before = (out / "flxflow_final.safetensors").stat().st_mtime_ns
    train(read(FIRST))
    assert (out / "flxflow_final.safetensors").stat().st_mtime_ns == before


QUICK = guide.COMMANDS["path a"]


@pytest.mark.slow
def test_a_command_writes_the_file_that_repeats_it_and_its_weights_are_a_start(
    workplace: Path,
) -> None:
    config = read_command(
        QUICK, "--max_steps", "1", "--seed", "5", "--webdataset_token", SECRET
    )
    train(config)
    out = workplace / "outputs" / "quick_test"
    file = out / "train" / "config.yaml"
    saved = load_job(file, EXTENSIONS.find_config)
    assert saved.processes == config.processes and saved.name == config.name
    text = file.read_text(encoding="utf-8")
    assert files_with(SECRET) == [] and "<redacted>" in text
    train(read(text.replace("quick_test", "again")))
    first, second = (
        load_file(folder / "flxflow_final.safetensors")
        for folder in (out, workplace / "outputs" / "again")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    again = read_command(
        f"--data_path images --output_path outputs/next --model_checkpoint {out}/flxflow_final.safetensors"
        f" --preserve_lr --train_vae --max_steps 1 --img_size {guide.SIDE}"
    )
    section = again.processes[0].section
    assert section.model.name_or_path == str(out / "train" / "train")
    rates = json.loads((out / "lr_sav.json").read_text())
    assert section.role_optimizer("vae").lr == rates["vae"]


def test_the_command_line_takes_flags_a_file_and_its_own_options(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("config.yaml").write_text(FIRST, encoding="utf-8")
    assert (
        command_line.main(
            ["--dry-run", "--json", *guide.arguments(QUICK), "-n", "named"]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["folders"] == ["outputs/named/train"]
    assert (
        command_line.main(
            ["--config", "config.yaml", "--batch_size", "1", "--dry-run", "--json"]
        )
        == 0
    )
    output = capsys.readouterr()
    assert [
        plan["micro_batches_per_epoch"] for plan in json.loads(output.out)["processes"]
    ] == [6, 0]
    assert (
        output.err.count(
            "command line: --batch_size: replaces training.batch_size of the file."
        )
        == 1
    )
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["--train_vea", "--dry-run"])
    assert capsys.readouterr().err.endswith(
        "error: --train_vea: unknown flag. Did you mean '--train_vae'?\n"
    )


PAGE = (ROOT / "docs" / "coming_from_fluxflow.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line",
    re.findall(r"^\.venv/bin/python run\.py (.*?) *(?:#.*)?$", PAGE, re.MULTILINE),
)
def test_the_commands_of_the_page_are_planned(
    line: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("config.yaml").write_text(FIRST, encoding="utf-8")
    assert (
        command_line.main(
            [*line.split(), *(() if "--dry-run" in line else ("--dry-run",))]
        )
        == 0
    )
    assert "_trainer)" in capsys.readouterr().out


@pytest.mark.slow  # two interpreters, one of which draws
def test_the_guides_own_commands_are_there(workplace: Path, tmp_path: Path) -> None:
    (workplace / "config.yaml").write_text(guide.FILES["complete"])
    command = [
        str(ROOT / "config/examples/fluxflow-train"),
        "--config",
        "config.yaml",
        "--dry-run",
    ]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    planned = output_of(*command, cwd=workplace, env=environment)
    assert "vae_warmup (vae_trainer)" in planned
    run = workplace / "outputs" / "full_pipeline" / "vae_warmup"
    run.mkdir(parents=True)
    (run / "run.json").write_text(
        '{"name": "vae_warmup", "status": "finished", "step": 2, "steps": 2}'
    )
    rows = [
        {"step": step, "loss": 1 / step, "lr": 1e-4, "step_s": 0.1} for step in (1, 2)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        sys.executable,
        str(ROOT / "config/examples/generate_training_graphs.py"),
        "outputs/",
    ]
    output_of(*command, cwd=workplace)
    assert (run / "graph" / "training_losses.png").is_file()
    assert (workplace / "outputs" / "graph" / "training_losses.png").is_file()


def test_the_pages_table_of_sizes_is_what_is_made() -> None:
    dims = (32, 64, 128, 256)
    levels = [", ".join(map(str, sized(dim)["block_out_channels"])) for dim in dims]
    latents = [str(sized(dim)["latent_channels"]) for dim in dims]
    made = [
        transformer_size(
            {"feature_maps_dim": ConfigNode(dim, (), *[SourceLocation(1, 1)] * 2)}
        )
        for dim in dims
    ]
    widths = [
        str(size["num_attention_heads"] * size["attention_head_dim"]) for size in made
    ]
    layers = [str(size["num_layers"]) for size in made]
    for row in (levels, latents, widths, layers):
        assert f"| {' | '.join(row)} |" in PAGE


def kill_when(child: Child, metrics: Path, lines: int) -> None:
    """Kills a job once a metrics file has so many lines."""
    child.wait_until(
        lambda: (
            metrics.is_file()
            and len(metrics.read_text(encoding="utf-8").splitlines()) >= lines
        )
    )
    child.send(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_the_complete_example_killed_twice_leaves_the_same_bytes(
    nursery: Nursery, tmp_path: Path
) -> None:
    text = guide.short(guide.FILES["complete"], 6).replace(
        "checkpoint_save_interval: 100", "checkpoint_save_interval: 4\n  seed: 7"
    )
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
        guide.write_data(folder)
        (folder / "config.yaml").write_text(text, encoding="utf-8")
    whole, killed = folders
    graph = killed / "outputs" / "full_pipeline" / "graph"

    def start(folder: Path) -> Child:
        return nursery.fork(["config.yaml"], folder, "run", [("unmeasured",)])

    kill_when(start(killed), graph / "training_metrics_vae_spade_gan.jsonl", 5)
    kill_when(start(killed), graph / "training_metrics_flow_training.jsonl", 5)
    for folder in folders:
        start(folder).ends_with(0)
    for path in sorted(whole.rglob("flxflow_*.safetensors")):
        expected, found = load_file(path), load_file(killed / path.relative_to(whole))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), (
            path.name
        )
    for path in sorted((whole / "outputs" / "full_pipeline" / "graph").iterdir()):
        whole_rows, killed_rows = lines(path), lines(graph / path.name)
        for key in ("step", "loss"):
            assert [row[key] for row in whole_rows] == [row[key] for row in killed_rows]


# ------------------------------------------------------------ the guide's table of
# troubles


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("pipeline: {steps: []}", "No pipeline steps defined."),
        (
            "pipeline: {steps: [{name: a, train_vae: true, stop_condition: {loss_name: loss_flow, threshold: 1}}]}",
            "'loss_flow' is not a metric of this run.",
        ),
        (
            "pipeline: {steps: [{name: a, train_vae: true, optim_sched_config: none.json}]}",
            "'none.json' does not exist (looked for ",
        ),
        (
            "{train_vae: true, freeze_vae: true}",
            "Cannot freeze and train the same component.",
        ),
        (
            "{train_vae: true, use_lpips: true, lpips_backbone: none.pth}",
            "LPIPS needs VGG16: download https://",
        ),
        (
            "pipeline: {steps: [{name: a, train_vae: true}, {name: a, train_vae: true}]}",
            "'a' is already the name of process[0]. Names are unique.",
        ),
    ],
)
def test_a_trouble_of_the_guides_table_is_told_before_anything_starts(
    lines: str, expected: str, workplace: Path
) -> None:
    training = lines if lines.startswith("{") else f"{{lr: 1e-5, {lines}}}"
    with pytest.raises(ConfigErrors) as caught:
        read(f"{guide.HEAD}\ntraining: {training}\n")
    assert expected in str(caught.value)
    assert str(caught.value).startswith("config.yaml:")


def test_captions_that_are_no_table_are_told_with_their_line(workplace: Path) -> None:
    Path("captions.txt").write_text("image0.png a photo\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"captions\.txt:1"):
        plan_job(read(f"{guide.HEAD}\ntraining: {{train_vae: true, lr: 1e-5}}\n"))


@pytest.mark.slow
def test_a_plateau_of_one_role_lowers_its_rate_alone(workplace: Path) -> None:
    plateau = "{scheduler_type: ReduceLROnPlateau, factor: 0.5, patience: 0, threshold: 0.9, every: 2}"
    text = (
        FIRST.split('      - name: "vae_warmup"')[0]
        + f"""
      - name: both
        max_steps: 9
        train_vae: true
        gan_training: true
        lr: 1e-5
        schedulers: {{vae: {plateau}, discriminator: {{scheduler_type: ConstantLR, factor: 1}}}}
"""
    )
    train(read(text))
    file = (
        workplace
        / "outputs"
        / "pipeline_training"
        / "graph"
        / "training_metrics_both.jsonl"
    )
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert {row["lr/discriminator"] for row in rows} == {1e-5}
    assert rows[0]["lr/vae"] == 1e-5 > rows[-1]["lr/vae"] >= 1e-5 / 16


@pytest.mark.slow
def test_losses_that_are_not_finite_end_the_run(workplace: Path) -> None:
    command = QUICK.replace("--lr 1e-5", "--lr 1000").replace(
        "--n_epochs 5", "--n_epochs 30"
    )
    with pytest.raises(RunError, match="loss"):
        train(read_command(command, "--initial_clipping_norm", "0", "--seed", "1"))


# ------------------------------------------------------------ damaged files

ODD = (
    None, "", [], {}, [1], ["a"], {"a": 1}, "text", "true", True, False, 0, -1, 3, 1e-5, math.inf, 10**30, "a/b",
    "../x", "1e-5", [None], [{}], {"vae": None}, {"vae": {"type": 3}}, {"vae": {"lr": "x"}}, "configs",
    "configs/lion_gan.json", {"loss_name": 3, "threshold": "x"}, {"steps": [None]}, [["a"]],
)  # fmt: skip


def all_places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a configuration with each of its keys or indices."""
    for key in (
        data
        if isinstance(data, dict)
        else range(len(data))
        if isinstance(data, list)
        else ()
    ):
        yield data, key
        yield from all_places(data[key])


@pytest.mark.slow
def test_no_damage_to_a_file_ends_in_anything_but_messages_with_places(
    workplace: Path,
) -> None:
    draw = random.Random(0)
    files = [yaml.safe_load(text) for text in guide.FILES.values()]
    for _ in range(40):
        data = copy.deepcopy(draw.choice(files))
        for _ in range(draw.randint(1, 3)):
            container, key = draw.choice(list(all_places(data)) or [({}, "")])
            if isinstance(container, dict) and draw.random() < 0.4:
                key = draw.choice(list(keys()))
            container[key] = copy.deepcopy(draw.choice(ODD))
        try:
            read(yaml.safe_dump(data))
        except UserError as error:
            assert all(
                re.match(r"config\.yaml|\S+\.json:", line)
                for line in str(error).splitlines()
            )


def test_no_flags_end_in_anything_but_messages(workplace: Path) -> None:
    draw = random.Random(0)
    words = [
        "",
        "x",
        "1",
        "-1",
        "1e-5",
        "nan",
        "true",
        "configs",
        "configs/lion_gan.json",
        "images",
        "1e400",
        "null",
    ]
    for _ in range(40):
        chosen = draw.sample(list(guide_flags()), draw.randint(1, 6))
        argv = [word for flag in chosen for word in (f"--{flag}", draw.choice(words))]
        try:
            flags, _ = split_flags([*guide.arguments(QUICK)[:4], *argv], [])
            load_job(COMMAND_LINE, EXTENSIONS.find_config, flags=flags)
        except UserError as error:
            assert str(error)
