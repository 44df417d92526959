"""Which device the work runs on, and the dtypes that configs name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch

from toolkit.errors import UserError
from toolkit.shortage import MEMORY, is_short_of
from toolkit.system.host_memory import free_host_memory
from toolkit.system.nvidia import (
    NO_MPS,
    last_device,
    likely_cause,
    read_facts,
    why_no_device,
)

logger = logging.getLogger(__name__)


def pick_device(wanted: str, quiet: bool = False) -> torch.device:
    """The device named by the config: `cuda:0`, `cpu`, `mps`, or `auto` for the best
    there is.

    Raises UserError where a device was chosen that is not there. `cuda:0`
    (`ANY_DEVICE`) is then the CPU, with one warning (none if `quiet`); `check_device`
    refuses that for a large model.
    """
    check_device(wanted, 0)
    if wanted == "auto":
        if torch.cuda.is_available():
            wanted = "cuda:0"
        else:
            wanted = "mps" if _has_mps() else "cpu"
    if _is_there(wanted):
        return torch.device(wanted)
    if not quiet:
        logger.warning(
            f"device: {wanted} is not available ({torch.cuda.device_count()} CUDA devices); using the CPU."
        )
    return torch.device("cpu")


def check_device(wanted: str, model_bytes: int) -> None:
    """Raises UserError where the job's device cannot be used: a chosen one, or, of a
    large model (`ACCIDENTAL_CPU_LIMIT`), any but the CPU. The message has the likely
    cause.

    wanted: the config's `device`. model_bytes: of all parts of the model; 0: not known.
    """
    if wanted == "auto" and (torch.cuda.is_available() or _has_mps()):
        return
    if wanted != "auto" and _is_there(wanted):
        return
    message = why_no_device(
        wanted, model_bytes, NO_MPS if wanted == "mps" else _no_cuda(wanted)
    )
    if message:
        raise UserError(message)


def _is_there(wanted: str) -> bool:
    """Whether PyTorch can use the device of this name."""
    device = torch.device(wanted)
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    return device.type != "mps" or _has_mps()


def _no_cuda(wanted: str) -> str:
    """Why the wanted CUDA device cannot be used: as the system tells, else as PyTorch
    does."""
    count = torch.cuda.device_count()
    if count:
        return last_device(wanted, count)
    cause = likely_cause(read_facts())
    if cause:
        return cause
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"CUDA cannot be started: {' '.join(str(error).split())}"
    return "CUDA cannot be started: see what `nvidia-smi` says."


def use_device(device: torch.device) -> torch.device:
    """Makes a CUDA device PyTorch's current one, and returns it.

    Pinned memory, and libraries that name no device, would make a context on the first
    GPU.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def to_device(
    tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """`tensor.to(device, dtype)`; from the CPU to CUDA through pinned memory.

    Out of ordinary memory the host would wait for everything the device was given so
    far.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        host = tensor.to(dtype or tensor.dtype)
        return pinned(lambda pin_memory: host.pin_memory() if pin_memory else host).to(
            device, non_blocking=True
        )
    return tensor.to(device, dtype or tensor.dtype)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device, pinned or the machine's."""
    return is_short_of(error) is MEMORY


def pinned(make: Callable[..., torch.Tensor]) -> torch.Tensor:
    """The CPU tensor of `make(pin_memory=True)`, which a GPU copies from and to while
    the host works on.

    Where the system pins no more memory (WSL2 and containers limit it), an ordinary
    one, and a warning.
    """
    try:
        return make(pin_memory=True)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    _warn_unpinned()
    return make(pin_memory=False)


@cache
def _warn_unpinned() -> None:
    logger.warning(
        "the system pins no more memory (WSL2 and containers limit it): copies to the GPU are slower from here on. "
        "Smaller model.blocks_to_swap, or gradient_checkpointing: full, needs less of it."
    )


def free_memory(device: torch.device) -> int:
    """Bytes that tensors can still take there, those included that PyTorch holds and
    does not use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(
            device
        )
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_host_memory()


def total_memory(device: torch.device) -> int:
    """Bytes of a CUDA device in all."""
    return torch.cuda.get_device_properties(device).total_memory


FLOPS_PER_CYCLE = {(8, 0): 2048, (9, 0): 4096, (10, 0): 8192, (10, 3): 8192}
"""Operations of bf16 matrix products per cycle and multiprocessor, by compute
capability; of all others 512. Source: NVIDIA's architecture papers (A100 312, H100 989,
B200 2250, RTX 4090 165 TFLOP/s, dense)."""

CYCLES = 1.7e9
"""Per second, about."""


def peak_flops(device: torch.device) -> float:
    """Operations of bf16 matrix products per second that a CUDA device does at most,
    roughly."""
    properties = torch.cuda.get_device_properties(device)
    return (
        CYCLES
        * FLOPS_PER_CYCLE.get((properties.major, properties.minor), 512)
        * properties.multi_processor_count
    )


def peak_memory(device: torch.device) -> int:
    """The most bytes that tensors took on a CUDA device since `reset_peak_memory`."""
    return torch.cuda.max_memory_allocated(device)


def reset_peak_memory(device: torch.device) -> None:
    """Restarts the measurement of `peak_memory`."""
    torch.cuda.reset_peak_memory_stats(device)


def configure_cuda(
    device: torch.device, allow_tf32: bool, cudnn_benchmark: bool
) -> None:
    """Sets PyTorch's switches of these names for the rest of the process; on another
    device than CUDA only says so."""
    wanted = {"cuda_allow_tf32": allow_tf32, "cuda_cudnn_benchmark": cudnn_benchmark}
    given = [f"train.{key}" for key, value in wanted.items() if value]
    if given and device.type != "cuda":
        logger.warning(f"{' and '.join(given)}: no effect on {device}.")
        return
    if allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    if cudnn_benchmark:
        torch.backends.cudnn.benchmark = True


DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
"""By the normalised names of `train.dtype` (computing) and `save.dtype` (files)."""
