"""The process that talks to Weights & Biases; `wandb_tracker` starts it. It imports
nothing of this project.

Standard input has one JSON object per line. First the arguments of `wandb.init`, then
{"step": n, "scalars": {name: number}} or {"step": n, "images": {name: file}}. After the
last line it has UPLOAD_TIMEOUT_S seconds to send the remaining data. Data that it could
not send by then stays in its folder, for `wandb sync`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from queue import SimpleQueue

UPLOAD_TIMEOUT_S = 60.0


def read_lines(lines: SimpleQueue[str]) -> None:
    """Puts the lines into the queue; an empty one is the end. A timer then ends the
    process even if wandb hangs."""
    for line in sys.stdin:
        lines.put(line)
    lines.put("")
    timer = threading.Timer(UPLOAD_TIMEOUT_S, os._exit, (1,))
    timer.daemon = True
    timer.start()


def main() -> None:
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=read_lines, args=(lines,), daemon=True).start()
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        finish_timeout=UPLOAD_TIMEOUT_S,
    )
    run = wandb.init(**json.loads(lines.get()), settings=settings)
    while line := lines.get():
        message = json.loads(line)
        images = {
            name: wandb.Image(file) for name, file in message.get("images", {}).items()
        }
        run.log({**message.get("scalars", {}), **images}, step=message["step"])
    run.finish()


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # noqa: BLE001 - whatever it is, the last line on standard error says it
        print(
            " ".join(f"{type(error).__name__}: {error}".split()),
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # at a usual exit wandb would wait for its uploads, without a limit
