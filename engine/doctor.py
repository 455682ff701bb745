"""The checks of ``engine doctor``: what they find out and the remedy of what is wrong; prints nothing, changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec

from engine.broker import Broker
from engine.cluster_survey import Survey, survey, versions
from engine.errors import DaskUnavailable, EngineError, KafkaUnavailable
from engine.http_probe import look_at_engine
from engine.loader import load, places
from engine.settings import Settings
from engine.triggers import Triggers
from engine.vital_signs import EngineVital

#: Clocks that differ by more make times of events and tasks meaningless.
MOST_SKEW_SECONDS = 1.0
_DASK_SECONDS = 5.0
_HTTP_SECONDS = 2.0


class Check(msgspec.Struct, frozen=True):
    """One thing looked at."""

    name: str
    ok: bool
    #: What was found.
    found: str
    #: What to do where it is not ok.
    remedy: str = ""
    #: Whether it failed because something could not be reached.
    is_unreachable: bool = False


async def examine(settings: Settings, broker: Broker) -> list[Check]:
    """All checks, those that need what cannot be reached left out."""
    checks, topics, modules = _handlers(settings)
    checks += await _kafka(settings, broker, topics)
    addresses = [address for address in dict.fromkeys((settings.http, *settings.engines)) if address]
    checks += [serving_check(await look_at_engine(address, _HTTP_SECONDS)) for address in addresses]
    try:
        found = await survey(settings.dask, modules, _DASK_SECONDS)
    except DaskUnavailable as error:
        remedy = "Start it (`engine dev` does), or correct --dask."
        checks.append(Check("Dask scheduler", ok=False, found=error.cause, remedy=remedy, is_unreachable=True))
        return checks
    checks.append(Check("Dask scheduler", ok=True, found=settings.dask))
    return [*checks, *dask_checks(found, versions(), modules)]


def _handlers(settings: Settings) -> tuple[list[Check], list[str], list[str]]:
    """Checks, event topics and modules of the handlers."""
    if not settings.handlers:
        return [Check("handlers", ok=True, found="none named, so none looked at")], [], []
    try:
        flows = load(settings.handlers)
    except EngineError as error:
        return [Check("handlers", ok=False, found=str(error), remedy="Correct it; nothing can run before.")], [], []
    modules = [place.module for place in places(settings.handlers)]
    found = f"{len(flows)} {'flow' if len(flows) == 1 else 'flows'} in {', '.join(modules)}"
    return [Check("handlers", ok=True, found=found)], Triggers(flows.values()).topics, modules


async def _kafka(settings: Settings, broker: Broker, event_topics: list[str]) -> list[Check]:
    try:
        wanted = {settings.states_topic: settings.state_partitions}
        own = (*wanted, settings.dead_letters_topic, settings.replays_topic, settings.logs_topic)
        counts = {topic: await broker.partitions(topic) for topic in (*own, *event_topics)}
    except KafkaUnavailable as error:
        remedy = "Start it (`engine dev` does), or correct --kafka."
        return [Check("Kafka", ok=False, found=f"{settings.kafka}: {error.cause}", remedy=remedy, is_unreachable=True)]
    checks = [Check("Kafka", ok=True, found=settings.kafka)]
    for topic, count in counts.items():
        name = f"topic {topic}"
        if count is None:
            remedy = "The engine makes it when it starts: `engine run` or `engine dev`, with this --app and these handlers."
            checks.append(Check(name, ok=False, found="does not exist", remedy=remedy))
        elif count != wanted.get(topic, count):
            found = f"{count} partitions, but state_partitions = {wanted[topic]}"
            remedy = f"The number is fixed when the topic is made: set state_partitions = {count}."
            checks.append(Check(name, ok=False, found=found, remedy=remedy))
        else:
            checks.append(Check(name, ok=True, found=f"{count} {'partition' if count == 1 else 'partitions'}"))
    return checks


def serving_check(found: EngineVital) -> Check:
    """What ``/readyz`` says there, of an engine or of a dashboard; that nobody listens is no fault. Pure."""
    name = f"http {found.address}"
    if found.is_ready is None:
        return Check(name, ok=True, found=f"nobody serves there: {found.trouble}")
    troubles = "; ".join(f"{part}: {state}" for part, state in found.parts.items() if state != "ok")
    remedy = "Each part says what it waits for; it goes on when that is there."
    return Check(name, ok=found.is_ready, found="ready" if found.is_ready else troubles or "not ready", remedy=remedy)


def dask_checks(found: Survey, own_versions: dict[str, str], modules: list[str]) -> Iterator[Check]:
    """What a survey of the cluster means; pure."""
    workers = {address: answer for address, answer in found.workers.items() if not answer.error}
    yield Check(
        "Dask workers",
        ok=bool(found.workers),
        found=f"{len(found.workers)} there",
        remedy="Start some: dask worker SCHEDULER",
    )
    for address, answer in found.workers.items():
        if answer.error:
            remedy = "Install the engine there, in the same version, and look at its log."
            yield Check(f"worker {address}", ok=False, found=f"cannot answer: {answer.error}", remedy=remedy)
    yield from _versions(found, own_versions)
    if modules and workers:
        refusals = [
            f"{address} cannot import {module}: {why}"
            for address, answer in workers.items()
            for module, why in answer.refused.items()
        ]
        yield Check(
            "handlers on the workers",
            ok=not refusals,
            found="; ".join(refusals) or f"imported on {len(workers)} workers",
            remedy="Install the handlers there, or put their folder on the PYTHONPATH of the workers.",
        )
    skewed = [f"{address} by {a.skew_seconds:.1f} s" for address, a in workers.items() if a.skew_seconds > MOST_SKEW_SECONDS]
    if workers:
        yield Check(
            "clocks",
            ok=not skewed,
            found="; ".join(skewed) or f"less than {MOST_SKEW_SECONDS:g} s apart",
            remedy="Synchronise the clocks of these machines (NTP).",
        )


def _versions(found: Survey, own: dict[str, str]) -> Iterator[Check]:
    if found.scheduler_versions is None:
        remedy = "Install the engine there, in the same version: its plugin holds the runs' futures."
        yield Check("engine on the scheduler", ok=False, found="cannot be imported", remedy=remedy)
    others = {"the scheduler": found.scheduler_versions or own}
    others |= {address: answer.versions for address, answer in found.workers.items() if not answer.error}
    differing: Counter[str] = Counter()
    for theirs in others.values():
        differing.update(f"{part} {theirs.get(part)} instead of {own[part]}" for part in own if theirs.get(part) != own[part])
    yield Check(
        "versions",
        ok=not differing,
        found="; ".join(f"{what} ({count}×)" for what, count in differing.items())
        or ", ".join(f"{part} {number}" for part, number in own.items()),
        remedy="Install the same versions here, on the scheduler and on every worker.",
    )
