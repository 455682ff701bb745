"""The flow whose runs are open when the engine of ``restart`` starts."""

from __future__ import annotations

import engine
from engine import flow, on


@flow(on("bench-naps"))
async def nap(seconds: float) -> str:
    await engine.sleep(seconds)
    return "rested"
