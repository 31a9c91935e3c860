"""Taking secrets out of a text before people see it: what looks like one, and what this process holds as one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

HIDDEN = "[hidden]"
_NAMES = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|COOKIE|WEBHOOK|CREDENTIAL|ACCESS_KEY|API_KEY|PRIVATE_KEY", re.IGNORECASE)
_SHORTEST = 6  # characters of a variable's value that is taken for a secret
_SAID_BY_NAME = (  # password=..., "token": "..." and their like
    r"(\b[\w-]*(?:password|passwd|secret|token|api[_-]?key|access[_-]?key|authorization)[\w-]*[\"']?\s*[=:]\s*[\"']?)"
    r"(?!\[hidden\])(?!Bearer\b|Basic\b)[^\s,;\"'&]+"
)
_PATTERNS = tuple(
    (re.compile(pattern, flags), replacement)
    for pattern, flags, replacement in (
        (r"-----BEGIN [A-Z ]+-----.*?(-----END [A-Z ]+-----|\Z)", re.DOTALL, HIDDEN),
        (r"(?<=://)[^/\s@]+:[^/\s]*@(?=[\w\[])", 0, f"{HIDDEN}@"),  # user and password of a URL; the password may hold an @
        (r"(https?://hooks\.[\w.-]+/)\S+", 0, rf"\1{HIDDEN}"),  # webhooks: the path is the secret
        (r"([?&](?:X-Amz-\w+|Signature|sig|token|key|access_token)=)[^&\s\"']+", re.IGNORECASE, rf"\1{HIDDEN}"),
        (r"\b((?:Bearer|Basic)\s+)[\w.~+/=-]{8,}", re.IGNORECASE, rf"\1{HIDDEN}"),
        (_SAID_BY_NAME, re.IGNORECASE, rf"\1{HIDDEN}"),
        (r"\b(?:AKIA|ASIA|AROA|AIDA)[0-9A-Z]{12,}\b", 0, HIDDEN),
        (r"\b(?:gh[pousr]_|github_pat_|xox[abprs]-|glpat-|hf_|sk-)[\w-]{10,}", 0, HIDDEN),
        (r"\beyJ[\w-]{10,}\.[\w-]+(?:\.[\w-]*)?", 0, HIDDEN),  # JSON web tokens
        (  # AWS secret keys: 40 characters with small and large letters and digits, which no digest has
            r"(?<![A-Za-z0-9/+=])(?=[^\s]*[a-z])(?=[^\s]*[A-Z])(?=[^\s]*[0-9])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])",
            0,
            HIDDEN,
        ),
    )
)


def scrub(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with `[hidden]` in the place of secrets.

    Parameters
    ----------
    environment: variables whose values are hidden where their names say that they are secrets; by default this process's.
    """
    held = os.environ if environment is None else environment
    values = {value for name, value in held.items() if _NAMES.search(name) and len(value) >= _SHORTEST}
    for value in sorted(values, key=len, reverse=True):  # the longest first: one may be part of another
        text = text.replace(value, HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
