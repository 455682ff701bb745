"""engine.targets: what may be declared, and that nothing declared ever shows its address."""

from __future__ import annotations

import pickle
import re
from typing import Any

import cloudpickle
import pytest

from engine.errors import DeclarationError
from engine.flows import flow
from engine.retries import Retry
from engine.states import State, StateChange
from engine.targets import AppriseTarget, HookTarget, WebhookTarget, notify, read_on_state, webhook
from engine.tasks import task

TOKEN = "T0K3N-s3cr3t-9f"


def page(change: StateChange) -> None: ...


async def page_async(change: StateChange) -> None: ...


def takes_nothing() -> None: ...


@task(on_state={State.FAILED: notify(f"slack://{TOKEN}/b/c")})
def price(sku: str) -> float:
    return 1.0


@flow(on_state={State.FAILED: [notify(f"slack://{TOKEN}/b/c"), page], State.CRASHED: page_async})
def fulfil(sku: str) -> Any:
    return price(sku)


def test_a_flow_and_a_task_know_whom_they_tell() -> None:
    assert [type(target) for target in fulfil.on_state[State.FAILED]] == [AppriseTarget, HookTarget]
    assert [target.name for target in fulfil.on_state[State.CRASHED]] == [f"hook {__name__}:page_async"]
    assert list(price.on_state) == [State.FAILED]


def test_states_may_be_given_as_text() -> None:
    assert list(read_on_state({"FAILED": page}, "f.py", 1)) == [State.FAILED]


def test_nothing_shows_an_address() -> None:
    made = [
        *(notify(f"slack://{TOKEN}"), notify(f"json://user:{TOKEN}@host/{TOKEN}?x={TOKEN}")),
        *(webhook(f"https://{TOKEN}.example/{TOKEN}", secret_env="S"), webhook(env="URL", secret_env="S")),
    ]
    for target in made:
        assert isinstance(target, AppriseTarget | WebhookTarget)
        shown = f"{target} {target!r} {target.name} {target.address!r} {target.address.scheme}"
        assert TOKEN not in shown
        assert TOKEN not in repr([target])
    assert made[0].name.startswith("slack://*** (test_targets.py:")
    assert made[3].name == "webhook $URL"


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps], ids=["pickle", "cloudpickle"])
def test_what_travels_to_workers_names_a_flow_and_carries_no_address(dumps: Any) -> None:
    assert TOKEN.encode() not in dumps([fulfil, price])
    assert pickle.loads(dumps(fulfil)) is fulfil
    with pytest.raises(TypeError, match="is not pickled") as caught:
        dumps(notify(f"slack://{TOKEN}"))
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "declare",
    [
        lambda: notify(TOKEN),
        lambda: notify(),
        lambda: notify(f"slack://{TOKEN}", env="URL"),
        lambda: notify(env=f"slack://{TOKEN}"),
        lambda: notify(f"slack://{TOKEN}", retry=3),
        lambda: notify(f"slack://{TOKEN}", timeout_seconds=0),
        lambda: notify(f"slack://{TOKEN}", tokne=1),
        lambda: webhook(f"https://{TOKEN}", secret_env=f"{TOKEN} itself"),
        lambda: read_on_state({"FAILD": page}, "f.py", 1),
        lambda: read_on_state({State.FAILED: f"slack://{TOKEN}"}, "f.py", 1),
        lambda: read_on_state({State.FAILED: [takes_nothing]}, "f.py", 1),
        lambda: read_on_state(f"slack://{TOKEN}", "f.py", 1),
    ],
)
def test_what_is_declared_wrongly_is_refused_where_it_stands_without_its_address(declare: Any) -> None:
    with pytest.raises(DeclarationError) as caught:
        declare()
    assert re.search(r"(test_targets|f)\.py:\d+: ", str(caught.value))
    assert TOKEN not in str(caught.value)


def test_an_address_of_a_variable_is_looked_up_late() -> None:
    target = notify(env="SLACK_URL", retry=Retry(3))
    assert target.address.resolve({}) is None
    assert target.address.resolve({"SLACK_URL": " "}) is None
    found = target.address.resolve({"SLACK_URL": f"slack://{TOKEN}\n"})
    assert found is not None
    assert found.reveal() == f"slack://{TOKEN}"
