"""From order to parcel: an example of an async flow, which waits for an event and sets right what went wrong.

While it waits, for days if need be, it costs a little memory and no worker; when the engine stops, the next one goes on
where this one was. The shop's own systems are made up here: stock, payments and parcels are a line of Python each.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from engine import EventTimeout, Retry, TaskFailed, TerminalError, attempt, exponential, flow, on, task, wait_for_event

#: Where the shop sends parcels to.
COUNTRIES = {"AT", "CH", "DE", "FR", "GB"}
IN_STOCK = 10
DAY_SECONDS = 86_400.0


# --- What the events say -------------------------------------------------------------------------------------------


class Order(msgspec.Struct, frozen=True):
    """The data of an order.created event."""

    order_id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    sku: str
    country: Annotated[str, msgspec.Meta(pattern="^[A-Z]{2}$")]
    quantity: Annotated[int, msgspec.Meta(ge=1)] = 1
    #: How long the goods are kept for a customer who has not paid.
    pay_within_seconds: Annotated[float, msgspec.Meta(gt=0, le=30 * DAY_SECONDS)] = DAY_SECONDS


class Paid(msgspec.Struct, frozen=True):
    """The data of an order.paid event."""

    order_id: str
    payment_id: str


# --- What the flow answers -----------------------------------------------------------------------------------------


class Checkout(msgspec.Struct, frozen=True):
    """How an order ended."""

    order_id: str
    #: shipped, cancelled or refunded.
    outcome: str
    #: The parcel's number; None where nothing was shipped.
    parcel: str | None = None
    #: Why nothing was shipped, in words.
    reason: str = ""


# --- Its steps. Async functions, so that `await reserve(order)` reads the same to Python, to a type checker and to us -


@task(retry=Retry(attempts=3, wait=exponential(0.2)), timeout_seconds=10)
async def reserve(order: Order) -> str:
    """Lay the goods aside. Answers the reservation's id."""
    if order.quantity > IN_STOCK:
        raise TerminalError(f"only {IN_STOCK} of {order.sku} are left")
    # The same in each attempt: a warehouse that is asked twice lays the goods aside once.
    return f"r-{attempt().idempotency_key}"


@task(retry=Retry(attempts=3, wait=exponential(0.2), unless=(ValueError,)), timeout_seconds=10)
async def ship(order: Order, reservation: str) -> str:
    """Hand the goods to the carrier. Answers the parcel's number."""
    if order.country not in COUNTRIES:
        raise ValueError(f"no carrier goes to {order.country}")
    return f"{order.country}-{order.order_id}"


@task(retry=Retry(attempts=10, wait=exponential(0.2)))
async def release(reservation: str) -> None:
    """Put the goods back. What sets things right is tried for longer than what it sets right."""


@task(retry=Retry(attempts=10, wait=exponential(0.2)))
async def refund(payment_id: str) -> None:
    """Give the money back."""


@flow(on("orders", type="order.created"))
async def checkout(order: Order) -> Checkout:
    """Lay the goods aside, wait for the money, ship; or put back what was taken."""
    try:
        reservation = await reserve(order)
    except TaskFailed as error:
        return Checkout(order.order_id, "cancelled", reason=error.message)
    try:
        # Found as well where the customer paid before we began to wait.
        paid = await wait_for_event(
            "orders",
            type="order.paid",
            where=lambda event: event.data.order_id == order.order_id,
            data=Paid,
            timeout_seconds=order.pay_within_seconds,
        )
    except EventTimeout:
        await release(reservation)
        return Checkout(order.order_id, "cancelled", reason="not paid in time")
    try:
        parcel = await ship(order, reservation)
    except TaskFailed as error:
        await refund(paid.data.payment_id)
        await release(reservation)
        return Checkout(order.order_id, "refunded", reason=error.message)
    return Checkout(order.order_id, "shipped", parcel=parcel)
