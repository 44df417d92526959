"""From a `model:` section to the model of its family.

It finds the folder, or has `hub` download it, and reads the weights of a folder of any
family: shards, block by block, with a check that they are complete and finite. It
quantizes nothing itself: callers pass functions that change each block. The families'
own `load_part` call `load_frozen` and `load_blockwise`; `toolkit.train.base_model`
calls `load_model`; trainers and tools call `model_folder`, `base_hashes` and
`checked_family`.

Shards are memory-mapped for a block at a time, so that at most one block is in memory
in its stored precision.

    model = load_model(section.model, device, torch.bfloat16, quantizer)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn

from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import (
    ModelFolder,
    is_decoder_only,
    looks_like_a_path,
    path_fault,
    published_family,
    single_files,
    weight_files,
    whole_files,
)
from toolkit.contracts.model import DiffusionModel, ModelFacts
from toolkit.errors import RunError, UserError, did_you_mean
from toolkit.files import now
from toolkit.files.unreadable import AGAIN, explained, unread_file
from toolkit.models.families import (
    BlockTransform,
    ModelFamily,
    ModelLoadOptions,
    family_for,
    single_file_faults,
)
from toolkit.models.hashes import part_hashes, weights_hash
from toolkit.models.hub import download, fetch_index
from toolkit.models.kept import Kept, KeptReader, KeptWriter
from toolkit.models.single_file import (
    WEIGHT,
    Stored,
    rotations_of,
    shapes_of,
    shards_of,
    some,
    stored_weights,
)
from toolkit.number_types import FILE_CODES, FP8_QTYPES, STORED_CODES
from toolkit.rotation import regular_hadamard, rotate
from toolkit.shortage import shortage
from toolkit.system import signals
from toolkit.system.device import is_out_of_memory

logger = logging.getLogger(__name__)

WEIGHTS = "diffusion_pytorch_model.safetensors"


Renaming = Callable[[str], str]


class ShardReader:
    """Tensors of a single or sharded safetensors folder by name, straight from the
    memory map.

    Example::

        with ExitStack() as stack:
            reader = ShardReader(folder / "transformer", stack)
            weight = reader.take("transformer_blocks.0.attn.to_q.weight")
    """

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        file: Path | None = None,
        names: Renaming = str,
    ) -> None:
        """file: one as ComfyUI keeps it, which replaces the folder's files. names: from
        its names without their prefix to the names of the module."""
        self.folder = file or folder
        self._opened = stack.enter_context(ExitStack())
        self._shards: dict[Path, Any] = {}
        paths = shards_of(file) if file else weight_files(folder)
        self._path_of = {
            name: path
            for path in paths
            for name in self._shard(path).keys()  # noqa: SIM118
        }
        self._stored = stored_weights(shapes_of(file), names) if file else {}
        self._rotations = rotations_of(file) if file else {}
        self.names = set(self._stored or self._path_of)

    def _shard(self, path: Path) -> Any:
        if path not in self._shards:
            try:
                self._shards[path] = self._opened.enter_context(
                    safe_open(path, framework="pt")
                )
            except (SafetensorError, OSError) as error:
                raise RunError(
                    f"{path}: {explained(path, error, 'damaged', AGAIN)}"
                ) from error
        return self._shards[path]

    def _shard_of(self, name: str) -> Any:
        return self._shard(self._path_of[name])

    def release(self) -> None:
        """Ends the maps of the files until a tensor is read again: pages that were read
        would count as memory in use."""
        self._shards.clear()
        self._opened.close()

    def dtype_of(self, name: str) -> torch.dtype:
        """The number type of a tensor, from the header alone."""
        dtype: torch.dtype = self._shard_of(name).get_slice(name)[:0].dtype
        return dtype

    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each weight of the single file that is a matrix."""
        return {
            name: one.shape for name, one in self._stored.items() if len(one.shape) == 2
        }

    def in_codes(self) -> bool:
        """Whether the single file has weights in fp8 of any kind, or in int8."""
        return any(
            self.dtype_of(one.name).itemsize == 1 for one in self._stored.values()
        )

    def take(self, name: str) -> torch.Tensor:
        self.names.discard(name)
        stored = self._stored.get(name)
        if not stored:
            tensor: torch.Tensor = self._shard_of(name).get_tensor(name)
            return tensor
        weight, scale = self._weight_and_scale(stored)
        if scale is None:
            return weight
        values = (
            weight.float().view(len(scale), scale.shape[1], -1) * scale[..., None]
        ).view(weight.shape)
        group = self._group(stored)
        return rotate(values, regular_hadamard(group)) if group else values

    def stored_codes(
        self, name: str, kind: str
    ) -> tuple[torch.Tensor, torch.Tensor, int] | None:
        """A weight that the single file has in this number type of `FILE_CODES`, as
        `STORED_CODES`. None: the file has it in another type."""
        stored = self._stored.get(name)
        if (
            stored is None
            or self._shard_of(stored.name).get_slice(stored.name).get_dtype() != kind
        ):
            return None
        codes, scale = self._weight_and_scale(stored)
        return codes, torch.ones(1, 1) if scale is None else scale, self._group(stored)

    def _group(self, stored: Stored) -> int:
        return self._rotations.get(stored.name.removesuffix(WEIGHT), 0)

    def _weight_and_scale(
        self, stored: Stored
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Both as they are in the file. Scales are float32, [1, 1] or [rows, blocks of
        a row]; None: the weight has no scale."""
        weight = self._shard_of(stored.name).get_tensor(stored.name)
        scale = None
        if stored.scale:
            scale = self._shard_of(stored.scale).get_tensor(stored.scale).float()
            scale = scale.view(len(weight) if scale.numel() > 1 else 1, -1)
        if stored.half is None:
            return weight, scale
        if scale is not None and len(scale) > 1:
            scale = scale.chunk(2)[stored.half]
        return weight.chunk(2)[stored.half], scale


def fill(
    module: nn.Module,
    reader: ShardReader,
    prefix: str,
    dtype: torch.dtype,
    skip: tuple[str, ...] = (),
    codes: str = "",
    codes_of: str = "",
    wide: Collection[str] = (),
) -> int:
    """Gives `module` its weights, copied out of the map in `dtype`.

    skip: beginnings of names that are left alone. wide: names of submodules whose
    weights are in float32 in any dtype. codes: number type of `FILE_CODES`.
    Linear layers get weights in it also as they are stored, for quantizing
    (`STORED_CODES`). codes_of: beginning of the names of those layers. Returns the
    number of layers that got them. Raises RunError for a missing weight or a wrong
    shape.
    """
    wanted = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if not name.startswith(skip)
    }
    check_names(reader.folder, {prefix + name for name in wanted} - reader.names)
    state = {
        name: reader.take(prefix + name).to(
            dtype if {*name.split(".")}.isdisjoint(wide) else torch.float32, copy=True
        )
        for name in wanted
    }
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"is {tuple(tensor.shape)}, config.json says {tuple(wanted[name].shape)}"
            raise RunError(f"{reader.folder}: {prefix}{name} {shapes}.")
    module.load_state_dict(state, strict=False, assign=True)
    coded_layers = 0
    for name, layer in module.named_modules() if codes else ():
        full = f"{prefix}{name}.weight"
        if isinstance(layer, nn.Linear) and full.startswith(codes_of):
            stored = reader.stored_codes(full, codes)
            if stored:
                setattr(layer, STORED_CODES, stored)
                coded_layers += 1
    return coded_layers


@contextmanager
def reading(part: Path) -> Iterator[None]:
    """Turns errors of a library about the files of a part into a RunError that names
    the part. The library's own log lines are suppressed in the block."""
    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers")]
    levels = [logger.level for logger in loggers]
    if not part.is_dir():  # the libraries would ask the hub for it
        raise RunError(f"{part}: is missing. {AGAIN}")
    try:
        for logger in loggers:  # `check_loaded` says it in one line
            logger.setLevel(logging.CRITICAL)
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        short = shortage(error)
        if short:
            raise RunError(
                f"{part}: cannot be loaded: {short.what}. {short.remedy}."
            ) from error
        unread = unread_file(part)
        if unread:
            raise RunError(unread) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(f"{part}: cannot be loaded ({reason[:300]}). {AGAIN}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def load_frozen(
    part: Path,
    kind: type[Any],
    dtype: torch.dtype,
    file: Path | None = None,
    names: Renaming = str,
    decoder: Path | None = None,
) -> Any:
    """A part of a model folder as a module of diffusers, frozen, on the CPU.

    file: its weights, in place of the folder's; names: see `ShardReader`. decoder: see
    `ModelLoadOptions`. Raises RunError when its weights do not fit its config, or are
    not finite.
    """
    if decoder:
        whole = load_frozen(part, kind, dtype, file, names)
        return with_decoder(whole, decoder, dtype, names)
    if file and is_decoder_only(file):
        return load_frozen(part, kind, dtype, names=names, decoder=file)
    if file:
        with reading(part), init_empty_weights(include_buffers=False):
            module = kind.from_config(kind.load_config(part))
        return fill_from_file(module, file, dtype, names)
    with reading(part):
        module, info = kind.from_pretrained(part, torch_dtype=dtype, **STRICTLY)
    check_loaded(part, info)
    check_finite(part, module)
    return module.requires_grad_(False).eval()


def with_decoder(
    vae: Any, file: Path, dtype: torch.dtype, names: Renaming = str
) -> Any:
    """The VAE with the decoder of this file. An encoder in the file is ignored. Raises
    RunError when the decoder does not fit the VAE's config, or is not finite."""
    with ExitStack() as stack:
        reader = ShardReader(file, stack, file, names)
        fill(vae.decoder, reader, "decoder.", dtype)
        if "post_quant_conv.weight" in reader.names:
            fill(vae.post_quant_conv, reader, "post_quant_conv.", dtype)
    of_encoder = ("encoder.", "quant_conv.")
    check_names(
        file, more=[name for name in reader.names if not name.startswith(of_encoder)]
    )
    check_finite(file, vae)
    return vae.requires_grad_(False).eval()


def fill_from_file(
    module: nn.Module,
    file: Path,
    dtype: torch.dtype,
    names: Renaming,
    unused: Collection[str] = (),
    codes: str = "",
    codes_of: str = "",
) -> Any:
    """The module with the weights of a single file, frozen.

    unused: further names that the file may have. codes, codes_of: see `fill`. Raises
    RunError when the weights do not fit the module, or are not finite.
    """
    with ExitStack() as stack:
        reader = ShardReader(file, stack, file, names)
        fill(module, reader, "", dtype, codes=codes, codes_of=codes_of)
    check_names(file, more=reader.names.difference(unused))
    check_finite(file, module)
    return module.requires_grad_(False).eval()


def check_loaded(
    part: Path, info: Mapping[str, Any], unused: Sequence[str] = ()
) -> None:
    """Raises RunError unless a part has exactly the weights of its config, in the right
    shapes.

    info: of `from_pretrained` with `output_loading_info` and `ignore_mismatched_sizes`.
    unused: weights that may be missing.

    >>> names = {"mismatched_keys": [], "missing_keys": [], "unexpected_keys": ["w"]}
    >>> check_loaded(Path("vae"), names)
    Traceback (most recent call last):
    ...
    toolkit.errors.RunError: vae: weights that config.json does not account for: w.
    """
    for name, stored, expected in info["mismatched_keys"]:
        raise RunError(
            f"{part}: {name} is {tuple(stored)}, config.json says {tuple(expected)}."
        )
    missing = {str(name) for name in info["missing_keys"]} - set(unused)
    check_names(part, missing, {str(name) for name in info["unexpected_keys"]})


def check_names(
    part: Path, missing: Collection[str] = (), more: Collection[str] = ()
) -> None:
    """Raises RunError where weights of a part are missing, or where its files have more
    of them than its config."""
    if missing:
        raise RunError(f"{part}: missing weights: {some(missing, 5)}. {AGAIN}")
    if more:
        raise RunError(
            f"{part}: weights that config.json does not account for: {some(more, 5)}."
        )


CODES = {"F8_E4M3": "fp8 (e4m3fn)", "I8": "int8"}
"""Number types of `FILE_CODES` in messages."""

NO_CODE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Arguments for `from_pretrained` of transformers' Auto classes. Without them they ask
on the terminal whether to run code that is in the folder."""

STRICTLY: dict[str, Any] = {
    "local_files_only": True,
    "use_safetensors": True,
    "output_loading_info": True,
    "ignore_mismatched_sizes": True,
}
"""Arguments for `from_pretrained`. `check_loaded` then reports weights that do not
fit."""


def named_blocks(
    model: nn.Module, block_lists: Sequence[str]
) -> list[tuple[str, nn.Module]]:
    """The blocks of a transformer by their dotted names, in the order in which they
    run. block_lists: `ModelFacts.block_lists`.

    >>> model = nn.ModuleDict({"layers": nn.ModuleList([nn.Identity()])})
    >>> named_blocks(model, ["layers"])
    [('layers.0', Identity())]
    """
    return [
        (f"{blocks}.{name}", block)
        for blocks in block_lists
        for name, block in model.get_submodule(blocks).named_children()
    ]


def check_block_lists(model: nn.Module, block_lists: Sequence[str]) -> None:
    """Raises UserError where a transformer lacks a list of blocks that its family names,
    or has one that it does not name: that would be neither adapted, nor quantized, nor
    swapped.

    A member with a single linear layer is a projection, not a block.

    Example::

        check_block_lists(model, family.block_lists)
    """
    kind = type(model).__name__
    says = f"block_lists of the model's family: {list(block_lists)}"
    lists = [
        name for name, part in model.named_modules() if type(part) is nn.ModuleList
    ]
    for name in block_lists:
        if name not in lists:
            hint = did_you_mean(name, lists)
            raise UserError(f"{says}: {kind} has no list {name!r}. {hint}")
    left_out = [
        name
        for name, child in model.named_children()
        if isinstance(child, nn.ModuleList)
        and name not in block_lists
        and any(_linear_layers(member) > 1 for member in child)
    ]
    if left_out:
        raise UserError(
            f"{says} leaves out {', '.join(left_out)} of {kind}. "
            "Name every list of blocks in the order of the forward pass (docs/extending.md)."
        )


def _linear_layers(module: nn.Module) -> int:
    return sum(isinstance(part, nn.Linear) for part in module.modules())


def load_blockwise(
    options: ModelLoadOptions,
    kind: Any,
    tabulated: Sequence[str] = (),
    block_lists: Sequence[str] = ModelFacts.block_lists,
) -> Any:
    """The transformer of a model folder: frozen, in `weights_dtype`, each block
    transformed as it is filled.

    It is built empty and filled block by block, so that at most one block is in memory
    in its stored precision while the others are already quantized. With
    `ModelLoadOptions.kept` the quantized transformer is read from the disk, or written
    for the next start.

    kind: its class in diffusers. tabulated: parts of a block that stay in CPU memory
    with `modulation_table`. block_lists: of its family. Raises RunError when weights
    are missing, unknown, not finite, or of another shape than config.json says.
    """
    read = partial(_read_kept, options, kind, tabulated, block_lists)
    make = partial(_from_weights, options, kind, tabulated, block_lists)
    model = options.kept.used_by(read, make) if options.kept else make(None)
    for name, child in model.named_children():
        if name not in block_lists:
            child.to(options.device)
    for tensor in (*model.parameters(recurse=False), *model.buffers(recurse=False)):
        tensor.data = tensor.data.to(options.device)
    return model.requires_grad_(False).eval()


def _within(block_lists: Sequence[str]) -> tuple[str, ...]:
    """Beginnings of the names of the weights of blocks."""
    return tuple(f"{blocks}." for blocks in block_lists)


def _empty(options: ModelLoadOptions, kind: Any, block_lists: Sequence[str]) -> Any:
    with init_empty_weights(include_buffers=False):
        model = kind.from_config(kind.load_config(options.folder / "transformer"))
    check_block_lists(model, block_lists)
    return model


def _place(
    options: ModelLoadOptions, index: int, block: nn.Module, tabulated: Sequence[str]
) -> None:
    """Puts the parts of a block where they stay."""
    for name, child in block.named_children():
        child.to("cpu" if _stays(options, index, tabulated, name) else options.device)


def _stays(
    options: ModelLoadOptions, index: int, tabulated: Sequence[str], name: str
) -> bool:
    """Whether a part of a block, or a tensor of it, stays in CPU memory. name: in the
    block."""
    return index in options.cpu_blocks or (
        options.modulation_table and name.split(".")[0] in tabulated
    )


def _read_kept(
    options: ModelLoadOptions,
    kind: Any,
    tabulated: Sequence[str],
    block_lists: Sequence[str],
    entry: KeptReader,
) -> Any:
    """The transformer as it was quantized before. Modules outside of the blocks are not
    on the device yet."""
    model = _empty(options, kind, block_lists)
    for index, (name, block) in enumerate(named_blocks(model, block_lists)):
        signals.check()
        entry.fill(name, block, partial(_stays, options, index, tabulated))
        _place(options, index, block, tabulated)
    entry.fill_rest(model, without=_within(block_lists))
    return model


def _from_weights(
    options: ModelLoadOptions,
    kind: Any,
    tabulated: Sequence[str],
    block_lists: Sequence[str],
    entry: KeptWriter | None,
) -> Any:
    """The transformer from the published weights, straight from the memory-mapped
    shards. Modules outside of the blocks are not on the device yet."""
    part = options.folder / "transformer"
    dtype = options.weights_dtype or options.dtype
    wide = kind._keep_in_fp32_modules or ()
    merge = options.merge_fn() if options.merge_fn else None
    coded_layers = 0
    codes = "" if merge else options.keeps_codes  # merging changes the weights
    model = _empty(options, kind, block_lists)
    with ExitStack() as stack:
        reader = ShardReader(part, stack, options.files.get("transformer"))
        part = reader.folder
        phase = "quantizing" if options.quantizes else "reading"
        blocks = named_blocks(model, block_lists)
        for index, (name, block) in enumerate(blocks):
            signals.check()
            now.tell(phase, index + 1, len(blocks), now.BLOCK)
            coded_layers += fill(
                block, reader, f"{name}.", dtype, codes=codes, wide=wide
            )
            if not options.low_vram:  # quantizing is faster there
                block.to(options.device)
            check_finite(part, block, f"{name}.")
            if merge:  # before the weights lose precision
                merge(block, name)
            if options.transform_block:
                options.transform_block(block, name)
            if entry:
                entry.add(
                    name,
                    block,
                    partial(_stays, options, index, tabulated),
                    last=tabulated,
                )
            _place(options, index, block, tabulated)
            reader.release()
        fill(model, reader, "", dtype, skip=_within(block_lists), wide=wide)
        check_finite(part, model, skip=_within(block_lists))
        if merge:
            merge(model, "")
        if coded_layers:
            logger.info(
                f"{part}: {coded_layers} layers keep its {CODES[codes]} codes and scales"
            )
        elif options.keeps_codes and reader.in_codes():
            not_in = f"they are not in {CODES.get(codes)}"
            why = "LoRAs are merged into them" if merge else not_in
            logger.info(f"{part}: its 8-bit weights are quantized again, since {why}")
    check_names(part, more=reader.names)
    if entry:
        entry.finish(model, without=_within(block_lists))
    return model


def check_finite(
    part: Path, module: nn.Module, prefix: str = "", skip: tuple[str, ...] = ()
) -> None:
    """Raises RunError for weights that are infinite or not a number.

    part: for the message. prefix: of their names. skip: beginnings of names that are
    left out.
    """
    state = module.state_dict().items()
    tensors = {
        name: tensor
        for name, tensor in state
        if tensor.is_floating_point()
        and not tensor.is_meta
        and not name.startswith(skip)
    }
    # One check for the whole module, since each check waits for the device.
    ends = [
        end.float()
        for tensor in tensors.values()
        if tensor.numel()
        for end in tensor.aminmax()
    ]
    if not ends or bool(torch.stack(ends).isfinite().all()):
        return
    broken = [
        prefix + name
        for name, tensor in tensors.items()
        if not bool(tensor.isfinite().all())
    ]
    raise RunError(f"{part}: not finite: {some(broken, 5)}. {AGAIN}")


def base_hashes(model: ModelConfig) -> dict[str, str]:
    """The `part_hashes` of a `model:` section: of each part that decides the numbers of
    a run, and of the VAE's encoder."""
    return part_hashes(
        model_folder(model), family_for(model).parts, checked_files(model)
    )


def part_hash(model: ModelConfig, part: str) -> str:
    """The `weights_hash` of a part of a `model:` section."""
    return weights_hash(model_folder(model), [part], checked_files(model))


def checked_files(model: ModelConfig) -> dict[str, Path]:
    """The `single_files` of a section, after a check by their headers that they belong
    to the model. Raises UserError."""
    for key, fault in single_file_faults(model, model_folder(model)):
        raise UserError(f"model.{key}: {fault}")
    return single_files(model)


Quantizer = Callable[[str], BlockTransform]
"""Returns for a `model.qtype` a function that quantizes a block's linear layers in
place."""


def load_model(
    model: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    quantizer: Quantizer,
    weights_dtype: torch.dtype | None = None,
    merge_fn: Callable[[], BlockTransform] | None = None,
    block_quantizer: Quantizer | None = None,
    cpu_blocks: frozenset[int] = frozenset(),
    block_sharing: BlockTransform | None = None,
    decoder: Path | None = None,
    kept: Kept | None = None,
) -> DiffusionModel:
    """The model of a `model:` section. Its parts are loaded on first use.

    weights_dtype: dtype of the trained module's weights, where it is not the compute
    dtype `dtype`. merge_fn, cpu_blocks, decoder, kept: see `ModelLoadOptions`.
    block_quantizer: for the blocks of the trained module, where it is not `quantizer`.
    block_sharing: shards each block over the ranks. It cannot be combined with
    quantization, and switches the modulation cache off. Raises UserError when the
    folder is missing, is not a model, or belongs to another family than `arch`.
    """
    folder = model_folder(model)
    family = family_for(model)
    table = model.modulation_table
    if table == "auto":
        table = device.type == "cuda"
    keeps = keeps_text = ""
    if model.quantize and not model.accuracy_recovery_adapter:
        keeps = FILE_CODES.get(model.qtype, "")
    if model.quantize_te and model.text_encoder_path:
        keeps_text = FILE_CODES.get(model.qtype_te, "")
    as_stored = "-as-stored" if keeps_text and model.qtype_te in FP8_QTYPES else ""
    options = ModelLoadOptions(
        folder=folder,
        files=checked_files(model),
        decoder=decoder,
        device=device,
        dtype=dtype,
        weights_dtype=weights_dtype,
        reference_area=model.model_kwargs.reference_area(),
        composite_target=model.model_kwargs.composite_target,
        merge_fn=merge_fn,
        modulation_table=bool(table) and block_sharing is None,
        transform_block=(block_quantizer or quantizer)(model.qtype)
        if model.quantize
        else block_sharing,
        quantizes=model.quantize,
        transform_text_block=quantizer(model.qtype_te) if model.quantize_te else None,
        keeps_codes=keeps,
        keeps_text_codes=keeps_text,
        cpu_blocks=cpu_blocks,
        text_encoder_cache_tag=model.qtype_te + as_stored if model.quantize_te else "",
        low_vram=model.low_vram,
        kept=kept,
    )
    return family.open(options)


def model_folder(model: ModelConfig) -> Path:
    """The local folder of `model.name_or_path`: itself, or the hub's snapshot.

    Raises UserError when it does not exist, belongs to another family, or lacks a part.
    From a hub model only model_index.json is downloaded before its family is known.
    """
    name = model.name_or_path
    given = whole_files(model)
    folder = Path(name).expanduser()
    if folder.is_dir() or looks_like_a_path(name):
        fault = model.file_fault or path_fault(name, given)
    else:
        checked_family(model)
        folder = download(name, model.revision, given)
        fault = ModelFolder(folder, name).fault(given)
    if fault:
        raise UserError(f"model.name_or_path: {fault}")
    return folder


def checked_family(model: ModelConfig) -> ModelFamily:
    """The family of a section by the model's id or its own files. The model_index.json
    of a hub model is downloaded if necessary.

    A process calls it at its start, and ends with a UserError where the model belongs
    to another family.
    """
    name = model.name_or_path
    if not (published_family(name) or looks_like_a_path(name) or Path(name).is_dir()):
        fetch_index(name, model.revision)
    return family_for(model)
