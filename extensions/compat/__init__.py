"""Names, files and commands of other programs: what makes a job of them. It has no
process types; the core finds its functions by the tables in `toolkit/registry.py`."""
