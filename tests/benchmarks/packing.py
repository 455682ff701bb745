"""What a packed run costs beyond the user's own code: ``python -m tests.benchmarks.packing [--runs N] [--rounds N]``.

Flows of one and of three tasks in parcels, as a worker runs them, against plain calls of the same functions. Each figure is the
best of its rounds: what else the machine does can only add to it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import msgspec

from engine import flow, on, task
from engine.flows import Flow
from engine.packing import run_parcel
from engine.parcels import MAX_RUNS, Outcome, PackedRun, Parcel, decode_outcomes, decode_parcel, encode_outcomes, encode_parcel
from engine.states import State
from engine.telemetry import Tracer

_TRACEPARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00"


class Order(msgspec.Struct):
    id: str
    prices: list[float]


@task
def total(order: Order) -> float:
    return sum(order.prices)


@task
def with_tax(value: float, rate: float) -> float:
    return value * (1 + rate)


@task
def invoice(order: Order, value: float) -> dict[str, Any]:
    return {"order": order.id, "total": value}


@task
async def total_async(order: Order) -> float:
    return sum(order.prices)


@flow(on("x"), pack=True)
def one(order: Order) -> Any:
    return total(order)


@flow(on("x"), pack=True)
def three(order: Order) -> Any:
    return invoice(order, with_tax(total(order), 0.19))


@flow(on("x"), pack=True)
async def three_async(order: Order) -> Any:
    return await invoice(order, await with_tax(await total(order), 0.19))  # type: ignore[misc]


@flow(on("x"), pack=True)
def one_async_task(order: Order) -> Any:
    return total_async(order)


def _plain_one(order: Order) -> Any:
    return total.function(order)


def _plain_three(order: Order) -> Any:
    return invoice.function(order, with_tax.function(total.function(order), 0.19))


def _best(rounds: int, runs: int, action: Callable[[], object]) -> float:
    """Microseconds of processor time a run."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        action()
        found.append((time.process_time() - began) / runs * 1e6)
    return min(found)


def _parcels(flow: Flow[..., Any], runs: int) -> list[Parcel]:
    parameters = json.dumps({"order": {"id": "a-1", "prices": [1.0, 2.5, 3.25]}}).encode()
    packed = [PackedRun(f"{number:032x}", parameters, _TRACEPARENT, 1.0) for number in range(runs)]
    starts = range(0, runs, MAX_RUNS)
    return [Parcel(f"{s:032x}", flow.name, flow.reference, tuple(packed[s : s + MAX_RUNS]), 65_536) for s in starts]


def _whole(parcels: list[bytes], tracer: Tracer) -> list[bytes]:
    told: list[bytes] = []
    for parcel in parcels:
        run_parcel(decode_parcel(parcel), lambda outcomes: told.append(encode_outcomes(outcomes)), tracer=tracer)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2_560)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    runs, rounds = given.runs, given.rounds
    order = Order("a-1", [1.0, 2.5, 3.25])
    tracer = Tracer(None, None, None)
    plains = {"one": _plain_one, "three": _plain_three, "three_async": _plain_three, "one_async_task": _plain_one}
    for each in (one, three, three_async, one_async_task):
        plain = plains[each.name]
        own = _best(rounds, runs, lambda plain=plain: [plain(order) for _ in range(runs)])  # type: ignore[misc]
        parcels = _parcels(each, runs)
        encode = _best(rounds, runs, lambda parcels=parcels: [encode_parcel(parcel) for parcel in parcels])  # type: ignore[misc]
        sent = [encode_parcel(parcel) for parcel in parcels]
        packed = _best(rounds, runs, lambda sent=sent: _whole(sent, tracer))  # type: ignore[misc]
        told = _whole(sent, tracer)
        outcomes: list[Outcome] = [outcome for chunk in told for outcome in decode_outcomes(chunk)]
        if {outcome.state for outcome in outcomes} != {State.COMPLETED} or len(outcomes) != runs:
            raise SystemExit("a run has failed: this would measure errors, not work")
        decode = _best(rounds, runs, lambda told=told: [decode_outcomes(chunk) for chunk in told])  # type: ignore[misc]
        print(
            f"{each.name:15} plain calls {own:6.2f} µs a run · worker {packed:6.2f} µs (beyond plain {packed - own:6.2f}) · "
            f"engine: encode parcels {encode:5.2f}, decode outcomes {decode:5.2f} µs"
        )


if __name__ == "__main__":
    main()
