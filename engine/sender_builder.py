"""Makes an outbox, with the sender behind it, for each address that targets name; looks addresses up in the environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from engine.apprise_sender import AppriseSender
from engine.command_errors import TargetError
from engine.outbox import Outbox
from engine.secrets import Mask, Secret
from engine.senders import HookSender, Sender, WebhookSender, check_webhook
from engine.settings import Settings
from engine.targets import Address, AppriseTarget, HookTarget, Target, WebhookTarget


class Outboxes(msgspec.Struct, frozen=True):
    """Those of an app: targets of one address share one."""

    by_target: dict[Target, Outbox]
    senders: list[Sender]

    @property
    def all(self) -> list[Outbox]:
        """Each once."""
        return list({id(outbox): outbox for outbox in self.by_target.values()}.values())


def build(
    targets: Iterable[Target],
    settings: Settings,
    environment: Mapping[str, str],
    on_unusable: Callable[[TargetError], None] | None = None,
) -> Outboxes:
    """Outboxes for ``targets``. One that cannot be used is left out and told to ``on_unusable``, or else raises TargetError."""
    targets = list(dict.fromkeys(targets))
    found = Outboxes({}, [])
    mask = Mask(_secrets(targets, environment))
    shared: dict[tuple[object, ...], Outbox] = {}
    for target in targets:
        try:
            identity, make = _way(target, settings, environment, mask)
            if identity not in shared:
                sender = make()
                found.senders.append(sender)
                # Slower than one attempt may be is no target that works.
                shared[identity] = Outbox(target.name, sender, stuck_seconds=target.timeout_seconds)
            found.by_target[target] = shared[identity]
        except TargetError as error:
            if on_unusable is None:
                raise
            on_unusable(error)
    return found


def _way(
    target: Target, settings: Settings, environment: Mapping[str, str], mask: Mask
) -> tuple[tuple[object, ...], Callable[[], Sender]]:
    """What tells this address from others, and how its sender is made."""
    match target:
        case HookTarget():
            return ("hook", id(target.function)), lambda: HookSender(target, mask)
        case AppriseTarget():
            url = _url(target, target.address, environment)
            return ("apprise", url.reveal()), lambda: AppriseSender(target, url)
        case WebhookTarget():
            url = _url(target, target.address, environment)
            check_webhook(target, url, allow_plaintext=settings.allow_plaintext)
            secret = Secret(environment.get(target.secret_env, "").strip())
            if not secret:
                raise TargetError(
                    target.name, f"the variable {target.secret_env} is not set", "Set it to the secret of both sides."
                )
            return ("webhook", url.reveal(), secret.reveal()), lambda: WebhookSender(target, url, secret)
    raise TargetError(target.name, "is no target that can be told", "Use notify, webhook or a function.")


def _url(target: Target, address: Address, environment: Mapping[str, str]) -> Secret:
    url = address.resolve(environment)
    if url is None:
        raise TargetError(
            target.name, f"the variable {address.env} is not set", "Set it to the address, or leave the target out."
        )
    return url


def _secrets(targets: Iterable[Target], environment: Mapping[str, str]) -> list[str]:
    """All that must not show."""
    found: list[str] = []
    for target in targets:
        if isinstance(target, AppriseTarget | WebhookTarget) and (url := target.address.resolve(environment)) is not None:
            found.append(url.reveal())
        if isinstance(target, WebhookTarget):
            found.append(environment.get(target.secret_env, "").strip())
    return found
