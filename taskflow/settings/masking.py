"""A broker's URL as it may be shown: where jobs live, and how it is spoken to, without a secret."""

from __future__ import annotations

import re

from taskflow.settings.reference import SCHEMES

# A user is shown only beside a password: alone, it may be one. No "@" further on, and a port in digits: otherwise
# where the password ends is a guess.
_HOST = r"(?:\[[0-9a-fA-F:.]+\]|[\w.-]*)(?::\d{1,5})?"
_PLAIN_URL = re.compile(
    r"[a-z+]+://"
    r"(?:(?P<user>[\w.-]*)(?P<colon>:?)[^@/?#]*@)?"
    rf"(?P<where>{_HOST}(?:,{_HOST})*(?:/[\w.,/-]*)?)"
    r"(?P<query>\?[^@#]*)?"
)

_NUMBER = re.compile(r"\d{1,6}(?:\.\d{1,6})?")
_SWITCH = re.compile(r"(?i)true|false|yes|no|on|off|1|0")
# Options of the drivers and ours that are numbers or modes, with what they may be: nothing else is shown.
_HARMLESS = {
    **dict.fromkeys(("db", "socket_timeout", "socket_connect_timeout", "health_check_interval", "protocol"), _NUMBER),
    **dict.fromkeys(("port", "max_connections", "connect_timeout"), _NUMBER),
    **dict.fromkeys(("listen", "socket_keepalive", "retry_on_timeout", "ssl_check_hostname"), _SWITCH),
    "ssl_cert_reqs": re.compile("none|optional|required"),
    "sslmode": re.compile("disable|allow|prefer|require|verify-ca|verify-full"),
    "target_session_attrs": re.compile("any|primary|standby|read-write|read-only|prefer-standby"),
}


def mask_url(url: str) -> str:
    """A broker's URL without its password; less is shown when it is not certain where that ends."""
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        return f"sqlite://{rest.partition('?')[0]}"
    found = _PLAIN_URL.fullmatch(url)
    if found is None:
        return f"{scheme}://***" if scheme in SCHEMES else "***"
    who = ""
    if "@" in url:
        who = f"{found['user']}:***@" if found["user"] and found["colon"] else "***@"
    return f"{scheme}://{who}{found['where']}{_shown_options(found['query'])}"


def _shown_options(query: str | None) -> str:
    """Those that say how, as they stand, and `***` for all others: the name of an unknown one may be a secret, too."""
    if not query:
        return ""
    options = query[1:].split("&")
    shown = [one for one in options if _is_harmless(*one.partition("=")[::2])]
    return "?" + "&".join(shown if len(shown) == len(options) else [*shown, "***"])


def _is_harmless(name: str, value: str) -> bool:
    return name in _HARMLESS and _HARMLESS[name].fullmatch(value) is not None
