"""Who may do what over HTTP: tokens, a reverse proxy's headers, and the roles that they give; rules alone, no I/O."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from engine.errors import SettingsError
from engine.settings import Settings, is_loopback

#: What is shorter can be guessed.
MIN_TOKEN_CHARACTERS = 16
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_TOKEN = re.compile(r"[\x21-\x7e]+")
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]+")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Role(StrEnum):
    """What somebody may do."""

    READ = "read"  #: look at everything
    OPERATE = "operate"  #: also do what writes to the topics

    def allows(self, method: str) -> bool:
        """Whether a request of this method may be made."""
        return self is Role.OPERATE or method in _SAFE_METHODS


def is_unsafe(method: str) -> bool:
    """Whether requests of this method change something."""
    return method not in _SAFE_METHODS


class Visitor(msgspec.Struct, frozen=True):
    """Who makes a request."""

    role: Role
    #: As the proxy calls them; empty where nobody has to say who they are, and for tokens.
    name: str = ""
    #: What the header ``x-csrf-token`` of an unsafe request must say; empty where none is needed.
    csrf: str = ""
    #: Whether they logged in here, and so may log out.
    has_session: bool = False


#: Where nothing is configured and only this machine can connect.
ANYBODY_HERE = Visitor(Role.OPERATE)


class Access:
    """What the settings say of who may do what."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError for a token that is too weak, or a proxy without addresses."""
        #: By role, the stronger one first.
        self._tokens: list[tuple[Role, bytes]] = []
        for role, key in ((Role.OPERATE, "http_token"), (Role.READ, "http_read_token")):
            secret = getattr(settings, key)
            if secret is not None:
                _check_token(key, secret.reveal())
                self._tokens.append((role, secret.reveal().encode()))
        if len({token for _, token in self._tokens}) < len(self._tokens):
            cause, remedy = "is the same as http_token", "Make another one; it could do more than read."
            raise SettingsError("http_read_token", "***", cause, remedy)
        self._user_header = _header("http_user_header", settings.http_user_header)
        self._role_header = _header("http_role_header", settings.http_role_header)
        self._proxies = [_network(text) for text in settings.http_proxies]
        is_idle = bool(self._proxies) and not (self._user_header or self._tokens)
        if is_idle or (self._user_header and not self._proxies) or (self._role_header and not self._user_header):
            cause = "http_user_header needs http_proxies, http_proxies that or a token, and http_role_header needs both"
            remedy = "Name the header with the user's name, and the addresses of the proxy that sets it."
            raise SettingsError("http_user_header", settings.http_user_header, cause, remedy)

    @property
    def is_on(self) -> bool:
        """Whether anybody has to say who they are."""
        return bool(self._tokens or self._user_header)

    @property
    def has_tokens(self) -> bool:
        """Whether one can log in with a token."""
        return bool(self._tokens)

    @property
    def keys(self) -> Mapping[Role, bytes]:
        """What sessions of each role are signed with: they end when the token changes."""
        return dict(self._tokens)

    def by_token(self, text: str) -> Role | None:
        """The role that a token gives. Takes as long whatever it is compared with."""
        given = text.encode(errors="replace")
        found = [role for role, token in self._tokens if hmac.compare_digest(given, token)]
        return found[0] if found else None

    def is_proxy(self, peer: str) -> bool:
        """Whether the headers of that address are believed."""
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False  # no address: a socket of another kind
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._proxies)

    def by_proxy(self, peer: str, headers: Iterable[tuple[str, str]]) -> Visitor | None:
        """Whom a reverse proxy lets in, without a role header to read only; None where it is no proxy or names nobody."""
        if not self.is_proxy(peer):
            return None
        given = [(name.lower(), value.strip()) for name, value in headers]
        users = [value for name, value in given if name == self._user_header]
        roles = [value for name, value in given if name == self._role_header]
        # Twice the same header is one of the sender's own beside that of the proxy.
        if len(users) != 1 or not users[0] or len(roles) > 1:
            return None
        try:
            role = Role(roles[0].lower()) if self._role_header and roles else None if self._role_header else Role.READ
        except ValueError:
            return None  # a role of somebody else's system: it allows nothing here
        return None if role is None else Visitor(role, users[0][:100])


def check_access(settings: Settings) -> Access:
    """The rules of a dashboard. Raises SettingsError where it would be open to others than this machine."""
    access = Access(settings)
    host = settings.http.rpartition(":")[0]
    if not access.is_on and not is_loopback(host):
        cause = "would let anybody who reaches this machine see and do everything"
        remedy = (
            "Set http_token (and http_read_token), or http_user_header with http_proxies where a reverse proxy"
            " says who it is; or listen on 127.0.0.1."
        )
        raise SettingsError("http", settings.http, cause, remedy)
    return access


def _check_token(key: str, token: str) -> None:
    if len(token) < MIN_TOKEN_CHARACTERS or not _TOKEN.fullmatch(token):
        cause = f"must have at least {MIN_TOKEN_CHARACTERS} characters of ASCII, without spaces"
        remedy = "Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        raise SettingsError(key, "***", cause, remedy)


def _header(key: str, name: str) -> str:
    if name and not _HEADER_NAME.fullmatch(name):
        raise SettingsError(key, name, "is no name of a header", "Write it like X-Forwarded-User.")
    return name.lower()


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        remedy = "Write 10.0.0.7 or 10.0.0.0/24."
        raise SettingsError("http_proxies", text, "is no address and no network", remedy) from error
