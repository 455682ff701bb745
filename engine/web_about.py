"""The About page: the settings in force, without secrets, versions and topics."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.settings_shown import shown
from engine.vital_signs import Vital
from engine.web_parts import Parts

_PACKAGES = ("kafka-dask-engine", "dask", "distributed", "aiokafka", "msgspec", "starlette", "uvicorn", "jinja2")


def routes(parts: Parts) -> list[Route]:
    """Its address."""
    versions = [("python", platform.python_version()), *((name, _version(name)) for name in _PACKAGES)]

    async def show(request: Request) -> Response:
        settings = parts.settings
        seen: Vital | None = await parts.vitals.look() if parts.vitals is not None else None
        partitions: dict[str, int] = {}
        for topic, _ in (seen.ends if seen is not None else None) or {}:
            partitions[topic] = partitions.get(topic, 0) + 1
        roles = {
            settings.states_topic: "state changes, the only database",
            settings.dead_letters_topic: "what could not become runs",
            settings.replays_topic: "dead letters on their way back",
        }
        topics = [
            (name, partitions.get(name), roles.get(name, "events")) for name in [*roles, *sorted(partitions.keys() - roles)]
        ]
        context = {
            "settings": shown(settings),
            "versions": versions,
            "topics": topics,
            "kafka_trouble": seen.kafka_trouble if seen is not None else "",
        }
        return await parts.pages.page(request, "about.html", context, active="about")

    return [Route("/about", show)]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "a checkout"  # not installed, but on the path
