"""Flows with parameters of every kind, as targets of hostile input."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from typing import Any

import msgspec

from engine import Event, flow, on


class Kind(enum.Enum):
    ONE = "one"
    TWO = "two"


class Checked(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        [1, 2, 3][self.number]


class Everything(msgspec.Struct):
    number: int = 0
    text: str = ""
    at: datetime.datetime | None = None
    span: datetime.timedelta | None = None
    amount: decimal.Decimal | None = None
    blob: bytes = b""
    any: Any = None
    kind: Kind = Kind.ONE
    id: uuid.UUID | None = None


@flow(on("hostile"))
def whole(everything: Everything) -> None: ...


@flow(on("hostile", key=lambda event: event.data.text))
def keyed(everything: Everything) -> None: ...


@flow(on("hostile", where=lambda event: event.data["number"] > 0))
def anything(event: Event[Any]) -> None: ...


@flow(on("hostile"))
def raw(event: Event[bytes]) -> None: ...


@flow(on("hostile", type="test"))
def several(number: int, text: str = "", more: float = 0.0) -> None: ...


@flow(on("hostile"))
def picky(checked: Checked) -> None: ...


FLOWS = [whole, keyed, anything, raw, several, picky]
