"""Settings: one list, read with the precedence flag > ``ENGINE_*`` variable > ``engine.toml`` > default."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from engine.errors import SettingsError
from engine.history_places import check_place, plain_hosts, shown
from engine.rule_tables import RuleTable, read_tables
from engine.secrets import Secret as Secret

ENVIRONMENT_PREFIX = "ENGINE_"
FILE_NAME = "engine.toml"
#: Settings that a variable gives with commas between.
_LISTS = frozenset({"handlers", "engines", "http_proxies"})
#: Variables that processes have no use for which serve no HTTP and notify nobody, above all workers, where users' code runs.
NOT_FOR_WORKERS = frozenset({"ENGINE_HTTP_TOKEN", "ENGINE_HTTP_READ_TOKEN", "ENGINE_RULES", "ENGINE_HISTORY"})
#: Protocols of result stores in whose URLs an @ is part of the address, not of a secret.
_STORES_WITH_USERS = frozenset({"abfs", "abfss", "az", "sftp", "ssh", "smb", "hdfs", "webhdfs"})


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything one can set; OpenTelemetry is set by its standard ``OTEL_*`` variables."""

    #: Name of the application: prefix of its topics and consumer groups.
    app: str = "engine"
    #: Bootstrap servers of Kafka, ``host:port``, several separated by commas.
    kafka: str = "127.0.0.1:9092"
    #: Address of the Dask scheduler.
    dask: str = "tcp://127.0.0.1:8786"
    #: Modules, files or folders that declare flows.
    handlers: tuple[str, ...] = ()
    #: Where the HTTP endpoint listens, ``host:port``; port 0 takes a free one; an empty text switches it off.
    http: str = "127.0.0.1:8282"
    #: Where engines listen, ``host:port`` or URLs, for the dashboard, which asks them whether they are ready.
    engines: tuple[str, ...] = ()

    #: Partitions of the state topic, fixed when it is made: they are the unit of ownership.
    state_partitions: int = 8
    #: Partitions of the event topics that the engine makes; those that exist are left as they are.
    event_partitions: int = 4
    #: Replicas of topics the engine makes; -1 leaves it to the broker.
    replication_factor: int = -1
    #: How long Kafka keeps state changes and dead letters.
    state_retention_seconds: float = 14 * 86_400.0
    #: How long Kafka keeps what tasks and flows log.
    logs_retention_seconds: float = 14 * 86_400.0
    #: Within this time an event's identity makes one run of a flow, not two.
    dedup_window_seconds: float = 86_400.0
    #: Stop taking in a topic when this share of its last hundred records, or runs of them, became dead letters; 0 never stops.
    dead_letter_limit: float = 0.0
    #: The largest record written to the state and dead-letter topics.
    max_record_bytes: int = 8 * 1024 * 1024

    #: Open runs one engine drives at once; beyond them it stops reading, staying in the group.
    max_open_runs: int = 2_000
    #: Records taken from Kafka in one go.
    poll_records: int = 1_000
    #: Results up to this size travel in COMPLETED; larger ones go into the result store, or stay on the cluster.
    inline_result_bytes: int = 16_384
    #: The result store, a URL of fsspec that engine and workers all reach, e.g. ``file:///var/lib/engine/results`` or
    #: ``s3://bucket/prefix``; empty for none. Whoever may write there may run code on the workers.
    results: str = ""
    #: The largest result that the store takes.
    max_result_bytes: int = 256 * 1024 * 1024
    #: How long a result that did not travel stays on the cluster after its run has ended.
    result_ttl_seconds: float = 600.0

    #: The history database; empty for none: a path or ``sqlite:///path``, or ``postgresql://user@host/database`` (extra
    #: ``postgres``) for dashboards on several machines. `engine history run` fills it from the topics.
    history: str = ""
    #: How long the history keeps runs that have ended, dead letters and counts.
    history_retention_seconds: float = 14 * 86_400.0
    #: How many runs that have ended it keeps, the latest.
    history_retention_runs: int = 1_000_000

    #: Where Jaeger's pages are, e.g. ``http://127.0.0.1:16686``, for links to traces; empty for none.
    traces: str = ""
    #: The program of Jaeger that `engine dev --jaeger` starts; empty looks for ``jaeger`` on PATH.
    jaeger: str = ""

    #: Tasks that one run may have.
    max_run_tasks: int = 100_000
    #: About how many elements of maps one run has on the cluster at a time.
    map_window: int = 2_000
    #: How long a flow may compute without awaiting or returning, while every other flow waits for it.
    flow_timeout_seconds: float = 10.0

    #: Whom to tell of what, beside ``on_state`` of flows and tasks: the arguments of ``engine.rule``, a table each.
    rules: tuple[RuleTable, ...] = ()
    #: Where people reach the dashboard, e.g. ``https://engine.example``: notifications link to it.
    dashboard_url: str = ""

    #: DEBUG, INFO, WARNING or ERROR.
    log_level: str = "INFO"

    #: How long to wait for Kafka and Dask at start before giving up.
    connect_timeout_seconds: float = 60.0
    #: A member of a consumer group that is silent for so long is taken for dead.
    session_timeout_seconds: float = 10.0
    #: How long a stopping engine waits for what it has under way.
    grace_seconds: float = 10.0

    #: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
    kafka_security: str = "PLAINTEXT"
    #: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
    kafka_sasl_mechanism: str = "SCRAM-SHA-512"
    kafka_username: str | None = None
    kafka_password: Secret | None = None
    #: PEM file of the authorities that vouch for Kafka's certificate.
    kafka_cafile: str | None = None
    #: Allow plain text (and an HTTP endpoint) beyond loopback.
    allow_plaintext: bool = False

    #: The token with which one may do everything over HTTP; beyond loopback the dashboard needs one, or a proxy.
    http_token: Secret | None = None
    #: The token with which one may look at everything.
    http_read_token: Secret | None = None
    #: Header in which a reverse proxy names the user it lets in, and the one with their role: ``read`` or ``operate``.
    http_user_header: str = ""
    http_role_header: str = ""
    #: Addresses or networks of the proxies that are believed.
    http_proxies: tuple[str, ...] = ()

    @property
    def history_path(self) -> str:
        """Where the history database lies, with the password that may be in it; empty for none."""
        return self.history.removeprefix("sqlite://") if self.history.startswith("sqlite:///") else self.history

    @property
    def history_shown(self) -> str:
        """The same for all to see."""
        return shown(self.history_path)

    def trace_link(self, trace_id: str) -> str:
        """Address of a trace's page; empty where there is none."""
        return f"{self.traces.rstrip('/')}/trace/{trace_id}" if self.traces and trace_id else ""

    @property
    def states_topic(self) -> str:
        """The log of state changes."""
        return f"{self.app}.states"

    @property
    def dead_letters_topic(self) -> str:
        """Where records go that could not become runs."""
        return f"{self.app}.dead-letters"

    @property
    def logs_topic(self) -> str:
        """What tasks and flows log, by run."""
        return f"{self.app}.logs"

    @property
    def replays_topic(self) -> str:
        """Where dead letters are sent to be taken in once more."""
        return f"{self.app}.replays"

    @property
    def intake_group(self) -> str:
        """Consumer group of the intake."""
        return f"{self.app}.intake"

    @property
    def dispatch_group(self) -> str:
        """Consumer group of the dispatcher."""
        return f"{self.app}.dispatch"

    @property
    def notify_group(self) -> str:
        """Consumer group of the notifier."""
        return f"{self.app}.notify"


def load(flags: Mapping[str, Any], environment: Mapping[str, str], directory: Path, *, check_hosts: bool = True) -> Settings:
    """The settings in force. ``flags`` that are None count as not given. Raises SettingsError."""
    values: dict[str, Any] = {}
    file = directory / FILE_NAME
    if file.is_file():
        try:
            values.update(tomllib.loads(file.read_text()))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(str(file), "", f"not valid TOML: {error}", "Correct the file.") from error
    fields = set(Settings.__struct_fields__)
    for name, text in environment.items():
        key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name.startswith(ENVIRONMENT_PREFIX) and key in fields:
            values[key] = [part for part in text.split(",") if part] if key in _LISTS else text
    values.update({key: value for key, value in flags.items() if value is not None})
    for key in values:
        if key not in fields:
            raise SettingsError(key, _shown(values[key]), "there is no such setting", f"Known: {', '.join(sorted(fields))}.")
    settings = _convert(values)
    if check_hosts and not settings.allow_plaintext:
        _check_hosts(settings)
    return settings


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only be this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_results(url: str) -> None:
    """Raises SettingsError where ``url`` is no result store, without repeating a secret that may be in it."""
    if not url:
        return
    protocol, _, rest = url.partition("://")
    is_url = "://" in url and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", protocol) is not None
    # Not by urlsplit, which misreads passwords with a / or ? in them: what is before the last @ or behind a ? never shows.
    user, _, place = ("", "", rest) if rest.startswith("/") else rest.rpartition("@")
    shown = f"{protocol}://{'***@' if user else ''}{re.split('[?#]', place)[0]}" if is_url else "***"
    if not is_url:
        cause, remedy = "is no URL of one file system", "Write file:///var/lib/engine/results or s3://bucket/prefix, say."
    elif user and (protocol.lower() not in _STORES_WITH_USERS or ":" in user):
        cause = "would carry credentials into logs and into references to results"
        remedy = (
            "Leave out what is before the @; use the store's own environment variables (for s3 AWS_ACCESS_KEY_ID and so on)."
        )
    elif re.search("[?#]", rest):
        cause = "has a query or a fragment"
        remedy = "Give protocol, place and folder alone, the rest in the store's own environment variables."
    elif protocol.lower() in ("file", "local") and not rest.startswith("/"):
        cause, remedy = (
            "is relative, and workers have folders of their own",
            "Give the whole path: file:///var/lib/engine/results.",
        )
    elif not rest.strip("/"):
        cause, remedy = "names no place", "Add a folder or bucket, e.g. file:///var/lib/engine/results."
    elif ".." in rest.split("/"):
        cause, remedy = "leads out of its own folder", "Write the path without '..'."
    else:
        return
    raise SettingsError("results", shown, cause, remedy)


def _convert(values: Mapping[str, Any]) -> Settings:
    converted: dict[str, Any] = {}
    for key, value in values.items():
        field = next(field for field in msgspec.structs.fields(Settings) if field.name == key)
        try:
            if field.type == Secret | None:
                converted[key] = Secret(value)
            elif key == "rules":
                converted[key] = read_tables(value)
            else:
                converted[key] = msgspec.convert(value, field.type, strict=False)
        except msgspec.ValidationError as error:
            shown = "***" if field.type == Secret | None or key == "rules" else _shown(value)
            raise SettingsError(key, shown, str(error), "Correct the flag, variable or line of engine.toml.") from error
    settings = Settings(**converted)
    for key in (
        "state_partitions",
        "event_partitions",
        "max_open_runs",
        "poll_records",
        "max_record_bytes",
        "max_result_bytes",
        "history_retention_runs",
    ):
        if getattr(settings, key) < 1:
            raise SettingsError(key, str(getattr(settings, key)), "must be at least 1", "Correct it.")
    if not 0.0 <= settings.dead_letter_limit <= 1.0:
        cause, remedy = "is no share", "Use a number from 0 (never stop) to 1 (stop when all of them fail), e.g. 0.5."
        raise SettingsError("dead_letter_limit", str(settings.dead_letter_limit), cause, remedy)
    if settings.state_retention_seconds < settings.dedup_window_seconds:
        cause = (
            f"is shorter than dedup_window_seconds ({settings.dedup_window_seconds:g}): Kafka would delete ids of the window"
        )
        raise SettingsError(
            "state_retention_seconds", f"{settings.state_retention_seconds:g}", cause, "Raise it, or shorten the window."
        )
    check_results(settings.results)
    if settings.dashboard_url and not re.fullmatch(r"https?://[^\s@?#]+", settings.dashboard_url):
        remedy = "Write https://engine.example: protocol, host and perhaps a path, without credentials."
        raise SettingsError("dashboard_url", "***", "is no address of a page", remedy)
    check_place(settings.history_path)
    if settings.traces and not re.fullmatch(r"https?://[^\s/?#@\"'<>]+(/[^\s?#\"'<>]*)?", settings.traces):
        # It becomes part of links, whoever may have set it; a password in it would be there for all to see.
        raise SettingsError("traces", "***", "is no plain http(s) URL", "Write http://127.0.0.1:16686, say.")
    if settings.log_level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise SettingsError("log_level", settings.log_level, "is no such level", "Use DEBUG, INFO, WARNING or ERROR.")
    if not settings.app or not all(c.isalnum() or c in "._-" for c in settings.app):
        raise SettingsError("app", settings.app, "is not a valid part of a topic name", "Use letters, digits, . _ and -.")
    return settings


def _shown(value: object) -> str:
    """A value in an error. What is a table or a list of them may have addresses with tokens in it."""
    return "***" if isinstance(value, dict | list) and "://" in str(value) else str(value)


def _check_hosts(settings: Settings) -> None:
    plain: list[tuple[str, str]] = []
    if settings.kafka_security.upper() in ("PLAINTEXT", "SASL_PLAINTEXT"):
        plain += [("kafka", server.strip().rpartition(":")[0]) for server in settings.kafka.split(",")]
    if not settings.dask.startswith(("tls://", "inproc://")):
        plain.append(("dask", urlsplit(settings.dask).hostname or ""))
    if settings.http:
        plain.append(("http", settings.http.rpartition(":")[0]))
    plain += [
        ("engines", urlsplit(engine if "://" in engine else f"http://{engine}").hostname or "")
        for engine in settings.engines
        if not engine.startswith("https://")
    ]
    plain += [("history", host) for host in plain_hosts(settings.history_path)]
    for key, host in plain:
        if not is_loopback(host):
            way = "Use TLS (kafka_security, tls://, sslmode=verify-full)"
            if key == "http":
                way = "It speaks no TLS: listen on loopback, behind a proxy that does"
            raise SettingsError(
                key,
                settings.history_shown if key == "history" else str(getattr(settings, key)),
                f"would send plain text to {host or 'another host'}",
                f"{way}, or say allow_plaintext = true if the network is yours.",
            )
