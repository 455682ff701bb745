"""Checkpoints: what an owner knows of its partition, as records of the state topic and back; pure.

A checkpoint is a *body* and one ``engine.checkpoint`` record that closes it. The body is text, a line of JSON each: first the
ids seen and what is on the shelf, then a line for each open run. A short one travels in the closing record, a long one in
``engine.checkpoint_part`` records before it, cut anywhere. Ids of the window that are older lie in ``engine.ids`` records,
which many checkpoints share.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from operator import attrgetter

import msgspec

from engine.errors import EngineError
from engine.events import Headers
from engine.runs import FlowRun, TaskRun
from engine.seen import IdBlock
from engine.shelf import Lane
from engine.states import CHECKPOINT, Origin, Reuse, State, StateChange, type_of, write_own

PART = f"{CHECKPOINT}_part"
IDS = "engine.ids"
#: Records of a checkpoint are about this large at most, as Kafka's own limit is 1 MiB, and a body of a part of it travels
#: in the closing record.
PART_BYTES = 256 * 1024
_INLINE_BYTES = 64 * 1024
#: Ids of a block.
BLOCK_IDS = 16_384


class CheckpointUnreadable(EngineError):
    """Raised when a checkpoint, a part of it or a block of ids is not where it should be, or not what it should be.

    The new owner reads its partition of the state topic from the beginning instead, which takes longer. What the topic no
    longer holds is lost to it: keep ``state_retention_seconds`` above the longest time without an engine.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return f"a checkpoint cannot be used: {self.cause}"


class BlockPlace(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a block of ids lies."""

    offset: int
    #: That of its youngest id.
    last_second: int


class Checkpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """The data of a closing record."""

    partition: int
    #: Of the owner that wrote it.
    epoch: int
    at: datetime
    #: Whoever goes on from it reads on from here.
    from_offset: int
    #: Bytes of the body.
    size: int
    #: Where the parts of the body lie, in order.
    parts: tuple[int, ...] = ()
    #: The body, where it has no parts.
    body: bytes = b""


class Ids(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first line of a body."""

    #: Seen, and in none of the blocks.
    tail: IdBlock
    blocks: tuple[BlockPlace, ...] = ()
    #: The runs that the log keeps below ``from_offset``; see engine.shelf.
    shelf: tuple[tuple[Lane, int], ...] = ()
    told: dict[str, list[StateChange]] = {}
    cancelled: dict[str, str] = {}
    passed: tuple[int, ...] = ()

    @property
    def lanes(self) -> dict[Lane, int]:
        """From where to read each lane."""
        return dict(self.shelf)


class _Run(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of a body: all that a FlowRun holds, under the same names."""

    run_id: str
    flow: str
    key: str | None
    parameters: bytes
    event: Origin | None
    traceparent: str | None
    scheduled_at: float
    offset: int
    state: State
    seq: int
    attempt: int = 0
    running_at: float = 0.0
    began_at: float = 0.0
    tasks: dict[str, TaskRun] = {}
    ended: list[tuple[str, float]] = []
    called: dict[str, str] = {}
    handled: set[str] = set()
    cancelled: str | None = None
    reuse: Reuse | None = None


_held = attrgetter(*_Run.__struct_fields__)
_encode = msgspec.json.Encoder().encode
_decode_run = msgspec.json.Decoder(_Run).decode
_decode_ids = msgspec.json.Decoder(Ids).decode
_decode_checkpoint = msgspec.json.Decoder(Checkpoint).decode
_decode_block = msgspec.json.Decoder(IdBlock).decode


def write_run(run: FlowRun) -> bytes:
    """A line of a body."""
    return _encode(_Run(*_held(run))) + b"\n"


def write_ids(ids: Ids) -> bytes:
    """The first line of a body."""
    return _encode(ids) + b"\n"


def write_part(app: str, partition: int, epoch: int, at: datetime, part: bytes) -> tuple[bytes, Headers]:
    """Value and headers of a part of a body."""
    return part, write_own(app, PART, partition, epoch, at, b"application/octet-stream")


def write_block(app: str, partition: int, epoch: int, at: datetime, block: IdBlock) -> tuple[bytes, Headers]:
    """Value and headers of a block of ids."""
    return _encode(block), write_own(app, IDS, partition, epoch, at)


def write_checkpoint(app: str, checkpoint: Checkpoint) -> tuple[bytes, Headers]:
    """Value and headers of a closing record."""
    return _encode(checkpoint), write_own(app, CHECKPOINT, checkpoint.partition, checkpoint.epoch, checkpoint.at)


def read_checkpoint(value: bytes | None, headers: Headers) -> Checkpoint:
    """A closing record. Raises CheckpointUnreadable."""
    _expect(CHECKPOINT, headers)
    try:
        return _decode_checkpoint(value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointUnreadable(f"its closing record cannot be read: {error}") from error


def read_part(value: bytes | None, headers: Headers) -> bytes:
    """A part of a body. Raises CheckpointUnreadable."""
    _expect(PART, headers)
    return value or b""


def read_block(value: bytes | None, headers: Headers) -> IdBlock:
    """A block of ids. Raises CheckpointUnreadable."""
    _expect(IDS, headers)
    try:
        block = _decode_block(value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointUnreadable(f"a block of ids cannot be read: {error}") from error
    _check(block)
    return block


def read_body(checkpoint: Checkpoint, body: bytes) -> tuple[Ids, Iterator[FlowRun]]:
    """What a body holds. Raises CheckpointUnreadable, also while the runs are gone through."""
    if len(body) != checkpoint.size:
        raise CheckpointUnreadable(f"it has {len(body)} bytes where {checkpoint.size} were written")
    end = body.find(b"\n")
    try:
        ids = _decode_ids(body[: max(end, 0)])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointUnreadable(f"its ids cannot be read: {error}") from error
    _check(ids.tail)
    return ids, _runs(body, end + 1)


def inline(size: int, part_bytes: int) -> bool:
    """Whether a body of that many bytes travels in the closing record."""
    return size <= min(_INLINE_BYTES, part_bytes)


def _runs(body: bytes, start: int) -> Iterator[FlowRun]:
    view = memoryview(body)
    while start < len(body):
        end = body.find(b"\n", start)
        try:
            held = _decode_run(view[start:end])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise CheckpointUnreadable(f"an open run cannot be read: {error}") from error
        run = FlowRun.__new__(FlowRun)
        for name in _Run.__struct_fields__:
            setattr(run, name, getattr(held, name))
        run.record_key = (held.key if held.key is not None else held.run_id).encode()
        yield run
        start = end + 1


def _expect(wanted: str, headers: Headers) -> None:
    found = type_of(headers).decode(errors="replace")
    if found != wanted:
        raise CheckpointUnreadable(f"where a record of type {wanted} should be lies one of type {found or '(none)'}")


def _check(block: IdBlock) -> None:
    if len(block.ids) != 16 * sum(count for _, count in block.seconds):
        raise CheckpointUnreadable("a block of ids is not as long as it says")
