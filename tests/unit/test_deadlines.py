"""engine.deadlines: what is stopped, when, what cannot be, and that nobody else is ever hit."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from engine import deadlines
from engine.deadlines import ENDED_AFTER_SECONDS, TimeIsOver, Watchdog, guard, run_within

ROOT = Path(__file__).parents[2]
#: What a stop may take on a busy machine; the aim is 0.1 s.
PROMPT_SECONDS = 1.0


class Stuck:
    """Counts how often, and where, code was told stuck."""

    def __init__(self) -> None:
        self.frames: list[FrameType | None] = []
        self.is_told = threading.Event()

    def __call__(self, frame: FrameType | None) -> None:
        self.frames.append(frame)
        self.is_told.set()


def never(frame: FrameType | None) -> None:
    raise AssertionError("told stuck")


def spin() -> None:
    while True:
        pass


def seconds_until_stopped(timeout_seconds: float, function: Callable[[], Any]) -> float:
    began = time.monotonic()
    with pytest.raises(TimeIsOver) as caught:
        run_within(timeout_seconds, never, function)
    assert not caught.value.is_stuck
    return time.monotonic() - began


def test_what_ends_in_time_is_as_if_there_were_no_deadline() -> None:
    assert run_within(30, never, divmod, (7, 2)) == (3, 1)
    assert run_within(None, never, int, ("ff",), {"base": 16}) == 255
    with pytest.raises(ZeroDivisionError):
        run_within(30, never, divmod, (1, 0))


def test_python_code_is_stopped_soon_after_its_time() -> None:
    assert 0.05 <= seconds_until_stopped(0.05, spin) < 0.05 + PROMPT_SECONDS


def test_code_that_swallows_everything_is_stopped_in_the_end() -> None:
    swallowed: list[type[BaseException]] = []

    def stubborn() -> None:
        while len(swallowed) < 3:
            try:
                spin()
            except BaseException as error:
                swallowed.append(type(error))

    assert seconds_until_stopped(0.02, stubborn) < PROMPT_SECONDS
    assert swallowed == [TimeIsOver] * 3


def test_what_code_then_returns_or_raises_does_not_count() -> None:
    def answer() -> int:
        try:
            spin()
        except BaseException:
            return 1
        return 0

    def complain() -> None:
        try:
            spin()
        except BaseException as error:
            raise ValueError("of its own") from error

    seconds_until_stopped(0.02, answer)
    seconds_until_stopped(0.02, complain)


def test_cleaning_up_is_not_disturbed() -> None:
    """Neither in ``finally`` nor where it handles errors of its own; longer than the pause between two exceptions."""
    finished: list[str] = []

    def tidy() -> None:
        try:
            spin()
        finally:
            try:
                int("on the way")
            except ValueError:
                until = time.monotonic() + 0.2
                while time.monotonic() < until:
                    pass
            finished.append("tidy")

    seconds_until_stopped(0.02, tidy)
    assert finished == ["tidy"]


def test_cleaning_up_for_ever_is_stopped_too() -> None:
    def untidy() -> None:
        try:
            spin()
        finally:
            spin()

    began = time.monotonic()
    with pytest.raises(TimeIsOver):
        run_within(0.02, never, untidy, grace_seconds=1.0)
    assert 0.5 <= time.monotonic() - began < 1.0 + PROMPT_SECONDS


def test_code_that_waits_in_c_is_told_stuck_once_and_where() -> None:
    stuck, gate = Stuck(), threading.Lock()
    gate.acquire()

    def wait_in_c() -> None:
        with gate:  # no exception gets in before this returns
            pass

    def let_go() -> None:
        stuck.is_told.wait(30)
        gate.release()

    helper = threading.Thread(target=let_go)
    helper.start()
    with pytest.raises(TimeIsOver) as caught:
        run_within(0.02, stuck, wait_in_c, grace_seconds=0.1)
    helper.join()
    assert caught.value.is_stuck
    [frame] = stuck.frames
    assert frame is not None
    assert frame.f_code.co_name == "wait_in_c"


def test_whoever_is_told_of_stuck_code_is_told_before_it_can_come_back() -> None:
    """What is said of it afterwards in its own thread would otherwise be said first."""
    order: list[str] = []
    gate = threading.Event()

    def tell(frame: FrameType | None) -> None:
        gate.set()
        until = time.monotonic() + 0.1
        while time.monotonic() < until:
            pass
        order.append("told")

    def wait_in_c() -> None:
        while not gate.is_set():
            with contextlib.suppress(TimeIsOver):
                gate.wait(30)

    with pytest.raises(TimeIsOver):
        run_within(0.01, tell, wait_in_c, grace_seconds=0.1)
    order.append("back")
    assert order == ["told", "back"]


def test_a_mistake_of_who_is_told_leaves_the_other_deadlines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    is_told = threading.Event()

    def wrong(frame: FrameType | None) -> None:
        is_told.set()
        raise ValueError("a mistake")

    def wait() -> None:
        while not is_told.is_set():
            with contextlib.suppress(TimeIsOver):
                is_told.wait(30)

    with pytest.raises(TimeIsOver):
        run_within(0.01, wrong, wait, grace_seconds=0.05)
    assert "a mistake" in capsys.readouterr().err
    seconds_until_stopped(0.02, spin)


def test_many_deadlines_share_one_thread() -> None:
    def count() -> int:
        return sum(thread.name == "deadlines-of-engine" for thread in threading.enumerate())

    def go() -> None:
        for _ in range(100):
            run_within(30, never, int)

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run_within(30, never, count) == 1


def test_an_earlier_deadline_that_comes_later_is_kept() -> None:
    """The watchdog sleeps until the first one it knows."""
    is_over = threading.Event()
    patient = threading.Thread(target=run_within, args=(60, never, is_over.wait))
    patient.start()
    assert seconds_until_stopped(0.05, spin) < PROMPT_SECONDS
    is_over.set()
    patient.join()


def test_deadlines_within_deadlines_stop_what_is_theirs() -> None:
    def outer(inner_seconds: float) -> str:
        try:
            run_within(inner_seconds, never, spin)
        except TimeIsOver:
            return "went on"
        return ""

    assert run_within(30, never, outer, (0.02,)) == "went on"
    assert seconds_until_stopped(0.02, lambda: outer(30)) < PROMPT_SECONDS


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns so often that every gap between two instructions is hit."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("again_seconds", [0.05, 0.0], ids=["once", "again and again"])
def test_no_exception_ever_hits_what_comes_after(monkeypatch: pytest.MonkeyPatch, again_seconds: float) -> None:
    """Thousands of tasks, each over at about the moment of its deadline, some of them swallowing; two threads at once."""
    monkeypatch.setattr(deadlines, "_AGAIN_SECONDS", again_seconds)
    astray: list[BaseException] = []
    stopped: list[int] = []

    def work(until: float) -> None:
        while time.monotonic() < until:
            pass

    def swallow(until: float) -> None:
        while time.monotonic() < until:
            with contextlib.suppress(BaseException):
                work(until)

    def go(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(2_000):
                timeout_seconds = chance.choice([0.00005, 0.0002, 0.0005, 0.001])
                until = time.monotonic() + timeout_seconds * chance.uniform(0.8, 1.2)
                try:
                    run_within(timeout_seconds, never, chance.choice([work, swallow]), (until,))
                except TimeIsOver:
                    stopped.append(seed)
                for _ in range(30):  # what comes after
                    pass
        except TimeIsOver as error:
            astray.append(error)

    threads = [threading.Thread(target=go, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert astray == []
    assert deadlines._watchdog._watches == set(), "nothing is watched for ever"
    assert len(stopped) > 100, "the gap was hit"


class Alarm:
    """A watchdog whose way to end the process only takes notes."""

    def __init__(self) -> None:
        self.watchdog = Watchdog()
        self.calls: list[float] = []
        self.watchdog.end_process_in = self.calls.append


def test_the_end_of_the_process_is_set_for_a_deadline_and_taken_back() -> None:
    alarm = Alarm()
    run_within(10, never, int, grace_seconds=2.0, watchdog=alarm.watchdog)
    [armed, disarmed] = alarm.calls
    assert armed == pytest.approx(13.0, abs=0.5)
    assert disarmed == 0.0


def test_the_end_of_the_process_waits_for_the_first_of_several_deadlines() -> None:
    alarm = Alarm()
    run_within(10, never, run_within, (100, never, int), {"watchdog": alarm.watchdog}, watchdog=alarm.watchdog)
    assert [round(seconds) for seconds in alarm.calls] == [13, 0], "the later one changes nothing"
    alarm.calls.clear()
    run_within(100, never, run_within, (10, never, int), {"watchdog": alarm.watchdog}, watchdog=alarm.watchdog)
    assert [round(seconds) for seconds in alarm.calls] == [103, 13, 103, 0]


def test_for_code_that_others_stop_the_end_of_the_process_is_all_that_is_set() -> None:
    alarm = Alarm()
    leave = guard(0.001, alarm.watchdog)
    until = time.monotonic() + 0.2
    while time.monotonic() < until:
        pass  # nothing is raised here
    leave()
    leave()
    [armed, disarmed] = alarm.calls
    assert 2.0 < armed <= ENDED_AFTER_SECONDS + 0.001
    assert disarmed == 0.0
    guard(None, alarm.watchdog)()
    assert len(alarm.calls) == 2


def test_the_process_is_not_ended_under_whoever_was_told_of_stuck_code() -> None:
    alarm, stuck = Alarm(), Stuck()
    seen: list[float] = []

    def look() -> None:
        until = time.monotonic() + 5
        while time.monotonic() < until and not (stuck.is_told.is_set() and alarm.calls[-1] == 0.0):
            with contextlib.suppress(TimeIsOver):
                stuck.is_told.wait(0.01)
        seen.extend(alarm.calls)

    with pytest.raises(TimeIsOver):
        run_within(0.02, stuck, look, grace_seconds=0.1, watchdog=alarm.watchdog)
    assert seen[-1] == 0.0


def test_without_being_asked_no_process_is_ended() -> None:
    before = signal.getitimer(signal.ITIMER_REAL)
    assert run_within(0.5, never, signal.getitimer, (signal.ITIMER_REAL,))[0] <= before[0]


def test_a_process_whose_interpreter_is_held_ends_and_says_where() -> None:
    script = """
import re
from engine.deadlines import end_hung_process, run_within
end_hung_process()
def backtrack():
    re.match(r"(a+)+$", "a" * 60 + "b")
run_within(0.05, lambda frame: None, backtrack, grace_seconds=0.1)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == -signal.SIGALRM
    assert re.search(r"in backtrack$", done.stderr, re.MULTILINE)


def test_a_forked_child_watches_its_own_deadlines() -> None:
    script = """
import os, warnings
from engine.deadlines import TimeIsOver, run_within
warnings.simplefilter("ignore")
def spin():
    while True: pass
def inside():
    if os.fork() == 0:
        try:
            run_within(0.05, print, spin)
        except TimeIsOver:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.wait()[1])
print(run_within(20, print, inside))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout.strip() == "7", done.stderr


def test_a_call_is_stopped_by_its_name_without_a_deadline_and_nobody_else_is() -> None:
    has_begun = threading.Event()
    outcomes: list[str] = []

    def run(name: str, is_over: Callable[[], bool]) -> None:
        def work() -> None:
            has_begun.set()
            while not is_over():
                pass

        try:
            run_within(None, never, work, name=name)
        except TimeIsOver:
            outcomes.append(f"{name} stopped")
        else:
            outcomes.append(f"{name} ended")

    other_may_end = threading.Event()
    threads = [
        threading.Thread(target=run, args=("mine", lambda: False)),
        threading.Thread(target=run, args=("other", other_may_end.is_set)),
    ]
    threads[0].start()
    assert has_begun.wait(PROMPT_SECONDS * 10)
    threads[1].start()
    assert deadlines.stop("mine")
    threads[0].join()
    other_may_end.set()
    threads[1].join()
    assert outcomes == ["mine stopped", "other ended"]
    assert not deadlines.stop("mine"), "it is over"
    assert not deadlines.stop("nobody")


def test_a_stopped_call_that_waits_in_c_is_told_stuck() -> None:
    is_stuck, may_end = Stuck(), threading.Event()

    def wait() -> None:
        with pytest.raises(TimeIsOver):
            run_within(None, is_stuck, may_end.wait, name="c", grace_seconds=0.1)

    thread = threading.Thread(target=wait)
    thread.start()
    while not deadlines.stop("c"):
        pass
    assert is_stuck.is_told.wait(PROMPT_SECONDS * 10)
    may_end.set()
    thread.join()
