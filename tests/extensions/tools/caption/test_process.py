"""`run.py caption` and `type: caption` on the tiny model's text encoder, whose captions
are noise."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from extensions.tools.caption.captioner import Captioner, captioner_folder
from extensions.tools.caption.config import CaptionConfig
from tests.conftest import readme_commands
from tests.quantized import QUANTIZED, mark
from tests.running import largest_file, run_tool, section_of
from toolkit.config.sections.model_files import CAPTIONER
from toolkit.data.scan.tables import read_table
from toolkit.errors import ConfigErrors, RunError, UserError
from toolkit.models.tiny import TinySpec, write_tiny_model

Caption = Callable[..., CaptionConfig]


@pytest.fixture
def images(make_pictures, tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "images", "a", "b", "c", captions=False)


@pytest.fixture
def caption(tiny_model: Path) -> Caption:
    """Runs the command in this process."""

    def run(folder: Path, *flags: object) -> CaptionConfig:
        common = ["--model", str(tiny_model), "--dtype", "float32", "--device", "cpu"]
        if "--max-tokens" not in flags:
            common += ["--max-tokens", "6"]
        return run_tool("caption", [str(folder), *common, *map(str, flags)])

    return run


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.txt"))}


def test_a_caption_that_somebody_wrote_meanwhile_stays(
    images: Path,
    caption: Caption,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As on the page, while the model was looking at the image."""
    asked = Captioner.captions

    def slow(captioner: Captioner, *given: object) -> object:
        (images / "b.txt").write_text("by hand\n")
        return asked(captioner, *given)

    monkeypatch.setattr(Captioner, "captions", slow)
    with caplog.at_level("INFO"):
        caption(images, "--batch-size", 3)
    written = texts(images)
    assert written.pop("b") == "by hand\n" and sorted(written) == ["a", "c"]
    assert "b.png: got a caption meanwhile, which stays" in caplog.messages


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


@pytest.mark.parametrize(
    ("arch", "kind", "system", "beside"),
    [
        ("qwen_image_edit_plus", "Qwen2_5_VL", SYSTEM, "tokenizer"),
        ("qwen_image_2", "Qwen3VL", "", "processor"),
    ],
)
def test_captions_are_what_transformers_own_model_says(
    images: Path, tmp_path: Path, arch: str, kind: str, system: str, beside: str
) -> None:
    """The input built by hand, one image at a time, and greedy decoding by the forward
    pass alone. system: how the chat of the model begins. beside: where its tokenizer
    is."""
    import transformers
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    folder = tmp_path / "model"
    write_tiny_model(folder, TinySpec(arch=arch))
    flags = (
        f"--model {folder} --dtype float32 --device cpu --max-tokens 6 --batch-size 3"
    )
    asked = ["--prompt", "What is it?\\nSay."]
    named = ["--prefix", "photo", "--trigger-word", "sks"]
    run_tool("caption", [str(images), *flags.split(), *asked, *named])
    classes = getattr(transformers, f"{kind}ForConditionalGeneration")
    model = classes.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / beside)
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder / "processor")
    vision = processor(images=[Image.open(images / "b.png")], return_tensors="pt")
    pads = "<|image_pad|>" * (int(vision["image_grid_thw"].prod()) // 4)
    ids = tokenizer(
        f"{system}<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>What is it?\nSay."
        "<|im_end|>\n<|im_start|>assistant\n",
        return_tensors="pt",
    )["input_ids"]  # fmt: skip
    begin = ids.shape[1]
    with torch.no_grad():
        for _ in range(6):
            types = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
            ids = torch.cat(
                [
                    ids,
                    model(input_ids=ids, mm_token_type_ids=types, **vision)
                    .logits[:, -1:]
                    .argmax(-1),
                ],
                1,
            )
    said = tokenizer.decode(ids[0, begin:], skip_special_tokens=True).strip()
    assert texts(images)["b"] == f"sks photo. {said}\n" and len(texts(images)) == 3


def test_what_has_a_caption_is_left_and_replaced_ones_are_kept(
    images: Path, caption: Caption, said
) -> None:
    (images / "a.txt").write_text("mine")
    (images / "b.txt").write_text(" \n")  # empty: no caption
    caption(images, "--limit", "1")
    assert texts(images)["b"].strip() and not (images / "c.txt").exists()
    (images / "c.caption").write_text("mine too")
    caption(images)
    first = texts(images)
    assert first["a"] == "mine" and first["b"].strip() and set(first) == {"a", "b"}
    caption(images)
    assert (
        "3 of 3 images have captions: nothing to do" in said and texts(images) == first
    )
    caption(images, "--overwrite", "--prompt", "Another question")
    (trash,) = (images / ".trash").iterdir()  # no journal is left
    assert texts(trash) == first and texts(images)["a"] != "mine"
    assert (trash / "c.caption").read_text() == "mine too"
    assert set(texts(images)) == {"a", "b"}
    assert (images / "c.caption").read_text() != "mine too"


@pytest.mark.parametrize(
    "torn",
    [
        b"",
        b'{"name": "b.png", "caption": "x"}',
        b"[1]\n{}\n",
    ],
)
def test_a_broken_off_overwriting_goes_on(
    images: Path, caption: Caption, torn: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second image fails twice; the next run does only what is left, and the trash
    has each old caption once.

    torn: what a power cut leaves at the end of the journal.
    """
    from extensions.tools.caption.captioner import Captioner

    for name in "abc":
        (images / f"{name}.txt").write_text(f"old {name}")
    captions, asked = Captioner.captions, []

    def break_off(self, shown, names):
        asked.extend(names)
        if names == ["b.png"] and asked.count("b.png") <= 2:
            raise KeyboardInterrupt
        return captions(self, shown, names)

    monkeypatch.setattr(Captioner, "captions", break_off)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            caption(images, "--overwrite")
        assert texts(images)["b"] == "old b" and texts(images)["a"] != "old a"
        (journal,) = (images / ".trash").glob("unfinished*")
        with journal.open("ab") as opened:
            opened.write(torn)
    caption(images, "--overwrite")
    assert asked == ["a.png", "b.png", "b.png", "b.png", "c.png"]
    kept = {path.name: path.read_text() for path in (images / ".trash").rglob("*.txt")}
    assert kept == {f"{name}.txt": f"old {name}" for name in "abc"}
    assert not list((images / ".trash").glob("unfinished*"))


@pytest.mark.parametrize("form", ["jsonl", pytest.param("tsv", marks=pytest.mark.slow)])
def test_tables_go_on_behind_a_torn_line(
    images: Path, caption: Caption, form: str, said
) -> None:
    table = images / f"captions.{form}"
    caption(images, "--format", form)
    whole = table.read_bytes()
    rows = whole.decode().splitlines()
    assert len(rows) == 3
    if form == "tsv":
        assert read_table(str(table)).rows.keys() == {"a.png", "b.png", "c.png"}
    else:
        assert json.loads(rows[0]).keys() == {"image_path", "caption"}
    torn = whole[: whole.index(b"c.png") + 5]
    table.write_bytes(torn)
    caption(images, "--format", form)
    assert table.read_bytes() == whole and any("incomplete" in line for line in said)
    (kept,) = (images / ".trash").rglob(table.name)
    assert kept.read_bytes() == torn
    # A line of another image, and one that cannot be captioned, stay as they are.
    other = (
        '{"image_path": "/elsewhere/x.png", "caption": "theirs"}'
        if form == "jsonl"
        else "x.png\ttheirs"
    )
    mine = (
        json.dumps({**json.loads(rows[0]), "caption": "mine"})
        if form == "jsonl"
        else "a.png\tmine"
    )
    table.write_text(f"{rows[1]}\n{other}\n{mine}")  # by hand, without a last line end
    caption(images, "--format", form)
    assert table.read_text() == f"{rows[1]}\n{other}\n{mine}\n{rows[2]}\n" and any(
        "is kept" in line for line in said
    )
    table.write_text(f"{rows[1]}\n{other}\n{mine}\n")
    (images / "a.png").write_bytes(b"no image")
    with pytest.raises(RunError, match=r"1 of 3 images have no new caption: .*a\.png"):
        caption(images, "--format", form, "--overwrite")
    after = table.read_text().splitlines()
    assert (
        len(after) == 4
        and after[1] == other
        and "mine" in after[2]
        and after[3] == rows[2]
    )
    table.write_text("no caption\n")
    with pytest.raises(UserError, match=rf"captions\.{form}:1: is not"):
        caption(images, "--format", form)


def test_pairs_are_shown_together(
    images: Path, caption: Caption, make_pictures, tmp_path: Path
) -> None:
    before = make_pictures(tmp_path / "before", "a", "b", captions=False)
    with pytest.raises(
        RunError,
        match=r"1 of 3 images have no new caption: .*c\.png: has no control image",
    ):
        caption(images, "--pairs", before, "--format", "jsonl")
    rows = [
        json.loads(line)
        for line in (images / "captions.jsonl").read_text().splitlines()
    ]
    assert [row["control_path"] for row in rows] == [
        str(before / "a.png"),
        str(before / "b.png"),
    ]
    alone = caption(
        images,
        "--format",
        "jsonl",
        "--output",
        tmp_path / "alone.jsonl",
        "--prompt",
        "x",
    )
    assert (
        alone.question() == "x"
        and len((tmp_path / "alone.jsonl").read_text().splitlines()) == 3
    )


@pytest.mark.slow
def test_weights_in_one_file_caption_as_those_of_the_folder(
    images: Path, caption: Caption, tiny_model, tmp_path
) -> None:
    """The folder then needs none; the file has the names of this or of older versions
    of transformers."""
    caption(images)
    first, folder, file = (
        texts(images),
        tmp_path / "small",
        tmp_path / "qwen.safetensors",
    )
    weights = load_file(next((tiny_model / "text_encoder").glob("*.safetensors")))
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    flags = ("--overwrite", "--model", folder, "--text-encoder-path", file)
    with pytest.raises(ConfigErrors, match="does not exist"):
        caption(images, *flags)
    save_file(
        {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"},
        file,
    )
    with pytest.raises(
        ConfigErrors,
        match=re.escape("so is not a Qwen2.5-VL with its language-model head"),
    ):
        caption(images, *flags)
    new = {"model.": "model.language_model.", "visual.": "model.visual."}
    for names in ({}, new):
        save_file(
            {
                next(
                    (names[o] + n[len(o) :] for o in names if n.startswith(o)), n
                ): weights[n]
                for n in weights
            },
            file,
        )
        caption(images, *flags)
        assert texts(images) == first
    section = CaptionConfig(type="caption", folder=str(images), model=str(file))
    assert (section.model, section.text_encoder_path) == (CAPTIONER, str(file))


@pytest.mark.slow
def test_quantized_recursive_drawn_and_a_folder_of_transformers(
    images: Path, caption: Caption, tiny_model: Path, tmp_path: Path, said
) -> None:
    flat = tmp_path / "flat"
    for part in ("tokenizer", "processor", "text_encoder"):
        shutil.copytree(tiny_model / part, flat, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"holds no image\. Set recursive"):
        caption(images.parent)
    flags = (
        "--recursive",
        "--quantize",
        "int8",
        "--model",
        flat,
        "--temperature",
        1,
        "--max-size",
        56,
    )
    with pytest.MonkeyPatch.context() as patched:
        short = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory."))
        patched.setattr(Captioner, "_captions", short)
        with pytest.raises(
            RunError, match=r"Set a smaller max_size \(--max-size\), quantize \(--qu"
        ):
            caption(images.parent, "--recursive", "--model", flat)
    caption(images.parent, *flags)
    first = texts(images)
    assert len(first) == 3 and any("of them are cut" in line for line in said)
    caption(images.parent, *flags, "--overwrite")
    assert texts(images) == first  # the same seed
    caption(images.parent, *flags, "--overwrite", "--seed", 1)
    assert texts(images) != first


def test_wrong_input_is_told_before_the_model_is_loaded(
    images: Path, caption: Caption, tmp_path: Path
) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip"}')
    for flags, words in [
        (("--model", tmp_path / "clip"), "is 'clip'. Only 'qwen2_5_vl'"),
        (("--model", images), "holds no config.json"),
        (
            ("--model", "none/x.safetensors"),
            "text-encoder-path: 'none/x.safetensors' does not exist",
        ),
        (("--pairs", images), "is the same folder as 'folder'"),
        (("--output", "x.txt"), "has no effect with format txt"),
        (("--format", "csv"), "'csv'"),
    ]:
        with pytest.raises(ConfigErrors, match=re.escape(words)):
            caption(images, *flags)
    shutil.copy(images / "a.png", images / "a.jpg")
    with pytest.raises(RunError, match=r"a\.png has the same caption file"):
        caption(images)


def test_the_commands_of_the_page_are_understood(
    images: Path, make_pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pictures(tmp_path / "datasets" / "my_char", "a")
    make_pictures(tmp_path / "datasets" / "before", "a")
    monkeypatch.chdir(tmp_path)
    found = readme_commands("extensions/tools/caption/README.md", "caption")
    assert len(found) >= 4
    for flags in found:
        assert section_of("caption", flags)


@pytest.mark.slow
def test_a_job_captions_and_names_what_it_cannot_read(
    run_py, write_job, images: Path, tiny_model: Path
) -> None:
    section = {
        "type": "caption",
        "folder": str(images),
        "model": str(tiny_model),
        "dtype": "float32",
        "max_tokens": 3,
    }
    (images / "c.png").write_bytes(b"no image")
    result = run_py(write_job(section))
    assert result.returncode == 1 and "c.png: is not a JPEG" in result.stderr, (
        result.stderr
    )
    assert "2 captions written" in result.stdout and len(texts(images)) == 2


@pytest.mark.slow
def test_names_that_a_table_cannot_hold_are_refused_before_the_model_is_loaded(
    images: Path, caption: Caption, said
) -> None:
    names = ["a\tb.png", "a\nb.png", "a\rb.png", " a.png", os.fsdecode(b"\xff.png")]
    for name in names:
        (images / "a.png").rename(images / name)
        with pytest.raises(UserError, match="which a TSV table cannot hold"):
            caption(images, "--format", "tsv")
        shutil.copy(images / name, images / "a.png")
    for flags in ((), ("--overwrite",)):
        caption(images, "--format", "jsonl", *flags)
        rows = [
            json.loads(line)
            for line in (images / "captions.jsonl").read_text().splitlines()
        ]
        assert {row["image_path"] for row in rows} == {
            str(images / name) for name in ("a.png", "b.png", "c.png", *names)
        }
    caption(images, "--format", "jsonl")
    assert "8 of 8 images have captions: nothing to do" in said


def test_a_full_disk_leaves_no_torn_line(images: Path, caption: Caption) -> None:
    table = images / "captions.jsonl"
    caption(images, "--format", "jsonl")
    table.write_text(before := table.read_text().partition("\n")[0] + "\n")
    with (
        largest_file(len(before.encode()) + 9),
        pytest.raises(
            RunError, match=r"captions\.jsonl: cannot be written: No space left"
        ),
    ):
        caption(images, "--format", "jsonl")
    assert table.read_text() == before


def test_a_quantized_captioner_is_refused_before_it_is_loaded(
    images: Path, caption: Caption, tiny_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "quantized")
    place = mark(model / "text_encoder" / "config.json", QUANTIZED["awq (4 bits)"])
    said = f"{place}the captioner is quantized by awq (4 bits), which is not read. Give the bf16 model "
    with pytest.raises(ConfigErrors, match=re.escape(said)):
        caption(images, "--model", model)
    with pytest.raises(UserError, match=re.escape(f"model: {said}")):
        captioner_folder(str(model), weights=True)
    caption(
        images,
        "--model",
        model,
        "--text-encoder-path",
        tiny_model / "text_encoder" / "model.safetensors",
    )
    assert len(texts(images)) == 3
