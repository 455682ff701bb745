"""The doorkeeper: stands before an ASGI app, lets in who may, and puts security headers on every answer; knows no page."""

from __future__ import annotations

import asyncio
import hmac
import math
import os
import time
from collections.abc import Callable, Collection
from urllib.parse import parse_qs, quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.http_answers import RequestRefused, error_answer
from engine.login_limits import LoginLimits
from engine.logs import logger
from engine.settings import Settings
from engine.web_origins import SECURITY_HEADERS, is_from_here, names_this_machine, sender
from engine.web_roles import ANYBODY_HERE, Access, Role, Visitor, is_unsafe
from engine.web_sessions import cookie_name, csrf_of, visitor_of

LOGIN = "/login"
#: What anybody may see: that somebody is here, and what the login page is made of.
_OPEN = frozenset({"/healthz", "/readyz", LOGIN})
_STATIC = "/static/"
_CSRF_HEADER, _CSRF_FIELD = "x-csrf-token", "csrf"
_FORM = "application/x-www-form-urlencoded"
#: Of a form that is looked into for its token, and what it may take to come.
_FORM_BYTES, _FORM_SECONDS = 1024 * 1024, 30.0


class Doorkeeper:
    """An ASGI app before another one; of its requests ``state.visitor`` is who came, None where nobody knows, and
    ``state.may_operate`` and ``state.csrf`` are what pages need of that."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        access: Access,
        limits: LoginLimits | None = None,
        *,
        has_login: bool = False,
        open_paths: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``open_paths`` are answered to anybody, beside those that always are."""
        self._app = app
        self._settings = settings
        self._access = access
        self._limits = limits or LoginLimits()
        self._has_login = has_login
        self._open = _OPEN | set(open_paths)
        self._clock = clock
        # A proxy's users have no session here that could be signed for.
        self._proxy_key = os.urandom(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_static = scope["path"].startswith(_STATIC)

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                if not is_static:
                    headers["cache-control"] = "no-store"
            await send(message)

        request = Request(scope)
        try:
            visitor = self._visitor(request)
            may_operate = visitor is not None and visitor.role is Role.OPERATE
            told = {"visitor": visitor, "may_operate": may_operate, "csrf": visitor.csrf if visitor is not None else ""}
            scope.setdefault("state", {}).update(told)
            self._check(request, visitor)
            receive = await self._check_csrf(request, visitor, receive)
        except RequestRefused as refused:
            # Nothing of the request has been read or done.
            await self._refuse(request, refused)(scope, receive, secured)
            return
        await self._app(scope, receive, secured)

    def _visitor(self, request: Request) -> Visitor | None:
        access, headers = self._access, request.headers
        if not access.is_on:
            return ANYBODY_HERE
        if (authorization := headers.get("authorization")) is not None and access.has_tokens:
            return self._by_bearer(authorization, client_of(request, access))
        by_proxy = access.by_proxy(peer_of(request), headers.items())
        if by_proxy is not None:
            return Visitor(by_proxy.role, by_proxy.name, csrf_of(self._proxy_key, by_proxy.name))
        name = cookie_name(self._settings.app, is_https=is_https(request, access))
        return visitor_of(request.cookies.get(name, ""), access.keys, self._clock())

    def _by_bearer(self, authorization: str, address: str) -> Visitor:
        who, now = sender(address), self._clock()
        wait_seconds = self._limits.wait_seconds(who, now)
        if wait_seconds:
            raise RequestRefused(429, "too-many-attempts", f"try again in {math.ceil(wait_seconds)} s")
        scheme, _, token = authorization.partition(" ")
        role = self._access.by_token(token.strip()) if scheme.lower() == "bearer" else None
        if role is None:
            self._limits.failed(who, now)
            logger.warning("a wrong token was refused", peer=address)
            raise RequestRefused(401, "unauthorized", "the token is not valid here")
        return Visitor(role)

    def _check(self, request: Request, visitor: Visitor | None) -> None:
        path, headers, method = request.url.path, request.headers, request.method
        host = host_of(request, self._access)
        is_open = path in self._open or path.startswith(_STATIC)
        # With tokens or a proxy a foreign name gives nothing: it has no session, and no token.
        if not (is_open or self._access.is_on or self._settings.allow_plaintext or names_this_machine(host)):
            raise RequestRefused(421, "wrong-host", f"{host} is not served here; use the loopback address")
        is_bearer = self._access.has_tokens and "authorization" in headers
        if is_unsafe(method) and not is_bearer and not is_from_here(headers, host):
            raise RequestRefused(403, "foreign-origin", "a page of another site may not do this")
        if is_open:
            return
        if visitor is None:
            raise RequestRefused(401, "unauthorized", "say who you are: Authorization: Bearer TOKEN")
        if not visitor.role.allows(method):
            raise RequestRefused(403, "forbidden", "this needs the role operate")

    async def _check_csrf(self, request: Request, visitor: Visitor | None, receive: Receive) -> Receive:
        """What goes on reading the request: where the token is in a form, that has been read here."""
        if visitor is None or not visitor.csrf or not is_unsafe(request.method) or request.url.path == LOGIN:
            return receive
        given = request.headers.get(_CSRF_HEADER)
        if given is None and request.headers.get("content-type", "").partition(";")[0].strip().lower() == _FORM:
            body = await _read_form(receive)
            given = _field(body, _CSRF_FIELD)
            receive = _again(body, receive)
        if not hmac.compare_digest((given or "").encode(errors="replace"), visitor.csrf.encode()):
            raise RequestRefused(403, "csrf", f"the header {_CSRF_HEADER} is missing or old; load the page anew")
        return receive

    def _refuse(self, request: Request, refused: RequestRefused) -> Response:
        if refused.status == 401 and self._has_login and self._access.has_tokens:
            where = f"{LOGIN}?next={quote(_whole_path(request), safe='/')}"
            if request.headers.get("hx-request"):
                page = request.headers.get("hx-current-url", "").partition("://")[2].partition("/")[2]
                return Response(status_code=401, headers={"hx-redirect": f"{LOGIN}?next={quote('/' + page, safe='/')}"})
            if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                return Response(status_code=303, headers={"location": where})
        answer = error_answer(refused.status, refused.error, refused.reason)
        if refused.status == 401:
            answer.headers["www-authenticate"] = "Bearer"
        return answer


def peer_of(request: Request) -> str:
    """The address that the connection comes from."""
    return request.client.host if request.client is not None else ""


def client_of(request: Request, access: Access) -> str:
    """The address of whoever asks: of the connection, or where that is a proxy that is believed, the last that it names."""
    peer = peer_of(request)
    if not access.is_proxy(peer):
        return peer
    named = [part.strip() for line in request.headers.getlist("x-forwarded-for") for part in line.split(",")]
    # From behind: what stands before the proxies' own additions is the sender's word.
    found = next((one for one in reversed(named) if not access.is_proxy(one)), peer)
    return found if sender(found) else peer


def is_https(request: Request, access: Access) -> bool:
    """Whether the browser speaks TLS, to us or to a proxy that is believed."""
    if request.url.scheme == "https":
        return True
    return access.is_proxy(peer_of(request)) and _first(request.headers, "x-forwarded-proto") == "https"


def host_of(request: Request, access: Access) -> str:
    """Whom the browser means: its Host, which a proxy that is believed may have put elsewhere."""
    forwarded = _first(request.headers, "x-forwarded-host") if access.is_proxy(peer_of(request)) else ""
    return forwarded or request.headers.get("host", "")


def _first(headers: Headers, name: str) -> str:
    return headers.get(name, "").partition(",")[0].strip()


def _whole_path(request: Request) -> str:
    return f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path


async def _read_form(receive: Receive) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(_FORM_SECONDS):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > _FORM_BYTES:
                    raise RequestRefused(413, "too-large", f"a form has at most {_FORM_BYTES:,} bytes")
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise RequestRefused(408, "timeout", f"the form did not come within {_FORM_SECONDS:g} s") from error


def _field(body: bytes, name: str) -> str:
    try:
        found = parse_qs(body.decode(), max_num_fields=10_000)
    except ValueError:
        return ""  # no form after all
    return found.get(name, [""])[0]


def _again(body: bytes, receive: Receive) -> Receive:
    """Hands out the body that was read, then what comes."""
    is_given = False

    async def given() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return given
