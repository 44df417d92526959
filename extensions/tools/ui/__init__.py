"""`run.py ui`, `run.py queue`: a page in the browser that shows all runs and starts new
ones, and the queue behind it.

The state is in the folders: a run's own, those of jobs and datasets, and `<output>/.ui`
for what the page adds. There is no database, and the page never shares a process with a
run, so neither can wedge the other. Imports no torch.

`app.py` lists every address; `views/` answers them, one module per page, with the
templates of the same name; `guard.py` decides who may ask; `state.py` holds what all
views share. `queue.py` is the queue, a folder of files, and `runner.py` the process
that works on it. docs/web.md.
"""
