"""The training loop with its optimizer steps, callbacks and checkpoints.

`loop` trains a `run.Run`. `callbacks` observe it and write its files, `trackers` show
it in other programs. `resumption`, `checkpoint_state` and `checkpoint_store` save a run
and continue it. `run_reader` reads the files of any run without torch.
"""
