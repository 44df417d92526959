"""The library that processes are built from. It knows nothing of jobs or extensions."""
