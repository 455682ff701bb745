"""engine.addressees and engine.hook_loader: who hears of what, and where that is found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.addressees import Addressees
from engine.errors import DeclarationError, EngineError
from engine.flows import flow
from engine.hook_loader import load_addressees
from engine.rule_tables import read_tables
from engine.rules import rule
from engine.settings import Settings
from engine.states import State, StateChange, utc
from engine.targets import notify
from engine.tasks import Task, task

OPS, SHOP, OTHER = notify(env="OPS"), notify(env="SHOP"), notify(env="OTHER")


@task(name="same", on_state={State.FAILED: SHOP})
def price() -> int:
    return 1


#: Of another module, so to speak, that the flow below knows nothing of.
HIDDEN = {"task": Task(price.function, name="same", on_state={State.FAILED: OTHER})}
HIDDEN["task"].module = "elsewhere"


@flow(on_state={State.FAILED: OPS})
def fulfil() -> Any:
    return price()


def change(state: State = State.FAILED, **fields: Any) -> StateChange:
    given: dict[str, Any] = {"run_id": "r", "flow": "fulfil", "seq": 1, "epoch": 1, "attempt": 1, "at": utc(1.0)}
    return StateChange(state=state, **{**given, **fields})


def of(addressees: Addressees, one: StateChange) -> list[tuple[str, Any]]:
    return [(addressee.origin, addressee.target) for addressee in addressees.of(one)]


def test_flows_tasks_and_rules_each_have_a_say() -> None:
    made = Addressees({"fulfil": fulfil}, [price], [rule("bad", to=OTHER)])
    assert of(made, change()) == [("flow fulfil", OPS), ("rule bad", OTHER)]
    assert of(made, change(task="same", task_run_id="x")) == [("task same", SHOP)]
    assert of(made, change(State.COMPLETED)) == []
    assert of(made, change(flow="unknown")) == [("rule bad", OTHER)]
    assert set(made.targets) == {OPS, SHOP, OTHER}


def test_of_tasks_of_one_name_the_one_that_the_flow_can_call_is_meant() -> None:
    both = [price, HIDDEN["task"]]
    assert of(Addressees({"fulfil": fulfil}, both, []), change(task="same", task_run_id="x")) == [("task same", SHOP)]
    assert len(of(Addressees({}, both, []), change(task="same", task_run_id="x"))) == 2, "nobody knows which"


def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(DeclarationError, match="two rules named 'bad'"):
        Addressees({}, [], [rule("bad", to=OPS), rule("bad", to=OPS, flows="f")])


HANDLERS = """
from engine import State, flow, notify, on, rule, task

def page(notice): ...

@task(on_state={State.FAILED: notify(env="A")})
def work(): ...

@flow(on("t"), on_state={State.FAILED: notify(env="B")})
def flowing(): ...

one = rule("one", to=notify(env="C"))
more = [rule("two", to=page, no_run_seconds=60)]
"""


@pytest.fixture
def handlers(tmp_path: Path) -> Iterator[str]:
    file = tmp_path / "notifying_handlers.py"
    file.write_text(HANDLERS)
    yield str(file)
    sys.modules.pop("notifying_handlers", None)
    sys.path.remove(str(tmp_path))


def test_handlers_and_settings_are_searched_for_all_that_is_declared(handlers: str) -> None:
    tables = read_tables([{"name": "three", "to": [{"hook": "notifying_handlers:page"}, {"env": "D"}]}])
    found = load_addressees(Settings(handlers=(handlers,), rules=tables))
    assert [one.name for one in found.rules] == ["one", "two", "three"]
    assert {"notify $A", "notify $B", "notify $C", "notify $D", "hook notifying_handlers:page"} <= {
        t.name for t in found.targets
    }


@pytest.mark.parametrize("hook", ["notifying_handlers:nothing", "no_such_module_at_all:f", "nonsense", "sys:version"])
def test_a_hook_of_the_settings_that_is_not_there_is_named(handlers: str, hook: str) -> None:
    tables = read_tables([{"name": "three", "to": [{"hook": hook}]}])
    with pytest.raises(EngineError, match=hook):
        load_addressees(Settings(handlers=(handlers,), rules=tables))
