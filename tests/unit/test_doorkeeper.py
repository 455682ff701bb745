"""engine.doorkeeper: who comes in, who is refused, and what every answer says to browsers."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from engine.doorkeeper import Doorkeeper
from engine.login_limits import MOST_FAILURES, WITHIN_SECONDS
from engine.settings import Settings
from engine.web_origins import SECURITY_HEADERS
from engine.web_roles import Access, Role
from engine.web_sessions import begin, cookie_name
from tests.unit.test_web_roles import NOW, OPERATE, PROXY, READ, TOKENS

PATHS = ("/", "/runs", "/healthz", "/readyz", "/events/{topic}", "/login")
METHODS = ["GET", "POST", "DELETE"]


async def _who(request: Request) -> Response:
    visitor = request.state.visitor
    return PlainTextResponse("nobody" if visitor is None else f"{visitor.role}/{visitor.name}/{request.state.csrf}")


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Client = Callable[..., httpx.AsyncClient]


@pytest.fixture
def client(clock: Clock) -> Client:
    """A client of an app behind a doorkeeper with some settings, as seen from an address."""

    def made(peer: str = "127.0.0.1", base: str = "http://localhost:8282", **more: object) -> httpx.AsyncClient:
        settings = Settings(**more)  # type: ignore[arg-type]
        routes = [
            Route(path, _who, methods=METHODS) for path in ("/", "/runs", "/healthz", "/readyz", "/events/{topic}", "/login")
        ]
        door = Doorkeeper(Starlette(routes=routes), settings, Access(settings), has_login=True, clock=clock)
        transport = httpx.ASGITransport(door, client=(peer, 1))
        return httpx.AsyncClient(transport=transport, base_url=base)

    return made


async def test_without_auth_everybody_here_may_operate(client: Client) -> None:
    async with client() as http:
        assert (await http.post("/runs")).text == "operate//"


async def test_every_answer_has_the_security_headers(client: Client) -> None:
    async with client(**TOKENS) as http:
        for path in ("/", "/healthz", "/login", "/nothing", "/static/nothing", "/events/orders"):
            answer = await http.get(path)
            assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS, path
            assert path.startswith("/static") or answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8282", "127.0.0.1.evil.example", ""])
async def test_a_name_that_only_points_here_is_not_served(client: Client, host: str) -> None:
    async with client() as http:
        for method in METHODS:
            assert (await http.request(method, "/runs", headers={"host": host})).status_code == 421
        assert (await http.get("/healthz", headers={"host": host})).status_code == 200
    async with client(allow_plaintext=True) as http:
        assert (await http.get("/runs", headers={"host": "engine"})).status_code == 200


@pytest.mark.parametrize("headers", [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}])
async def test_another_sites_page_changes_nothing_even_where_nobody_logs_in(client: Client, headers: dict[str, str]) -> None:
    async with client() as http:
        for path in ("/runs", "/events/orders", "/login"):
            answer = await http.post(path, headers=headers)
            assert (answer.status_code, answer.json()["error"]) == (403, "foreign-origin")
        assert (await http.get("/runs", headers=headers)).status_code == 200
        assert (await http.post("/runs", headers={"origin": "http://localhost:8282"})).status_code == 200


async def test_a_bearer_token_gives_its_role(client: Client) -> None:
    async with client(**TOKENS) as http:
        operator, reader = {"authorization": f"Bearer {OPERATE}"}, {"authorization": f"bearer {READ}"}
        assert (await http.post("/events/orders", headers=operator)).text == "operate//"
        assert (await http.get("/runs", headers=reader)).text == "read//"
        refused = await http.post("/events/orders", headers=reader)
        assert (refused.status_code, refused.json()["error"]) == (403, "forbidden")


@pytest.mark.parametrize("authorization", ["Bearer nonsense", f"Basic {OPERATE}", OPERATE, "", "Bearer "])
async def test_a_wrong_token_is_refused_whatever_else_is_sent(client: Client, authorization: str) -> None:
    async with client(**TOKENS) as http:
        http.cookies.set(cookie_name("engine", is_https=False), begin(OPERATE.encode(), Role.OPERATE, NOW, b"n" * 16))
        answer = await http.get("/runs", headers={"authorization": authorization})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


async def test_nobody_sees_anything_but_that_it_is_there(client: Client) -> None:
    async with client(**TOKENS) as http:
        for path in ("/", "/runs", "/events/orders", "/nothing", "/static", "/healthz/../runs"):
            assert (await http.get(path)).status_code == 401, path
        for path in ("/healthz", "/readyz", "/login"):
            assert (await http.get(path)).text == "nobody"


async def test_a_browser_is_led_to_the_login_and_back(client: Client) -> None:
    async with client(**TOKENS) as http:
        page = await http.get("/runs?state=FAILED", headers={"accept": "text/html,*/*"})
        assert (page.status_code, page.headers["location"]) == (303, "/login?next=/runs%3Fstate%3DFAILED")
        part = await http.get("/runs", headers={"hx-request": "true", "hx-current-url": "http://localhost:8282/flows?a=b"})
        assert (part.status_code, part.headers["hx-redirect"]) == (401, "/login?next=/flows%3Fa%3Db")


async def test_guessing_is_bounded_and_ends_after_a_while(client: Client, clock: Clock) -> None:
    async with client(**TOKENS) as http:
        wrong, right = {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {OPERATE}"}
        for _ in range(MOST_FAILURES):
            assert (await http.get("/runs", headers=wrong)).status_code == 401
        assert (await http.get("/runs", headers=right)).status_code == 429
        clock.now += WITHIN_SECONDS
        assert (await http.get("/runs", headers=right)).status_code == 200


async def test_a_session_reads_and_changes_only_with_what_its_pages_know(client: Client, clock: Clock) -> None:
    async with client(**TOKENS) as http:
        http.cookies.set(cookie_name("engine", is_https=False), begin(OPERATE.encode(), Role.OPERATE, NOW, b"n" * 16))
        role, _, csrf = (await http.get("/runs")).text.split("/")
        assert (role, bool(csrf)) == ("operate", True)
        for wrong in (b"", b"x", csrf[:-1].encode(), b"\xfc"):
            refused = await http.post("/runs", headers={b"x-csrf-token": wrong})
            assert (refused.status_code, refused.json()["error"]) == (403, "csrf")
        assert (await http.post("/runs", headers={"x-csrf-token": csrf})).status_code == 200
        assert (await http.post("/runs", data={"id": "1", "csrf": csrf})).status_code == 200
        for form in ({"id": "1"}, {"csrf": "x"}, {}):
            assert (await http.post("/runs", data=form)).status_code == 403
        foreign = {"x-csrf-token": csrf, "origin": "http://localhost:1"}
        assert (await http.post("/runs", headers=foreign)).status_code == 403
        clock.now += 13 * 3_600
        assert (await http.get("/runs")).status_code == 401


async def test_a_session_of_a_reader_changes_nothing(client: Client) -> None:
    async with client(**TOKENS) as http:
        http.cookies.set(cookie_name("engine", is_https=False), begin(READ.encode(), Role.READ, NOW, b"n" * 16))
        csrf = (await http.get("/runs")).text.split("/")[2]
        assert (await http.post("/runs", headers={"x-csrf-token": csrf})).status_code == 403


async def test_a_proxys_user_comes_in_and_a_forged_header_does_not(client: Client) -> None:
    user = {"x-user": "ada", "x-role": "operate", "host": "dash.example", "origin": "https://dash.example"}
    async with client("10.0.0.7", **PROXY) as http:
        role, name, csrf = (await http.get("/runs", headers=user)).text.split("/")
        assert (role, name) == ("operate", "ada")
        assert (await http.post("/runs", headers=user)).status_code == 403
        assert (await http.post("/runs", headers=user | {"x-csrf-token": csrf})).status_code == 200
        moved = user | {"x-csrf-token": csrf, "host": "127.0.0.1:8282", "x-forwarded-host": "dash.example"}
        assert (await http.post("/runs", headers=moved)).status_code == 200
    async with client("10.9.9.9", **PROXY) as http:
        assert (await http.get("/runs", headers=user)).status_code == 401
        assert (await http.get("/runs", headers=user | {"accept": "text/html"})).status_code == 401, "no login without tokens"


async def test_a_secure_cookie_counts_where_the_proxy_says_https(client: Client) -> None:
    name = cookie_name("engine", is_https=True)
    headers = {"cookie": f"{name}={begin(READ.encode(), Role.READ, NOW, b'n' * 16)}", "x-forwarded-proto": "https"}
    async with client("10.0.0.7", **TOKENS, **PROXY) as http:
        assert (await http.get("/runs", headers=headers)).text.startswith("read/")
    async with client("10.9.9.9", **TOKENS, **PROXY) as http:
        assert (await http.get("/runs", headers=headers)).status_code == 401


@pytest.mark.parametrize("is_believed", [True, False])
async def test_guesses_count_for_whom_a_believed_proxy_names(client: Client, is_believed: bool) -> None:
    proxies = {"http_proxies": ("10.0.0.7",)} if is_believed else {}

    async with client(peer="10.0.0.7", **TOKENS, **proxies) as http:

        async def guess(named: str) -> int:
            headers = {"authorization": "Bearer wrong", "x-forwarded-for": named}
            return (await http.get("/runs", headers=headers)).status_code

        for _ in range(10):
            assert await guess("9.9.9.9, 203.0.113.5") == 401
        assert await guess("8.8.8.8, 203.0.113.5") == 429, "what the sender wrote before it does not help"
        assert await guess("203.0.113.6") == (401 if is_believed else 429)
        assert await guess("no address") == (401 if is_believed else 429)
