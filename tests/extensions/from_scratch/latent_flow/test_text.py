"""Text encoders and tokenizers that are made from nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertModel, Qwen3Model

from extensions.from_scratch.latent_flow import new, text
from extensions.from_scratch.latent_flow.new import TEXT_WEIGHTS
from tests.extensions.from_scratch.conftest import write_qwen3
from tests.extensions.from_scratch.flow_models import SMALL_TEXT
from tests.processes import python
from toolkit.errors import RunError

CAPTIONS = ["a red square", "a blue circle on grass", "a red circle"]


def test_any_text_has_tokens_and_comes_back() -> None:
    tokenizer = text.make_tokenizer(CAPTIONS, 77)
    for prompt in ("a red square", "xyzzy 猫 \\0 ñ", "🦊 fox", ""):
        ids = tokenizer(prompt)["input_ids"]
        assert (ids[0], ids[-1]) == (1, 2)
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == prompt.strip()
    # words that captions have are one token each
    assert len(tokenizer("a red square")["input_ids"]) == 2 + 3


@pytest.mark.slow
def test_the_same_captions_give_the_same_tokenizer_in_every_process(
    tmp_path: Path,
) -> None:
    captions = [
        f"a {c} {s} number {i}"
        for i in range(50)
        for c in ("red", "blue")
        for s in ("square", "circle")
    ]
    program = f"""
from extensions.from_scratch.latent_flow.text import make_tokenizer
make_tokenizer(reversed({captions!r}), 16).save_pretrained({str(tmp_path / "theirs")!r})
"""
    python(program)
    text.make_tokenizer(captions * 2, 16).save_pretrained(tmp_path / "ours")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "ours" / file).read_bytes() == (
            tmp_path / "theirs" / file
        ).read_bytes()


def test_a_prompt_is_cut_at_the_most_tokens_and_never_empty() -> None:
    tokenizer = text.make_tokenizer(CAPTIONS, 4)
    ids = text.token_ids(tokenizer, "a red square and a lot more", 4)
    assert ids.tolist()[-1] == 2 and len(ids) == 4
    assert len(text.token_ids(tokenizer, "", 4)) == 2
    tokenizer.backend_tokenizer.post_processor = None  # one without special tokens
    assert len(text.token_ids(tokenizer, "", 4)) == 1


def test_the_seed_decides_the_weights_and_the_vocabulary_fits() -> None:
    one, again, other = (
        text.make_encoder(SMALL_TEXT, 300, 16, seed) for seed in (0, 0, 1)
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.parameters(), again.parameters(), strict=True)
    )
    assert not torch.equal(
        one.embeddings.word_embeddings.weight, other.embeddings.word_embeddings.weight
    )
    assert (one.config.vocab_size, one.config.max_position_embeddings) == (300, 16)
    assert (
        text.make_encoder(
            {**SMALL_TEXT, "vocab_size": 10}, 300, 16, 0
        ).config.vocab_size
        == 300
    )


def test_a_text_encoder_is_placed_with_its_weights_alone(tmp_path: Path) -> None:
    new.write_text_encoder(tmp_path / "old", SMALL_TEXT, CAPTIONS, 16, 0)
    encoder, tokenizer = (
        tmp_path / "old" / name for name in ("text_encoder", "tokenizer")
    )
    new.place_text_encoder(tmp_path / "new", encoder, tokenizer)
    placed = tmp_path / "new" / "text_encoder"
    assert {file.name for file in placed.iterdir()} == {"config.json", TEXT_WEIGHTS}
    assert text.load_text_encoder(placed, torch.float32)
    (encoder / TEXT_WEIGHTS).unlink()
    with pytest.raises(RunError, match=r"text_encoder: has no weights \(model\."):
        new.place_text_encoder(tmp_path / "none", encoder, tokenizer)
    assert not (tmp_path / "none").exists()


def test_the_projection_keeps_lengths(tmp_path: Path) -> None:
    new.write_text_encoder(tmp_path, SMALL_TEXT, CAPTIONS, 16, 0)
    plain = text.load_text_encoder(tmp_path / "text_encoder", torch.float32)
    new.write_projection(tmp_path, 24, 0)
    projected = text.load_text_encoder(tmp_path / "text_encoder", torch.float32)
    ids_BL = torch.tensor([[1, 7, 9, 2]])
    torch.testing.assert_close(
        projected(ids_BL).norm(dim=-1), plain(ids_BL).norm(dim=-1)
    )
    assert projected(ids_BL).shape == (1, 4, 24)
    assert (
        BertModel.from_pretrained(
            tmp_path / "text_encoder", add_pooling_layer=False
        ).config.hidden_size
        == 16
    )


def test_a_qwen3_gives_what_its_final_norm_takes(tmp_path: Path) -> None:
    write_qwen3(tmp_path)
    ids_BL = torch.tensor([[1, 7, 9, 2]])
    whole = Qwen3Model.from_pretrained(tmp_path)
    found_BLE = text.load_text_encoder(tmp_path, torch.float32)(ids_BL)
    torch.testing.assert_close(
        whole.norm(found_BLE), whole(input_ids=ids_BL).last_hidden_state
    )
    assert not torch.allclose(whole.norm(found_BLE), found_BLE, atol=0.1)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"{tmp_path}: cannot be loaded"):
        text.any_tokenizer(tmp_path)


# ------------------------------------------------------------ parts that are taken over
# from other folders


def test_an_autoencoders_files_are_taken_over_with_its_spade_but_not_its_discriminator(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    own = {"config.json", "diffusion_pytorch_model.safetensors", "spade.safetensors"}
    for name in own | {"discriminator.safetensors"}:
        (source / name).write_text(name, encoding="utf-8")
    new.place_autoencoder(tmp_path, source)
    assert {
        path.name: path.read_text(encoding="utf-8")
        for path in (tmp_path / "vae").iterdir()
    } == {n: n for n in own}
