"""The sender that goes by way of apprise, the only importer of it. apprise's own log is off: it has addresses in it."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from engine.command_errors import NotDelivered, TargetError
from engine.notices import Notice
from engine.secrets import Secret
from engine.side_thread import SideThread
from engine.states import State
from engine.targets import AppriseTarget

#: These log addresses, or parts of them, at WARNING and above.
_TALKATIVE = ("apprise", "urllib3", "requests")

_KINDS = {
    State.COMPLETED: "success",
    State.RETRYING: "warning",
    State.CANCELLED: "warning",
    State.FAILED: "failure",
    State.CRASHED: "failure",
}


class AppriseSender:
    """One address of apprise's; its calls block, so each has a thread beside the loop."""

    concurrency = 1

    def __init__(self, target: AppriseTarget, url: Secret) -> None:
        """Raises TargetError where apprise is missing, or does not know the address."""
        try:
            import apprise  # part of the extra
        except ImportError:
            remedy = "Run: pip install 'kafka-dask-engine[notifications]'"
            raise TargetError(target.name, "apprise is not installed", remedy) from None
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        # Redirects could carry the token elsewhere.
        asset = apprise.AppriseAsset(app_id="engine", async_mode=False, http_redirects=False, storage_mode="memory")
        with warnings.catch_warnings():
            # The first address loads every service there is, some with libraries that use what Python will drop.
            warnings.simplefilter("ignore")
            service = apprise.Apprise.instantiate(url.reveal(), asset=asset)
        if service is None:
            remedy = "See apprise's list of services for what the address looks like."
            raise TargetError(target.name, "apprise does not know such an address, or a part of it is missing", remedy)
        self._target = target
        self._apprise: Any = apprise.Apprise(asset=asset)
        self._apprise.add(service)
        self._thread = SideThread("engine-apprise")

    async def send(self, notice: Notice) -> None:
        """Hand it over. Raises NotDelivered."""
        seconds = self._target.timeout_seconds
        kind = "warning" if notice.change is None else _KINDS.get(notice.change.state, "info")
        delivered: list[bool] = []

        def tell() -> None:
            delivered.append(bool(self._apprise.notify(notice.text, title=notice.title, notify_type=kind, body_format="text")))

        try:
            await self._thread.run(tell, timeout_seconds=seconds)
        except TimeoutError:
            raise NotDelivered(f"not done within {seconds:g} s", False, None) from None
        except Exception as error:  # whatever a service of apprise's raises; its text may have the address in it
            raise NotDelivered(f"apprise failed with {type(error).__name__}", False, None) from None
        if not all(delivered):
            raise NotDelivered("the service did not take it; apprise does not say why without the address", False, None)

    @property
    def is_busy(self) -> bool:
        """Whether a call is still under way."""
        return self._thread.is_busy

    def close(self) -> None:
        """A call that still runs is left to itself."""
        self._thread.close()
