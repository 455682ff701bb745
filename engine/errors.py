"""Every error the engine raises: what failed, the likely cause, the next command; all survive pickling.

An error's fields go positionally to ``super().__init__``, because errors cross Dask's process boundaries and
pickle rebuilds an exception from ``args``.
"""

from __future__ import annotations


class EngineError(Exception):
    """Root of all errors raised by the engine."""

    #: What a command exits with when it ends with this error.
    exit_code = 1


class SettingsError(EngineError):
    """Raised when a setting is missing, unknown or wrong. The engine does not start; correct the setting named."""

    exit_code = 2

    def __init__(self, key: str, value: str, cause: str, remedy: str) -> None:
        super().__init__(key, value, cause, remedy)
        self.key, self.value, self.cause, self.remedy = key, value, cause, remedy

    def __str__(self) -> str:
        return f"setting {self.key} = {self.value!r}: {self.cause}. {self.remedy}"


class DeclarationError(EngineError):
    """Raised when a handler module declares a flow, task or trigger wrongly. The module is refused; correct the line."""

    exit_code = 2

    def __init__(self, file: str, line: int, cause: str, remedy: str) -> None:
        super().__init__(file, line, cause, remedy)
        self.file, self.line, self.cause, self.remedy = file, line, cause, remedy

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.cause}. {self.remedy}"


class WiringError(EngineError):
    """Raised while a flow wires its graph, e.g. for a wrong argument of a task. The flow run ends FAILED."""

    def __init__(self, task: str, cause: str, remedy: str) -> None:
        super().__init__(task, cause, remedy)
        self.task, self.cause, self.remedy = task, cause, remedy

    def __str__(self) -> str:
        return f"task {self.task}: {self.cause}. {self.remedy}"


class TooManyTasks(EngineError):
    """Raised when a run makes more tasks than ``max_run_tasks`` allows. The flow run ends FAILED; what ran is told."""

    def __init__(self, run_id: str, limit: int) -> None:
        super().__init__(run_id, limit)
        self.run_id, self.limit = run_id, limit

    def __str__(self) -> str:
        return (
            f"run {self.run_id} has made {self.limit:,} tasks and asks for more: does it start tasks without end? "
            "Where it is meant to be so large, raise max_run_tasks."
        )


class FlowChanged(EngineError):
    """Raised when a flow, run again for a run that is open, makes other calls than before. The flow run ends CRASHED."""

    def __init__(self, flow: str, recorded: str, replayed: str) -> None:
        super().__init__(flow, recorded, replayed)
        self.flow, self.recorded, self.replayed = flow, recorded, replayed

    def __str__(self) -> str:
        return (
            f"the flow {self.flow} makes other calls than when this run began. Recorded: {self.recorded}. "
            f"Now: {self.replayed}. "
            "Give a changed flow a new name while runs are open, and take what may vary (time, chance, files) from tasks."
        )


class FlowBlocked(EngineError):
    """Raised inside a flow that computes or waits for too long by itself, while others wait. The flow run ends FAILED."""

    def __init__(self, flow: str, seconds: float) -> None:
        super().__init__(flow, seconds)
        self.flow, self.seconds = flow, seconds

    def __str__(self) -> str:
        return (
            f"the flow {self.flow} ran for {self.seconds:g} s without awaiting anything, and every other flow waited for it. "
            "A flow only wires tasks: put the work, the sleep or the request into a task."
        )


class EventError(EngineError):
    """Raised when an event cannot be read or bound. Its record goes to the dead-letter topic with ``reason``.

    ``reason`` is one of the short codes in ``engine.events.Reason``.
    """

    def __init__(self, reason: str, cause: str) -> None:
        super().__init__(reason, cause)
        self.reason, self.cause = reason, cause

    def __str__(self) -> str:
        return f"{self.reason}: {self.cause}"


class IllegalTransition(EngineError):
    """Raised when a state change is not a row of the table in ``engine.states``. The change is refused."""

    def __init__(self, subject: str, state: str, new_state: str) -> None:
        super().__init__(subject, state, new_state)
        self.subject, self.state, self.new_state = subject, state, new_state

    def __str__(self) -> str:
        return f"{self.subject} cannot go from {self.state} to {self.new_state}: not a row of the state table"


class KafkaUnavailable(EngineError):
    """Raised when Kafka does not answer in time. Nothing acknowledged is lost; the engine tries again, a command exits."""

    exit_code = 4

    def __init__(self, servers: str, cause: str) -> None:
        super().__init__(servers, cause)
        self.servers, self.cause = servers, cause

    def __str__(self) -> str:
        return (
            f"cannot reach Kafka at {self.servers}: {self.cause}. "
            "Is it running, and is the address right? `engine dev` starts one; `engine doctor` looks closer."
        )


class DaskUnavailable(EngineError):
    """Raised when the Dask scheduler does not answer in time. Open runs stay open; a command exits."""

    exit_code = 4

    def __init__(self, address: str, cause: str) -> None:
        super().__init__(address, cause)
        self.address, self.cause = address, cause or "no answer in time"  # a TimeoutError has no text

    def __str__(self) -> str:
        return (
            f"cannot reach the Dask scheduler at {self.address}: {self.cause}. "
            "Is it running, and is the address right? `engine dev` starts one; `engine doctor` looks closer."
        )


class TopicError(EngineError):
    """Raised when a topic does not exist or is not as the engine needs it. Nothing was read or written."""

    exit_code = 3

    def __init__(self, topic: str, cause: str, remedy: str) -> None:
        super().__init__(topic, cause, remedy)
        self.topic, self.cause, self.remedy = topic, cause, remedy

    def __str__(self) -> str:
        return f"topic {self.topic}: {self.cause}. {self.remedy}"


class RecordTooLarge(EngineError):
    """Raised when a record is larger than Kafka takes. It was not sent; nothing else of its batch was either."""

    exit_code = 2

    def __init__(self, topic: str, size: int, limit: int) -> None:
        super().__init__(topic, size, limit)
        self.topic, self.size, self.limit = topic, size, limit

    def __str__(self) -> str:
        return (
            f"a record of {self.size:,} bytes is too large for topic {self.topic} (at most {self.limit:,}). "
            "Send a reference to the data instead, or raise max.message.bytes of the topic."
        )


class TaskFailed(EngineError):
    """Raised on a worker in place of what user code raised, so that it always pickles. The task run ends FAILED."""

    def __init__(self, type: str, message: str, traceback: str) -> None:
        super().__init__(type, message, traceback)
        self.type, self.message, self.traceback = type, message, traceback

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


class ResultStuck(EngineError):
    """Raised on a worker for a result that has to leave it and cannot be pickled. It counts as a failed attempt."""

    def __init__(self, task: str, type: str, cause: str) -> None:
        super().__init__(task, type, cause)
        self.task, self.type, self.cause = task, type, cause

    def __str__(self) -> str:
        return (
            f"the result of task {self.task}, a {self.type}, cannot be pickled and so cannot leave its worker: {self.cause}. "
            "Return plain data; open what holds a lock, a file or a connection in the task that uses it."
        )


class TaskCrashed(EngineError):
    """Raised where a task is waited for that the infrastructure has failed. A run that lets it through ends CRASHED."""

    def __init__(self, type: str, message: str, traceback: str) -> None:
        super().__init__(type, message, traceback)
        self.type, self.message, self.traceback = type, message, traceback

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


class EventTimeout(EngineError):
    """Raised in a flow whose ``wait_for_event`` found no event in time. A run that lets it through ends FAILED."""

    def __init__(self, topic: str, timeout_seconds: float) -> None:
        super().__init__(topic, timeout_seconds)
        self.topic, self.timeout_seconds = topic, timeout_seconds

    def __str__(self) -> str:
        return f"no event that matches came on the topic {self.topic} within {self.timeout_seconds:g} s"


class ResultTooLarge(EngineError):
    """Raised on a worker for a result that the result store does not take. Nothing was written; a failed attempt."""

    def __init__(self, task: str, size: int, limit: int) -> None:
        super().__init__(task, size, limit)
        self.task, self.size, self.limit = task, size, limit

    def __str__(self) -> str:
        return (
            f"the result of task {self.task} takes at least {self.size:,} bytes, the result store takes {self.limit:,}. "
            "Write the data somewhere in the task and return where it is, or raise max_result_bytes."
        )


class ResultMissing(EngineError):
    """Raised when the result store has no such result. The engine runs the task again; a reader finds it gone."""

    exit_code = 3

    def __init__(self, ref: str) -> None:
        super().__init__(ref)
        self.ref = ref

    def __str__(self) -> str:
        return (
            f"no result {self.ref}: its task has not ended, or its file was deleted. "
            "Is `results` the same setting here as where the task ran? Run the flow again to have it anew."
        )


class ResultStoreError(EngineError):
    """Raised when the result store cannot be written or read. On a worker a failed attempt; correct what is named."""

    def __init__(self, ref: str, cause: str, remedy: str) -> None:
        super().__init__(ref, cause, remedy)
        self.ref, self.cause, self.remedy = ref, cause, remedy

    def __str__(self) -> str:
        return f"result {self.ref}: {self.cause}. {self.remedy}"


class TaskTimeout(EngineError):
    """Raised inside a task that ran longer than its ``timeout_seconds``. It counts as a failed attempt.

    Code that cannot be stopped, such as a call into C that waits, fails its task all the same after a short grace. It then goes
    on (``how`` is "abandoned"), or its process was started anew: "restarted", or "ended" where nothing in it got on.
    """

    def __init__(self, task: str, timeout_seconds: float, how: str = "") -> None:
        super().__init__(task, timeout_seconds, how)
        self.task, self.timeout_seconds, self.how = task, timeout_seconds, how

    def __str__(self) -> str:
        text = f"task {self.task} ran longer than its timeout of {self.timeout_seconds:g} s"
        if self.how == "ended":
            what = "its worker process was ended and started anew; its standard error has the stacks"
            return f"{text} while code held the interpreter: {what}. Give such code bounds, or a process of its own."
        what = "the worker process was restarted" if self.how == "restarted" else "it goes on in its thread"
        told = f"{text} and its code could not be stopped: {what}. Give what it waits for a timeout of its own."
        return told if self.how else text


class NoAttempt(EngineError):
    """Raised by ``engine.attempt()`` where no task runs. Nothing was done; ask inside a task and hand the answer on."""

    def __str__(self) -> str:
        return (
            "attempt() was asked for outside a running task: in a flow, at import, or in a thread that a task started. "
            "Call it inside the task, and hand what it gives to other threads."
        )


class _RaisedByUsers(EngineError):
    """Raised by user code, which may subclass it with an ``__init__`` of any signature."""

    def __reduce__(self) -> tuple[object, ...]:
        # By default pickle would call the subclass with the args it handed up, which need not be those that it takes.
        return _without_init, (type(self), self.args), self.__dict__


class TerminalError(_RaisedByUsers):
    """Raised by user code for a failure that no other attempt can mend. The task run ends FAILED, whatever its Retry says."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class RetryableError(_RaisedByUsers):
    """Raised by user code for a failure that another attempt may mend, whatever ``on`` and ``unless`` of its Retry say.

    It is tried again while the task's Retry has attempts left (a task without Retry has none), after
    ``retry_after_seconds`` where given, else after the policy's wait.
    """

    def __init__(self, message: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(message, retry_after_seconds)
        self.message, self.retry_after_seconds = message, retry_after_seconds

    def __str__(self) -> str:
        return self.message


def _without_init(kind: type[_RaisedByUsers], args: tuple[object, ...]) -> _RaisedByUsers:
    error = kind.__new__(kind)
    error.args = args
    return error


class EventWaitError(EngineError):
    """Raised in a flow that waits for an event when its wait cannot go on, e.g. for a ``where`` that raises."""

    def __init__(self, topic: str, cause: str, remedy: str) -> None:
        super().__init__(topic, cause, remedy)
        self.topic, self.cause, self.remedy = topic, cause, remedy

    def __str__(self) -> str:
        return f"cannot wait for an event of topic {self.topic}: {self.cause}. {self.remedy}"
