"""Templates and static files keep the rules that the content security policy and the escaping rest on."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from engine.web_pages import FOLDER, STATIC

TEMPLATES = sorted((FOLDER / "templates").glob("*.html"))
#: Each would need a hole in the policy: handlers, styles and scripts in the page, or addresses elsewhere.
FORBIDDEN = re.compile(
    r"\son[a-z]+\s*=|\sstyle\s*=|<style|<script(?! src=)|javascript:|\|\s*safe\b|hx-on|hx-vals='js|https?://|\bautoescape\b"
)


def test_files_of_others_are_unchanged() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in (STATIC / "VENDORED.md").read_text().splitlines()]
    listed = {row[0]: row[4] for row in rows if len(row) == 5 and len(row[4]) == 64}
    assert listed == {name: hashlib.sha256((STATIC / name).read_bytes()).hexdigest() for name in listed}
    others = {path.name for path in STATIC.iterdir() if ".min." in path.name or "LICENSE" in path.name}
    assert set(listed) == others


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_template_needs_no_hole_in_the_policy(template: Path) -> None:
    text = template.read_text()
    # Jinja's own code compares and assigns, which looks like attributes.
    found = FORBIDDEN.search(re.sub(r"\{%.*?%\}", "", text, flags=re.S)) or re.search(r"\|\s*safe\b", text)
    assert not found, found


def test_styles_and_scripts_of_ours_load_nothing_from_elsewhere() -> None:
    for path in STATIC.iterdir():
        text = path.read_text()
        if ".min." in path.name or path.suffix not in (".css", ".js"):
            continue
        assert not re.search(r"https?://|@import|\beval\(|new Function|innerHTML", text)
