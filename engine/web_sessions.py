"""Sessions of browsers: signed values with an end, which say a role and never the token; rules alone, no I/O.

A session is signed with the token that it was begun with, so nothing is kept here, every dashboard of the same settings takes
it, and it ends when the token is changed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping

from engine.web_roles import Role, Visitor

#: Twelve hours: a working day, and no more.
SESSION_SECONDS = 12 * 3_600
#: Of one session's random part.
NONCE_BYTES = 16

_VALUE = re.compile(r"(read|operate)\.(\d{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})")


def begin(key: bytes, role: Role, now: float, nonce: bytes) -> str:
    """The value of a new session, for a cookie."""
    content = f"{role.value}.{int(now) + SESSION_SECONDS}.{nonce.hex()}"
    return f"{content}.{_sign(key, 'session', content)}"


def visitor_of(value: str, keys: Mapping[Role, bytes], now: float) -> Visitor | None:
    """Whose session it is; None where it is over, or none of ours."""
    found = _VALUE.fullmatch(value)
    if found is None:
        return None
    role, ends_at, nonce, signature = Role(found[1]), int(found[2]), found[3], found[4]
    key = keys.get(role)
    if key is None or not hmac.compare_digest(signature, _sign(key, "session", f"{role.value}.{ends_at}.{nonce}")):
        return None
    # One that ends later than a new one would was signed by a clock that went wrong.
    if not now < ends_at <= now + SESSION_SECONDS:
        return None
    return Visitor(role, csrf=csrf_of(key, value), has_session=True)


def csrf_of(key: bytes, identity: str) -> str:
    """What requests of a session, or of a proxy's user, have to repeat in a header, which no other site's page knows."""
    return _sign(key, "csrf", identity)


def cookie_name(app: str, *, is_https: bool) -> str:
    """Cookies know no ports, so two dashboards on one machine need two names."""
    name = f"engine-{hashlib.blake2b(app.encode(), digest_size=4).hexdigest()}"
    return f"__Host-{name}" if is_https else name


def cookie(name: str, value: str, *, is_https: bool, seconds: int = SESSION_SECONDS) -> str:
    """The text of ``set-cookie``."""
    return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{'; Secure' if is_https else ''}"


def _sign(key: bytes, purpose: str, content: str) -> str:
    return hmac.new(key, f"kafka-dask-engine/{purpose}/{content}".encode(), hashlib.sha256).hexdigest()
