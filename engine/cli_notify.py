"""``engine notify``: the notifier as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Annotated

from cyclopts import Parameter

from engine import logs
from engine.cli_flags import AppFlag, HandlersFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_output import json_text, put, say
from engine.command_errors import NotDelivered, TargetError
from engine.hook_loader import load_addressees
from engine.kafka import KafkaBroker
from engine.logs import logger
from engine.notices import trial_notice
from engine.notifier import Notifier
from engine.sender_builder import Outboxes, build
from engine.senders import HookSender
from engine.settings import Settings

#: Of --test, where a target did not take it.
_NOT_DELIVERED = 1


async def notify(
    handlers: HandlersFlag = None,
    *,
    test: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Send each address one notification to look at, and exit.")
    ] = False,
    skip_unusable: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Go on without targets whose variables are not set, say.")
    ] = False,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    json: JsonFlag = False,
) -> int | None:
    """Tell people and programs of state changes, as flows, tasks and rules ask for, until SIGTERM or Ctrl-C.

    It goes on where it was, outlives trouble of Kafka, and holds up no run. With --json: one line {"kafka", "targets", "rules",
    "pid"} on standard output when it listens.
    """
    settings = settings_of(app=app, kafka=kafka, handlers=handlers)
    logs.configure(level=settings.log_level)
    addressees = load_addressees(settings)
    outboxes = build(addressees.targets, settings, os.environ, _leave_out if skip_unusable else None)
    if test:
        return await _test(settings, outboxes)
    if not outboxes.all:
        logger.warning("nobody is to be told: no flow or task has on_state, and there are no rules", handlers=settings.handlers)
    notifier = Notifier(settings, KafkaBroker(settings), addressees, outboxes)
    told = False

    def tell() -> None:
        nonlocal told
        if json and not told:
            counts = {"targets": len(outboxes.all), "rules": len(addressees.rules)}
            put(json_text({"kafka": settings.kafka, **counts, "pid": os.getpid()}))
        told = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, notifier.stop)
    await notifier.run(tell)
    if any(sender.is_busy for sender in outboxes.senders):
        sys.stderr.flush()
        os._exit(0)  # Python would wait for apprise's threads, and one of them hangs.
    return None


def _leave_out(error: TargetError) -> None:
    logger.warning("a target is left out", error=str(error))


async def _test(settings: Settings, outboxes: Outboxes) -> int:
    """Each target once, the ways that hang included: none waits for another."""

    async def send(name: str, way: int) -> bool:
        if isinstance(outboxes.senders[way], HookSender):
            say(f"{name}: not tried, a function takes what it is declared for")
            return True
        try:
            await outboxes.senders[way].send(trial_notice(settings.app))
        except NotDelivered as error:
            say(f"{name}: {error}")
            return False
        say(f"{name}: sent")
        return True

    done = await asyncio.gather(*(send(outbox.name, way) for way, outbox in enumerate(outboxes.all)))
    if not done:
        say("nobody is to be told: no flow or task has on_state, and there are no rules")
    return 0 if all(done) else _NOT_DELIVERED
