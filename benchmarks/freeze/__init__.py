"""The parts of `compare_commits.py`: what is run in both checkouts, and how the results
are read and compared."""
