"""Where a request comes from, by its Host, its Origin and what a browser says of its site; and what browsers are told."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from engine.settings import is_loopback

#: No script, style or image but ours, no frame around us, no form to elsewhere.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
SECURITY_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not "no-referrer", with which browsers hide the origin of our own forms, too.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


def is_from_here(headers: Mapping[str, str], host: str) -> bool:
    """Whether a page of ours may have made a request, or a program: a page of another site has not. ``host`` is whom it means.

    Browsers name the origin of all requests that change something; programs name none.
    """
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or (origin.partition("://")[2].lower() == host.lower() and host != "")


def is_of_browser(headers: Mapping[str, str]) -> bool:
    """Whether a browser made it, as far as it says so."""
    return "sec-fetch-site" in headers or "origin" in headers


def names_this_machine(host: str) -> bool:
    """Whether the Host of a request is loopback.

    A web page can make its own name point to this machine; it cannot choose the Host that is sent along.
    """
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False  # brackets that do not close, say


def local_path(path: str) -> str:
    """``path`` where it is one of ours, else the start page: what a login leads to must not be another site."""
    plain = path.isprintable() and "\\" not in path
    return path if plain and path.startswith("/") and not path.startswith("//") else "/"


def sender(peer: str) -> str:
    """Whom a peer counts as: its address, or the network that one subscriber has in IPv6."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
