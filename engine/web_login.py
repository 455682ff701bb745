"""The pages to log in and out: a token for a session, which is a cookie that no script can read."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from engine.doorkeeper import LOGIN, client_of, is_https
from engine.login_limits import LoginLimits
from engine.logs import logger
from engine.settings import Settings
from engine.web_origins import local_path, sender
from engine.web_pages import Pages
from engine.web_roles import Access
from engine.web_sessions import NONCE_BYTES, begin, cookie, cookie_name

#: A form with a token and a path is much smaller, and comes at once.
_FORM_BYTES, _FORM_SECONDS = 8_192, 10.0


class Login:
    """``GET`` and ``POST /login``, ``POST /logout``."""

    def __init__(
        self, settings: Settings, access: Access, limits: LoginLimits, pages: Pages, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings, self._access, self._limits, self._pages, self._clock = settings, access, limits, pages, clock

    @property
    def routes(self) -> list[BaseRoute]:
        """What it answers."""
        return [
            Route(LOGIN, self._show),
            Route(LOGIN, self._enter, methods=["POST"]),
            Route("/logout", self._leave, methods=["POST"]),
        ]

    async def _show(self, request: Request) -> Response:
        if not self._access.has_tokens:
            return RedirectResponse("/", 303)
        return await self._page(request, local_path(request.query_params.get("next", "/")))

    async def _enter(self, request: Request) -> Response:
        form = await _form(request)
        if form is None:
            return await self._page(request, "/", "That was no login.", 400)
        where, who, now = local_path(form.get("next", "/")), sender(client_of(request, self._access)), self._clock()
        wait_seconds = self._limits.wait_seconds(who, now)
        if wait_seconds:
            text = f"Too many wrong tokens came from your address. Try again in {math.ceil(wait_seconds)} seconds."
            made = await self._page(request, where, text, 429)
            made.headers["retry-after"] = str(math.ceil(wait_seconds))
            return made
        role = self._access.by_token(form.get("token", "").strip())
        if role is None:
            self._limits.failed(who, now)
            logger.warning("a login was refused", peer=client_of(request, self._access))
            return await self._page(request, where, "This token is not valid here.", 401)
        self._limits.succeeded(who)
        session = begin(self._access.keys[role], role, now, os.urandom(NONCE_BYTES))
        return self._redirect(request, where, session)

    async def _leave(self, request: Request) -> Response:
        made = self._redirect(request, LOGIN, "", seconds=0)
        if "hx-request" in request.headers:
            made.status_code = 200
            made.headers["hx-redirect"] = LOGIN
        return made

    def _redirect(self, request: Request, where: str, session: str, **more: int) -> Response:
        secure = is_https(request, self._access)
        name = cookie_name(self._settings.app, is_https=secure)
        return Response(
            status_code=303, headers={"location": where, "set-cookie": cookie(name, session, is_https=secure, **more)}
        )

    async def _page(self, request: Request, where: str, trouble: str = "", status: int = 200) -> Response:
        return await self._pages.page(request, "login.html", {"next": where, "trouble": trouble}, status=status)


async def _form(request: Request) -> dict[str, str] | None:
    """The fields of a form; None where it is none, too large or too slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(_FORM_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _FORM_BYTES:
                    return None
        found = parse_qs(body.decode(), max_num_fields=10)
    except (TimeoutError, ValueError, ClientDisconnect):
        return None
    return {name: values[0] for name, values in found.items()}
