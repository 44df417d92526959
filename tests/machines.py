"""Two "machines" on one: each with its own network, file systems, host name and
processes, and a cable between them.

A machine is a set of Linux namespaces. Its `/tmp`, `/dev/shm` and home are its own; the
shared folder is at the same path on both, as a network volume would be. Nothing of it
has a name outside: machines of several tests do not meet, and all of one is gone with
the process that made it. Launchers are `launch.py`, forked into a machine by the
`Nursery`, and fork their workers: to import everything once more in each process would
take most of the time of a test.

Run as a script this is the first process of a machine.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

# with it comes torch, which the first process of a machine does without
if TYPE_CHECKING:
    from tests.faults.nursery import Child, Fault, Nursery

ROOT = Path(__file__).resolve().parents[1]
PORT = 29500
CEILING_S = 120
"""Seconds that a test waits for anything, before it fails."""

ADDRESSES = {"node0": "10.36.0.1", "node1": "10.36.0.2"}
NAMESPACES = ("--net", "--mount", "--uts", "--pid")


@cache
def why_not() -> str:
    """Why no machine can be made here; empty where one can."""
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        return "/proc does not tell the children of a process: not Linux, or built without it"
    if absent := [
        tool
        for tool in ("unshare", "nsenter", "mount", "ip")
        if shutil.which(tool) is None
    ]:
        return f"no {absent[0]} (util-linux, iproute2)"
    needed = "mount -t tmpfs none /tmp && ip link add eth0 type veth"
    try:
        tried = subprocess.run(
            ["unshare", *NAMESPACES, "--fork", "--mount-proc", "sh", "-c", needed],
            timeout=60,
            **_SAID,
        )
    except subprocess.TimeoutExpired:
        return "namespaces cannot be made: no answer within a minute"
    return (
        f"namespaces may not be made: {tried.stdout.strip()}"
        if tried.returncode
        else ""
    )


_SAID: dict[str, Any] = {
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
    "text": True,
}


@dataclass
class Launched:
    """A launcher on a machine, and what it and its workers print."""

    child: Child
    """Outside of the machine: waits for the launcher, and leaves with its code."""

    @property
    def said(self) -> str:
        return self.child.output

    @cached_property
    def launcher(self) -> int:
        """Its process id, as this process sees it."""
        return _wait_for(lambda: _children(self.child.pid))[0]

    @cached_property
    def worker(self) -> int:
        """The first one, once it has been started."""
        return _wait_for(lambda: _children(self.launcher))[0]

    def wait_for_worker(self) -> None:
        """Waits for its end, which its launcher may not notice."""
        try:
            _wait_for(lambda: _has_ended(self.worker))
        except AssertionError:
            raise AssertionError(
                f"still running after {CEILING_S} s:\n{self.said}"
            ) from None

    def wait(self) -> int:
        """The exit code. Fails when it has not ended by then."""
        return self.child.wait(CEILING_S)


@dataclass
class Machine:
    """A set of namespaces, alive as long as its first process."""

    index: int
    shared: Path
    nursery: Nursery
    launched: list[Launched] = field(default_factory=list)
    _holder: subprocess.Popen | None = None

    @property
    def name(self) -> str:
        return [*ADDRESSES][self.index]

    @property
    def address(self) -> str:
        return ADDRESSES[self.name]

    def start(self) -> None:
        visible = [str(self.shared), str(ROOT), sys.prefix, sys.base_prefix]
        order = json.dumps({"name": self.name, "visible": visible})
        command = [
            "unshare",
            *NAMESPACES,
            "--fork",
            "--kill-child",
            "--mount-proc",
            sys.executable,
            __file__,
        ]
        self._holder = subprocess.Popen(
            [*command, order], stdin=subprocess.PIPE, **_SAID
        )

    @cached_property
    def first(self) -> int:
        """Its first process, once the machine is ready."""
        said = self._holder.stdout.readline()
        assert said == "ready\n", said + self._holder.stdout.read()
        return _children(self._holder.pid)[0]

    def command(self, *words: object) -> list[str]:
        """A command as it runs on this machine."""
        return [
            "nsenter",
            "-t",
            str(self.first),
            "-n",
            "-m",
            "-u",
            "-p",
            f"--wd={ROOT}",
            *map(str, words),
        ]

    def does(self, *words: object) -> None:
        subprocess.run(self.command(*words), check=True, **_SAID)

    def hide(self, folder: Path) -> None:
        """From here on this machine has an empty folder of its own in its place."""
        self.does("mount", "-t", "tmpfs", "none", folder)

    def replace_folder(self, folder: Path, changed: str) -> None:
        """From here on this machine has a copy of its own, in which one file of JSON
        ends in another line."""
        copy = f"/tmp/copy_of_{folder.name}"
        self.does("cp", "-r", folder, copy)
        self.does("sh", "-c", f"echo >> {copy}/{changed}")
        self.does("mount", "--bind", copy, folder)

    def launch(self, cwd: Path, *words: object) -> None:
        """Starts torchrun in `cwd`."""
        # not at the top: as a script this module finds no `toolkit`
        from toolkit.files.writing import (
            python_path,
        )

        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HOME": "/tmp",
            "PYTHONPATH": python_path(),
        }
        name = f"{self.name}.{len(self.launched)}"
        child = self.nursery.fork(
            [self.first, *words],
            cwd,
            name,
            main="tests.machines",
            environment=environment,
        )
        self.launched.append(Launched(child))

    def end(self) -> None:
        """Everything on it is gone."""
        if self._holder:
            # and with it the first process, and with that all others
            self._holder.kill()
            self._holder.communicate()
            self._holder = None
        for launched in self.launched:
            launched.wait()


@dataclass
class TwoMachines:
    """Two machines and the cable between them."""

    shared: Path
    nursery: Nursery
    both: list[Machine] = field(default_factory=list)

    def start(self) -> None:
        for index in range(2):
            self.both.append(Machine(index, self.shared, self.nursery))
            self.both[-1].start()
        self._connect()

    def _connect(self) -> None:
        first, second = (str(machine.first) for machine in self.both)
        ends = [
            "eth0",
            "netns",
            first,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            second,
        ]
        subprocess.run(["ip", "link", "add", *ends], check=True)
        for machine in self.both:
            address = f"ip addr add {machine.address}/24 dev eth0"
            machine.does(
                "sh", "-c", f"{address} && ip link set lo up && ip link set eth0 up"
            )

    def cable(self, is_in: bool) -> None:
        """Connects the machines, or cuts them off from each other without a word to
        either."""
        self.both[1].does("ip", "link", "set", "eth0", "up" if is_in else "down")

    def lose(self, index: int) -> None:
        """A machine loses its power: no process of it says goodbye."""
        self.cable(False)
        self.both[index].end()

    def replace(self, index: int) -> None:
        """A new machine with the name and address of one that was lost."""
        self.both[index] = Machine(
            index, self.shared, self.nursery, launched=self.both[index].launched
        )
        self.both[index].start()
        # goes with the other end
        subprocess.run(
            self.both[1 - index].command("ip", "link", "del", "eth0"), **_SAID
        )
        self._connect()

    def torchrun(
        self,
        cwd: Path,
        *flags: str,
        faults: Sequence[Sequence[Fault]] = ((), ()),
        launcher: Sequence[str] = (),
    ) -> list[Launched]:
        """Starts `job.yaml` in `cwd` with a launcher on each machine, which meet at the
        first one. faults: of the workers of each. launcher: flags of torchrun
        besides."""
        meeting = [
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={self.both[0].address}:{PORT}",
            "--rdzv-id=job",
        ]
        flags_of_all = [
            "--nnodes=2",
            "--nproc-per-node=1",
            "--no-python",
            *meeting,
            *launcher,
        ]
        for machine, own in zip(self.both, faults, strict=True):
            worker = [json.dumps(own), "job.yaml", *flags]
            machine.launch(
                cwd, *flags_of_all, f"--local-addr={machine.address}", *worker
            )
        return [machine.launched[-1] for machine in self.both]

    def end(self) -> None:
        for machine in self.both:
            machine.end()


def two_machines(shared: Path, nursery: Nursery) -> Iterator[TwoMachines]:
    made = TwoMachines(shared, nursery)
    try:
        made.start()
        yield made
    finally:
        made.end()


def _wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + CEILING_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in {CEILING_S} s"
        time.sleep(0.01)
    return found


def _has_ended(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        )
    except OSError:
        return True


def _children(pid: int) -> list[int]:
    try:
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    except OSError:
        return []


# ------------------------------------------------------------ inside a machine


def be_the_machine(name: str, visible: Sequence[str]) -> None:
    """Makes the file systems of the machine its own, and lives until it is killed."""
    seen = [(path, os.open(path, os.O_PATH)) for path in visible]
    for hidden in ("/tmp", "/dev/shm"):
        subprocess.run(["mount", "-t", "tmpfs", "none", hidden], check=True)
    for path, handle in seen:
        if not os.path.isdir(path):  # it lies in what is hidden now
            os.makedirs(path)
            subprocess.run(
                [
                    "mount",
                    "--no-canonicalize",
                    "--bind",
                    f"/proc/{os.getpid()}/fd/{handle}",
                    path,
                ],
                check=True,
            )
    hosts = "".join(f"{address} {host}\n" for host, address in ADDRESSES.items())
    own = {
        "/proc/sys/kernel/random/boot_id": f"{name}\n",
        "/etc/hosts": f"127.0.0.1 localhost\n{hosts}",
    }
    own["/etc/resolv.conf"] = ""  # no name server: an unknown name is unknown at once
    for place, text in own.items():
        file = Path("/tmp", place.replace("/", "_"))
        file.write_text(text)
        subprocess.run(["mount", "--bind", str(file), place], check=True)
    socket.sethostname(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whose parent is gone is reaped here
    print("ready", flush=True)
    # until whoever made the machine is gone, and all on it with this process
    sys.stdin.read()


def main(arguments: Sequence[str]) -> int:
    """A launcher on the machine with this first process: enters its namespaces and is
    `launch.py`."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import (
        subprocess_handler,
    )

    import launch

    subprocess_handler.Popen = _Worker
    cwd, (first, *words) = Path.cwd(), arguments
    spaces = [
        os.open(f"/proc/{first}/ns/{kind}", os.O_RDONLY)
        for kind in ("net", "uts", "pid", "mnt")
    ]
    libc = ctypes.CDLL(None, use_errno=True)
    for space in spaces:
        if libc.setns(space, 0):
            raise OSError(ctypes.get_errno(), "setns")
    os.chdir(cwd)
    if launcher := os.fork():  # only a child is in the namespace of processes
        return os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1])
    try:
        return launch.main(words)
    except Exception:  # noqa: BLE001 - the same
        traceback.print_exc()
        return 1


class _Worker:
    """A worker, as far as torchrun asks `Popen` for one: forked, in a session of its
    own."""

    def __init__(self, args: Sequence[str], env: dict[str, str], **_: Any) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                _be_the_worker(*args, environment=env)
            except SystemExit as end:
                code = end.code
            except BaseException:  # noqa: BLE001 - as Python ends a program
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.01)
        return self.returncode


def _be_the_worker(faults: str, *arguments: str, environment: dict[str, str]) -> None:
    """What `run.py` does, with these faults."""
    import run
    from tests.faults import faults as known
    from toolkit.system.distributed import exit_process

    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        # a program that is started has none of torchrun's handlers
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    for name, *values in json.loads(faults):
        getattr(known, name)(*values)
    exit_process(run.main(arguments))


if __name__ == "__main__":
    be_the_machine(**json.loads(sys.argv[1]))
