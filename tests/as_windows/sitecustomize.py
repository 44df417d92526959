"""Lets a process meet some of what Windows does, on any system: modules of this program
find no name of POSIX alone in `os`, `signal` and `mmap`, cannot import `fcntl` and its
like, and a file that this process has open can be neither replaced nor removed.

Python imports it at its start where this folder is on PYTHONPATH. What happens to open
files is written to AS_WINDOWS. Packages of others are left alone: they know Windows by
`sys.platform`.
"""

import builtins
import os
import sys
from pathlib import Path
from types import ModuleType

OURS = ("toolkit", "jobs", "extensions", "run", "launch")
MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
NAMES = {
    "mmap": "MADV_ MAP_ PROT_",
    "signal": "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGSTOP SIGTSTP SIGUSR SIGWINCH alarm getitimer "
    "pause pthread_ set_wakeup setitimer siginterrupt sigpending sigtimedwait sigwait ITIMER_",
    "os": "O_CLOEXEC O_DIRECT O_NOFOLLOW O_NONBLOCK WNOHANG chown confstr ctermid fchmod fchown fdatasync fork "
    "fpathconf fstatvfs getegid geteuid getgid getgroups getloadavg getpgid getpgrp getpriority getresuid getsid "
    "getuid killpg lchown lockf mkfifo nice openpty pathconf pipe2 posix_ pread preadv pwrite readv "
    "register_at_fork sched_ sendfile setegid seteuid setgid setpgid setpriority setsid setuid statvfs sync sysconf "
    "ttyname uname wait3 wait4 waitid writev",
}
"""Module -> how the names begin that Windows has not."""


class Without(ModuleType):
    """A module without some of its names."""

    def __init__(self, real: ModuleType) -> None:
        super().__init__(real.__name__)
        self.__dict__["real"] = real

    def __getattr__(self, name: str) -> object:
        if name.startswith(tuple(NAMES[self.__name__].split())):
            raise AttributeError(f"Windows has no {self.__name__}.{name}")
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.real, name, value)


real_import = builtins.__import__
without: dict[str, ModuleType] = {}


def import_(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__") or ""
    is_ours = importer == "__main__" or importer.partition(".")[0] in OURS
    if is_ours and not level:
        if name in MODULES:
            raise ImportError(f"Windows has no module {name}", name=name)
        if name in NAMES:
            real = real_import(name, globals, locals, fromlist, level)
            return without.setdefault(name, Without(real))
    return real_import(name, globals, locals, fromlist, level)


builtins.__import__ = import_


def refuse(event: str, arguments: tuple) -> None:
    """Of the files that this process has open, as Windows does."""
    if event in ("os.rename", "os.remove") and arguments[0] is not None:
        paths = [str(arguments[0])] + [str(arguments[1])] * (event == "os.rename")
        if os.path.isdir(paths[0]):
            return
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        opened = {line[line.index("/") :] for line in maps if "/" in line}
        opened |= {os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()}
        for path in paths:
            if os.path.realpath(path) in opened:
                with open(os.environ["AS_WINDOWS"], "a", encoding="utf-8") as file:
                    file.write(f"{event} of {path}, which is open\n")


if "AS_WINDOWS" in os.environ and sys.platform == "linux":
    sys.addaudithook(refuse)
