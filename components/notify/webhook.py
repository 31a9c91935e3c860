"""Telling a Slack-compatible webhook. Its URL is a secret: read when it is needed, in no message, in no log."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dermaflow.errors import InputError

URL, URL_FILE = "DERMAFLOW_WEBHOOK_URL", "DERMAFLOW_WEBHOOK_URL_FILE"
_MOUNTED = Path("/var/run/secrets/dermaflow-webhook/url")  # of infra/tasks.yaml
_ATTEMPTS = 4
_PAUSE = 1.0  # seconds before the second attempt; doubled each time
_TIMEOUT = 10.0  # seconds for an answer
_LONGEST_TEXT = 2900  # characters: Slack takes 3,000 in a section


def webhook_url() -> str | None:
    """The URL: from the file that DERMAFLOW_WEBHOOK_URL_FILE names or that a pod has mounted, or DERMAFLOW_WEBHOOK_URL.

    Raises
    ------
    InputError
        when the file that is named is not there, or what is given is no http(s) URL.
    """
    named = os.environ.get(URL_FILE)
    if named and not Path(named).is_file():
        raise InputError(f"{URL_FILE}: {named} is not a file; put the webhook's URL there, or take the variable away")
    path = Path(named) if named else _MOUNTED
    url = path.read_text().strip() if path.is_file() else os.environ.get(URL, "").strip()
    if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
        raise InputError(f"{URL}: what is given there is no http:// or https:// URL (it is not shown, being a secret)")
    return url or None


def message(title: str, lines: list[str], links: dict[str, str]) -> dict[str, Any]:
    """What is sent: `text` for what shows one line, and a section for what shows more."""
    body = "\n".join([f"*{_escaped(title)}*", *map(_escaped, lines)])[:_LONGEST_TEXT]
    shown = [f"<{place}|{name}>" if "://" in place else f"{name}: `{_escaped(place)}`" for name, place in links.items()]
    blocks = [{"type": "section", "text": {"type": "mrkdwn", "text": body}}]
    if shown:
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": "\n".join(shown)[:_LONGEST_TEXT]}})
    return {"text": _escaped(title), "blocks": blocks}


def send(url: str, payload: dict[str, Any], pause: float = _PAUSE) -> None:
    """Post a message; what may pass is tried again.

    Raises
    ------
    InputError
        when it is not taken. The message names the host alone.
    """
    host = urlsplit(url).hostname
    why = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        why, again = _posted(url, payload)
        if not why:
            return
        if not again:
            break
    raise InputError(f"the webhook at {host} did not take the message: {why}; correct the secret, or the server")


def _posted(url: str, payload: dict[str, Any]) -> tuple[str, bool]:
    """Why it was not taken ("" when it was), and whether that may pass."""
    headers = {"Content-Type": "application/json", "User-Agent": "dermaflow"}
    request = urllib.request.Request(url, json.dumps(payload).encode(), headers, method="POST")  # noqa: S310 - http(s), see above
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(request, timeout=_TIMEOUT):
            return "", False
    except urllib.error.HTTPError as error:
        return f"it answers {error.code}", error.code >= 500 or error.code == 429
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        return f"it does not answer ({type(reason).__name__})", True


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the message somewhere that nobody named."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none."""


def _escaped(text: str) -> str:
    """As Slack asks: a step's words make no link and call nobody."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
