"""The documentation site is built without a complaint, and asks no other site for anything."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxlb

ROOT = Path(__file__).resolve().parents[1]


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs" / "api" / "index.md").read_text()
    described = {name.rsplit(".", 1)[1] for name in re.findall(r"^::: (\S+)", page, re.MULTILINE)}
    assert described == set(jaxlb.__all__) - {"__version__"}


@pytest.mark.slow
def test_site_builds_and_stands_alone(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    # Notebooks run in tests/test_notebooks.py.
    environment = os.environ | {"DOCS_EXECUTE": "false"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert tmp_path / "index.html" in pages
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(https?:[^\"\s>]+)", text)
        loaded += re.findall(
            r"<link[^>]*rel=\"?(?:stylesheet|preconnect|icon)\"?[^>]*href=\"?(https?:[^\"\s>]+)", text
        )
        assert not loaded, page
