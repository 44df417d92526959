"""Algorithms of lycoris-lora: sizes, files and changes against the library itself;
seeds, dropouts, quantized bases."""

import inspect
import logging
import os
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from lycoris.kernels.dispatch import resolve_backend
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.wrapper import create_lycoris_from_weights, network_module_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from tests.light_start import FORBID
from tests.measured import at_most
from tests.network_files import save_network
from tests.running import run_job
from toolkit.config.sections.network import NOT_TRAINED, NetworkConfig
from toolkit.contracts.network_kinds import ALGORITHMS, KINDS, boft_shapes
from toolkit.errors import UserError
from toolkit.memory.quantization import quantizer
from toolkit.networks.adapter import dequantized_weight
from toolkit.networks.lycoris_library import (
    BACKEND,
    LycorisNetwork,
    load_library_class,
    make_module,
    within_limit,
)

OF_LIBRARY = [name for name, kind in KINDS.items() if kind.library_class]
VARIANTS = [
    ("boft", {}),
    ("boft", {"rescaled": True, "constraint": 1e-3}),
    ("diag-oft", {}),
    ("diag-oft", {"rescaled": True, "constraint": 1e-3}),
    ("glora", {}),
    ("ia3", {}),
    ("lycoris-full", {}),
]
X = torch.linspace(-1, 1, 36).view(3, 12)


def toy() -> nn.Module:
    torch.manual_seed(5)
    layers = OrderedDict(first=nn.Linear(12, 16), second=nn.Linear(16, 8, bias=False))
    return nn.Sequential(OrderedDict(block=nn.Sequential(layers)))


def attached(
    base: nn.Module,
    kind: str,
    arguments: dict | None = None,
    seed: int = 1,
    **more: object,
) -> LycorisNetwork:
    settings = NetworkConfig(
        **{
            "type": kind,
            "linear": 4,
            "linear_alpha": 3,
            "network_kwargs": arguments or {},
            **more,
        }
    )
    network = (
        KINDS[kind].load().from_config(settings, ["block.first", "block.second"], seed)
    )
    network.attach(base)
    return network


def trained(network: LycorisNetwork) -> None:
    """Weights as training could have made them."""
    random = torch.Generator().manual_seed(3)
    for parameter in network.parameters().values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)


def saved(network: LycorisNetwork, file: Path) -> Path:
    save_network(
        file,
        network.export({name: p.detach() for name, p in network.parameters().items()}),
        "float32",
        {},
    )
    return file


# ------------------------------------------------------------ sizes and arguments


@pytest.mark.parametrize(("kind", "arguments"), VARIANTS)
@pytest.mark.parametrize("rank", [2, 8, 18, 64])
def test_the_formulas_give_the_sizes_of_the_library(
    kind: str, arguments: dict, rank: int
) -> None:
    entry = KINDS[kind]
    section = NetworkConfig(type=kind, linear=rank, network_kwargs=arguments)
    library_class = load_library_class(entry.library_class)
    compared = 0
    for inputs, outputs in (
        (64, 64),
        (30, 42),
        (64, 96),
        (8, 288),
        (16, 60),
        (12, 7),
        (24, 1),
    ):
        try:
            module = make_module(
                library_class,
                inputs,
                outputs,
                lora_dim=rank,
                alpha=1,
                **entry.extra_kwargs(section),
            )
        except ValueError:
            assert library_class is ButterflyOFTModule
            with pytest.raises(
                UserError,
                match=rf"boft cannot split {outputs} outputs into blocks of at most {rank}",
            ):
                entry.layer_shapes(section, inputs, outputs)
            continue
        own = {
            name: tuple(parameter.shape)
            for name, parameter in module.named_parameters()
        }
        assert entry.layer_shapes(section, inputs, outputs) == own
        compared += 1
    assert compared


def test_the_rank_that_a_boft_needs_is_named() -> None:
    """18432 = 9 x 2048 outputs of a modulation layer."""
    with pytest.raises(
        UserError, match=r"network\.linear: .* at most 16\. Set it to 18 or more"
    ):
        boft_shapes(3072, 18432, 16)
    assert boft_shapes(3072, 18432, 18) == {"oft_blocks": (11, 1024, 18, 18)}


NOT_GIVEN = {
    "multiplier": "always 1",
    "lora_name": "the layers have names of their own",
    "org_module": "the layer",
    "lora_dim": "network.linear",
    "alpha": "network.linear_alpha",
    "dropout": "network.dropout",
    "rank_dropout": "network.rank_dropout",
    "module_dropout": "network.module_dropout",
    "rank_dropout_scale": "network.rank_dropout scales as that of every kind",
    "bypass_mode": "the change of the weight is computed",
    "use_tucker": "there are no convolutions",
    "use_scalar": "a further factor of the whole change, which no file has",
    "weight_decompose": "accepted and ignored by the library",
    "rs_lora": "of a GLoRA another linear_alpha, of an IA3 ignored by the library",
    "train_on_input": "an IA3 trains a factor for each output",
    "kwargs": "swallows everything",
}
"""Arguments of the library's classes that no key of network_kwargs gives, and why."""


@pytest.mark.parametrize("kind", OF_LIBRARY)
def test_every_argument_of_the_library_is_offered_or_known(kind: str) -> None:
    entry = KINDS[kind]
    declared = inspect.signature(load_library_class(entry.library_class)).parameters
    assert entry.settings.keys() <= declared.keys()
    assert declared.keys() - entry.settings.keys() - NOT_GIVEN.keys() == set()


def test_the_library_says_little_and_measures_no_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Timing would choose kernels, and bits would depend on it. A variable that is set
    stays."""
    logging.getLogger("LyCORIS").setLevel(logging.INFO)
    monkeypatch.setenv(BACKEND, "compile")
    load_library_class(KINDS["boft"].library_class)
    assert os.environ[BACKEND] == "compile"
    monkeypatch.delenv(BACKEND)
    load_library_class(KINDS["boft"].library_class)
    assert os.environ[BACKEND] == resolve_backend() == "torch"
    assert not logging.getLogger("LyCORIS").isEnabledFor(logging.WARNING)


def test_every_algorithm_of_the_library_is_trained_or_refused() -> None:
    ours = {*ALGORITHMS, *NOT_TRAINED, "locon"}
    assert {*network_module_dict, "norm"} <= ours
    for algorithm, kind in ALGORITHMS.items():
        if path := KINDS[kind].library_class:
            assert load_library_class(path) is network_module_dict[algorithm]


# ------------------------------------------------------------ changes and files


@pytest.mark.parametrize(("kind", "arguments"), VARIANTS)
def test_the_library_reads_the_file_as_the_same_change(
    kind: str, arguments: dict, tmp_path: Path
) -> None:
    base, fresh = toy(), toy()
    network = attached(base, kind, arguments)
    trained(network)
    file = saved(network, tmp_path / "x.safetensors")
    with torch.no_grad():
        ours, plain = base(X), fresh(X)
        if kind == "ia3":  # its own loader takes one tensor too few
            with pytest.raises(TypeError):
                create_lycoris_from_weights(1.0, str(file), fresh)
            read_ia3(fresh, file)
            library = []
        else:
            wrapper, _ = create_lycoris_from_weights(1.0, str(file), fresh)
            library = wrapper.loras
            assert len(library) == 2
            wrapper.apply_to()
        theirs = fresh(X)
    assert (ours - plain).abs().max() > 0.01
    at_most(
        f"output with {kind} {arguments or ''} read by LyCORIS",
        relative(ours, theirs),
        1e-6,
    )
    for module in library:
        layer = network.layers[
            module.lora_name.removeprefix("lycoris_").replace("_", ".")
        ]
        with torch.no_grad():
            at_most(
                f"change of {kind}",
                relative(layer.weight_delta(), module.get_diff_weight()[0]),
                1e-6,
            )


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def read_ia3(model: nn.Module, file: Path) -> None:
    """Puts the changes of a file into the weights by the formula of modules/ia3.py."""
    tensors = load_file(file)
    for name in ("block.first", "block.second"):
        prefix = f"lycoris_{name.replace('.', '_')}."
        factor = tensors[prefix + "weight"]
        weight = model.get_submodule(name).weight
        weight.data *= 1 + (factor if tensors[prefix + "on_input"] else factor[:, None])


@pytest.mark.parametrize(("kind", "arguments"), VARIANTS)
def test_the_layer_computes_what_the_library_trains(kind: str, arguments: dict) -> None:
    """Against the forward pass of the library's module on a plain layer, and its
    gradients."""
    base = toy()
    layer = base.get_submodule("block.first")
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    network = attached(base, kind, arguments)
    trained(network)
    # whose biases we leave alone
    plain = nn.Linear(12, 16, bias=kind != "lycoris-full")
    plain.weight.data = weight
    own = network.arguments | {"lora_dim": 4, "alpha": 3.0}
    theirs = load_library_class(KINDS[kind].library_class)(
        "x", plain, bypass_mode=False, **own
    )
    for name, parameter in theirs.named_parameters():
        parameter.data.copy_(network.layer_weight("block.first", name))
    if plain.bias is not None:
        plain.bias.data = bias
    ours = base.get_submodule("block.first")(X)
    expected = theirs(X) + (0 if plain.bias is not None else bias)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)
    ours.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(
            network.layer_weight("block.first", name).grad,
            parameter.grad,
            atol=1e-4,
            rtol=1e-4,
        )


@pytest.mark.parametrize("kind", ["boft", "diag-oft"])
def test_a_file_of_limited_rotations_needs_no_limit(kind: str, tmp_path: Path) -> None:
    """LyCORIS multiplies the limit in a file by the outputs, ComfyUI (a125cd84) does
    not."""
    network = attached(toy(), kind, {"constraint": 1e-3})
    trained(network)
    tensors = load_file(saved(network, tmp_path / "x.safetensors"))
    for name, outputs in (("first", 16), ("second", 8)):
        blocks = tensors[f"lycoris_block_{name}.oft_blocks"]
        assert tensors[f"lycoris_block_{name}.alpha"] == 0
        assert (blocks - blocks.mT).norm() == pytest.approx(1e-3 * outputs, rel=1e-5)
    small = torch.full((2, 3, 3), 1e-5)
    assert within_limit(small, 1.0) is small and within_limit(small, 0.0) is small


# ------------------------------------------------------------ seeds, dropouts,
# quantized layers


@pytest.mark.parametrize("kind", OF_LIBRARY)
def test_a_seed_decides_the_start_and_no_other_random_number(kind: str) -> None:
    bases = toy(), toy(), toy()
    state = torch.random.get_rng_state()
    first = attached(bases[0], kind).parameters()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = (
        attached(base, kind, seed=seed).parameters()
        for base, seed in zip(bases[1:], (1, 2), strict=True)
    )
    assert all(torch.equal(parameter, again[name]) for name, parameter in first.items())
    if kind == "glora":
        assert not torch.equal(
            first["block.first.a1.weight"], other["block.first.a1.weight"]
        )


@pytest.mark.parametrize("kind", OF_LIBRARY)
@pytest.mark.parametrize("drop", ["dropout", "rank_dropout", "module_dropout"])
def test_dropouts_change_training_alone(kind: str, drop: str) -> None:
    base = toy()
    network = attached(base, kind, **{drop: 0.5})
    trained(network)
    with torch.no_grad():
        with network.disabled():
            plain = base(X)
        with network.inference():
            whole = base(X)
            assert torch.equal(base(X), whole)
        torch.manual_seed(0)
        dropped = [base(X) for _ in range(8)]
    assert not torch.equal(whole, plain)
    assert any(not torch.equal(one, whole) for one in dropped)
    with network.inference(), torch.no_grad():
        assert torch.equal(base(X), whole)
    assert torch.equal(toy()(X), plain)


@pytest.mark.parametrize("kind", OF_LIBRARY)
@pytest.mark.parametrize("qtype", ["int8", "int4"])
def test_a_quantized_layer_has_the_change_of_its_dequantized_weight(
    kind: str, qtype: str
) -> None:
    torch.manual_seed(5)
    base = nn.Sequential(
        OrderedDict(first=nn.Linear(128, 128), second=nn.Linear(128, 128))
    )
    quantizer(qtype)(base, "")
    plain = nn.Sequential(
        OrderedDict(first=nn.Linear(128, 128), second=nn.Linear(128, 128))
    )
    for name in ("first", "second"):
        plain.get_submodule(name).weight.data = dequantized_weight(
            base.get_submodule(name)
        ).clone()
    networks = []
    for model in (base, plain):
        settings = NetworkConfig(type=kind, linear=4)
        network = KINDS[kind].load().from_config(settings, ["first", "second"], 1)
        network.attach(model)
        trained(network)
        networks.append(network)
    for name in ("first", "second"):
        ours, theirs = (network.layers[name].weight_delta() for network in networks)
        assert torch.equal(ours, theirs) and ours.any()
    x = torch.randn(2, 128)
    base(x).square().sum().backward()
    assert all(parameter.grad.any() for parameter in networks[0].parameters().values())


# ------------------------------------------------------------ whole jobs


@pytest.mark.slow
def test_a_dry_run_counts_them_without_torch(
    run_py, write_job, trainer, make_pictures, tmp_path: Path
) -> None:
    """And so without the library, which imports it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FORBID)
    section = trainer(
        make_pictures(tmp_path / "photos", "a"), network={"type": "boft", "linear": 6}
    )
    result = run_py(
        write_job(section),
        "--dry-run",
        "-v",
        env={"PYTHONPATH": str(tmp_path / "site")},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(
        r"boft .* on 28 layers: [\d,]+ trainable parameters", result.stdout
    )


@pytest.mark.slow
def test_a_job_stops_goes_on_and_leaves_a_file_that_the_library_reads(
    parts_and_whole,
) -> None:
    kind, arguments = "boft", {"rescaled": True, "constraint": 1e-3}
    network = {
        "type": "lycoris",
        "linear": 6,
        "network_kwargs": {"algo": KINDS[kind].algo, **arguments},
    }
    parts, whole, printed = parts_and_whole(network, save={"dtype": "float32"})
    assert "LyCORIS]" not in printed  # the library's own lines
    stored = load_file(whole)
    assert whole.read_bytes() == parts.read_bytes()
    with safe_open(whole, framework="pt") as file:
        assert file.metadata()["network_type"] == kind
    layers = {key.partition(".")[0] for key in stored}
    assert len(layers) == 24 and all(
        layer.startswith("lycoris_transformer_blocks_") for layer in layers
    )
    assert any(
        tensor.any() for key, tensor in stored.items() if key.endswith("oft_blocks")
    )


@pytest.mark.slow
def test_compiled_blocks_train_and_draw_with_them(
    write_job, trainer, make_pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16, with an average, samples, and a pass without the network."""
    monkeypatch.chdir(tmp_path)
    section = trainer(
        make_pictures(tmp_path / "2_photos", "a", "b"),
        train={
            "steps": 2,
            "dtype": "bf16",
            "ema_config": {"use_ema": True},
            "compile": {"enabled": True, "backend": "aot_eager"},
            "gradient_checkpointing": "none",
            "blank_prompt_preservation": True,
        },
        network={
            "type": "glora",
            "linear": 6,
            # Each layer takes seconds to be traced.
            "network_kwargs": {"only_if_contains": ["to_q"]},
        },
        sample={
            "sample_every": 2,
            "prompts": ["a cat"],
            "width": 64,
            "height": 64,
            "sample_steps": 2,
        },
    )
    section["train"].pop("disable_sampling", None)
    run_job(write_job(section))
    [file] = tmp_path.rglob("job.safetensors")
    assert all(tensor.isfinite().all() for tensor in load_file(file).values())
    assert [*file.parent.rglob("*.png"), *file.parent.rglob("*.jpg")]
