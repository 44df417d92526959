"""The requirements of FluxFlow's training guide, row by row: which tests hold each.

The rows are those of the guide's own order: files and flags (0, 1), data (2), sizes
(3), autoencoder (4), discriminator (5), flow model (6), optimizers (7), steps (8),
checkpoints (9), metrics (10), samples (11), flags (12), web page (13), memory (14),
spellings (15), troubles (16), further pages (17)."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

ROWS = {
    0: 7,
    1: 8,
    2: 15,
    3: 7,
    4: 11,
    5: 9,
    6: 8,
    7: 15,
    8: 16,
    9: 7,
    10: 8,
    11: 5,
    13: 3,
    14: 3,
}
"""Section of the requirements -> its rows. Sections 12 and 15 to 17 are one each."""

HELD_BY = {
    "0.1 to 0.7": "fluxflow_guide fluxflow",
    "1.1 to 1.8, 12": "fluxflow_flags fluxflow_guide examples",
    "2.1, 2.13": "pixels",
    "2.2": "captions folder_captions_file",
    "2.3": "captions",
    "2.4, 2.5, 2.8": "stream_dataset webdataset shards dataloader_stream vae_process_streams process_streams",
    "2.6": "dataset vae_process_streams",
    "2.7, 2.11": "stream_dataset fluxflow",
    "2.9": "vae_process_streams process_streams",
    "2.10": "dataset vae_process_streams",
    "2.12": "fluxflow",
    "2.14, 2.15": "dataloader dataloader_stream loop",
    "3.1, 4.11": "autoencoders",
    "3.2, 6.1, 6.2": "flow_process flow_process_references transformers loss",
    "3.3, 4.8, 5.1 to 5.5, 5.8": "discriminator autoencoder_step",
    "3.4, 3.5": "text flow_config",
    "3.6": "fluxflow",
    "3.7, 14.1": "examples",
    "4.1 to 4.7, 9.6": "autoencoder_losses vae_config",
    "4.10": "memory",
    "5.6": "spade vae_process",
    "5.7": "autoencoder_step fluxflow",
    "6.3, 6.4, 7.7, 7.15": "flow_config flow_process",
    "6.5": "model roles",
    "6.6": "captions",
    "6.7": "joint fluxflow_guide",
    "7.1 to 7.4, 7.11": "fluxflow_optimizers",
    "7.5": "vae_config lion",
    "7.6, 7.8, 7.9, 7.10": "schedules",
    "7.12, 7.13": "accumulation optimizer_step fluxflow",
    "7.14": "fluxflow run_loss_scale",
    "8.1 to 8.7, 8.15": "fluxflow",
    "8.8": "vae_config fluxflow_guide",
    "8.9": "fluxflow",
    "8.10": "flow_process",
    "8.11, 8.13, 9.3, 9.4, 9.7": "vae_process autoencoders fluxflow_guide",
    "8.12": "job_state new_model_process",
    "8.14": "fluxflow_guide plan",
    "8.16, 10.1": "fluxflow_files",
    "9.1, 11.3": "fluxflow_files",
    "9.2, 11.4": "fluxflow",
    "9.5": "flow_process vae_process",
    "10.2, 10.6, 10.7": "status watchdog_memory_check",
    "10.3 to 10.5": "diagrams tool_at_saves process",
    "11.1, 11.5": "sampling contact_sheet flow_process",
    "11.2": "vae_process",
    "14.2": "plan",
    "14.3": "memory loop",
    "15": "fluxflow",
    "16": "fluxflow_guide",
    "4.9, 5.9, 6.8, 10.8, 13.1 to 13.3, 17": "",
}
"""Rows -> the names of their test files without `test_` and the ending; empty: not
built, or nothing to do."""


def rows(cell: str) -> set[str]:
    """`4.1 to 4.3, 9.6` -> {"4.1", "4.2", "4.3", "9.6"}."""
    found: set[str] = set()
    for part in cell.split(", "):
        first, _, last = part.partition(" to ")
        section, _, row = first.partition(".")
        numbers = range(int(row), int(last.partition(".")[2]) + 1) if last else [row]
        found |= {f"{section}.{number}" if row else section for number in numbers}
    return found


def test_every_row_is_held_by_tests_that_are_there() -> None:
    wanted = {
        f"{section}.{row}"
        for section, count in ROWS.items()
        for row in range(1, count + 1)
    }
    assert set().union(*map(rows, HELD_BY)) == wanted | {"12", "15", "16", "17"}
    there = {path.stem.removeprefix("test_") for path in TESTS.rglob("test_*.py")}
    assert {
        name for names in HELD_BY.values() for name in names.split()
    } - there == set()
