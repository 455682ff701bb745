"""Vitals: how Kafka's groups, the Dask cluster and the engines are at this moment; asks, and changes nothing anywhere.

A look never raises and never takes long: each part has its own patience, and one that does not answer is None, with the reason.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from engine.broker import Broker, Standing
from engine.errors import EngineError
from engine.http_probe import look_at_engine
from engine.settings import Settings
from engine.vital_signs import DaskVital, Vital, lags_of

T = TypeVar("T")

#: No part is waited for longer.
PART_SECONDS = 1.5
#: What was seen is good for so long: many who look at once cost no more than one.
SHARED_SECONDS = 1.0


class Vitals:
    """Looks at the system of one app; close it in the end."""

    def __init__(self, settings: Settings, broker: Broker) -> None:
        self._settings = settings
        self._offsets = broker.offset_reader()
        #: A DaskProbe; None before the first look.
        self._probe: Any = None
        self._look: asyncio.Task[Vital] | None = None
        self._looked_at = 0.0

    async def look(self) -> Vital:
        """How all of it is; what another one saw within the last second, or is about to see, is shared."""
        if self._look is None or (self._look.done() and time.monotonic() - self._looked_at > SHARED_SECONDS):
            self._look = asyncio.create_task(self._ask(), name="vitals-look")
        # Whoever goes away leaves the look to the others.
        return await asyncio.shield(self._look)

    async def close(self) -> None:
        """Stop looking and free everything."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait([self._look])
        await self._offsets.close()
        if self._probe is not None:
            await self._probe.close()

    async def _ask(self) -> Vital:
        engines = asyncio.gather(*(look_at_engine(address, PART_SECONDS) for address in self._settings.engines))
        (standing, kafka_trouble), (dask, dask_trouble), found = await asyncio.gather(
            _patiently(self._standing()), _patiently(self._dask()), engines
        )
        seen = Vital(
            at=time.time(),
            lags=None if standing is None else tuple(lags_of(standing)),
            ends=None if standing is None else standing.ends,
            kafka_trouble=kafka_trouble,
            dask=dask,
            dask_trouble=dask_trouble,
            engines=tuple(found),
        )
        self._looked_at = time.monotonic()
        return seen

    async def _dask(self) -> DaskVital:
        if self._probe is None:
            # Imported here: it brings distributed, which an app that nobody looks at should not pay for.
            from engine.dask_probe import DaskProbe

            self._probe = DaskProbe(self._settings.dask, PART_SECONDS)
        seen: DaskVital = await self._probe.ask()
        return seen

    async def _standing(self) -> Standing:
        settings = self._settings
        topics = [settings.states_topic, settings.dead_letters_topic, settings.logs_topic, settings.replays_topic]
        return await self._offsets.read([settings.intake_group, settings.dispatch_group], topics)


async def _patiently(asking: Coroutine[Any, Any, T]) -> tuple[T | None, str]:
    """The answer and nothing; or None, and why there is none."""
    try:
        async with asyncio.timeout(PART_SECONDS):
            return await asking, ""
    except TimeoutError:
        return None, f"no answer within {PART_SECONDS:g} s"
    except EngineError as error:
        return None, str(error)
    except Exception as error:  # whatever a library raises: the rest of the look is good all the same
        return None, f"{type(error).__name__}: {error}"
