"""A `sitecustomize` for processes that must load no heavy library and open no
connection."""

FORBID = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "diffusers", "peft"}:
            raise ImportError(f"{name} is imported")

def no_network(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise PermissionError(f"{event} {arguments}")

sys.meta_path.insert(0, Forbidden())
sys.addaudithook(no_network)
"""
