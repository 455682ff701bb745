"""Rules as ``engine.toml`` writes them: tables of plain values, whose addresses never show; ``rules`` says what they mean."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.secrets import Secret


class TargetTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One of ``url``, ``env`` (apprise), ``webhook``, ``webhook_env`` (with ``secret_env``) and ``hook``."""

    url: Secret | None = None
    env: str | None = None
    webhook: Secret | None = None
    webhook_env: str | None = None
    secret_env: str | None = None
    #: ``module:function`` of a plain Python hook.
    hook: str | None = None


class RuleTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of ``[[rules]]``; the keys are the arguments of ``engine.rule``."""

    name: str
    to: tuple[TargetTable, ...]
    flows: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    states: tuple[str, ...] | None = None
    failures: int | None = None
    within_seconds: float | None = None
    no_run_seconds: float | None = None
    longer_than_seconds: float | None = None


def read_tables(value: object) -> tuple[RuleTable, ...]:
    """The tables of a setting: TOML's own, or JSON from a variable. Raises msgspec.ValidationError, which shows no address."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            # Its text says where, not what.
            raise msgspec.ValidationError(f"it is not JSON: {error}") from None
    return msgspec.convert(value, tuple[RuleTable, ...], dec_hook=_secret)


def _secret(type: Any, value: Any) -> Any:
    if type is Secret and isinstance(value, str):
        return Secret(value)
    raise msgspec.ValidationError("an address is a text")
