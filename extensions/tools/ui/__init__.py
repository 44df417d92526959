"""`run.py ui` and `run.py queue`: the web page that shows all runs and starts new ones,
and the job queue behind it.

All state is in folders: the folders of runs, jobs and datasets, and `<output>/.ui` for
the page's own files. There is no database. The page and a run are separate processes,
so neither can block the other. No module of this package imports torch.

`app.py` lists every address. `views/` answers the requests, one module per page, with
the templates of the same name. `guard.py` decides which requests are answered, and
`state.py` holds the state that all views share. `queue.py` is the queue, a folder of
JSON files, and `runner.py` is the process that works on it. See docs/web.md.
"""
