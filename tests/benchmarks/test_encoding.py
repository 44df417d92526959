from pathlib import Path

import pytest
import torch

from benchmarks import encoding
from toolkit.models.families import ModelLoadOptions


@pytest.mark.slow
def test_the_cache_is_built_by_the_program(tmp_path: Path) -> None:
    found = encoding.measure(
        tmp_path, 32, False, torch.device("cpu"), torch.float32, samples=2
    )
    assert len(list((tmp_path / "cache" / "latents").rglob("*.safetensors"))) == 4
    assert len(list((tmp_path / "cache" / "text").rglob("*.safetensors"))) == 2
    assert list(found["seconds"]) == ["latents", "text embeddings"]
    assert found["samples_per_s"] == pytest.approx(2 / sum(found["seconds"].values()))


@pytest.mark.slow
def test_the_published_encoders_have_the_published_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding.write_tiny_model(tmp_path)
    monkeypatch.setattr(encoding, "_draw", lambda *_: None)
    model = encoding.DrawnEncoders(
        ModelLoadOptions(tmp_path, torch.device("meta"), torch.bfloat16), published=True
    )
    count = {
        part: sum(p.numel() for p in model.part(part).parameters())
        for part in ("text_encoder", "vae")
    }
    # Qwen2.5-VL-7B without its head (152064 x 3584 of 8.29 B), and the VAE of
    # Qwen-Image
    assert count["text_encoder"] == pytest.approx(8.292e9 - 152064 * 3584, rel=1e-3)
    assert count["vae"] == pytest.approx(126.9e6, rel=1e-3)
