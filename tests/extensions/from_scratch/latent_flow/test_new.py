"""Parts that are taken over from other folders."""

from __future__ import annotations

from pathlib import Path

from extensions.from_scratch.latent_flow import new


def test_an_autoencoders_files_are_taken_over_with_its_spade_but_not_its_discriminator(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    own = {"config.json", "diffusion_pytorch_model.safetensors", "spade.safetensors"}
    for name in own | {"discriminator.safetensors"}:
        (source / name).write_text(name, encoding="utf-8")
    new.place_autoencoder(tmp_path, source)
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "vae").iterdir()} == {n: n for n in own}
