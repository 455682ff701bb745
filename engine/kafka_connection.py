"""How to reach one Kafka cluster, what topics it has and how they are made: what sources and sinks share."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaConnectionError, KafkaError, TopicAlreadyExistsError, for_code

from engine.broker import Partition, TopicSpec
from engine.errors import KafkaUnavailable, SettingsError, TopicError
from engine.kafka_errors import TooFewReplicas
from engine.settings import Settings

#: One attempt to connect, or one request, takes at most so long.
REQUEST_SECONDS = 5.0
#: A client's start is several requests, each of which ends by itself. It is ended from outside only after so long: in the
#: middle of its first question aiokafka would leave a connection open.
START_SECONDS = 3 * REQUEST_SECONDS
#: Each question why a write failed takes at most so long: whoever waits for it has waited long enough.
WHY_SECONDS = 2.0
#: New partitions and moved leaders are noticed after at most so long.
METADATA_SECONDS = 60.0
#: Kafka's own default for max.message.bytes, taken where a topic's settings may not be read.
DEFAULT_LIMIT_BYTES = 1_048_588

_SECURITY = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")

#: In what aiokafka says where it could connect to none of the servers.
_NOBODY = "Unable to bootstrap from"
#: What aiokafka raises when it cannot get through; becomes KafkaUnavailable.
UNREACHABLE = (KafkaError, OSError, TimeoutError)


class KafkaConnection:
    """Makes short-lived connections for questions about topics, and the options for the long-lived ones."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def options(self, request_seconds: float) -> dict[str, Any]:
        """Arguments that every client of aiokafka takes. Raises SettingsError."""
        settings = self.settings
        security = settings.kafka_security.upper()
        options: dict[str, Any] = {
            "bootstrap_servers": [server.strip() for server in settings.kafka.split(",")],
            "client_id": settings.app,
            "request_timeout_ms": int(request_seconds * 1000),
            "metadata_max_age_ms": int(METADATA_SECONDS * 1000),
            "security_protocol": security,
        }
        if security not in _SECURITY:
            raise SettingsError("kafka_security", security, "is not known", f"Use one of {', '.join(_SECURITY)}.")
        if security.endswith("SSL"):
            try:
                options["ssl_context"] = ssl.create_default_context(cafile=settings.kafka_cafile)
            except (OSError, ssl.SSLError) as error:
                cause = f"cannot be read: {error}"
                raise SettingsError("kafka_cafile", str(settings.kafka_cafile), cause, "Name a PEM file.") from error
        if security.startswith("SASL"):
            if settings.kafka_username is None or settings.kafka_password is None:
                remedy = "Set kafka_username and kafka_password."
                raise SettingsError("kafka_security", security, "needs a user and a password", remedy)
            options["sasl_mechanism"] = settings.kafka_sasl_mechanism
            options["sasl_plain_username"] = settings.kafka_username
            options["sasl_plain_password"] = settings.kafka_password.reveal()
        return options

    def unavailable(self, error: BaseException) -> KafkaUnavailable:
        """What to raise in place of an error of aiokafka."""
        if isinstance(error, TimeoutError):
            cause = "no answer in time"
        elif isinstance(error, KafkaConnectionError) and _NOBODY in str(error):
            # What most people meet first: its own words are those of Python's sockets, and the address stands before it.
            cause = "no broker answers there"
        else:
            # Some of its texts end with a full stop, others do not.
            cause = str(error).rstrip(". ") or type(error).__name__
        return KafkaUnavailable(self.settings.kafka, cause)

    async def why(self, failure: KafkaUnavailable, written: Collection[Partition]) -> KafkaUnavailable:
        """The failure of a write to these partitions, or a better one: that Kafka is there, and which it cannot write to.

        aiokafka keeps to itself what the brokers answer, and tries again.
        """
        topics = {topic for topic, _ in written}
        try:
            async with self._admin(WHY_SECONDS) as admin:
                found = {topic["topic"]: topic["partitions"] for topic in await admin.describe_topics()}
                least = await _numbers(admin, topics, "min.insync.replicas")
        except KafkaUnavailable:
            return failure  # It is away; why a write failed needs no better reason.
        cause = shortage(written, found, least)
        return TooFewReplicas(self.settings.kafka, cause) if cause else failure

    async def partition_counts(self) -> dict[str, int]:
        """Every topic and how many partitions it has. Raises KafkaUnavailable."""
        async with self._admin() as admin:
            return await _partition_counts(admin)

    async def check_topics(self, topics: Iterable[str]) -> dict[str, int]:
        """How many partitions each of these has. Raises TopicError where one does not exist, or KafkaUnavailable."""
        counts = await self.partition_counts()
        for topic in topics:
            if topic not in counts:
                raise TopicError(topic, "does not exist", "Check its name, or create it; `engine doctor` lists the topics.")
        return {topic: counts[topic] for topic in topics}

    async def record_limit(self, topic: str) -> int:
        """The size of the largest batch of records, and so of the largest record, that a topic takes, in bytes."""
        async with self._admin() as admin:
            sizes = (await _numbers(admin, [topic], "max.message.bytes")).values()
        return min([*sizes, self.settings.max_record_bytes] if sizes else [DEFAULT_LIMIT_BYTES])

    async def ensure_topics(self, topics: Sequence[TopicSpec]) -> list[str]:
        """Make the topics that are missing; answers their names. Raises KafkaUnavailable or TopicError."""
        async with self._admin() as admin:
            present = await _partition_counts(admin)
            missing = [topic for topic in topics if topic.name not in present]
            if not missing:
                return []
            answer = await admin.create_topics([_new_topic(topic) for topic in missing])
            for name, code, message in answer.topic_errors:
                # Another engine that starts at the same time may have been first: that is as good.
                if code not in (0, TopicAlreadyExistsError.errno):
                    raise TopicError(name, message or for_code(code).__name__, "Correct its settings, or make it yourself.")
            # A broker answers from its own copy of the metadata, which follows a little later; clients ask there.
            names = [topic.name for topic in missing]
            while not set(names) <= (await _partition_counts(admin)).keys():  # noqa: ASYNC110  # Kafka has no event for it
                await asyncio.sleep(0.02)
            return names

    @asynccontextmanager
    async def _admin(self, request_seconds: float = REQUEST_SECONDS) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(**self.options(request_seconds))
        try:
            async with asyncio.timeout(START_SECONDS):
                await admin.start()
            async with asyncio.timeout(request_seconds):
                yield admin
        except UNREACHABLE as error:
            raise self.unavailable(error) from error
        finally:
            await admin.close()


def shortage(written: Collection[Partition], found: Mapping[str, Sequence[Mapping[str, Any]]], least: Mapping[str, int]) -> str:
    """What keeps brokers from taking writes to some of the partitions ``written``, for a person; empty where nothing does.

    ``found`` is what Kafka's metadata says of each topic's partitions, ``least`` how many replicas of each must be in sync.
    """
    said: list[str] = []
    for topic, partition in sorted(written):
        for told in found.get(topic, ()):
            in_sync, wanted = len(told["isr"]), least.get(topic, 1)
            if told["partition"] != partition:
                continue
            if told["leader"] < 0:
                said.append(f"partition {partition} of {topic} has no leader, all brokers that keep it are away")
            elif in_sync < wanted:
                said.append(
                    f"too few in-sync replicas of partition {partition} of {topic}, {in_sync} of the {wanted} that its "
                    "min.insync.replicas asks for"
                )
    more = f", and {len(said) - 1} partitions more" if len(said) > 1 else ""
    return said[0] + more if said else ""


async def _numbers(admin: AIOKafkaAdminClient, topics: Iterable[str], setting: str) -> dict[str, int]:
    """A setting of these topics. Without the right to read their settings there is nothing in it."""
    wanted = [ConfigResource(ConfigResourceType.TOPIC, topic, configs={setting: ""}) for topic in topics]
    answers = await admin.describe_configs(wanted)
    return {resource[3]: int(entry[1]) for answer in answers for resource in answer.resources for entry in resource[4]}


async def _partition_counts(admin: AIOKafkaAdminClient) -> dict[str, int]:
    # All topics are asked for: naming one would make it where the cluster makes topics automatically.
    return {
        topic["topic"]: len(topic["partitions"])
        for topic in await admin.describe_topics()
        if topic["error_code"] == 0 and topic["partitions"]
    }


def _new_topic(topic: TopicSpec) -> NewTopic:
    # aiokafka takes -1, which leaves it to the broker, only beside an assignment of replicas, be it empty.
    assignment: dict[int, list[int]] | None = {} if -1 in (topic.partitions, topic.replication_factor) else None
    return NewTopic(topic.name, topic.partitions, topic.replication_factor, assignment, dict(topic.config))
