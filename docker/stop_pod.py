"""Asks RunPod to stop this pod; the exit code is 1 when that did not work, after saying
how to do it by hand.

RUNPOD_POD_ID and RUNPOD_API_KEY are set by RunPod in every pod. The key goes into a
header only: it is never part of a command line, a message or a file, and a redirect is
not followed with it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

STOP_URL = "https://api.runpod.io/v2/pods/{id}/action"
"""REST v2: https://docs.runpod.io/api-reference-v2/migrate-from-v1 (v1 is to be retired
on 2026-12-01)."""

PAUSES = "5 15"
"""Seconds between the tries."""

SECONDS = 20
"""Timeout for a response, in seconds."""


def main() -> int:
    pod, key = os.environ.get("RUNPOD_POD_ID", ""), os.environ.get("RUNPOD_API_KEY", "")
    if not (pod and key):
        say("this pod cannot stop itself: RUNPOD_POD_ID or RUNPOD_API_KEY is not set.")
        return by_hand(pod)
    url = os.environ.get("RUNPOD_STOP_URL", STOP_URL).replace(
        "{id}", quote(pod, safe="")
    )
    if not may_send_key(url):
        say("RUNPOD_STOP_URL must start with https://")
        return by_hand(pod)
    pauses = [float(pause) for pause in os.environ.get("STOP_PAUSES", PAUSES).split()]
    for attempt, pause in enumerate([*pauses, None], start=1):
        problem = ask_to_stop(url, key)
        if problem is None:
            say(f"RunPod was asked to stop the pod {pod}.")
            return 0
        say(f"try {attempt} to stop the pod failed: {problem}")
        if pause is not None:
            time.sleep(pause)
    return by_hand(pod)


def ask_to_stop(url: str, key: str) -> str | None:
    """None, or why it did not work."""
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "User-Agent": "atelier",
    }
    request = Request(
        url,
        data=json.dumps({"action": "stop"}).encode(),
        headers=headers,
        method="POST",
    )
    try:
        with build_opener(NoRedirect).open(request, timeout=SECONDS):
            return None
    except HTTPError as error:
        return f"HTTP {error.code}"
    except (OSError, HTTPException, ValueError) as error:
        return type(getattr(error, "reason", error)).__name__


class NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def may_send_key(url: str) -> bool:
    """https only; ALLOW_HTTP_LOCALHOST=1 is for tests."""
    parts = urlsplit(url)
    local = parts.scheme == "http" and parts.hostname == "127.0.0.1"
    return parts.scheme == "https" or (
        local and os.environ.get("ALLOW_HTTP_LOCALHOST") == "1"
    )


def by_hand(pod: str) -> int:
    say(
        f"STOP IT BY HAND: https://console.runpod.io/pods, or: runpodctl pod stop {pod or '<pod id>'}"
    )
    return 1


def say(text: str) -> None:
    print(f"start: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
