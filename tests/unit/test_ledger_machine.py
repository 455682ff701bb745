"""engine.ledger, step by step beside a model: owners come and go, some without knowing, and the last one knows what counts."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.checkpoints import Checkpoint, Ids, read_body, write_ids, write_run
from engine.errors import IllegalTransition
from engine.ledger import Ledger
from engine.runs import FlowRun, task_run_id_of
from engine.states import State, StateChange, utc

S = State
ENDS = {S.COMPLETED, S.FAILED, S.CRASHED, S.CANCELLED}
WINDOW_SECONDS = 1e9
RUN_IDS = [f"{number:032x}" for number in range(1, 6)]
#: What a run is known by: its state, its seq, and the states of its tasks.
Known = tuple[State, int, dict[str, State]]

states = st.sampled_from([*State])
run_ids = st.sampled_from(RUN_IDS)


class Owner:
    """Whoever has, or had, the partition, and what it knows."""

    def __init__(self, epoch: int) -> None:
        self.ledger = Ledger(0, epoch, WINDOW_SECONDS)


class Ledgers(RuleBasedStateMachine):
    """One partition of the state topic: a change, or None where somebody took it over, or "" for what says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[StateChange | str | None] = []
        self.owners: list[Owner] = []
        #: What counts, kept by the rules of DESIGN.md: the last owner's changes and every first SCHEDULED.
        self.model: dict[str, Known] = {}
        self.seen: set[str] = set()
        self.checkpoint: tuple[int, Checkpoint, bytes] | None = None

    @initialize()
    def begin(self) -> None:
        self.take_over(from_checkpoint=False)

    @rule(from_checkpoint=st.booleans())
    def take_over(self, from_checkpoint: bool) -> None:
        owner = Owner(len(self.log))
        self.log.append(None)
        if from_checkpoint and self.checkpoint is not None:
            offset, checkpoint, body = self.checkpoint
            ids, runs = read_body(checkpoint, body)
            owner.ledger.restore(offset, checkpoint, ids, runs)
        self.owners.append(owner)
        self.read(owner, len(self.log))
        assert owner.ledger.is_recovered
        assert not owner.ledger.is_misled

    @rule(run_id=run_ids, is_known_ahead=st.booleans())
    def schedule(self, run_id: str, is_known_ahead: bool) -> None:
        """By whoever reads events; it may come again at any time."""
        change = StateChange(run_id=run_id, flow="f", state=S.SCHEDULED, seq=0, epoch=0, attempt=0, at=utc(5.0))
        self.log.append(change)
        if run_id not in self.seen:
            self.seen.add(run_id)
            self.model[run_id] = (S.SCHEDULED, 0, {})
        ledger = self.owners[-1].ledger
        if is_known_ahead:
            had = ledger.has_seen(run_id)
            opened = ledger.read_ahead(len(self.log) - 1, change)
            assert (opened is None) == had

    @rule(run_id=run_ids, state=states, number=st.integers(-1, 2))
    def go_on(self, run_id: str, state: State, number: int) -> None:
        """The owner makes a change, and it lands."""
        owner = self.owners[-1]
        if (change := self.change(owner, run_id, state, number)) is not None:
            self.log.append(change)
            old_state, _, tasks = self.model[run_id]
            if change.task_run_id is None:
                self.model[run_id] = (state, change.seq, tasks)
            else:
                self.model[run_id] = (old_state, change.seq, {**tasks, change.task_run_id: state})
            if change.task_run_id is None and state in ENDS:
                owner.ledger.close(run_id)
                del self.model[run_id]

    @rule(run_id=run_ids, state=states, number=st.integers(-1, 2), which=st.integers(0, 5))
    def a_stale_owner_goes_on(self, run_id: str, state: State, number: int, which: int) -> None:
        """It does not know that it has lost the partition; what it writes is void."""
        stale = self.owners[:-1]
        if stale and (change := self.change(stale[which % len(stale)], run_id, state, number)) is not None:
            self.log.append(change)

    @rule()
    def say_nothing(self) -> None:
        self.log.append("")

    @rule(count=st.integers(1, 5))
    def read_on(self, count: int) -> None:
        owner = self.owners[-1]
        self.read(owner, min(len(self.log), owner.ledger.next_offset + count))

    @rule(back=st.integers(1, 8))
    def read_again(self, back: int) -> None:
        """After a rebalance, say."""
        ledger = self.owners[-1].ledger
        for offset in range(max(0, ledger.next_offset - back), ledger.next_offset):
            self.feed(ledger, offset)

    @rule()
    def write_a_checkpoint(self) -> None:
        ledger = self.owners[-1].ledger
        body = write_ids(Ids(ledger.tail.first(len(ledger.tail)), tuple(ledger.blocks)))
        body += b"".join(write_run(run) for run in ledger)
        checkpoint = Checkpoint(0, ledger.epoch, utc(9.0), ledger.next_offset, len(body))
        self.checkpoint = (len(self.log), checkpoint, body)
        self.log.append("")

    @invariant()
    def the_last_owner_knows_what_counts(self) -> None:
        if not self.owners:
            return
        owner = self.owners[-1]
        ledger = owner.ledger
        told = {run.run_id: _known(run) for run in ledger}
        unread = {
            change.run_id
            for offset, change in enumerate(self.log[ledger.next_offset :], ledger.next_offset)
            if isinstance(change, StateChange) and change.seq == 0 and not ledger.has_seen(change.run_id)
        }
        assert told == {run_id: known for run_id, known in self.model.items() if run_id not in unread}
        assert all(ledger.has_seen(run_id) for run_id in self.seen - unread)
        assert not ledger.is_usurped

    @invariant()
    def a_stale_owner_notices_when_it_reads(self) -> None:
        for owner, later in zip(self.owners, self.owners[1:], strict=False):
            assert owner.ledger.is_usurped == (owner.ledger.next_offset > later.ledger.epoch)

    @rule(which=st.integers(0, 5))
    def a_stale_owner_reads_on(self, which: int) -> None:
        if stale := self.owners[:-1]:
            self.read(stale[which % len(stale)], len(self.log))

    def change(self, owner: Owner, run_id: str, state: State, number: int) -> StateChange | None:
        run = owner.ledger.runs.get(run_id)
        if run is None or run.state in ENDS or owner.ledger.is_usurped:
            return None
        try:
            if number < 0:
                return run.advance(state, 6.0, owner.ledger.epoch)
            task_run_id = task_run_id_of(run_id, "work", str(number))
            return run.advance_task("work", task_run_id, state, 1, 6.0, owner.ledger.epoch)
        except IllegalTransition:
            return None

    def read(self, owner: Owner, end: int) -> None:
        for offset in range(owner.ledger.next_offset, end):
            self.feed(owner.ledger, offset)

    def feed(self, ledger: Ledger, offset: int) -> None:
        """As the dispatcher does."""
        record = self.log[offset]
        if record is None:
            ledger.begin_epoch(offset)
        elif isinstance(record, str) or (ledger.is_recovered and record.seq > 0):
            ledger.skip(offset)
        elif not ledger.passes_over(offset):
            ledger.read(offset, record)


def _known(run: FlowRun) -> Known:
    return run.state, run.seq, {name: task.state for name, task in run.tasks.items() if task.state is not None}


Ledgers.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
TestLedgers = Ledgers.TestCase
