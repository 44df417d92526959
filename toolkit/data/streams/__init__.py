"""Shards on a disk, a web server or the hub become a stream of samples. Imports no
torch."""
