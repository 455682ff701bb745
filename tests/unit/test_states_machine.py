"""engine.states and engine.runs, step by step beside a model: which state may follow which, and what a reader makes of it."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.errors import IllegalTransition
from engine.runs import FlowRun, run_id_of, task_run_id_of
from engine.states import Envelope, State, StateChange, read, utc

S = State
ENDS = {S.COMPLETED, S.FAILED, S.CRASHED, S.CANCELLED}
#: The table once more, as DESIGN.md has it.
FOLLOWS: dict[State | None, set[State]] = {
    None: {S.SCHEDULED},
    S.SCHEDULED: {S.RUNNING, S.CANCELLED, S.CRASHED},
    S.RUNNING: {S.RETRYING, *ENDS},
    S.RETRYING: {S.RUNNING, S.CANCELLED, S.CRASHED},
} | {end: set() for end in ENDS}
RUN_ID = run_id_of("t", "f", "/s", "1")
ENVELOPE = Envelope.of("t", RUN_ID)
TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-00"
SCHEDULED = StateChange(run_id=RUN_ID, flow="f", state=S.SCHEDULED, seq=0, epoch=0, attempt=0, at=utc(1.0))

states = st.sampled_from([*State])


class States(RuleBasedStateMachine):
    """A run and its tasks go on; a reader hears of it, of some of it more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.run, self.reader = FlowRun(SCHEDULED, 0), FlowRun(SCHEDULED, 0)
        self.state: State = S.SCHEDULED
        self.attempt = 0
        self.tasks: dict[str, State] = {}
        self.told: list[StateChange] = []

    @rule(state=states)
    def advance(self, state: State) -> None:
        try:
            change = self.run.advance(state, 2.0, 7)
        except IllegalTransition:
            assert state not in FOLLOWS[self.state]
            return
        assert state in FOLLOWS[self.state]
        self.attempt += state is S.RUNNING
        assert (change.state, change.attempt, change.epoch) == (state, self.attempt, 7)
        self.state = state
        self.tell(change)

    @rule(number=st.integers(0, 3), state=states)
    def advance_task(self, number: int, state: State) -> None:
        task_run_id = task_run_id_of(RUN_ID, "work", str(number))
        try:
            change = self.run.advance_task("work", task_run_id, state, 1, 2.0, 7)
        except IllegalTransition:
            assert state not in FOLLOWS[self.tasks.get(task_run_id)]
            return
        assert state in FOLLOWS[self.tasks.get(task_run_id)]
        self.tasks[task_run_id] = state
        self.tell(change)

    @rule(data=st.data())
    def tell_again(self, data: st.DataObject) -> None:
        if self.told:
            assert not self.reader.apply(data.draw(st.sampled_from(self.told)))

    def tell(self, change: StateChange) -> None:
        assert change.seq == len(self.told) + 1
        read_back = read(*ENVELOPE.write(change, TRACEPARENT))
        assert isinstance(read_back, StateChange)
        assert self.reader.apply(read_back)
        self.told.append(read_back)

    @invariant()
    def all_know_the_same(self) -> None:
        for run in (self.run, self.reader):
            assert (run.state, run.attempt, run.seq) == (self.state, self.attempt, len(self.told))
            assert {name: run.state_of(name) for name in run.tasks if run.state_of(name)} == self.tasks


States.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestStates = States.TestCase
