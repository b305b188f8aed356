"""The documentation site is built without a warning, its links lead somewhere, and it loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import ROOT

import llada
import vrpo

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src"}  # what a browser fetches by itself
NOT_FETCHED = ("canonical", "next", "prev")  # kinds of <link>
API = re.compile(r"^::: ([\w.]+)$", re.M)


class Page(HTMLParser):
    """The links of a page, the files that it loads, and its anchors."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = {"__comments"}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in LOADED and found.get(LOADED[tag]) and found.get("rel") not in NOT_FETCHED:
            self.loaded.append(found[LOADED[tag]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The site, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site").resolve()
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=240, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(folder) -> dict[Path, Page]:
    """The pages of the site by file, but for the one of a server whose links are from its root."""
    return {path: Page(path.read_text()) for path in folder.rglob("*.html") if path.name != "404.html"}


def test_links_and_anchors_of_the_site_lead_somewhere(pages):
    lost = []
    for path, page in pages.items():
        for link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            file = (path.parent / unquote(target.path)).resolve() if target.path else path
            if file.is_dir():
                file = file / "index.html"
            found = file.exists()
            if found and target.fragment and file in pages:
                found = unquote(target.fragment) in pages[file].anchors
            if not found:
                lost.append(f"{path.name}: {link}")
    assert not lost


def test_pages_load_nothing_from_elsewhere(folder, pages):
    for path, page in pages.items():
        assert page.loaded
        assert not [address for address in page.loaded if urlsplit(address).netloc], path.name
        assert all((path.parent / urlsplit(address).path).exists() for address in page.loaded), path.name
    styles = [path.read_text() for path in folder.rglob("*.css")]
    assert styles
    assert not [found for style in styles for found in re.findall(r"url\([\"']?https?:[^)]*", style)]


def test_every_page_that_is_written_is_in_the_site(folder, pages):
    assert "Align a masked diffusion language model" in (folder / "index.html").read_text()
    for path in (ROOT / "docs").rglob("*.md"):
        built = folder / path.relative_to(ROOT / "docs").with_suffix(".html")
        built = built.with_name("index.html") if path.name == "README.md" else built
        assert built in pages, path.name


@pytest.mark.parametrize("package", [llada, vrpo], ids=lambda package: package.__name__)
def test_the_api_has_every_public_name_with_its_docstring(package, pages):
    name = package.__name__
    listed = {path.rpartition(".")[2]: path for path in API.findall((ROOT / f"docs/api/{name}.md").read_text())}
    assert set(listed) >= set(package.__all__)
    (page,) = (page for path, page in pages.items() if path.parts[-2:] == ("api", f"{name}.html"))
    assert {listed[public] for public in package.__all__} <= page.anchors
