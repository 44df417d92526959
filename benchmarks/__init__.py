"""Measures the program: each bench_*.py is run by itself;
see README.md."""

import logging

# Remarks of libraries while they are imported are not part of a report.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
