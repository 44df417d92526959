"""What a run takes, foretold before it starts: memory, disk, time; what a start does;
what comes after the run."""
