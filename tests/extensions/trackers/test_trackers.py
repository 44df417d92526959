"""The trackers of other libraries, each against the library itself, without a network.

They are skipped where the library is not installed: `pip install trackio
swanlab`; mlflow is one of requirements-dev.txt.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.processes import python
from toolkit.config.sections.output import PACKAGES
from toolkit.extension import discover

TRACKS = """
import sys
from pathlib import Path

from toolkit.config.sections.output import LoggingConfig
from toolkit.train.trackers.tracker import RunInfo, open_tracker

name, step = sys.argv[1], int(sys.argv[2])
options = LoggingConfig(log_with=name, log_tracker_name="faces")
run = RunInfo("maya/first", Path("run"), step, options)
tracker = open_tracker(name, run)
for number in (step + 1, step + 2):
    tracker.scalars(number, {"loss/current": 1 / number, "lr": 0.5})
tracker.image(step + 2, "samples/0", Path("run/a.png"))
tracker.close()
"""

READS = {
    "trackio": """
from trackio import Api
from trackio.sqlite_storage import SQLiteStorage
(run,) = Api().runs("faces")
rows = SQLiteStorage.get_logs("faces", run.name, run_id=run.id)
print([(row["step"], row["loss/current"]) for row in rows if "loss/current" in row])
assert [row["step"] for row in rows if "samples/0" in row] == [2, 4]
""",
    "mlflow": """
from mlflow import MlflowClient
client = MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("faces").experiment_id])
points = client.get_metric_history(run.info.run_id, "loss/current")
print([(point.step, point.value) for point in points])
assert [file.path for file in client.list_artifacts(run.info.run_id, "samples/0")] == ["samples/0/a.png"]
assert run.info.status == "FINISHED"
""",
    "swanlab": """
from pathlib import Path
from swanlab.proto.swanlab.record.v1.record_pb2 import Record
from swanlab.sdk.internal.core_python.store import DataStoreReader
points, images, ids = [], [], set()
for file in sorted(Path("run/swanlab").glob("*/*.swanlab")):
    reader = DataStoreReader()
    reader.open(file)
    for data in reader:
        record = Record.FromString(data)
        ids |= {record.start.id} - {""}
        if record.scalar.key == "loss/current":
            points.append((record.scalar.step, 1 / round(1 / record.scalar.value.number)))
        if record.media.key == "samples/0":
            images.append(record.media.step)
print(points)
assert images == [2, 4] and len(ids) == 1
assert Path("run/swanlab_run_id").read_text().strip() in ids
""",
}


def test_the_config_knows_the_package_of_every_tracker() -> None:
    assert discover().uids("tracker") >= PACKAGES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", READS)
def test_a_run_and_its_resume_are_one_run_of_the_library(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip(name)
    (tmp_path / "run").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "run" / "a.png")
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "HOME": str(tmp_path),
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"file://{tmp_path}/mlruns",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "SWANLAB_MODE": "offline",
        "HF_HUB_OFFLINE": "1",
    }

    python(TRACKS, name, 0, cwd=tmp_path, env=env)
    python(TRACKS, name, 2, cwd=tmp_path, env=env)  # a resume
    last = python(READS[name], cwd=tmp_path, env=env).splitlines()[-1]
    assert last == str([(step, 1 / step) for step in (1, 2, 3, 4)])
