"""engine.rules and engine.episodes: what a rule is about, and when it has something to tell; time is an argument."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import episodes
from engine.episodes import Episodes
from engine.errors import DeclarationError
from engine.rule_tables import read_tables
from engine.rules import Kind, Rule, rule, rules_of
from engine.states import State, StateChange, utc
from engine.targets import AppriseTarget, HookTarget, WebhookTarget, notify

OPS = notify(env="OPS")
MINUTE = 60.0


def change(at: float, state: State = State.FAILED, *, run_id: str = "r", flow: str = "fulfil", **fields: Any) -> StateChange:
    return StateChange(run_id=run_id, flow=flow, state=state, seq=3, epoch=1, attempt=1, at=utc(at), **fields)


def told(book: Episodes, *changes: StateChange, until: float = 1e6) -> list[float]:
    """When the rule told of something; whatever was read is read at once, and late."""
    return [firing.at for one in changes for firing in book.take(one, until)]


def test_without_a_condition_a_rule_is_about_every_failed_run() -> None:
    made = rule("failed", to=OPS)
    assert made.kind is Kind.STATE
    assert [state for state in State if made.matches(change(0, state))] == [State.FAILED, State.CRASHED]
    assert not made.matches(change(0, task="price", task_run_id="r/price/0"))


def test_a_rule_may_be_about_some_flows_and_about_tasks() -> None:
    made = rule("failed", to=OPS, flows="fulfil", tasks=["price"], states=State.RETRYING)
    assert made.matches(change(0, State.RETRYING, task="price", task_run_id="x"))
    assert not made.matches(change(0, State.RETRYING, task="ship", task_run_id="x"))
    assert not made.matches(change(0, State.RETRYING, task="price", task_run_id="x", flow="other"))
    assert not made.matches(change(0, State.RETRYING))


def failures(count: int = 3, seconds: float = MINUTE) -> Episodes:
    return Episodes([rule("many", to=OPS, failures=count, within_seconds=seconds)], 0.0)


def test_so_many_failures_within_the_time_are_told_of_once() -> None:
    assert told(failures(), *(change(at) for at in (1, 2))) == []
    assert told(failures(), *(change(at) for at in (1, 2, 3))) == [pytest.approx(3)]
    assert told(failures(), *(change(at) for at in range(1, 300, 5))) == [pytest.approx(11)], "one long episode"


def test_failures_that_are_too_far_apart_are_nothing_to_tell() -> None:
    assert told(failures(), *(change(at) for at in range(0, 600, 31))) == []


def test_the_next_episode_begins_when_the_number_was_not_reached_for_the_whole_time() -> None:
    assert told(failures(), *(change(at) for at in (1, 2, 3, 50, 55, 200, 201, 202))) == [pytest.approx(3), pytest.approx(202)]


def test_failures_count_by_their_own_time_in_whatever_order_they_are_read() -> None:
    assert told(failures(), change(3), change(1), change(2)) == [pytest.approx(3)]
    assert told(failures(), change(500), change(1), change(2), change(250)) == []


def test_a_clock_that_is_ahead_does_not_count_for_tomorrow() -> None:
    book = failures()
    assert told(book, change(99_999), change(99_999), until=10) == []
    assert told(book, change(11), until=11) == [pytest.approx(11)]


def no_run(began_at: float = 0.0, **options: Any) -> Episodes:
    return Episodes([rule("quiet", to=OPS, no_run_seconds=MINUTE, **options)], began_at)


def ticks(book: Episodes, *times: float) -> list[float]:
    return [firing.at for now in times for firing in book.tick(now)]


def test_no_run_for_a_time_is_told_of_once_and_again_after_the_next_one() -> None:
    book = no_run()
    assert ticks(book, 10, 59, 60, 61, 200, 3_000) == [60]
    told(book, change(3_010, State.SCHEDULED))
    assert ticks(book, 3_011, 3_069, 3_071, 3_100) == [3_071]


def test_only_runs_that_the_rule_is_about_break_the_silence() -> None:
    book = no_run(flows="fulfil", states=State.COMPLETED)
    told(book, change(50, State.COMPLETED, flow="other"), change(50, State.SCHEDULED))
    assert ticks(book, 61) == [61]


def longer(**options: Any) -> Episodes:
    return Episodes([rule("slow", to=OPS, longer_than_seconds=MINUTE, **options)], 0.0)


def test_a_run_that_is_open_for_longer_is_told_of_once_through_all_its_attempts() -> None:
    book = longer()
    told(book, change(10, State.RUNNING), change(20, State.RETRYING), change(30, State.RUNNING))
    assert ticks(book, 69, 70.1, 71, 100) == [pytest.approx(70)]
    told(book, change(100, State.RETRYING), change(110, State.RUNNING))
    assert ticks(book, 500) == []


def test_a_run_that_has_ended_is_not_told_of() -> None:
    book = longer()
    told(book, change(10, State.RUNNING), change(69, State.COMPLETED), change(11, State.RUNNING, run_id="other"))
    assert [firing.change.run_id for firing in book.tick(100) if firing.change] == ["other"]


def test_a_task_whose_own_end_was_lost_ends_with_its_run() -> None:
    book = longer(tasks="price")
    task: dict[str, Any] = {"task": "price", "task_run_id": "r/price/0"}
    told(book, change(10, State.RUNNING), change(11, State.RUNNING, **task), change(20, State.CRASHED))
    assert ticks(book, 100) == []


def test_what_is_watched_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "MOST_OPEN", 10)
    book = longer()
    told(book, *(change(float(n), State.RUNNING, run_id=str(n)) for n in range(100)))
    assert [firing.episode for firing in book.tick(1_000)] == [str(n) for n in range(90, 100)]


def test_made_anew_from_the_topic_nothing_is_told_twice_and_what_fell_due_meanwhile_is() -> None:
    rules = [
        rule("many", to=OPS, failures=3, within_seconds=MINUTE),
        rule("quiet", to=OPS, no_run_seconds=MINUTE),
        rule("slow", to=OPS, longer_than_seconds=MINUTE),
    ]
    past = [*(change(at, run_id=f"f{at}") for at in (100, 101, 102)), change(10, State.SCHEDULED)]
    past += [change(11, State.RUNNING, run_id="long"), change(120, State.RUNNING, run_id="later")]
    book = Episodes(rules, 0.0)
    book.rebuild(reversed(past), told_until=130, now=500)
    assert told(book, change(131, run_id="more")) == []
    assert [(firing.rule.name, firing.episode) for firing in book.tick(500)] == [("slow", "later")]


@given(st.lists(st.tuples(st.integers(0, 300), st.sampled_from([State.FAILED, State.COMPLETED])), max_size=40))
def test_each_episode_of_failures_is_told_of_exactly_once(events: list[tuple[int, State]]) -> None:
    """Against the definition: at a failure the window is full, and it was not full for the whole time before."""
    times: list[float] = []
    expected: list[float] = []
    full_at = float("-inf")
    for at in sorted(at for at, state in events if state is State.FAILED):
        times.append(at)
        if sum(at - MINUTE <= other <= at for other in times) >= 3:
            if at - full_at > MINUTE:
                expected.append(at)
            full_at = at
    ordered = sorted(events, key=lambda event: event[0])
    assert [round(at) for at in told(failures(), *(change(at, state) for at, state in ordered))] == expected


def page(notice: object) -> None: ...


TABLES = [
    {"name": "a", "to": [{"url": "slack://T0K3N-s3cr3t"}], "failures": 5, "within_seconds": 600},
    {"name": "b", "to": [{"webhook": "https://x/T0K3N-s3cr3t", "secret_env": "S"}], "flows": ["f"], "states": ["failed"]},
    {"name": "c", "to": [{"env": "URL"}, {"hook": "m:page"}], "no_run_seconds": 60},
]


def test_tables_of_the_settings_mean_the_same_rules() -> None:
    made = rules_of(read_tables(TABLES), lambda reference: page)
    assert [(one.name, one.kind) for one in made] == [("a", Kind.FAILURES), ("b", Kind.STATE), ("c", Kind.NO_RUN)]
    assert [[type(target) for target in one.to] for one in made] == [
        [AppriseTarget],
        [WebhookTarget],
        [AppriseTarget, HookTarget],
    ]
    assert made[1].states == frozenset({State.FAILED})
    assert read_tables(msgspec.json.encode(TABLES).decode()) == read_tables(TABLES)
    assert "T0K3N" not in repr(read_tables(TABLES)) + repr(made)


@pytest.mark.parametrize(
    "options",
    [
        {"failures": 5},
        {"within_seconds": 5.0},
        {"failures": 0, "within_seconds": 5.0},
        {"no_run_seconds": 0.0},
        {"no_run_seconds": 1e9},
        {"no_run_seconds": 5.0, "longer_than_seconds": 5.0},
        {"longer_than_seconds": 5.0, "states": State.FAILED},
        {"states": "LOST"},
        {"name": ""},
        {"to": []},
        {"to": "slack://T0K3N"},
        {"within": 5},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_where_it_stands(options: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError, match=r"test_rules\.py:\d+") as caught:
        rule(**{"name": "a rule", "to": OPS, **options})
    assert "T0K3N" not in str(caught.value)


@pytest.mark.parametrize(
    "target",
    [{}, {"url": "T0K3N"}, {"url": "x://T0K3N", "env": "A"}, {"webhook": "https://T0K3N"}, {"env": "A", "secret_env": "T0K3N"}],
)
def test_a_target_of_the_settings_that_is_none_is_refused_without_its_address(target: dict[str, str]) -> None:
    with pytest.raises(DeclarationError, match=r"engine\.toml") as caught:
        rules_of(read_tables([{"name": "a", "to": [target]}]), lambda reference: page)
    assert "T0K3N" not in str(caught.value)


def test_a_rule_shows_no_address() -> None:
    made = rule("x", to=notify("slack://T0K3N-s3cr3t"))
    assert isinstance(made, Rule)
    assert "T0K3N" not in repr(made)
