"""Task blocks: the task runs of a run as the blocks of a picture and the links between them; pure.

A few task runs of a kind stand for themselves; many that lie side by side are the cells of one block; and where a run has more
than ``CELLS`` task runs, all runs of a task are one block with counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from engine.history_schema import RunRow, TaskRow
from engine.timelines import natural

#: A run with more task runs is shown by task.
CELLS = 500
#: More of a kind in a layer become one block.
APART = 8


class Cell(msgspec.Struct, frozen=True):
    """A task run."""

    name: str
    state: str


class Block(msgspec.Struct, frozen=True):
    """A box of the picture: one task run, many as cells, or a task with how many of its runs are in which state."""

    id: str
    title: str
    layer: int
    cells: tuple[Cell, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()

    @property
    def total(self) -> int:
        """How many task runs it stands for."""
        return sum(count for _, count in self.counts) or len(self.cells)


class Link(msgspec.Struct, frozen=True):
    """That a block takes the results of another, or that it was spawned by it."""

    source: str
    target: str
    spawns: bool


class TaskGroup(msgspec.Struct, frozen=True):
    """All runs of a task within a run: how many are in which state, and a few of them, to see what they take."""

    task: str
    counts: Mapping[str, int]
    sample: Sequence[TaskRow]


def blocks_of(tasks: Sequence[TaskRow]) -> tuple[list[Block], list[Link]]:
    """Blocks and links of at most about ``CELLS`` task runs."""
    edges = _edges(tasks)
    layers = layers_of([task.name for task in tasks], [(source, target) for source, target, _ in edges])
    kinds: dict[tuple[int, str, str], list[TaskRow]] = {}
    for task in sorted(tasks, key=lambda task: natural(task.name)):
        kinds.setdefault((layers[task.name], task.task, _map_of(task.name)), []).append(task)
    blocks: list[Block] = []
    home: dict[str, str] = {}
    for (layer, name, _), members in kinds.items():
        groups = [members] if len(members) > APART else [[member] for member in members]
        for group in groups:
            title = name if len(group) > 1 else group[0].name
            block = Block(group[0].name, title, layer, tuple(Cell(task.name, task.state) for task in group))
            blocks.append(block)
            home |= {task.name: block.id for task in group}
    links = dict.fromkeys(
        Link(home[source], home[target], spawns) for source, target, spawns in edges if home[source] != home[target]
    )
    return blocks, list(links)


def grouped_blocks(groups: Iterable[TaskGroup]) -> tuple[list[Block], list[Link]]:
    """A block for each task; links are those that the samples show, but for a task with itself."""
    groups = list(groups)
    tasks = {group.task for group in groups}
    found: dict[tuple[str, str, bool], None] = {}
    for group in groups:
        for row in group.sample:
            for parent, spawns in _taken(row):
                source = parent.rpartition("/")[0]
                if source in tasks and source != group.task:
                    found[source, group.task, spawns] = None
    layers = layers_of([group.task for group in groups], [(source, target) for source, target, _ in found])
    blocks = [Block(group.task, group.task, layers[group.task], counts=tuple(group.counts.items())) for group in groups]
    return blocks, [Link(*edge) for edge in found]


def layers_of(names: Sequence[str], edges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """For each name the length of the longest way to it; what lies on a circle comes as if its last link were not there."""
    after: dict[str, list[str]] = {name: [] for name in names}
    missing = dict.fromkeys(names, 0)
    for source, target in edges:
        after[source].append(target)
        missing[target] += 1
    layers = dict.fromkeys(names, 0)
    ready = [name for name in names if not missing[name]]
    done: set[str] = set()
    rest = iter(names)
    while True:
        while ready:
            name = ready.pop()
            done.add(name)
            for target in after[name]:
                if target in done:
                    continue
                layers[target] = max(layers[target], layers[name] + 1)
                missing[target] -= 1
                if missing[target] == 0:
                    ready.append(target)
        left = next((name for name in rest if name not in done), None)
        if left is None:
            return layers
        ready.append(left)


def samples_wanted(run: RunRow) -> bool:
    """Whether a run has too many task runs to show each."""
    return run.tasks > CELLS


def _edges(tasks: Sequence[TaskRow]) -> list[tuple[str, str, bool]]:
    names = {task.name for task in tasks}
    elements: dict[str, list[str]] = {}
    for name in names:
        elements.setdefault(_map_of(name), []).append(name)
    found: dict[tuple[str, str, bool], None] = {}
    for task in tasks:
        for parent, spawns in _taken(task):
            # A map that is taken as a whole stands for its elements.
            for source in [parent] if parent in names else elements.get(parent, []):
                if source != task.name:
                    found[source, task.name, spawns] = None
    return list(found)


def _taken(task: TaskRow) -> list[tuple[str, bool]]:
    try:
        parents = msgspec.json.decode(task.parents, type=list[str])
    except msgspec.MsgspecError:
        parents = []  # The projector writes it; a damaged row has no links.
    spawned = [] if task.spawned_by is None else [(task.spawned_by, True)]
    return [*((parent, False) for parent in parents), *spawned]


def _map_of(name: str) -> str:
    """``price/1`` for ``price/1.7``, an element of a map; nothing for what is no element."""
    task, _, index = name.rpartition("/")
    head, dot, tail = index.rpartition(".")
    return f"{task}/{head}" if dot and tail.partition("~")[0].isdecimal() else ""
