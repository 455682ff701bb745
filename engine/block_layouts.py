"""Block layouts: blocks in layers to boxes in a plane and curves between them; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from engine.task_blocks import Block, Link

WIDTH, HEIGHT = 176.0, 30.0
LAYER_GAP, BLOCK_GAP, MARGIN = 56.0, 10.0, 8.0
#: A cell of a block of many, and the room around it; how many stand side by side.
CELL, CELL_GAP, CELLS_IN_ROW = 11.0, 3.0, 11
#: A block with a bar of counts.
COUNTED_HEIGHT = 50.0
_HEAD = 26.0
_SWEEPS = 4


class Spot(msgspec.Struct, frozen=True):
    """Where a cell stands, or a stretch of the bar of counts."""

    x: float
    y: float
    width: float
    name: str
    state: str
    count: int = 1


class Box(msgspec.Struct, frozen=True):
    """Where a block stands."""

    block: Block
    x: float
    y: float
    width: float
    height: float
    spots: tuple[Spot, ...] = ()


class Curve(msgspec.Struct, frozen=True):
    """A link: ``path`` as SVG's path data."""

    path: str
    spawns: bool


class Picture(msgspec.Struct, frozen=True):
    """All of it, and the size of the plane."""

    boxes: list[Box]
    curves: list[Curve]
    width: float
    height: float


def layout(blocks: Sequence[Block], links: Sequence[Link]) -> Picture:
    """Layers from left to right; within each, blocks near those they are linked with."""
    layers: dict[int, list[Block]] = {}
    for block in blocks:
        layers.setdefault(block.layer, []).append(block)
    ordered = _without_crossings([layers[number] for number in sorted(layers)], links)
    heights = [sum(_height(block) + BLOCK_GAP for block in layer) - BLOCK_GAP for layer in ordered]
    tallest = max(heights, default=0.0)
    boxes: dict[str, Box] = {}
    for number, layer in enumerate(ordered):
        x, y = MARGIN + number * (WIDTH + LAYER_GAP), MARGIN + (tallest - heights[number]) / 2
        for block in layer:
            boxes[block.id] = Box(block, x, round(y, 1), WIDTH, _height(block), _spots(block, x, y))
            y += _height(block) + BLOCK_GAP
    curves = [_curve(boxes[link.source], boxes[link.target], link.spawns) for link in links]
    width = 2 * MARGIN + max(0.0, len(ordered) * (WIDTH + LAYER_GAP) - LAYER_GAP)
    return Picture(list(boxes.values()), curves, width, tallest + 2 * MARGIN)


def _without_crossings(layers: list[list[Block]], links: Sequence[Link]) -> list[list[Block]]:
    """Few crossings: each layer by the mean place of its neighbours, to and fro."""
    near: dict[str, list[str]] = {}
    for link in links:
        near.setdefault(link.source, []).append(link.target)
        near.setdefault(link.target, []).append(link.source)
    place = {block.id: n / len(layer) for layer in layers for n, block in enumerate(layer)}
    for sweep in range(_SWEEPS):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            wanted: dict[str, float] = {}
            for block in layer:
                others = near.get(block.id, [])
                wanted[block.id] = sum(place[other] for other in others) / len(others) if others else place[block.id]
            layer.sort(key=lambda block: wanted[block.id])
            place |= {block.id: (n + 0.5) / len(layer) for n, block in enumerate(layer)}
    return layers


def _height(block: Block) -> float:
    if block.counts:
        return COUNTED_HEIGHT
    if len(block.cells) == 1:
        return HEIGHT
    return _HEAD + math.ceil(len(block.cells) / CELLS_IN_ROW) * (CELL + CELL_GAP) + 7


def _spots(block: Block, x: float, y: float) -> tuple[Spot, ...]:
    if block.counts:
        inner, at, spots = WIDTH - 20, x + 10, []
        for state, count in block.counts:
            width = count / max(1, block.total) * inner
            spots.append(Spot(round(at, 1), round(y + 32, 1), round(width, 1), "", state, count))
            at += width
        return tuple(spots)
    if len(block.cells) == 1:
        return ()
    step = CELL + CELL_GAP
    return tuple(
        Spot(
            round(x + 12 + number % CELLS_IN_ROW * step, 1),
            round(y + _HEAD + number // CELLS_IN_ROW * step, 1),
            CELL,
            cell.name,
            cell.state,
        )
        for number, cell in enumerate(block.cells)
    )


def _curve(source: Box, target: Box, spawns: bool) -> Curve:
    x1, y1 = source.x + source.width, source.y + source.height / 2
    x2, y2 = target.x, target.y + target.height / 2
    bend = max(24.0, (x2 - x1) / 2)
    return Curve(f"M{x1:.1f} {y1:.1f}C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}", spawns)
