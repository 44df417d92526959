"""The callbacks of the program, each with one task."""
