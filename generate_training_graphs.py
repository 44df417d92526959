"""The script of FluxFlow's training guide: `python generate_training_graphs.py outputs/` is `run.py diagrams outputs/`."""

import sys

from run import main

if __name__ == "__main__":
    sys.exit(main(["diagrams", *sys.argv[1:]]))
