"""engine.web_roles, web_sessions, web_origins, login_limits: who may do what, as rules."""

from __future__ import annotations

import pytest

from engine.errors import SettingsError
from engine.login_limits import MOST_FAILURES, MOST_SENDERS, WITHIN_SECONDS, LoginLimits
from engine.settings import Secret, Settings
from engine.web_origins import POLICY, is_from_here, local_path, names_this_machine, sender
from engine.web_roles import Access, Role, check_access
from engine.web_sessions import SESSION_SECONDS, begin, cookie, cookie_name, csrf_of, visitor_of

OPERATE, READ = "operate-" + "o" * 24, "read-" + "r" * 24
TOKENS = {"http_token": Secret(OPERATE), "http_read_token": Secret(READ)}
PROXY = {"http_user_header": "X-User", "http_role_header": "X-Role", "http_proxies": ("10.0.0.0/24",)}
NOW = 1_700_000_000.0


def settings(**more: object) -> Settings:
    return Settings(**({"allow_plaintext": True} | more))  # type: ignore[arg-type]


def test_on_loopback_nobody_has_to_say_who_they_are() -> None:
    for http in ("127.0.0.1:8282", "localhost:1", "[::1]:8282"):
        assert not check_access(settings(http=http)).is_on


@pytest.mark.parametrize("http", ["0.0.0.0:8282", "[::]:8282", "10.1.2.3:80", "example.org:80", ":8282"])
def test_beyond_loopback_it_is_refused_without_a_token_or_a_proxy(http: str) -> None:
    with pytest.raises(SettingsError, match=r"http_token.*http_user_header.*127\.0\.0\.1"):
        check_access(settings(http=http))
    assert check_access(settings(http=http, **TOKENS)).is_on
    assert check_access(settings(http=http, **PROXY)).is_on


def test_a_token_gives_its_role_and_another_none() -> None:
    access = Access(settings(**TOKENS))
    assert (access.by_token(OPERATE), access.by_token(READ)) == (Role.OPERATE, Role.READ)
    for wrong in ("", OPERATE[:-1], OPERATE + "x", "***", "ü" * 30, "\ud800"):
        assert access.by_token(wrong) is None


@pytest.mark.parametrize("weak", ["", "short", "x" * 15, "with a space in the middle", "ünïcode-is-no-header-text"])
def test_a_weak_token_is_refused_and_not_repeated(weak: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Access(settings(http_token=Secret(weak)))
    assert "secrets.token_urlsafe" in str(caught.value)
    assert not weak or weak not in str(caught.value)


def test_both_tokens_must_differ() -> None:
    with pytest.raises(SettingsError, match="the same as http_token") as caught:
        Access(settings(http_token=Secret(OPERATE), http_read_token=Secret(OPERATE)))
    assert OPERATE not in str(caught.value)


@pytest.mark.parametrize(
    "half",
    [
        {"http_user_header": "X-User"},
        {"http_proxies": ("10.0.0.1",)},
        {"http_role_header": "X-Role"},
        {"http_role_header": "X-Role", "http_proxies": ("10.0.0.1",)},
        {**PROXY, "http_user_header": "X User"},
        {**PROXY, "http_proxies": ("10.0.0.0/99",)},
    ],
)
def test_half_a_proxy_is_refused(half: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        Access(settings(**half))


def test_a_proxy_says_who_it_is_and_nobody_else_does() -> None:
    access = Access(settings(**PROXY))
    ada = [("X-User", "ada"), ("x-role", "Operate")]
    visitor = access.by_proxy("10.0.0.7", ada)
    assert visitor is not None
    assert (visitor.name, visitor.role) == ("ada", Role.OPERATE)
    assert access.by_proxy("::ffff:10.0.0.7", ada) is not None
    for peer in ("10.0.1.7", "127.0.0.1", "", "nonsense"):
        assert access.by_proxy(peer, ada) is None


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("x-user", "")],
        [("x-user", "ada")],  # a role header is configured and did not come
        [("x-user", "ada"), ("x-role", "admin")],
        [("x-user", "ada"), ("x-user", "eve"), ("x-role", "read")],
        [("x-user", "ada"), ("x-role", "read"), ("x-role", "operate")],
    ],
)
def test_what_a_proxy_leaves_unclear_lets_nobody_in(headers: list[tuple[str, str]]) -> None:
    assert Access(settings(**PROXY)).by_proxy("10.0.0.7", headers) is None


def test_without_a_role_header_a_proxys_users_read() -> None:
    access = Access(settings(**{**PROXY, "http_role_header": ""}))
    visitor = access.by_proxy("10.0.0.7", [("x-user", "ada"), ("x-role", "operate")])
    assert visitor is not None
    assert visitor.role is Role.READ


def test_reading_changes_nothing_and_operating_may() -> None:
    assert [Role.READ.allows(method) for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH")] == [True] * 2 + [
        False
    ] * 4
    assert Role.OPERATE.allows("POST")


def test_a_session_is_good_until_its_end_or_a_new_token() -> None:
    access = Access(settings(**TOKENS))
    value = begin(access.keys[Role.READ], Role.READ, NOW, b"n" * 16)
    assert READ not in value
    visitor = visitor_of(value, access.keys, NOW + SESSION_SECONDS - 1)
    assert visitor is not None
    assert (visitor.role, visitor.has_session) == (Role.READ, True)
    assert visitor.csrf == csrf_of(access.keys[Role.READ], value)
    assert visitor_of(value, access.keys, NOW + SESSION_SECONDS) is None
    assert visitor_of(value, access.keys, NOW - 10 * SESSION_SECONDS) is None
    assert visitor_of(value, {Role.READ: b"another token"}, NOW) is None
    assert visitor_of(value, {}, NOW) is None


def test_a_session_that_was_altered_is_none() -> None:
    access = Access(settings(**TOKENS))
    value = begin(access.keys[Role.READ], Role.READ, NOW, b"n" * 16)
    role, ends, nonce, signature = value.split(".")
    altered = [
        f"operate.{ends}.{nonce}.{signature}",
        f"{role}.{int(ends) + 1}.{nonce}.{signature}",
        f"{role}.{ends}.{'0' * 32}.{signature}",
        f"{role}.{ends}.{nonce}.{'0' * 64}",
        f"{role}.{ends}.{nonce}",
        "",
        "admin.1.2.3",
        value + "\n",
        value.replace("read", "ｒead"),
    ]
    assert [visitor_of(text, access.keys, NOW) for text in altered] == [None] * len(altered)


def test_a_cookie_is_out_of_reach_of_scripts_and_other_sites() -> None:
    text = cookie(cookie_name("shop", is_https=True), "v", is_https=True)
    assert text.startswith("__Host-engine-")
    assert {"Path=/", "HttpOnly", "SameSite=Strict", "Secure"} < set(text.split("; "))
    assert "Secure" not in cookie(cookie_name("shop", is_https=False), "v", is_https=False)
    assert cookie_name("shop", is_https=False) != cookie_name("other", is_https=False)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, True),
        ({"origin": "http://localhost:8282"}, True),
        ({"origin": "http://LOCALHOST:8282", "sec-fetch-site": "same-origin"}, True),
        ({"origin": "http://localhost:8283"}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"origin": "http://localhost:8282", "sec-fetch-site": "cross-site"}, False),
    ],
)
def test_a_page_of_another_site_gives_itself_away(headers: dict[str, str], expected: bool) -> None:
    assert is_from_here(headers, "localhost:8282") is expected


def test_names_of_this_machine() -> None:
    assert all(names_this_machine(host) for host in ("localhost", "127.0.0.1:8282", "[::1]:8282", "LOCALHOST:1"))
    assert not any(names_this_machine(host) for host in ("", "evil.example", "localhost.evil.example", "[::1", "10.0.0.1", "@"))


@pytest.mark.parametrize(
    "path", ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "", "/a\r\nb", "/\t/evil"]
)
def test_a_login_leads_to_no_other_site(path: str) -> None:
    assert local_path(path) == "/"
    assert local_path("/runs?state=FAILED") == "/runs?state=FAILED"


def test_the_policy_lets_no_foreign_or_inline_code_in() -> None:
    assert "unsafe" not in POLICY
    assert "*" not in POLICY
    assert POLICY.startswith("default-src 'none'")


def test_wrong_tokens_are_bounded_by_sender_and_time() -> None:
    limits = LoginLimits()
    for number in range(MOST_FAILURES):
        assert limits.wait_seconds("eve", NOW + number) == 0
        limits.failed("eve", NOW + number)
    assert limits.wait_seconds("eve", NOW + MOST_FAILURES) == WITHIN_SECONDS - MOST_FAILURES
    assert limits.wait_seconds("ada", NOW) == 0
    assert limits.wait_seconds("eve", NOW + WITHIN_SECONDS) == 0
    limits.succeeded("eve")
    assert limits.wait_seconds("eve", NOW) == 0


def test_many_senders_take_bounded_room() -> None:
    limits = LoginLimits()
    for number in range(MOST_SENDERS + 5):
        limits.failed(str(number), NOW)
    assert len(limits._failures) == MOST_SENDERS


def test_one_subscriber_of_ipv6_is_one_sender() -> None:
    assert sender("2001:db8::1") == sender("2001:db8::ffff:2") != sender("2001:db8:0:1::1")
    assert sender("10.0.0.1") != sender("10.0.0.2")
