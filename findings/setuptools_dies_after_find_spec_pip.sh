#!/usr/bin/env bash
# After `importlib.util.find_spec("pip")` setuptools cannot be imported on Python 3.11, nor what needs it.
#
# Versions: setuptools 84.2.1.
#
# setuptools' hook replaces the standard library's distutils, and is a finder on sys.meta_path. Asked for `pip`, even by a
# program that only wants to know whether pip is there, it takes the process for pip's own and withdraws its distutils
# for good. A later `import setuptools` ends in an AssertionError; so does torch.utils.cpp_extension, which imports it.
# Python 3.12 has no distutils, and its hook does nothing. sys.path can be searched instead.
#
# Output seen:
#   first setuptools, then find_spec('pip'): imported
#   first find_spec('pip'), then setuptools: AssertionError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "${work}"' EXIT
cd "${work}"
python3.11 -m venv venv
venv/bin/pip install --quiet setuptools==84.2.1
for order in "setuptools pip" "pip setuptools"; do
    venv/bin/python - "${order}" <<'PYTHON'
import importlib
import importlib.util
import sys

order = sys.argv[1].split()
found = "imported"
for name in order:
    try:
        if name == "pip":
            assert importlib.util.find_spec("pip") is not None, "there is no pip here"
        else:
            importlib.import_module("setuptools")
    except AssertionError as error:
        assert "distutils" in str(error), error
        found = "AssertionError"
words = {"pip": "find_spec('pip')", "setuptools": "setuptools"}
print(f"first {words[order[0]]}, then {words[order[1]]}: {found}")
assert found == ("AssertionError" if order[0] == "pip" else "imported"), "the behaviour has changed"
PYTHON
done
