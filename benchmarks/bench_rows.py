"""Memory and time of a save that two processes make, at two sizes: `python benchmarks/bench_rows.py`, no GPU.

Compares the rows of a state, which each process writes itself, and a model, in a folder or in one file, which rank 0
gathers and writes tensor by tensor, with what was done before: rank 0 gathered all tensors and wrote one file. Each
process has half of the rows of tensors of 32 MB in float32.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import report  # noqa: E402
from toolkit.files.safetensors_io import save_file  # noqa: E402
from toolkit.files.writing import fsync, sha256_of  # noqa: E402
from toolkit.networks.save import write_file_in_turn, write_shards_in_turn  # noqa: E402
from toolkit.system.distributed import rendezvous_processes  # noqa: E402
from toolkit.system.distributed_env import read_distributed_env  # noqa: E402
from toolkit.system.sharded_param import RowShard  # noqa: E402
from toolkit.train.sharded_state import Rows, write_rows  # noqa: E402

SIZES_MB = (256, 1024)
TENSOR_MB = 32
WAYS = ("rows", "folder", "file", "gathered")


def work(rank: int, port: int, size_mb: int, way: str, folder: Path, sender: Any) -> None:
    """Sends the seconds of the save and by how many MB the most memory of this process has grown."""
    torch.set_num_threads(1)
    named = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in named.items()}, GLOO_SOCKET_IFNAME="lo")
    group = rendezvous_processes(read_distributed_env())
    group.init_process_group()
    shape = torch.Size((1024, TENSOR_MB * 2**20 // 4 // 1024))
    shard = RowShard.of(shape, rank, 2)
    names = [f"weights/network/{i:03}" for i in range(size_mb // TENSOR_MB)]
    own = {name: Rows(torch.ones(shard.stop - shard.start, shape[1]), shard) for name in names}
    write_rows(group, folder / "warm", {"weights/network/small": Rows(torch.ones(1, 1), RowShard.of((2, 1), rank, 2))})
    memory, begin = _Memory(), time.perf_counter()
    if way == "rows":
        write_rows(group, folder / "state", own)
    elif way in ("folder", "file") and group.is_main_process:
        place, write = (folder, write_shards_in_turn) if way == "folder" else (folder / "one", write_file_in_turn)
        shapes = dict.fromkeys(names, shape)
        write(place, shapes, lambda name: group.gather_to_rank0(own[name].tensor, shard), "float32", {})
    else:
        whole = {name: group.gather_to_rank0(each.tensor, each.shard) for name, each in own.items()}
        if group.is_main_process:
            file = folder / "weights.safetensors"
            save_file({name: tensor for name, tensor in whole.items() if tensor is not None}, file)
            fsync(file)
            sha256_of(file)
    sender.send((time.perf_counter() - begin, memory.most - memory.before))
    group.all_gather_object("done")
    os._exit(0)


class _Memory(threading.Thread):
    """Watches how much memory of its own this process has: without files that it has mapped, as what reads a save back
    does, whose pages the system takes away when it needs them."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.most = _own_mb()
        self.start()

    def run(self) -> None:
        while True:
            self.most = max(self.most, _own_mb())
            time.sleep(0.005)


def _own_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def measure(size_mb: int, way: str) -> list[tuple[float, float]]:
    """Seconds and MB of each process."""
    fork = multiprocessing.get_context("fork")
    with socket.socket() as free, TemporaryDirectory() as name:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        folder = Path(name)
        for inside in ("warm", "state"):
            (folder / inside).mkdir()
        pipes = [fork.Pipe(duplex=False) for _ in range(2)]
        started = [fork.Process(target=work, args=(i, port, size_mb, way, folder, pipes[i][1])) for i in range(2)]
        for process in started:
            process.start()
        found = [receiver.recv() for receiver, _ in pipes]
        for process in started:
            process.join()
    return found


def arguments(argv: list[str]) -> argparse.Namespace:
    return argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args(argv)


def main() -> None:
    arguments(sys.argv[1:])
    report.card("bench_rows", "a save by two processes: rows; a folder and a file tensor by tensor; all gathered first")
    figures = {}
    for size_mb in SIZES_MB:
        for way in WAYS:
            each = measure(size_mb, way)
            figures[f"{way}_{size_mb}"] = [round(number, 2) for pair in each for number in pair]
            said = ", ".join(f"process {rank}: {s:.1f} s, {mb:.0f} MB more" for rank, (s, mb) in enumerate(each))
            print(f"{size_mb} MB {way}: {said}")
    report.finish("bench_rows", **figures)


if __name__ == "__main__":
    main()
