"""The rules of the house that no linter knows: the compose file, the image, the papers, the size of modules."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.errors import SettingsError
from engine.settings import load
from engine.web_roles import check_access

HOUSE = Path(__file__).parents[2]
MODULES = sorted((HOUSE / "engine").glob("*.py"))
COMPOSE: dict[str, Any] = yaml.safe_load((HOUSE / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
#: A tag that names a release: digits and dots, perhaps with the flavour of the image behind them.
PINNED = re.compile(r"[a-z0-9./-]+:\d+\.\d+\.\d+(-[a-z0-9.-]+)?\Z")


def test_the_compose_file_fits_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_file_brings_all_parts() -> None:
    assert set(SERVICES) == {"kafka", "scheduler", "worker", "engine", "dashboard", "jaeger"}
    assert [name for name in SERVICES if "profiles" in SERVICES[name]] == ["dashboard"]
    assert SERVICES["kafka"]["image"] == "apache/kafka:4.3.1"
    assert SERVICES["jaeger"]["image"].startswith("jaegertracing/jaeger:2.")


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_to_a_release(name: str) -> None:
    assert PINNED.match(SERVICES[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_says_whether_it_is_well(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries"} <= set(check)


@pytest.mark.parametrize("name", SERVICES)
def test_published_ports_are_bound_to_loopback(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_until_what_it_needs_is_well(name: str) -> None:
    needed = SERVICES[name].get("depends_on", {})
    assert all(need["condition"] == "service_healthy" and other in SERVICES for other, need in needed.items())


@pytest.mark.parametrize("name", ["engine", "worker", "dashboard"])
def test_engine_and_workers_send_their_traces_to_jaeger(name: str) -> None:
    assert SERVICES[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://jaeger:4318"
    assert f"{SERVICES[name]['environment']['ENGINE_TRACES'].removeprefix('http://')}:16686" in SERVICES["jaeger"]["ports"]


def test_the_dashboard_of_the_compose_file_has_no_token_unless_somebody_gives_one() -> None:
    service, environment = SERVICES["dashboard"], SERVICES["dashboard"]["environment"]
    # Compose fills in variables of services that nobody asked for, too: ${…:?} would stop all of them.
    assert {name: text for name, text in environment.items() if "TOKEN" in name} == {
        "ENGINE_HTTP_TOKEN": "${ENGINE_HTTP_TOKEN:-}"
    }
    port = environment["ENGINE_HTTP"].rpartition(":")[2]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    with pytest.raises(SettingsError, match="http_token"):
        check_access(load({}, environment | {"ENGINE_HTTP_TOKEN": ""}, HOUSE))
    check_access(load({}, environment | {"ENGINE_HTTP_TOKEN": "a" * 16}, HOUSE))
    [mount] = service["volumes"]
    volume, _, folder = mount.partition(":")
    assert volume in COMPOSE["volumes"]
    assert environment["ENGINE_HISTORY"].startswith(f"{folder}/")
    assert f"--owner engine {folder}" in (HOUSE / "Dockerfile").read_text()


@pytest.mark.parametrize("name", ["engine", "dashboard"])
def test_who_comes_by_the_network_of_the_compose_file_knows_kafka_and_dask(name: str) -> None:
    environment = SERVICES[name]["environment"]
    assert f"NETWORK://{environment['ENGINE_KAFKA']}" in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert environment["ENGINE_DASK"] == "tcp://scheduler:8786"
    assert environment["ENGINE_ALLOW_PLAINTEXT"] == "true"


def test_the_image_is_pinned_and_runs_as_nobody_in_particular() -> None:
    lines = (HOUSE / "Dockerfile").read_text().splitlines()
    assert all(PINNED.match(line.split()[1]) for line in lines if line.startswith("FROM "))
    assert "USER engine" in lines
    assert all(line.split(maxsplit=1)[1].startswith("[") for line in lines if line.startswith(("ENTRYPOINT", "CMD")))


def test_the_checks_of_the_house_can_be_run() -> None:
    script = HOUSE / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_the_licence_is_there_in_full() -> None:
    text = (HOUSE / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_changelog_has_a_place_for_what_comes_next() -> None:
    assert "## [Unreleased]" in (HOUSE / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_opens_with_what_it_is_and_stays_small(module: Path) -> None:
    text = module.read_text()
    assert (ast.get_docstring(ast.parse(text)) or "").strip()
    assert len(text.splitlines()) <= 350
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
