"""``engine doctor``: prints the checks of ``engine.doctor``."""

from __future__ import annotations

from rich.text import Text

from engine import logs
from engine.cli_console import CommandConsole
from engine.cli_flags import AppFlag, DaskFlag, HandlersFlag, JsonFlag, KafkaFlag, settings_of
from engine.cli_output import json_text, put
from engine.doctor import examine
from engine.kafka import KafkaBroker
from engine.terminal import printable

_FAILED = 1
_UNREACHABLE = 4


async def doctor(
    handlers: HandlersFlag = None,
    *,
    app: AppFlag = None,
    kafka: KafkaFlag = None,
    dask: DaskFlag = None,
    json: JsonFlag = False,
) -> int:
    """Check what the engine needs, a line each, with the remedy of what is wrong.

    Exits 0 when all is well, 4 when Kafka or Dask cannot be reached, 1 when anything else is wrong.
    """
    logs.configure()
    settings = settings_of(app=app, kafka=kafka, dask=dask, handlers=handlers)
    checks = await examine(settings, KafkaBroker(settings))
    console = CommandConsole(soft_wrap=True)
    for check in checks:
        if json:
            shown = {"check": check.name, "ok": check.ok, "found": check.found}
            put(json_text(shown if check.ok else shown | {"remedy": check.remedy}))
            continue
        verdict = ("ok      ", "green") if check.ok else ("FAILED  ", "bold red")
        console.print(Text.assemble(verdict, (printable(check.name), "bold"), f"  {printable(check.found)}"))
        if not check.ok and check.remedy:
            console.print(Text(f"        {printable(check.remedy)}", "yellow"))
    if any(check.is_unreachable for check in checks):
        return _UNREACHABLE
    return 0 if all(check.ok for check in checks) else _FAILED
