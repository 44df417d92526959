from pathlib import Path

import pytest
import torch

from benchmarks.random_weights import (
    DRAWN_SIZES,
    RandomWeightsModel,
    write_folder,
)
from toolkit.models.families import ModelLoadOptions
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.qwen_image21.family import FAMILY as FAMILY_21


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path, DRAWN_SIZES["XS"])
    return tmp_path


def drawn(folder: Path, **options: object) -> torch.nn.Module:
    return RandomWeightsModel(
        ModelLoadOptions(folder, torch.device("cpu"), torch.float32, **options)
    ).network_module


def test_weights_are_drawn_with_the_same_numbers_each_time(folder: Path) -> None:
    one, other = (drawn(folder).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    linear = one["transformer_blocks.0.attn.to_q.weight"]
    assert linear.std() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(linear, one["transformer_blocks.0.attn.to_k.weight"])
    assert one["transformer_blocks.0.attn.norm_q.weight"].mean() == pytest.approx(
        1, abs=0.02
    )


def test_the_published_size_is_the_one_of_the_model(tmp_path: Path) -> None:
    write_folder(tmp_path, DRAWN_SIZES["published"])
    assert sum(FAMILY.modules(tmp_path).values()) == pytest.approx(20.43e9, rel=1e-3)


def test_the_published_size_of_a_single_stream_is_that_of_the_model(
    tmp_path: Path,
) -> None:
    write_folder(tmp_path, DRAWN_SIZES["published"], FAMILY_21)
    found, published = (
        FAMILY_21.modules(tmp_path),
        FAMILY_21.modules(tmp_path / "absent"),
    )
    assert sum(found.values()) == sum(published.values()) > 6e9
