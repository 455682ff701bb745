"""Errors of commands and of the development stack; like all others they say what failed, why, and what to do next."""

from __future__ import annotations

from engine.errors import EngineError


class ApacheError(EngineError):
    """Raised when a Kafka of one's own does not start. Nothing is left running; the remedy is in the text."""

    exit_code = 4

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause, remedy)
        self.cause, self.remedy = cause, remedy

    def __str__(self) -> str:
        return f"cannot start Apache Kafka: {self.cause}. {self.remedy}"


class StackError(EngineError):
    """Raised when a part of the development stack does not start or cannot go on. All that was started is stopped."""

    exit_code = 4

    def __init__(self, part: str, cause: str, remedy: str) -> None:
        super().__init__(part, cause, remedy)
        self.part, self.cause, self.remedy = part, cause, remedy

    def __str__(self) -> str:
        return f"{self.part}: {self.cause}. {self.remedy}"


class JaegerMissing(EngineError):
    """Raised when `engine dev --jaeger` finds no Jaeger. Nothing was started; the text says how to get one."""

    exit_code = 2

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return (
            f"cannot start Jaeger: {self.cause}. Download the release of Jaeger v2 for your machine from "
            "https://www.jaegertracing.io/download/ and put its program `jaeger` on PATH, or name it: "
            'jaeger = "/path/to/jaeger" in engine.toml, or ENGINE_JAEGER. With Go 1.24 or newer it can be built: README.md, '
            "'See traces in Jaeger'. With Docker: `docker compose up -d jaeger`, then "
            "`OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 engine dev` without --jaeger."
        )


class InterruptedStartError(EngineError):
    """Raised when Ctrl-C or SIGTERM comes before the development stack is up. All that was started is stopped."""

    exit_code = 130

    def __str__(self) -> str:
        return "interrupted before everything was up"


class UsageError(EngineError):
    """Raised when a flag or file given to a command cannot be used. Nothing was done; correct what is named."""

    exit_code = 2

    def __init__(self, what: str, cause: str, remedy: str) -> None:
        super().__init__(what, cause, remedy)
        self.what, self.cause, self.remedy = what, cause, remedy

    def __str__(self) -> str:
        return f"{self.what}: {self.cause}. {self.remedy}"


class NotFound(EngineError):
    """Raised when a run, flow or dead letter asked for does not exist. Nothing was changed."""

    exit_code = 3

    def __init__(self, what: str, name: str, remedy: str) -> None:
        super().__init__(what, name, remedy)
        self.what, self.name, self.remedy = what, name, remedy

    def __str__(self) -> str:
        return f"no {self.what} {self.name!r}. {self.remedy}"


class ParametersError(EngineError):
    """Raised when a flow is to be started by hand with parameters that it does not take. No run was made."""

    exit_code = 2

    def __init__(self, flow: str, cause: str, remedy: str) -> None:
        super().__init__(flow, cause, remedy)
        self.flow, self.cause, self.remedy = flow, cause, remedy

    def __str__(self) -> str:
        return f"parameters of the flow {self.flow}: {self.cause}. {self.remedy}"


class NotRepeatable(EngineError):
    """Raised when a run is not in a state in which it can be repeated. No run was made."""

    def __init__(self, run_id: str, state: str, remedy: str) -> None:
        super().__init__(run_id, state, remedy)
        self.run_id, self.state, self.remedy = run_id, state, remedy

    def __str__(self) -> str:
        return f"run {self.run_id} is {self.state}. {self.remedy}"


class AlreadyEnded(EngineError):
    """Raised when a run that is to be cancelled has ended before. Nothing was done."""

    def __init__(self, run_id: str, state: str) -> None:
        super().__init__(run_id, state)
        self.run_id, self.state = run_id, state

    def __str__(self) -> str:
        return f"run {self.run_id} is {self.state} already; nothing was cancelled. See it: `engine runs watch {self.run_id}`."


class RunTimeout(EngineError):
    """Raised when a run that is watched has not ended in time. The run goes on; watch it again."""

    def __init__(self, run_id: str, timeout_seconds: float) -> None:
        super().__init__(run_id, timeout_seconds)
        self.run_id, self.timeout_seconds = run_id, timeout_seconds

    def __str__(self) -> str:
        return f"run {self.run_id} has not ended within {self.timeout_seconds:g} s; it goes on. Watch it again."


class HandlerError(EngineError):
    """Raised when a handler module cannot be imported. The engine does not start; the cause is in the text."""

    exit_code = 2

    def __init__(self, handler: str, cause: str, remedy: str) -> None:
        super().__init__(handler, cause, remedy)
        self.handler, self.cause, self.remedy = handler, cause, remedy

    def __str__(self) -> str:
        return f"handler {self.handler}: {self.cause}. {self.remedy}"


class TargetError(EngineError):
    """Raised when a target of notifications cannot be used, before anything is told. The text shows no address."""

    exit_code = 2

    def __init__(self, target: str, cause: str, remedy: str) -> None:
        super().__init__(target, cause, remedy)
        self.target, self.cause, self.remedy = target, cause, remedy

    def __str__(self) -> str:
        return f"{self.target}: {self.cause}. {self.remedy}"


class NotDelivered(EngineError):
    """Raised when a target did not take a notice. The notifier tries again, later, unless ``is_final``."""

    def __init__(self, cause: str, is_final: bool, retry_after_seconds: float | None) -> None:
        super().__init__(cause, is_final, retry_after_seconds)
        self.cause, self.is_final, self.retry_after_seconds = cause, is_final, retry_after_seconds

    def __str__(self) -> str:
        return self.cause
