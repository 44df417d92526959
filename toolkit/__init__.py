"""The library: everything a process is wired from. Knows nothing of jobs or extensions."""
