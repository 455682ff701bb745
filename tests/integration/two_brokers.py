"""A Kafka of two brokers, one of them the controller, too: what there is to see only where partitions have followers."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from engine.apache import ApacheKafka, free_port

_OFFSETS = "__consumer_offsets"
_PROPERTIES = {
    "default.replication.factor": "2",
    "offsets.topic.replication.factor": "2",
    # A broker that is gone is noticed soon, and gets its share of leaders back as soon as it is in sync.
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "3000",
    "leader.imbalance.check.interval.seconds": "1",
    "leader.imbalance.per.broker.percentage": "0",
}


class _Node(ApacheKafka):
    """One of the two: the first is broker and controller, the second a broker of the first's cluster."""

    def __init__(self, directory: Path, node_id: int, cluster_id: str, port: int, controller_port: int) -> None:
        super().__init__(directory, port, controller_port if node_id == 1 else None)
        self._id, self._cluster, self._port, self._controller_port = node_id, cluster_id, port, controller_port

    def _cluster_id(self) -> str:
        return self._cluster

    def _more_properties(self) -> dict[str, str]:
        if self._id == 1:
            return _PROPERTIES
        return _PROPERTIES | {
            "process.roles": "broker",
            "node.id": str(self._id),
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self._port}",
        }


class TwoBrokers:
    """Started and stopped together; the second may go alone."""

    def __init__(self, directory: Path) -> None:
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
        ports: list[int] = []
        while len(ports) < 3:
            if (port := free_port()) not in ports:
                ports.append(port)
        controller_port, first, second = ports
        self.first = _Node(directory / "first", 1, cluster_id, first, controller_port)
        self.second = _Node(directory / "second", 2, cluster_id, second, controller_port)
        self.bootstrap = f"127.0.0.1:{first},127.0.0.1:{second}"

    async def start(self) -> None:
        await asyncio.gather(self.first.start(print), self.second.start(print))

    async def stop(self) -> None:
        await self.second.stop()  # while there is a controller to say it to
        await self.first.stop()

    async def kill_second(self) -> None:
        """kill -9."""
        assert self.second.pid is not None
        os.kill(self.second.pid, signal.SIGKILL)
        await self.second.wait()
        await self.second.stop()  # what is left of it

    async def want_in_sync(self, replicas: int, topics: Collection[str]) -> None:
        """From now on a write to these topics needs so many replicas; until then it is one."""
        settings = {"min.insync.replicas": str(replicas)}
        async with _Admin(self.bootstrap) as admin:
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=settings) for topic in topics])

    async def are_whole(self, topics: Collection[str]) -> bool:
        """Whether both brokers keep all of these topics, and the groups' offsets, in sync, and lead some of each."""
        async with _Admin(self.bootstrap) as admin:
            found = await admin.describe_topics([*topics, _OFFSETS])
        places = [partition for topic in found for partition in topic["partitions"]]
        is_shared = all({place["leader"] for place in topic["partitions"]} == {1, 2} for topic in found)
        return is_shared and all(len(place["isr"]) == 2 for place in places)


class _Admin:
    def __init__(self, bootstrap: str) -> None:
        self._admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)

    async def __aenter__(self) -> Any:
        await self._admin.start()
        return self._admin

    async def __aexit__(self, *_: object) -> None:
        await self._admin.close()
