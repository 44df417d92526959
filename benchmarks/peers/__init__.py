"""The programs that `bench_peers.py` measures: each script runs in the environment of
its program."""
