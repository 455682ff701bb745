"""engine.event_fates: what became of an event, from what is known of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.declarations import Declaration, Trigger
from engine.errors import EventError
from engine.event_fates import Fate, Knowledge, judge
from engine.events import Event, RawEvent, Reason
from engine.history import EventRow
from engine.history_schema import LetterRow, RunRow
from engine.states import utc

EVENT: RawEvent = Event(id="1", source="/shop", type="order.created", data=b"{}")


def declared(*triggers: Trigger, name: str = "fulfil") -> Declaration:
    return Declaration(name, f"{name}()", utc(1.0), {}, {}, triggers)


def known(*declarations: Declaration, until: int | None = 10, doubt: str = "") -> Knowledge:
    return Knowledge(declarations, until, doubt)


def run(run_id: str = "ab") -> RunRow:
    return RunRow(1, run_id, "fulfil", "FAILED", 1, 0, 1, 1.0, 1.0)


def letter() -> LetterRow:
    columns: dict[str, Any] = dict.fromkeys(LetterRow.__struct_fields__)
    return LetterRow(**columns | {"partition": 0, "place": 7, "reason": "invalid-parameters", "error": "no x", "flow": "f"})


def row(runs: list[RunRow], letters: list[LetterRow]) -> EventRow:
    return EventRow(1.0, "orders", 0, 5, None, None, None, runs, letters)


KNOWN = known(declared(Trigger("orders", "order.created")))


def test_runs_and_letters_say_what_became_of_it() -> None:
    made = judge("orders", EVENT, 5, row([run()], [letter()]), [], KNOWN)
    assert (made.fate, made.text) == (Fate.RAN, "made fulfil ab FAILED; dead letters: 0/7 invalid-parameters: no x")
    assert ([one.run_id for one in made.runs], [one.id for one in made.letters]) == (["ab"], ["0/7"])
    dead = judge("orders", EVENT, 5, row([], [letter()]), [], KNOWN)
    assert (dead.fate, dead.text) == (Fate.DEAD, "dead letter 0/7 invalid-parameters: no x")


def test_what_the_intake_has_not_come_to_waits() -> None:
    assert judge("orders", EVENT, 10, None, [], KNOWN).fate is Fate.WAITING
    assert judge("orders", EVENT, 0, None, [], known(declared(Trigger("orders")), until=None)).fate is Fate.WAITING
    elsewhere = judge("orders", EVENT, 0, None, [], known(declared(Trigger("other")), until=None))
    assert elsewhere.text == "not taken in: no flow listens to the topic orders"


def test_a_repeat_names_the_run_of_the_first() -> None:
    made = judge("orders", EVENT, 5, None, [run()], KNOWN)
    assert (made.fate, made.text) == (Fate.DUPLICATE, "duplicate of the event that made fulfil ab")


@pytest.mark.parametrize(
    ("trigger", "fate", "text"),
    [
        (Trigger("other"), Fate.NO_TRIGGER, "no flow listens to the topic orders"),
        (Trigger("orders", "order.paid"), Fate.NO_TRIGGER, "no trigger takes type order.created; triggers take order.paid"),
        (
            Trigger("orders", None, "/bank"),
            Fate.NO_TRIGGER,
            "no trigger takes type order.created of source /shop; triggers take any type of /bank",
        ),
        (Trigger("orders", "order.*", where="is_large"), Fate.WHERE, "the where of fulfil (is_large) said no"),
        (Trigger("orders"), Fate.UNKNOWN, "fulfil should have taken it: its run has expired, or the flow came later"),
    ],
)
def test_why_it_made_none_is_told_where_it_can_be_known(trigger: Trigger, fate: Fate, text: str) -> None:
    made = judge("orders", EVENT, 5, None, [], known(declared(trigger)))
    assert (made.fate, made.text) == (fate, text)


def test_a_record_without_a_type_is_called_so() -> None:
    bare = msgspec.structs.replace(EVENT, type="")
    text = judge("orders", bare, 5, None, [], KNOWN).text
    assert text == "no trigger takes a record without a type; triggers take order.created"


def test_nothing_is_concluded_from_what_is_not_known() -> None:
    doubtful = known(declared(Trigger("other")), doubt="the history is 5 records behind")
    made = judge("orders", EVENT, 5, None, [], doubtful)
    assert (made.fate, made.text) == (Fate.UNKNOWN, "no run and no dead letter is known: the history is 5 records behind")
    assert not made.fate.is_settled
    assert judge("orders", EVENT, 5, None, [], known()).text == "no engine has declared a flow"
    unread = judge("orders", EventError(Reason.MALFORMED_EVENT, "no id"), 5, None, [], KNOWN)
    assert "malformed-event: no id" in unread.text
