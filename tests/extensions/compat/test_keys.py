"""Flags of other programs' scripts on our commands."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import ones

from extensions.compat.names import tool_flags
from toolkit.config.reading.tool import load_tool
from toolkit.errors import UserError
from toolkit.extension import discover

FLAGS = tool_flags()
REMEDIES = {
    flag: row.says for flag, row in FLAGS.items() if row.how == "no_counterpart"
}
SAME = {flag: row.field for flag, row in FLAGS.items() if row.how == "renamed_to"}

TOOLS = {uid: discover().find_command(uid) for uid in discover().tools()}


@pytest.mark.parametrize(("theirs", "ours"), [
    ("post_hoc_ema a.safetensors b.safetensors --output_file c.safetensors", "--output c.safetensors"),
    ("caption --image_dir photos --format jsonl --output-file c.jsonl --max_new_tokens=9", "--output c.jsonl"),
    ("generate --model {m} --prompt x --negative_prompt ' ' --infer_steps 25 --guidance_scale 4.0 --save_path out "
     "--lora_weight a.safetensors", "--negative ' ' --steps 25 --cfg 4.0 --output out --lora a.safetensors"),
    ("resize a.safetensors --save_to c.safetensors --new_rank 4", "--output c.safetensors --rank 4"),
])  # fmt: skip
def test_those_that_mean_the_same_are_ours(
    theirs: str,
    ours: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in "ab":
        save_file({"x": ones(1)}, f"{name}.safetensors")
    uid, *words = shlex.split(theirs.format(m=tiny_model))
    section = load_tool(uid, TOOLS[uid], words).processes[0].section
    for flag, value in zip(*[iter(shlex.split(ours))] * 2, strict=True):
        found = getattr(section, flag.removeprefix("--"))
        assert (
            str(found[0] if isinstance(found, tuple) else found).strip()
            == value.strip()
        )


@pytest.mark.parametrize("flag", REMEDIES)
def test_the_others_say_what_to_write(flag: str) -> None:
    """Where the tool has what the remedy names."""
    for uid in ("generate", "post_hoc_ema"):
        with pytest.raises(UserError) as refused:
            load_tool(
                uid,
                TOOLS[uid],
                [f"--{flag}", "x", "--output", "c.safetensors", "a", "b"],
            )
        remedy = f"unknown argument '--{flag}'. {REMEDIES[flag]}"
        has_flags = uid == "generate" or "--" not in REMEDIES[flag]
        assert (remedy in str(refused.value)) is has_flags


def test_each_is_a_key_of_a_tool_and_hides_none() -> None:
    keys = {key for model in TOOLS.values() for key in model.model_fields}
    assert set(SAME.values()) <= keys and not (SAME.keys() | REMEDIES.keys()) & keys
