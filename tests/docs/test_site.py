"""The site builds, strictly and without a network; every page is in its navigation; nothing comes from elsewhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import PAGES, ROOT


def test_every_page_is_in_the_navigation():
    told = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"^\s*- [^:]+: (\S+\.md)$", told[told.index("\nnav:") :], flags=re.MULTILINE)
    there = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.name != "README.md"]
    assert sorted(listed) == sorted(there), "docs/*.md, and nav in mkdocs.yml"


def test_links_between_pages_and_out_of_them_end_somewhere():
    """MkDocs checks those between pages; README's, and those to the rest of the repository, are checked here."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_and_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES) - 1
    for page in pages:
        loaded = re.findall(
            r'<(?:script|img|iframe)[^>]*\bsrc="([^"]+)"|<link[^>]*\bhref="([^"]+)"', page.read_text()
        )
        foreign = [address for pair in loaded for address in pair if re.match(r"(?:https?:)?//", address)]
        assert not foreign, f"{page.name}: {foreign}"


def test_the_reference_has_the_public_names_with_their_words(site):
    acting = (site / "api" / "acting.html").read_text()
    for name in ("Policy", "from_pretrained", "Session", "Runner", "Chunking"):
        assert re.search(rf'id="vla_mot\.infer\.[\w.]*\.{name}"', acting), name
    assert "<code>seeds</code>: one per robot" in acting, "a docstring's arguments are a list"
    assert len(json.loads((site / "search" / "search_index.json").read_text())["docs"]) > 300


def test_a_link_out_of_the_pages_stands_as_a_name(site):
    cluster = (site / "cluster.html").read_text()
    assert "<code>tests/commands/test_cluster.py</code>" in cluster and "../tests" not in cluster


def test_the_configuration_is_plain():
    told = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert told["theme"]["font"] is False and told["site_dir"].startswith("outputs/")
