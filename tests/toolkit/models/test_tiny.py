import hashlib
from pathlib import Path

import torch
from PIL import Image

from tests.diffusers_reference import open_tiny
from toolkit.models.qwen_image.loading import TEXT_ENCODER
from toolkit.models.qwen_image.prompts import (
    DROP_TOKENS,
    encoder_inputs,
    prompt_embedding,
)
from toolkit.models.template import EDIT_PLUS
from toolkit.models.tiny import TinySpec, is_written, write_tiny_model
from toolkit.models.vl_prompts import (
    load_image_processor,
    load_text_model,
    load_tokenizer,
)

PARTS = ["processor", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_the_layout_is_the_published_one(tiny_model: Path) -> None:
    names = {path.name for path in tiny_model.iterdir()}
    assert names == {*PARTS, "model_index.json", "tiny_model.json"}
    assert {"vocab.json", "merges.txt", "added_tokens.json"} <= {
        p.name for p in (tiny_model / "tokenizer").iterdir()
    }
    assert (
        tiny_model / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    ).is_file()
    assert sum(path.stat().st_size for path in tiny_model.rglob("*")) < 10e6


def test_the_seed_decides_every_byte_and_the_global_generator_is_left_alone(
    tiny_model: Path, tmp_path: Path
) -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    write_tiny_model(tmp_path / "same")
    assert torch.equal(torch.get_rng_state(), state)
    assert digests(tmp_path / "same") == digests(tiny_model)
    write_tiny_model(tmp_path / "other", TinySpec(seed=1))
    assert digests(tmp_path / "other") != digests(tiny_model)


def test_a_folder_counts_as_written_for_its_own_spec_only(
    tiny_model: Path, tmp_path: Path
) -> None:
    assert is_written(tiny_model, TinySpec())
    assert not is_written(tiny_model, TinySpec(seed=1)) and not is_written(
        tmp_path, TinySpec()
    )


def test_a_smaller_model_leaves_no_shard_of_the_larger_one(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, TinySpec(layers=3, heads=3))
    write_tiny_model(tmp_path, TinySpec(layers=1, heads=2))
    assert len(open_tiny(tmp_path).blocks()) == 1


def test_words_of_captions_are_tokens_and_their_embeddings_are_far_apart(
    tmp_path: Path,
) -> None:
    captions = (
        "a purple zeppelin, above the harbour",
        "a green zeppelin, wearing an umbrella",
    )
    spec = TinySpec(captions=captions)
    write_tiny_model(tmp_path, spec)
    assert is_written(tmp_path, spec) and not is_written(tmp_path, TinySpec())
    assert not is_written(tmp_path, TinySpec(captions=captions[:1]))
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    # a, green, zeppelin, the comma, wearing, an, umbrella
    assert len(tokenizer(captions[1])["input_ids"]) == 7
    # what is cut off before the prompt, as published
    assert len(tokenizer(EDIT_PLUS.prefix)["input_ids"]) == DROP_TOKENS
    assert tokenizer.decode(tokenizer("quixotic")["input_ids"]) == "quixotic"
    text_model = load_text_model(
        tmp_path / "text_encoder", TEXT_ENCODER, torch.float32, None
    )
    processor = load_image_processor(tmp_path / "processor")

    def embedding(prompt: str, *references: Image.Image) -> torch.Tensor:
        return prompt_embedding(
            encoder_inputs(prompt, references, tokenizer, processor), text_model
        )

    purple, green = embedding("a purple zeppelin")[1], embedding("a green zeppelin")[1]
    assert torch.cosine_similarity(purple, green, dim=0) < 0.7
    picture = Image.new("RGB", (128, 128), "red")
    # Picture, a space, 1, :, a space, the sign before the image, one token for it, the
    # sign behind it
    assert len(embedding("a zeppelin", picture)) - len(embedding("a zeppelin")) == 8
