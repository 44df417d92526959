"""The page /system: GPUs, memory, disks, versions, and the page's own settings.

It also has the requests that set the price per hour and the theme, that prune the
cache, and that tell a supervisor that the page is up (`/healthz`). Pruning is a command
in the queue: nothing is deleted here.

`extensions.tools.ui.app` serves the views.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from extensions.tools.shared.html_page import texts
from extensions.tools.ui import comfyui
from extensions.tools.ui.commands import run_py
from extensions.tools.ui.config import MOST_PRICE, TOKEN_VARIABLES, token
from extensions.tools.ui.guard import HOSTS_VARIABLE
from extensions.tools.ui.machine import main_memory
from extensions.tools.ui.state import (
    THEME_COOKIE,
    THEMES,
    Form,
    Ui,
    posted,
    refusals,
    render,
    run_id,
    ui_of,
)
from extensions.tools.ui.views.queue import enqueue
from toolkit.errors import UserError
from toolkit.files.writing import CACHE_FOLDER, TOOLKIT_ROOT, nearest_folder
from toolkit.system.host_memory import free_host_memory
from toolkit.system.nvidia import ask_nvml
from toolkit.version import NAME, VERSION

PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors")


def healthz(request: Request) -> Response:
    """Tells a supervisor that the page is up."""
    return PlainTextResponse("ok\n")


def status(request: Request) -> Response:
    """The bar at the bottom of every page, alone."""
    return render(request, "status_bar.html.j2")


def index(request: Request) -> Response:
    """The machine."""
    return _page(request)


def _page(
    request: Request, faults: Mapping[str, str] | None = None, code: int = 200
) -> Response:
    """faults: field -> what is wrong with it."""
    ui = ui_of(request)
    driver, gpus = ask_nvml()
    return render(
        request,
        "system.html.j2",
        code,
        faults=faults or {},
        comfyui=comfyui.kept_folder(ui),
        driver=driver,
        gpus=gpus,
        memory=(free_host_memory(), main_memory()),
        disks=_disks(ui),
        cache=ui.kept("cache", lambda: _cache_bytes(ui)),
        jobs=[(run_id(ui, run.folder), run.name) for run in ui.runs() if run.config],
        versions=ui.kept("versions", _versions),
        extensions=ui.kept("extensions", _extensions),
        token_kind="set" if token() else "made" if ui.token else "none",
        token_variables=TOKEN_VARIABLES,
        hosts_variable=HOSTS_VARIABLE,
        hosts=os.environ.get(HOSTS_VARIABLE, ""),
    )


def _disks(ui: Ui) -> list[tuple[str, Path, int, int]]:
    """Key of its name, folder, free and all bytes of the disk where each folder is, or
    will be."""
    disks = []
    for key, folder in (("output", ui.output), ("datasets", ui.datasets)):
        with suppress(OSError):  # some network mounts do not say it
            usage = shutil.disk_usage(nearest_folder(folder.absolute()))
            disks.append((key, folder.absolute(), usage.free, usage.total))
    return disks


def _cache_bytes(ui: Ui) -> int:
    """Bytes of the cached latents and texts."""
    return sum(
        os.lstat(os.path.join(top, name)).st_size
        for top, _, names in os.walk(ui.output / CACHE_FOLDER)
        for name in names
        if os.path.lexists(os.path.join(top, name))
    )


def _versions() -> dict[str, str]:
    """Name -> version of the program, Python and the packages; empty where it is not
    installed."""
    versions = {NAME: f"{VERSION} {_revision()}", "Python": platform.python_version()}
    for name in PACKAGES:
        versions[name] = ""
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _revision() -> str:
    """The commit that the program is at; empty outside of a repository."""
    command = ["git", "-C", str(TOOLKIT_ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=5
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _extensions() -> dict[str, list[tuple[str, str]]]:
    """Folder -> uid and name of each of its process types; `broken` and why, where it
    could not be imported."""
    _, listing, _ = run_py("--list-extensions")
    extensions: dict[str, list[tuple[str, str]]] = {}
    for line in listing.splitlines()[1:]:
        uid, _, rest = line.partition("  ")
        name, _, folder = rest.rpartition("  ")
        extensions.setdefault(folder, []).append((uid, name.strip()))
    return extensions


@posted()
def set_price(request: Request, form: Form) -> Response:
    """Keeps the price per hour."""
    ui = ui_of(request)
    text = form.get("price", "")
    try:
        price = float(text.replace(",", ".") or 0)
    except ValueError:
        price = -1
    if not 0 <= price <= MOST_PRICE:
        fault = texts()["system"]["wrong_price"].format(price=text)
        return _page(request, {"price": fault}, 400)
    with refusals():
        ui.keep(price_per_hour=price)
    ui.price_per_hour = price
    return RedirectResponse("/system", 303)


@posted()
def set_comfyui(request: Request, form: Form) -> Response:
    """Keeps the folder of ComfyUI. Empty: none."""
    folder = form.get("folder", "")
    try:
        found = str(comfyui.loras_folder(folder)) if folder.strip() else ""
    except UserError as error:
        return _page(request, {"comfyui": str(error)}, 400)
    with refusals():
        ui_of(request).keep(**{comfyui.KEY: found})
    return RedirectResponse("/system#comfyui", 303)


@posted()
def prune(request: Request, form: Form) -> Response:
    """Lets `run.py cache --prune` wait in the queue, for the saved job of a run: what
    it does not use is deleted."""
    ui = ui_of(request)
    run = ui.run(form.get("run", ""))
    if run.config is None:
        raise HTTPException(409, f"{run.folder} has no saved job.")
    enqueue(
        ui, ["cache", str(run.config.absolute()), "--prune=true"], f"cache {run.name}"
    )
    return RedirectResponse("/queue", 303)


@posted()
def set_theme(request: Request, form: Form) -> Response:
    """Light, dark, or as the system has it; then back to the page where it was
    chosen."""
    theme = form.get("theme", "")
    answer = RedirectResponse(_local(form.get("back", "/")), 303)
    answer.set_cookie(
        THEME_COOKIE, theme if theme in THEMES else THEMES[0], 10**8, samesite="strict"
    )
    return answer


def _local(address: str) -> str:
    """An address of this server, whatever was given."""
    if address.isprintable():
        return "/" + address.lstrip("/\\")
    return "/"
