"""The picture of a run's tasks: layers by what is taken, maps as blocks, readable at 500 and by task beyond."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.block_layouts import Picture, layout
from engine.history_schema import TaskRow
from engine.task_blocks import Block, Link, TaskGroup, blocks_of, grouped_blocks, layers_of


def task(name: str, *parents: str, by: str | None = None, state: str = "COMPLETED") -> TaskRow:
    return TaskRow(1, name, name.partition("/")[0], state, 1, parents=msgspec.json.encode(parents).decode(), spawned_by=by)


def test_a_diamond_has_three_layers() -> None:
    blocks, links = blocks_of(
        [task("top/0"), task("left/1", "top/0"), task("right/2", "top/0"), task("end/3", "left/1", "right/2")]
    )
    assert {block.id: block.layer for block in blocks} == {"top/0": 0, "left/1": 1, "right/2": 1, "end/3": 2}
    assert {(link.source, link.target) for link in links} == {
        ("top/0", "left/1"), ("top/0", "right/2"), ("left/1", "end/3"), ("right/2", "end/3"),
    }  # fmt: skip


def test_a_wide_map_is_one_block_and_whole_maps_are_linked() -> None:
    elements = [task(f"price/1.{n}", "split/0", state="FAILED" if n == 7 else "COMPLETED") for n in range(400)]
    blocks, links = blocks_of([task("split/0"), *elements, task("sum/2", "price/1")])
    [prices] = [block for block in blocks if len(block.cells) > 1]
    assert [cell.name for cell in prices.cells[:3]] == ["price/1.0", "price/1.1", "price/1.2"]
    assert [cell.state for cell in prices.cells].count("FAILED") == 1
    assert links == [Link("split/0", prices.id, False), Link(prices.id, "sum/2", False)]


def test_children_are_linked_with_who_spawned_them() -> None:
    _, links = blocks_of([task("walk/0"), task("walk/0-1", by="walk/0")])
    assert links == [Link("walk/0", "walk/0-1", True)]


def test_too_many_tasks_are_shown_by_task_with_counts() -> None:
    groups = [
        TaskGroup("split", {"COMPLETED": 1}, [task("split/0")]),
        TaskGroup(
            "price", {"COMPLETED": 49_000, "FAILED": 900}, [task("price/1.0", "split/0"), task("price/1.1", "price/1.0")]
        ),
        TaskGroup("sum", {"SCHEDULED": 1}, [task("sum/2", "price/1", "gone/9")]),
    ]
    blocks, links = grouped_blocks(groups)
    assert [(block.title, block.layer, block.total) for block in blocks] == [
        ("split", 0, 1),
        ("price", 1, 49_900),
        ("sum", 2, 1),
    ]
    assert links == [Link("split", "price", False), Link("price", "sum", False)]


def overlaps(picture: Picture) -> bool:
    boxes = picture.boxes
    return any(
        a.x < b.x + b.width and b.x < a.x + a.width and a.y < b.y + b.height and b.y < a.y + a.height
        for n, a in enumerate(boxes)
        for b in boxes[n + 1 :]
    )


def test_five_hundred_tasks_are_drawn_without_overlap_inside_the_plane() -> None:
    tasks = [task("split/0"), *(task(f"price/1.{n}", "split/0") for n in range(240))]
    tasks += [task(f"check/2.{n}", f"price/1.{n}") for n in range(240)]
    tasks += [task(f"end/{n}", "check/2") for n in range(3, 9)]
    picture = layout(*blocks_of(tasks))
    assert not overlaps(picture)
    assert sum(max(1, len(box.spots)) for box in picture.boxes) == len(tasks)
    for box in picture.boxes:
        assert 0 <= box.x <= box.x + box.width <= picture.width
        assert 0 <= box.y <= box.y + box.height <= picture.height
    assert picture.height < 1_000


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12))))
def test_any_links_even_in_circles_make_layers(edges: list[tuple[int, int]]) -> None:
    names = [str(n) for n in range(13)]
    layers = layers_of(names, [(str(a), str(b)) for a, b in edges if a != b])
    assert set(layers) == set(names)
    picture = layout([Block(name, name, layers[name]) for name in names], [Link(str(a), str(b), False) for a, b in edges])
    assert len(picture.boxes) == len(names)
    assert not overlaps(picture)


@given(
    st.lists(
        st.tuples(st.text(max_size=6), st.lists(st.text(max_size=6), max_size=3), st.none() | st.text(max_size=6)), max_size=8
    )
)
def test_names_of_any_kind_make_a_picture(rows: list[tuple[str, list[str], str | None]]) -> None:
    unique = {name: (parents, by) for name, parents, by in rows}
    tasks = [task(name, *parents, by=by) for name, (parents, by) in unique.items()]
    blocks, links = blocks_of(tasks)
    assert sum(len(block.cells) for block in blocks) == len(tasks)
    assert len(layout(blocks, links).boxes) == len(blocks)
