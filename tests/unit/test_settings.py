"""engine.settings: one list, one precedence, secrets that never show, loopback unless told."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.errors import SettingsError
from engine.settings import Secret, Settings, is_loopback, load


def test_defaults_hold_where_nothing_is_said(tmp_path: Path) -> None:
    assert load({}, {}, tmp_path) == Settings()


def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    (tmp_path / "engine.toml").write_text('app = "file"\nkafka = "127.0.0.1:1"\npoll_records = 5\n')
    environment = {"ENGINE_APP": "variable", "ENGINE_KAFKA": "127.0.0.1:2"}
    settings = load({"app": "flag", "dask": None}, environment, tmp_path)
    assert (settings.app, settings.kafka, settings.poll_records) == ("flag", "127.0.0.1:2", 5)
    assert settings.dask == Settings().dask


def test_variables_are_text_and_become_what_the_setting_is(tmp_path: Path) -> None:
    environment = {
        "ENGINE_HANDLERS": "handlers/orders.py,other",
        "ENGINE_MAX_OPEN_RUNS": "12",
        "ENGINE_DEDUP_WINDOW_SECONDS": "1.5",
        "ENGINE_ALLOW_PLAINTEXT": "true",
    }
    settings = load({}, environment, tmp_path)
    assert settings.handlers == ("handlers/orders.py", "other")
    assert (settings.max_open_runs, settings.dedup_window_seconds, settings.allow_plaintext) == (12, 1.5, True)


def test_variables_of_others_are_none_of_ours(tmp_path: Path) -> None:
    assert load({}, {"ENGINE_ROOM": "warm", "APP": "x"}, tmp_path) == Settings()


def test_topics_and_groups_are_named_after_the_app() -> None:
    shop = Settings(app="shop")
    assert shop.states_topic == "shop.states"
    assert shop.dead_letters_topic == "shop.dead-letters"
    assert (shop.intake_group, shop.dispatch_group) == ("shop.intake", "shop.dispatch")


def test_a_trace_has_a_link_where_its_pages_are_known(tmp_path: Path) -> None:
    assert load({}, {}, tmp_path).trace_link("ab") == ""
    for url in ("http://127.0.0.1:16686", "https://jaeger.example.com/ui/"):
        settings = load({}, {"ENGINE_TRACES": url}, tmp_path)
        assert settings.trace_link("ab") == f"{url.rstrip('/')}/trace/ab"
        assert settings.trace_link("") == ""


@pytest.mark.parametrize(
    "url",
    ["javascript:alert(1)", "127.0.0.1:16686", "http://", "http://me:secret@x", "http://x/?a=b", 'http://x/">', "http://x y"],
)
def test_what_links_to_traces_is_a_plain_url_and_is_not_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match=r"traces.*is no plain http\(s\) URL") as caught:
        load({}, {"ENGINE_TRACES": url}, tmp_path)
    assert "secret" not in str(caught.value)


def test_an_unknown_key_of_the_file_is_named_and_the_known_ones_listed(tmp_path: Path) -> None:
    (tmp_path / "engine.toml").write_text('kafak = "127.0.0.1:1"\n')
    with pytest.raises(SettingsError, match=r"kafak.*no such setting.*kafka") as caught:
        load({}, {}, tmp_path)
    assert caught.value.key == "kafak"


@pytest.mark.parametrize("content", [b"app = ", b"app = '\xff'"], ids=["broken", "not UTF-8"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "engine.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=r"engine\.toml.*not valid TOML"):
        load({}, {}, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_open_runs", "many"),
        ("max_open_runs", "0"),
        ("state_partitions", "-3"),
        ("app", ""),
        ("app", "my app"),
        ("dedup_window_seconds", "a day"),
        ("state_retention_seconds", "3600"),
        ("allow_plaintext", "perhaps"),
        ("log_level", "loud"),
    ],
)
def test_a_wrong_value_names_the_setting_and_the_value(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({}, {f"ENGINE_{key.upper()}": value}, tmp_path)
    assert caught.value.key == key
    assert repr(value) in str(caught.value)


def test_a_secret_shows_itself_nowhere_but_where_it_is_asked_to(tmp_path: Path) -> None:
    settings = load({}, {"ENGINE_KAFKA_PASSWORD": "hunter2"}, tmp_path)
    password = settings.kafka_password
    assert password is not None
    assert password.reveal() == "hunter2"
    assert type(password.reveal()) is str
    for text in (repr(settings), str(password), f"{password}", f"{password:>10}", "%s" % password):  # noqa: UP031
        assert "hunter2" not in text


def test_a_secret_of_the_wrong_kind_is_not_in_the_error() -> None:
    with pytest.raises(SettingsError) as caught:
        load({"kafka_password": Secret("hunter2"), "max_open_runs": "x"}, {}, Path("nowhere"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("localhost", True),
        ("[::1]", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("kafka.example", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_only_this_machine_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kafka", "kafka.example:9092"),
        ("kafka", "127.0.0.1:9092,10.0.0.2:9092"),
        ("dask", "tcp://10.0.0.3:8786"),
        ("http", "0.0.0.0:8282"),
        ("http", ":8282"),
    ],
)
def test_plain_text_beyond_loopback_is_refused_unless_allowed(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(SettingsError, match=r"plain text.*allow_plaintext") as caught:
        load({key: value}, {}, tmp_path)
    assert caught.value.key == key
    assert getattr(load({key: value, "allow_plaintext": True}, {}, tmp_path), key) == value
    assert getattr(load({key: value}, {}, tmp_path, check_hosts=False), key) == value


def test_an_endpoint_that_speaks_no_tls_is_not_told_to_use_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"behind a proxy.*allow_plaintext") as caught:
        load({"http": "0.0.0.0:8282"}, {}, tmp_path)
    assert "Use TLS" not in str(caught.value)


def test_tls_may_go_anywhere(tmp_path: Path) -> None:
    settings = load({"kafka": "k.example:9093", "kafka_security": "SASL_SSL", "dask": "tls://d.example:1"}, {}, tmp_path)
    assert settings.kafka == "k.example:9093"


def test_settings_are_values() -> None:
    with pytest.raises(AttributeError):
        Settings().app = "other"  # type: ignore[misc]
    assert msgspec.structs.replace(Settings(), app="x") == Settings(app="x")


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hunter2@bucket/prefix",
        "s3://AKIA:hun/ter2@bucket",
        "s3://AKIA:hunter2?x@bucket",
        "s3://hunter2@bucket",
        "sftp://me:hunter2@host/x",
        "abfs://container@account/x?sig=hunter2",
        "https://host/x#hunter2",
        "hunter2:x@s3://bucket",
        "hunter2",
    ],
)
def test_credentials_of_the_result_store_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError, match=r"environment variables|is no URL") as caught:
        load({"results": url}, {}, Path("nowhere"))
    assert caught.value.key == "results"
    assert "hunter2" not in f"{caught.value} {caught.value!r}"
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["/var/results", "file://results", "file:///", "s3://", "simplecache::s3://b/x", "s3://b/../x"])
def test_a_place_that_is_not_the_same_everywhere_is_no_result_store(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"results": url}, {}, Path("nowhere"))
    assert caught.value.key == "results"


@pytest.mark.parametrize(
    "url", ["", "file:///var/lib/me@home/results", "memory://x", "s3://bucket", "abfs://box@account.dfs.core.windows.net/x"]
)
def test_a_result_store_is_a_url_of_a_place(url: str) -> None:
    assert load({"results": url}, {}, Path("nowhere")).results == url


@pytest.mark.parametrize("history", ["/var/lib/history.db", "sqlite:///var/lib/history.db"])
def test_the_history_is_a_file_by_path_or_url(history: str) -> None:
    assert load({"history": history}, {}, Path("nowhere")).history_path == "/var/lib/history.db"


@pytest.mark.parametrize("history", ["mysql://me:secret@db/x", "postgresql://me:sec/ret@db/x", "postgres://me:sec@ret@db/x"])
def test_a_history_elsewhere_is_refused_without_showing_its_secrets(history: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"history": history}, {}, Path("nowhere"))
    assert caught.value.key == "history"
    assert not any(part in str(caught.value) for part in ("secret", "sec", "ret@"))


def test_a_history_on_a_server_is_shown_without_its_user_and_password() -> None:
    settings = load(
        {"history": "postgresql://me:s%40cret@127.0.0.1:5433/runs?options=-csearch_path%3Dshop"}, {}, Path("nowhere")
    )
    assert settings.history_shown == "postgresql://127.0.0.1:5433/runs"
    assert "s%40cret" in settings.history_path


@pytest.mark.parametrize(
    ("history", "is_plain"),
    [
        ("postgresql://me:secret@db.example/x", True),
        ("postgresql://me:secret@127.0.0.1,db.example:5433/x?sslmode=prefer", True),
        ("postgresql:///x?host=db.example", True),
        ("postgresql://me:secret@db.example/x?sslmode=verify-full", False),
        ("postgresql://me@localhost:5432/x", False),
        ("postgresql://[::1]:5432/x", False),
        ("postgresql:///x?host=/run/postgresql", False),
        ("postgresql:///x", False),
    ],
)
def test_a_history_beyond_loopback_needs_tls_or_a_word(history: str, is_plain: bool) -> None:
    assert load({"history": history, "allow_plaintext": True}, {}, Path("nowhere")).history == history
    if not is_plain:
        assert load({"history": history}, {}, Path("nowhere")).history == history
        return
    with pytest.raises(SettingsError, match=r"plain text to db\.example") as caught:
        load({"history": history}, {}, Path("nowhere"))
    assert "secret" not in str(caught.value)


RULES = """
[[rules]]
name = "many"
failures = 5
within_seconds = 600
to = [{url = "slack://T0K3N-s3cr3t"}, {webhook = "https://x/T0K3N-s3cr3t", secret_env = "SECRET"}]
"""


def test_rules_come_from_the_file_or_as_json_from_a_variable_and_show_no_address(tmp_path: Path) -> None:
    (tmp_path / "engine.toml").write_text(RULES)
    settings = load({}, {}, tmp_path)
    assert [(rule.name, rule.failures, len(rule.to)) for rule in settings.rules] == [("many", 5, 2)]
    assert "T0K3N" not in repr(settings) + str(settings)
    url = settings.rules[0].to[0].url
    assert url is not None
    assert url.reveal() == "slack://T0K3N-s3cr3t"
    again = load({}, {"ENGINE_RULES": '[{"name": "few", "to": [{"url": "slack://T0K3N-s3cr3t"}]}]'}, tmp_path)
    assert [rule.name for rule in again.rules] == ["few"]


@pytest.mark.parametrize(
    "text",
    [
        RULES.replace("rules", "rulez"),
        RULES.replace("within", "wihtin"),
        RULES.replace("url", "ulr"),
        RULES.replace('name = "many"', ""),
        RULES.replace('"slack://T0K3N-s3cr3t"', '["slack://T0K3N-s3cr3t"]'),
        'rules = "slack://T0K3N-s3cr3t"',
    ],
)
def test_rules_that_cannot_be_read_are_refused_without_an_address(tmp_path: Path, text: str) -> None:
    (tmp_path / "engine.toml").write_text(text)
    with pytest.raises(SettingsError, match="rule") as caught:
        load({}, {}, tmp_path)
    assert "T0K3N" not in f"{caught.value} {caught.value!r}"


@pytest.mark.parametrize("url", ["engine.example", "https://me:T0K3N@x", "javascript:x", "https://x/?T0K3N"])
def test_the_dashboards_address_is_one_of_a_page(tmp_path: Path, url: str) -> None:
    assert load({}, {"ENGINE_DASHBOARD_URL": "https://engine.example/x/"}, tmp_path).dashboard_url
    with pytest.raises(SettingsError) as caught:
        load({}, {"ENGINE_DASHBOARD_URL": url}, tmp_path)
    assert "T0K3N" not in str(caught.value)
