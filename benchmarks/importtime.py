"""Reads what `python -X importtime` prints: which imports cost most, and who asked for
them.

Each line is `import time: <self us> | <cumulative us> | <indent><module>`; a module
stands below everything it imported, two spaces less indented.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

OWN = {"__main__", "run", "jobs", "toolkit", "extensions"}
ROWS = 12

_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|( +)(\S+)")


@dataclass(frozen=True)
class Imports:
    """Seconds spent importing; `-X importtime` itself adds to them."""

    packages: dict[str, float]
    """Top-level package -> time in its own modules, largest first."""

    asked: dict[tuple[str, str], float]
    """(module, the module of another package that imported it) -> time with all that it
    imported in turn."""

    modules: int

    @property
    def total_s(self) -> float:
        return sum(self.packages.values())

    def render(self) -> str:
        """The most expensive packages, and the most expensive import statements."""
        lines = [
            f"imports: {self.total_s:.2f} s, {self.modules} modules",
            "seconds in a package's own modules:",
        ]
        lines += [
            f"  {seconds:6.2f}  {package}"
            for package, seconds in top(self.packages).items()
        ]
        lines.append(
            "seconds with all that follows, where one package imports another:"
        )
        lines += [
            f"  {seconds:6.2f}  {module}, for {by}"
            for (module, by), seconds in top(self.asked).items()
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        return {
            "total_s": self.total_s,
            "modules": self.modules,
            "packages": top(self.packages),
            "asked": {
                f"{module} for {by}": seconds
                for (module, by), seconds in top(self.asked).items()
            },
        }


def top(costs: dict, rows: int = ROWS) -> dict:
    return dict(list(costs.items())[:rows])


def parse(output: str) -> Imports:
    """From the standard error of a process; lines of anything else are passed over."""
    packages: Counter[str] = Counter()
    asked: Counter[tuple[str, str]] = Counter()
    # the modules around the current one, outermost first
    path: list[tuple[int, str]] = []
    entries = [
        match.groups() for match in map(_LINE.match, output.splitlines()) if match
    ]
    for own_us, whole_us, indent, module in reversed(entries):
        while path and path[-1][0] >= len(indent):
            path.pop()
        packages[_package(module)] += int(own_us)
        by = path[-1][1] if path else "code while it runs"
        if _package(module) not in OWN and _package(by) != _package(module):
            asked[module, by] += int(whole_us)
        path.append((len(indent), module))
    return Imports(_seconds(packages), _seconds(asked), len(entries))


def _seconds(microseconds: Counter) -> dict:
    """Largest first."""
    return {name: us / 1e6 for name, us in microseconds.most_common()}


def _package(module: str) -> str:
    return module.partition(".")[0]
