"""Cancellations: records on the state topic by which somebody wants a run to end; they belong to no owner. Pure."""

from __future__ import annotations

from datetime import datetime

import msgspec

from engine.errors import EventError
from engine.events import Headers, Reason

CANCELLATION = "engine.cancellation"
_TYPE = CANCELLATION.encode()
#: What the states say of a task whose run was cancelled, and of a run that was cancelled without a reason.
CANCELLED = "cancelled"
#: Longer reasons are cut.
MAX_REASON = 1_000


class Cancellation(msgspec.Struct, frozen=True):
    """Its data. The record lies in the partition of the run's SCHEDULED, behind it."""

    run_id: str
    at: datetime
    #: Stands in the run's CANCELLED.
    reason: str = CANCELLED


def write_cancellation(app: str, cancellation: Cancellation) -> tuple[bytes, Headers]:
    """Value and headers of a record: a CloudEvent in binary mode, as all others on the state topic."""
    at = cancellation.at.isoformat().replace("+00:00", "Z").encode()
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_id", f"{cancellation.run_id}/cancellation/{cancellation.at.timestamp():.6f}".encode()),
        ("ce_source", f"/engine/{app}".encode()),
        ("ce_type", _TYPE),
        ("ce_subject", cancellation.run_id.encode()),
        ("ce_time", at),
        ("content-type", b"application/json"),
    )
    return msgspec.json.encode(cancellation), headers


def read_cancellation(value: bytes | None) -> Cancellation:
    """What a record says. Raises EventError."""
    try:
        said = msgspec.json.decode(value or b"", type=Cancellation)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EventError(Reason.MALFORMED_DATA, f"a record of type {CANCELLATION} cannot be read: {error}") from error
    return msgspec.structs.replace(said, reason=said.reason[:MAX_REASON] or CANCELLED)


def is_cancellation(ce_type: bytes) -> bool:
    """Whether a record of this type asks for the end of a run."""
    return ce_type == _TYPE
