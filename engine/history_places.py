"""Places of histories: a SQLite file by its path, a PostgreSQL database by its URL; shown without secrets. Pure."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from engine.errors import SettingsError

#: A database that lives as long as its connection.
IN_MEMORY = ":memory:"

_WORD = r"(?:[^\s:/?#@\[\]%]|%[0-9A-Fa-f]{2})*"
#: Narrower than what PostgreSQL's client takes: half of a password that is not encoded would be a host to it, and told.
_SERVER = re.compile(rf"postgres(?:ql)?://(?:{_WORD}(?::{_WORD})?@)?(?P<where>[^\s@?#]*)(?:\?(?P<query>[^\s@#]*))?")
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ENCRYPTED = frozenset({"require", "verify-ca", "verify-full"})


def is_server(place: str) -> bool:
    """Whether it is a PostgreSQL database."""
    return place.startswith(("postgresql://", "postgres://"))


def shown(place: str) -> str:
    """The place without user, password and options, for logs, errors and pages; what is shown already stays as it is."""
    if not is_server(place):
        return place
    found = _SERVER.fullmatch(place)
    return f"postgresql://{found['where'] if found else '…'}"


def check_place(place: str) -> None:
    """Raises SettingsError where it is neither a file nor a URL of PostgreSQL, without repeating a secret in it."""
    protocol = _PROTOCOL.match(place)
    if is_server(place):
        if not _SERVER.fullmatch(place):
            remedy = (
                "Write postgresql://user:password@host:5432/database, with what is special in the password percent-encoded"
                " (@ is %40, / is %2F); or leave it out, and use PGPASSWORD or ~/.pgpass."
            )
            raise SettingsError("history", "postgresql://…", "is no URL of a PostgreSQL database", remedy)
    elif protocol:
        remedy = "Name a file (/var/lib/engine/history.db) or a database (postgresql://user@host/database)."
        raise SettingsError("history", f"{protocol[1]}://…", "is neither a SQLite file nor a PostgreSQL database", remedy)


def plain_hosts(place: str) -> list[str]:
    """The hosts to which rows would go over the network without TLS being asked for."""
    found = _SERVER.fullmatch(place) if is_server(place) else None
    if found is None:
        return []
    options = parse_qs(found["query"] or "")
    if options.get("sslmode", [""])[-1] in _ENCRYPTED:
        return []
    listed = [part for part in found["where"].partition("/")[0].split(",") if part]
    hosts = [re.sub(r":\d*\Z", "", part).strip("[]") for part in listed]
    hosts += [host for given in (*options.get("host", []), *options.get("hostaddr", [])) for host in given.split(",")]
    # A folder is that of a socket on this machine.
    return [host for host in hosts if host and not host.startswith(("/", "%2F", "%2f"))]
