"""The program's name and version, as they stand in the files it writes."""

NAME = "Atelier"
VERSION = "0.1.0"
