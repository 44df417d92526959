"""Commands of musubi-tuner, pasted or in a file, and `run.py import`."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from extensions.compat.command import read_command
from run import foreign_tool, print_tool
from tests.conftest import ROOT
from tests.extensions.compat.test_musubi import DATA
from toolkit.commands import command as pasted
from toolkit.config import load_job
from toolkit.config.reading.foreign import COMMAND_LINE, is_command
from toolkit.config.reading.located import Diagnostics
from toolkit.errors import ConfigErrors, UserError
from toolkit.extension import discover

COMMAND = """\
# accelerate launch of last week
accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 src/musubi_tuner/qwen_image_train_network.py \\
    --dit model/transformer --dataset_config data.toml --edit_plus \\
    --network_module=networks.lora_qwen_image --network_dim 8 --network_args "loraplus_lr_ratio=4" \\
    --optimizer_args weight_decay=0.1 'betas=0.9,0.95' --gradient_checkpointing \\
    --max_train_steps 2 --seed 7 --output_dir out --output_name 0100 --metadata_title "It's mine"  # two steps
"""


@pytest.fixture(autouse=True)
def files(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(tiny_model)
    shutil.copytree(ROOT / "config" / "examples" / "pairs", "pairs")
    Path("data.toml").write_text(f"{DATA}control_resolution = [64, 64]\n")


def load(command: str = COMMAND) -> Any:
    return load_job(COMMAND_LINE, discover().find_config, command=command)


def fault(command: str) -> str:
    with pytest.raises(ConfigErrors) as error:
        load(command)
    return str(error.value)


def test_flags_are_the_keys_of_a_training_config() -> None:
    config = load()
    job = config.processes[0].section
    assert (config.name, config.meta, job.training_folder) == (
        "0100",
        {"title": "It's mine"},
        "out",
    )
    assert (job.model.arch, job.network.type, job.network.linear, job.network.loraplus_lr_ratio) == (
        "qwen_image_edit_plus", "lora", 8, 4,
    )  # fmt: skip
    assert (job.train.dtype, job.train.steps, job.training_seed) == ("bfloat16", 2, 7)
    assert job.train.gradient_checkpointing is True
    assert job.train.optimizer_params == {"weight_decay": 0.1, "betas": "0.9,0.95"}


def test_the_arguments_that_adafactor_lacks_can_be_pasted() -> None:
    command = COMMAND.partition("--optimizer_args")[0].rstrip(" \\\n")
    command += " --output_name a --optimizer_type adafactor"
    flags = fault(command).split(", as flags ")[1]
    params = load(f"{command} {flags}").processes[0].section.train.optimizer_params
    assert params == {"relative_step": "False", "scale_parameter": "False"}


@pytest.mark.parametrize(("end", "comments"), [("`", True), ("^", False), ("\\", True)])
def test_lines_go_on_as_in_every_shell(end: str, comments: bool) -> None:
    text = COMMAND.replace("\\\n", f"{end}\r\n")
    assert is_command(text) and load(text).processes[0].section.network.linear == 8


@pytest.mark.parametrize(
    "before",
    [
        "#!/bin/bash\ncd musubi-tuner\nsource venv/bin/activate\n\n",
        "@echo off\r\nset A=b\r\n",
        ". venv/a\n",
        "%cd x\n!pip install x\n",
        ":\nNCCL_P2P_DISABLE=1 nohup conda run -n musubi --no-capture-output python x.py\n",
        "& 'C:\\my\\python.exe' x.py\n",
        "pip install x\n\n",
    ],
)
def test_what_prepares_the_shell_may_stand_above(before: str) -> None:
    assert is_command(before + COMMAND) and load(before + COMMAND).name == "0100"


SCRIPT = """\
#!/bin/bash
set -euo pipefail
if [ -z "$1" ]; then
  echo usage
  exit 1
fi
for i in 1 2; do
  mkdir -p out/$i
done
MODEL=${MODEL:-model}
RATE="--learning_rate 3e-4 --seed 5"; NOTHING=
EXTRA="${EXTRA:-}"
DATA="${DATA:-$HERE/data.toml}"
: "${ALPHA:=2}"
FILES=(
  --dataset_config "$DATA"  # the images
  --output_name "a b"
)
accelerate launch qwen_image_train_network.py --dit "$MODEL/transformer" $RATE $NOTHING "${FILES[@]}" \\  # all of them
  --network_module musubi_tuner.networks.lora_qwen_image --network_alpha $ALPHA $EXTRA ${MORE:-} "$@"
python tools/notify.py --done
"""


def test_a_script_with_conditions_arrays_and_flags_in_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HERE", str(Path.cwd()))
    monkeypatch.setenv("MORE", "--network_dim 8 --fp8_base")
    config = load(SCRIPT)
    job = config.processes[0].section
    assert (config.name, job.train.lr, job.training_seed) == ("a b", 3e-4, 5)
    assert (job.network.linear, job.network.linear_alpha, job.model.quantize) == (
        8,
        2,
        True,
    )
    monkeypatch.setenv("RATE", "--learning_rate 2e-4")
    assert (
        load(SCRIPT.replace('RATE="--learning_rate 3e-4 --seed 5"; ', ""))
        .processes[0]
        .section.train.lr
        == 2e-4
    )
    Path("script.sbatch").write_text(
        SCRIPT.replace("EXTRA=", 'log() { echo "it goes\non"; }\nEXTRA=')
    )
    assert load_job("script.sbatch", discover().find_config).name == "a b"
    assert any(
        "notify.py' is left out" in line or "is left out: a file is one job" in line
        for line in config.warnings
    )


@pytest.mark.parametrize(
    "decides",
    [
        "if x; then\n RATE=--seed\nfi\n",
        "if x; then RATE=--seed; fi\n",
        "for RATE in 1; do\nRATE=1\ndone\n",
    ],
)
def test_what_a_condition_decides_is_not_guessed(decides: str) -> None:
    text = SCRIPT.replace("accelerate", f"{decides}accelerate").replace(
        '"$DATA"', "data.toml"
    )
    assert (
        is_command(text)
        and "'${RATE}' belongs to no flag. Set the variable, or write what it stands for."
        in fault(text)
    )


@pytest.mark.parametrize("suffix", [".sh", ".ps1", ".py"])
def test_a_script_without_such_a_command_is_told_as_that(suffix: str) -> None:
    file = Path(f"x{suffix}")
    file.write_text('$dit = "a # b"\nfoo x\n')
    with pytest.raises(
        ConfigErrors, match=rf"^x\{suffix}:1:1: holds no command that is read\."
    ):
        load_job(file, discover().find_config)


@pytest.mark.parametrize(
    "text",
    [
        "job: extension\nconfig: {}\n",
        "set: 1\npython: 3\n",
        "a photo of a python\n",
        "",
    ],
)
def test_other_texts_are_no_commands(text: str) -> None:
    assert not is_command(text)


@pytest.mark.slow
def test_a_long_command_is_no_name_of_a_file(run_py: Callable[..., Any]) -> None:
    command = f"accelerate launch qwen_image_train_network.py --output_name {'x' * 300}"
    assert "dataset_config: is required" in run_py("import", command).stderr


def test_commands_that_encode_beforehand_are_left_out() -> None:
    before = "python src/musubi_tuner/qwen_image_cache_latents.py --dataset_config data.toml --vae x && "
    config = load(f"{before}{COMMAND}")
    assert config.processes[0].section.network.linear == 8
    assert any(
        "is left out: images and captions are encoded" in line
        for line in config.warnings
    )


def test_the_script_says_that_the_model_itself_is_trained() -> None:
    text = "python qwen_image_train.py --dit model --dataset_config data.toml --output_name full"
    assert load(text).processes[0].section.network.type == "full"


def test_a_command_and_the_file_that_it_names_agree_or_both_values_are_told() -> None:
    Path("base.toml").write_text("[train]\nlearning_rate = 1e-4\nseed = 7\n")
    assert (
        load(f"{COMMAND.partition('  #')[0]} --config_file base")
        .processes[0]
        .section.train.lr
        == 1e-4
    )
    Path("base.toml").write_text("learning_rate = 1e-4\nseed = 8\n")
    assert fault(f"{COMMAND.partition('  #')[0]} --config_file base.toml") == (
        "command line:6:25: seed: --seed is 7, and 8 in base.toml line 2. Remove one of them."
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "python wan_train_network.py --dit x",
            "command line:1:8: 'wan_train_network.py' trains no Qwen-Image model.",
        ),
        (
            f"{COMMAND}{COMMAND}",
            "command line:8:74: is a second training: give one command.",
        ),
        (
            COMMAND.replace("--seed 7", "--seed 7 9"),
            "command line:6:34: '9' belongs to no flag.",
        ),
        (
            COMMAND.replace("--seed", "--sed"),
            "command line:6:25: sed: --sed: unknown flag. Did you mean 'seed'?",
        ),
        (
            COMMAND.replace('"It', "It"),
            "command line:6:87: a quote that opens here is not closed on its line.",
        ),
        (COMMAND.replace("--seed 7", "--config_file no"), "no.toml: does not exist"),
        (
            COMMAND.replace("--seed", "\u2013\u2013seed"),
            "command line:6:25: '\u2013\u2013seed' belongs to no flag.",
        ),
        (
            COMMAND.replace('ratio=4" \\', 'ratio=4"'),
            "command line:5:5: '--optimizer_args' belongs to the command above: the mark that continues it (\\) is "
            "missing at the end of line 4.",
        ),
        (
            COMMAND.replace(
                "    --optim", "  # --save_every_n_steps 1 \\\n    --optim"
            ),
            "command line:6:5: '--optimizer_args' belongs to the command above: line 5 is a comment, which ends it. "
            "Remove that line.",
        ),
        (
            COMMAND.replace("    --optim", "\n    --optim"),
            "command line:6:5: '--optimizer_args' belongs to the command above: line 5 is empty, which ends it. "
            "Remove that line.",
        ),
    ],
)
def test_a_mistake_has_its_place(command: str, words: str) -> None:
    assert fault(command).startswith(words)


@pytest.mark.parametrize(
    "before",
    [
        "(musubi) C:\\m> ",
        "user@host:~/m$ ",
        "docker run --gpus all -v /a:/b image ",
        "call a && ",
    ],
)
def test_a_command_is_imported_with_what_stands_before_it(
    before: str, run_py: Callable[..., Any]
) -> None:
    done = run_py("import", before + COMMAND.partition("\n")[2])
    assert done.returncode == 0 and "linear: 8" in done.stdout, done.stderr


def test_a_flag_may_be_cut_short_and_lists_keep_their_quotes() -> None:
    text = COMMAND.replace(
        "--gradient_checkpointing",
        "--max_data_loader_n 0 --persistent_data_loader_worker",
    )
    assert load(text).processes[0].section.datasets[0].num_workers == 0
    # steps or epochs
    assert "--max_train: unknown flag" in fault(
        COMMAND.replace("--max_train_steps", "--max_train")
    )
    listed = "exclude_patterns=['.*img_mod.*', '.*txt_mod.*']"
    quoted = COMMAND.replace("loraplus_lr_ratio=4", listed)
    assert load(quoted).processes[0].section.network.exclude_patterns == (
        ".*img_mod.*",
        ".*txt_mod.*",
    )
    message = fault(COMMAND.replace('"loraplus_lr_ratio=4"', listed.replace(" ", "")))
    assert (
        "holds a list whose texts are not in quotes. In a shell, put the whole of name=value in double"
        in message
    )


@pytest.mark.slow
def test_what_is_imported_is_the_same_job(run_py: Callable[..., Any]) -> None:
    Path("train.sh").write_text(COMMAND)
    printed, pasted = (
        run_py("import", "train.sh"),
        run_py("import", COMMAND, "--output", "new/job.yaml"),
    )
    assert (printed.returncode, pasted.returncode) == (0, 0), pasted.stderr
    assert "linear: 8  # train.sh:4 network_dim" in printed.stdout
    assert "linear_alpha: 1  # musubi-tuner's default network_alpha" in printed.stdout
    copies = [
        load_job(path, discover().find_config) for path in ("train.sh", "new/job.yaml")
    ]
    settings = [copy.processes[0].section.recorded_settings() for copy in copies]  # type: ignore[union-attr]
    assert settings[0] == settings[1] and copies[0].meta == copies[1].meta
    again = run_py("import", COMMAND, "--output", "new/job.yaml")
    assert again.returncode == 2 and "exists and is never replaced" in again.stderr
    assert (
        run_py("new/job.yaml").returncode == 0
        and Path("out/0100/0100.safetensors").is_file()
    )


@pytest.mark.slow
def test_folders_that_lie_elsewhere_now_are_given_once(
    run_py: Callable[..., Any],
) -> None:
    Path("train.sh").write_text(
        COMMAND.replace("model/transformer", "/old/model/transformer")
    )
    Path("data.toml").write_text(DATA.replace("pairs/after", "/old/pairs/after"))
    refused = run_py("train.sh", "--dry-run")
    assert refused.returncode == 2 and refused.stderr.count("--map /old=NEW") == 2
    moved = run_py("train.sh", "--dry-run", "-v", "--map", f"/old={Path.cwd()}")
    assert (
        moved.returncode == 0
        and f"{Path.cwd()}/pairs/after: 3 x 1 = 3 samples" in moved.stdout
    )
    assert (
        f"name_or_path: {Path.cwd()}/model"
        in run_py("import", "train.sh", "--map", f"/old={Path.cwd()}").stdout
    )
    assert "write OLD=NEW" in run_py("train.sh", "--map", "/old").stderr


IMAGES = """python src/musubi_tuner/qwen_image_generate_image.py --dit model/transformer --vae model/vae \\
    --text_encoder model/text_encoder --prompt "A cat" --negative_prompt " " --image_size 128 96 --infer_steps 2 \\
    --attn_mode sdpa --save_path images --output_type images --fp8_scaled --seed 1234 \\
    --lora_multiplier 0.8 --lora_weight my.safetensors"""


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        (
            IMAGES,
            "# --attn_mode: PyTorch chooses the attention kernel.\n"
            "python run.py generate --model model --prompt 'A cat' --negative ' ' --height 128 --width 96 --steps 2 "
            "--output images --quantize --qtype fp8_scaled --seed 1234 --lora my.safetensors:0.8 --cfg 4.0\n",
        ),
        (
            "python qwen_image_generate_image.py --dit a/dit.safetensors --vae b.safetensors --edit --prompt x "
            "--control_image_path c.png --resize_control_to_image_size --compile --compile_mode default "
            "--output_type latent --image_size 64 64",
            "python run.py generate --model Qwen/Qwen-Image-Edit --transformer-path a/dit.safetensors "
            "--vae-path b.safetensors --prompt x --reference c.png --match-target-res --compile "
            "--compile-mode default --output-type latent --height 64 --width 64 --steps 25 --cfg 4.0\n",
        ),
        (
            "python qwen_image_generate_image.py --dit model --prompt x --save_path out --lycoris --no_metadata "
            "--lora_weight a.safetensors b.safetensors --lora_multiplier 0.5 --blocks_to_swap 8 --rcm_threshold 0.2 "
            "--stpes 3",
            "# --rcm_threshold: generate has no such flag.\n"
            "# --stpes: generate has no such flag. Did you mean '--steps'?\n"
            "python run.py generate --model model --prompt x --output out --metadata false --lora a.safetensors:0.5 "
            "b.safetensors --blocks-to-swap 8 --height 256 --width 256 --steps 25 --cfg 4.0\n",
        ),
        (
            "python qwen_image_generate_image.py --dit a/dit.safetensors --vae b.safetensors "
            "--latent_path x.safetensors --save_path out --output_type images --guidance_scale 1 --image_size 64 64 "
            "--infer_steps 2",
            "python run.py generate --model Qwen/Qwen-Image --transformer-path a/dit.safetensors "
            "--vae-path b.safetensors --latent-path x.safetensors --output out --cfg 1 --height 64 "
            "--width 64 --steps 2\n",
        ),
        (
            "python qwen_image_generate_image.py --dit model/transformer --vae model/vae --seed 3 --lora_weight a b "
            "--lora_multiplier 0.5 1 --save_merged_model c.safetensors",
            "python run.py merge --base model --lora a:0.5 b:1 --output c.safetensors\n",
        ),
        (
            "python merge_lora.py --dit a.safetensors --lora_weight b --save_merged_model c.safetensors --device cpu",
            "# --device: merge has none.\npython run.py merge --base a.safetensors --lora b --output c.safetensors\n",
        ),
        (
            "python lora_post_hoc_ema.py a.safetensors b.safetensors --output_file c.safetensors --sigma_rel 0.2",
            "python run.py post_hoc_ema a.safetensors b.safetensors --output c.safetensors --sigma-rel 0.2\n",
        ),
        (
            "python convert_lora.py --input a.safetensors --output b.safetensors --target other",
            "python run.py convert --input a.safetensors --output b.safetensors --to comfyui\n",
        ),
        (
            "python caption_images_by_qwen_vl.py --image_dir pairs --output_file c.jsonl --max_new_tokens 9 --fp8_vl "
            "--model_path a/qwen.safetensors",
            "python run.py caption --text-encoder-path a/qwen.safetensors --folder pairs "
            "--output c.jsonl --max_tokens 9 "
            "--quantize float8 --format jsonl\n",
        ),
        (
            "python qwen_extract_lora.py --model_org a --model_tuned b --save_to c.safetensors",
            "python run.py extract --base a --tuned b --output c.safetensors --rank 4\n",
        ),
    ],
)
def test_the_command_of_another_script_becomes_ours(
    command: str, ours: str, capsys: pytest.CaptureFixture
) -> None:
    """Printed with the interpreter that runs, as it is pasted."""
    made = foreign_tool(command)
    assert made is not None
    print_tool(*made)
    assert capsys.readouterr().out == ours.replace("python run.py", pasted())


@pytest.mark.slow
def test_commands_that_encode_beforehand_say_what_encodes_in_advance(
    run_py: Callable[..., Any],
) -> None:
    pasted = (
        "python qwen_image_cache_latents.py --dataset_config data.toml --vae model/vae"
    )
    done = run_py("import", pasted)
    assert (
        done.returncode == 2
        and "`run.py cache FILE`, with the command of the training in FILE"
        in done.stderr
    )
    Path("train.sh").write_text(COMMAND)
    assert "cached 3 items in out/_cache" in run_py("cache", "train.sh").stdout


CHAIN = {
    "generate": "qwen_image_generate_image.py --dit model/transformer --vae model/vae "
    "--text_encoder model/text_encoder --edit_plus --control_image_path pairs/before/coffee.jpg --prompt x "
    "--negative_prompt ' ' --image_size 96 96 "
    "--infer_steps 1 --save_path images --lora_multiplier 1.0 --lora_weight out/0100.safetensors",
    "post_hoc_ema": "lora_post_hoc_ema.py out/0100-000001.safetensors out/0100-000002.safetensors out/0100.safetensors "
    "--output_file out/ema.safetensors --beta 0.95",
    "all epochs": "lora_post_hoc_ema.py out/0100-*.safetensors --output_file out/all.safetensors --sigma_rel 0.2",
    "convert": "convert_lora.py --input out/0100-000001.safetensors --output out/comfy.safetensors --target other",
    "convert the average": "convert_lora.py --input out/ema.safetensors --output out/b.safetensors --target other",
    "of a step": "convert_lora.py --input out/0100-step00000003.safetensors --output out/c.safetensors --target other",
}
"""What is pasted after the training, with the names of its files as they are there."""


@pytest.mark.slow
def test_commands_that_follow_a_training_find_its_files(
    run_py: Callable[..., Any],
) -> None:
    epochs = COMMAND.replace(
        "--max_train_steps 2", "--max_train_epochs 3 --save_every_n_epochs 1"
    )
    Path("train.sh").write_text(epochs)
    trained = run_py("train.sh")
    assert trained.returncode == 0, trained.stderr
    for name, command in CHAIN.items():
        Path("next.sh").write_text(f"python src/musubi_tuner/{command}\n")
        done = run_py("next.sh")
        assert done.returncode == 0, (name, done.stderr)
        if "out/0100" in command:
            told = (
                "is found in 'out/0100': 0100_000000003"
                if "*" in command
                else "is found as 'out/0100/0100"
            )
            assert told in done.stderr, name
    again = COMMAND.replace(
        "--output_name 0100",
        "--output_name more --network_weights out/0100.safetensors",
    )
    Path("again.sh").write_text(again)
    planned = run_py("again.sh", "--dry-run")
    assert (
        planned.returncode == 0
        and "is found as 'out/0100/0100.safetensors'" in planned.stderr
    ), planned.stderr


@pytest.mark.parametrize(
    ("flags", "ours", "note"),
    [
        (
            "",
            "--control-resolution 95",
            "keeps its own size there, and here, but for multiples of 32.",
        ),
        (
            "pairs/other.png",
            "",
            "and has the area of 1024 x 1024 pixels here (--control-resolution).",
        ),
        ("gone.png", "", "and has the area of 1024 x 1024 pixels here"),
        ("--resize_control_to_official_size", "", ""),
        ("--resize_control_to_image_size", "--match-target-res", ""),
    ],
)
def test_a_control_image_keeps_its_size_as_there(
    flags: str, ours: str, note: str
) -> None:
    (
        Image.new("RGB", (120, 76)).save("one.png"),
        Image.new("RGB", (300, 300)).save("pairs/other.png"),
    )
    command = "python qwen_image_generate_image.py --dit model --prompt x --edit --control_image_path one.png"
    made = foreign_tool(f"{command} {flags}")
    assert made is not None
    words, notes = made
    assert (ours in " ".join(words)) and (
        "--control-resolution" in words
    ) == ours.startswith("--control")
    assert len(notes) == bool(note) and all(note in line for line in notes)
    with pytest.raises(UserError, match="exclude each other, there too"):
        foreign_tool(
            f"{command} --resize_control_to_official_size --resize_control_to_image_size"
        )


def test_the_caption_tool_takes_a_model_by_its_flag_there(
    run_py: Callable[..., Any],
) -> None:
    done = run_py(
        "caption", "--image_dir", "pairs/after", "--model_path", "none/x.safetensors"
    )
    assert "unknown argument" not in done.stderr and "none/x.safetensors" in done.stderr


def test_a_command_of_another_script_that_lost_its_mark_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"^line 3: '--attn_mode' belongs to the command above: .* at the end of line 2",
    ):
        foreign_tool(IMAGES.replace("--infer_steps 2 \\", "--infer_steps 2"))


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("  32 --max_train_steps 5", "3:3"),  # the value of a flag above
        ("  -network_dim 32", "3:3"),
        ("  \u2014network_dim 32", "3:3"),  # as editors write two of them
        ('\t"--network_dim" 32', "3:2"),
    ],
)
def test_an_end_of_a_command_on_its_own_line_is_told_however_it_begins(
    line: str, place: str
) -> None:
    diagnostics = Diagnostics("x.sh")
    with pytest.raises(
        ConfigErrors,
        match=f"^x.sh:{place}: .* belongs to the command above: the mark .* of line 2",
    ):
        read_command(
            f"python qwen_image_train_network.py \\\n --dit model --network_dim\n{line}\n",
            diagnostics,
        )


@pytest.mark.parametrize(
    ("pasted", "meant"),
    [
        ("'a \"b\" c'\\''d'", 'a "b" c\'d'),  # a quote within quotes, as shells have it
        ('"a \\"b\\" c"', 'a "b" c'),
        ("a\\ b", "a b"),
        ("it\\'s", "it's"),
        ("\"it's\"' \"'b", "it's \"b"),
    ],
)
def test_quotes_within_quotes_are_those_of_the_shell(pasted: str, meant: str) -> None:
    assert shlex.split(pasted) == [meant]
    made = foreign_tool(
        f"python qwen_image_generate_image.py --dit model --prompt {pasted} --seed 1"
    )
    assert made is not None and made[0][made[0].index("--prompt") + 1] == meant


def test_commands_behind_the_one_that_is_read_are_named() -> None:
    tool, cached = (
        "python convert_lora.py --input a --output b --target other",
        "python qwen_image_cache_latents.py",
    )
    made = foreign_tool(f"{tool} && {tool}; {cached} --vae x\n")
    assert made is not None and made[1] == [
        "convert_lora.py is left out: one command is read at a time. Give it by itself.",
        "qwen_image_cache_latents.py is left out: images and captions are encoded before the training, by the training "
        "itself.",
    ]


def test_a_flag_whose_value_is_missing_is_told() -> None:
    diagnostics = Diagnostics("x.sh")
    read_command(
        "python qwen_image_train_network.py --dit --vae a --network_args --seed 3\n",
        diagnostics,
    )
    with pytest.raises(ConfigErrors) as caught:
        diagnostics.raise_errors()
    told = "has no value. Write one, or leave the flag out."
    assert str(caught.value).splitlines() == [
        f"x.sh:1:36: dit: --dit: {told}",
        f"x.sh:1:50: network_args: --network_args: {told}",
    ]


def test_a_semicolon_ends_a_command_and_is_no_part_of_its_last_word() -> None:
    root = read_command(
        "cd x; python qwen_image_train_network.py --output_name l; echo done;\n",
        Diagnostics("x.sh"),
    )
    assert root.value["output_name"].value == "l"


def test_a_flag_with_another_dash_inside_a_command_is_told() -> None:
    diagnostics = Diagnostics("x.sh")
    read_command(
        "python qwen_image_train_network.py --output_name l \u2013dit a\n", diagnostics
    )
    with pytest.raises(
        ConfigErrors,
        match=r"'\u2013dit' belongs to no flag. A flag begins with two plain '-'\.",
    ):
        diagnostics.raise_errors()


@pytest.mark.slow
def test_a_file_with_such_a_command_runs(run_py: Callable[..., Any]) -> None:
    Path("average.sh").write_text(
        "python lora_post_hoc_ema.py a.safetensors b.safetensors --output_file c.safetensors\n"
    )
    shown = run_py("average.sh", "--dry-run")
    assert (shown.returncode, shown.stdout) == (
        0,
        run_py("import", "average.sh").stdout,
    )
    run = run_py("average.sh")
    assert (
        run.returncode == 2
        and "run.py post_hoc_ema: " in run.stderr
        and "a.safetensors" in run.stderr
    )


@pytest.mark.parametrize(
    "text", ["#\\\n", "a=\\\n", "A=b ", "A=A=", "x=1\n", "!", "/", "$ ", "```\n"]
)
def test_a_text_that_never_becomes_a_command_is_told_in_time_that_grows_with_it(
    text: str,
) -> None:
    """A second attempt per line would take years."""
    assert not is_command(text * 2000)
