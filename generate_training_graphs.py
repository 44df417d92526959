"""The script of FluxFlow's training guide: as `run.py diagrams`, with the same arguments."""

import sys

from run import main

if __name__ == "__main__":
    sys.exit(main(["diagrams", *sys.argv[1:]]))
