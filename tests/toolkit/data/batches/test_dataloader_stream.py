"""A stream of samples whose length nobody knows: shards of JSON lines on disk, trained
on the real loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.processes import in_processes
from toolkit.contracts.data import BatchSpec
from toolkit.contracts.training import StepLosses, TrainStep
from toolkit.data.batches.dataloader import StreamSource
from toolkit.errors import RunError
from toolkit.system.distributed import ProcessGroup
from toolkit.train.checkpoint_state import load_state, snapshot_state
from toolkit.train.checkpoint_store import write_checkpoint
from toolkit.train.loop import train
from toolkit.train.optimizer_step import Role
from toolkit.train.run import Run


@dataclass(frozen=True)
class Rows:
    """A batch without latents."""

    x_BD: Tensor
    spec: BatchSpec
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def halves(self) -> tuple[Rows, ...]:
        middle = (len(self) + 1) // 2
        rows = [range(middle), range(middle, len(self))]
        return tuple(
            Rows(
                self.x_BD[list(r)], self.spec.select(r), tuple(self.names[i] for i in r)
            )
            for r in rows
            if r
        )

    def describe(self) -> str:
        return f"{len(self)} rows of {self.x_BD.shape[1]}"


class Shards:
    """Shards of samples on disk; `endless` begins again behind the last one. Its cursor
    is a shard and a line."""

    def __init__(self, folder: Path, endless: bool = True) -> None:
        folder.mkdir(exist_ok=True)
        generator = torch.Generator().manual_seed(3)
        for shard, count in enumerate((5, 2, 4)):
            lines = [
                json.dumps(torch.randn(3, generator=generator).tolist())
                for _ in range(count)
            ]
            (folder / f"{shard}.jsonl").write_text("\n".join(lines))
        self.folder, self.endless = folder, endless
        self.opened: list[int] = []

    def read(self, cursor) -> Iterator[tuple[bytes, list[int]]]:
        shard, line = cursor or (0, 0)
        while shard < 3 or self.endless:
            self.opened.append(shard)
            lines = (self.folder / f"{shard % 3}.jsonl").read_bytes().splitlines()
            for index in range(line, len(lines)):
                yield lines[index], [shard, index + 1]
            shard, line = shard + 1, 0

    def source(self, workers: int = 0) -> StreamSource:
        return StreamSource(self.read, self.make, batch_size=3, workers=workers)

    @staticmethod
    def make(spec: BatchSpec) -> Rows:
        return Rows(
            torch.tensor([json.loads(row) for row in spec.samples]),
            spec,
            tuple(map(str, spec.items)),
        )


class Fit(TrainStep):
    """Noise of each batch's own, so that equal bits mean equal draws."""

    def __init__(self) -> None:
        self.w_D = nn.Parameter(torch.zeros(3))
        self.seen: list[tuple[int, ...]] = []
        self.most = 9

    def __call__(self, batch: Rows, step: int) -> StepLosses:
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("no memory left")
        self.seen.append(batch.spec.items)
        return StepLosses(
            {"w": (batch.x_BD @ self.w_D - 1 + 0.1 * torch.randn(())) ** 2}
        )


def fit_run(folder: Path, steps: int) -> tuple[Run, Fit]:
    fit = Fit()
    role = Role(
        {"w": fit.w_D}, torch.optim.AdamW([fit.w_D], lr=0.0), 0.1, lambda step: 1.0
    )
    return Run("fit", folder, steps, grad_accum_steps=2, seed=4, roles={"w": role}), fit


def test_the_stream_is_read_on_from_any_cursor(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "shards")
    whole = list(islice(shards.source().iterate(None), 9))
    assert [micro_batch.spec.items for micro_batch in whole[:3]] == [
        (0, 1, 2),
        (3, 4, 5),
        (6, 7, 8),
    ]
    for done, micro_batch in enumerate(whole, start=1):
        cursor = json.loads(json.dumps(micro_batch.cursor))
        assert list(islice(shards.source().iterate(cursor), 9 - done)) == whole[done:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_is_stopped_goes_on_by_the_cursor_with_the_same_bits(
    tmp_path: Path, workers: int
) -> None:
    shards = Shards(tmp_path / "shards")
    whole, fit = fit_run(tmp_path, 6)
    assert train(whole, shards.source(), fit)
    first, first_fit = fit_run(tmp_path, 6)
    first.should_stop = lambda: first.state.step == 3 or len(first_fit.seen) > 100
    assert not train(first, shards.source(workers), first_fit)
    path = write_checkpoint(tmp_path / "states", snapshot_state(first), keep=1)
    second, second_fit = fit_run(tmp_path, 6)
    load_state(path, second)
    shards.opened.clear()
    assert train(second, shards.source(workers), second_fit)
    assert shards.opened[0] == 4, (
        "18 samples, of which 11 are in a pass, lie behind the cursor"
    )
    assert torch.equal(second_fit.w_D, fit.w_D) and second.state == whole.state
    assert first_fit.seen + second_fit.seen == fit.seen and len(fit.seen) == 12


def test_a_run_ends_where_the_stream_does(tmp_path: Path) -> None:
    run, fit = fit_run(tmp_path, 100)
    assert train(run, Shards(tmp_path / "shards", endless=False).source(), fit) is True
    assert fit.seen == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10)]
    assert (run.state.step, run.state.samples) == (
        2,
        11,
    ) and "no more batches after step 2" in run.early_stop_reason


def test_several_processes_share_out_the_stream(tmp_path: Path) -> None:
    def work(process_group: ProcessGroup) -> tuple[list[float], list[tuple[int, ...]]]:
        run, fit = fit_run(tmp_path, 3)
        run.process_group = process_group
        fit.__class__ = Plain
        train(run, Shards(tmp_path / f"shards{process_group.rank}").source(), fit)
        return fit.w_D.tolist(), fit.seen

    alone, seen = work(ProcessGroup())
    (first, firsts), (second, seconds) = in_processes(2, work)
    assert first == second == pytest.approx(alone, rel=1e-5)
    assert [*map(tuple, firsts)] == seen[0::2] and [*map(tuple, seconds)] == seen[1::2]


class Plain(Fit):
    def __call__(self, batch: Rows, step: int) -> StepLosses:
        self.seen.append(batch.spec.items)
        return StepLosses({"w": (batch.x_BD @ self.w_D - 1) ** 2})


def test_a_batch_without_latents_is_halved_and_described_when_memory_runs_out(
    tmp_path: Path,
) -> None:
    shards = Shards(tmp_path / "shards")
    run, fit = fit_run(tmp_path, 2)
    fit.most = 2
    assert train(run, shards.source(), fit)
    assert {len(items) for items in fit.seen} == {1, 2}
    run, fit = fit_run(tmp_path, 2)
    fit.most, run.oom_hint = 1, lambda: "Use less."
    with pytest.raises(
        RunError, match=r"out of memory with 0, 1 \(2 rows of 3\)\. Use less\."
    ):
        train(run, shards.source(), fit)
