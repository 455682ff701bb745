"""Settings as they may be shown: secrets are stars, and addresses have no credentials. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from engine.settings import Secret, Settings

STARS = "***"
_TELLING = ("token", "password", "secret", "notify", "webhook", "rules", "credential")
#: What stands before the last @ behind a protocol, however odd, is not shown; nor is what is behind a ? or #.
_CREDENTIALS = re.compile(r"(?<=://)[^\s,]*@")
_QUERY = re.compile(r"(://[^\s,?#]*)[?#][^\s,]*")
#: Protocols whose addresses say no more than a place; of others the whole address may be the secret.
_PLACES = frozenset(
    {
        *("http", "https", "tcp", "tls", "ssl", "inproc", "sqlite", "postgresql", "postgres"),
        *("file", "local", "hdfs", "webhdfs", "sftp", "ssh", "smb", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl"),
    }
)
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://[^\s,]*")


class Shown(msgspec.Struct, frozen=True):
    """A setting and its value as text."""

    name: str
    value: str
    #: Whether it differs from what it is by default.
    is_set: bool


def shown(settings: Settings) -> list[Shown]:
    """All settings, in the order of their declaration."""
    usual = Settings()
    values = {name: (getattr(settings, name), getattr(usual, name)) for name in settings.__struct_fields__}
    return [Shown(name, _value(name, value), value != by_default) for name, (value, by_default) in values.items()]


def masked(text: str) -> str:
    """A text in which no address has credentials."""
    text = _QUERY.sub(r"\1", _CREDENTIALS.sub(f"{STARS}@", text))
    return _PROTOCOL.sub(lambda found: found[0] if found[1].lower() in _PLACES else f"{found[1]}://{STARS}", text)


def _value(name: str, value: Any) -> str:
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, Secret) or any(word in name for word in _TELLING):
        return STARS
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | int):
        return f"{int(value):,}" if value == int(value) else f"{value:g}"
    if isinstance(value, Iterable):
        # Elements of a kind that nobody thought of here are not shown at all.
        return ", ".join(masked(one) if type(one) is str else STARS for one in value)
    return STARS
