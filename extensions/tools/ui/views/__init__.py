"""The views of the page: one module per page, with a function per address.

A view takes a request and returns a response. It reads runs through
`toolkit.train.run_reader` only, and leaves the work to the modules of
`extensions.tools.ui`. The addresses are in `extensions.tools.ui.app`.
"""
