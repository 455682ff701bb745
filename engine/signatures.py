"""Signatures of webhooks: HMAC-SHA256 over the time and the body, so that a receiver knows who sent it, and when; pure."""

from __future__ import annotations

import hashlib
import hmac

DELIVERY_HEADER = "x-engine-delivery"
TIMESTAMP_HEADER = "x-engine-timestamp"
SIGNATURE_HEADER = "x-engine-signature"

_PREFIX = "sha256="
#: How old a request may be for a receiver: one that somebody kept and sends again is refused.
TOLERANCE_SECONDS = 300.0


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """The header: ``sha256=`` and the hex digest over ``{timestamp}.{body}``, with ``timestamp`` in seconds since the epoch."""
    return _PREFIX + hmac.new(secret.encode(), b"%d.%b" % (timestamp, body), hashlib.sha256).hexdigest()


def is_genuine(secret: str, timestamp: str, signature: str, body: bytes, now: float) -> bool:
    """What a receiver asks of a request's headers and body."""
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
        return False
    if abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    return hmac.compare_digest(sign(secret, int(timestamp), body).encode(), signature.encode())
