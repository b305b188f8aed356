"""What mkdocs does beside docs/: pages of Markdown files elsewhere in the repository, and links to other files of it.

README.md is the home page, and the files of `PAGES` are pages too, so that no text is written twice. A link from a page
to any other file of the repository leads to a copy of that file in the site. A link that leads nowhere is left as it
is, and mkdocs names it. Excerpts of the source (CONTRIBUTING.md, "Documentation") have the file's name as their title.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md"} | {
    name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "recipes/README.md", "examples/README.md")
}
SOURCES = {uri: name for name, uri in PAGES.items()}  # of pages that are not in docs/
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
EXCERPT = re.compile(r"(?<=<!-- from: )(.+)( -->\n```python)$", re.M)
FENCED = re.compile(r"^( *)(`{3,}).*?^\1\2`*$", re.M | re.S)


def source_of(uri: str) -> str:
    """The path in the repository of a page of the site."""
    return SOURCES.get(uri, f"docs/{uri}")


def place_of(path: str) -> str:
    """The place in the site of a file of the repository."""
    return PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}")


def target_of(link: str, source: str) -> str:
    """The path in the repository that a relative link in a file of it leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def links_of(markdown: str, source: str) -> set[str]:
    """The paths in the repository that the links of a file lead to, those in code left out."""
    return {target_of(link, source) for link in LINK.findall(FENCED.sub("", markdown))}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, uri in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text()))
    sources = [(source_of(file.src_uri), file.content_string) for file in files.documentation_pages()]
    for path in sorted(set().union(*(links_of(text, source) for source, text in sources))):
        if place_of(path).startswith("files/") and (ROOT / path).is_file():
            files.append(File.generated(config, place_of(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri
    source = source_of(uri)

    def moved(link: re.Match[str]) -> str:
        place = place_of(target_of(link[1], source))
        return posixpath.relpath(place, posixpath.dirname(uri)) if files.get_file_from_path(place) else link[0]

    return EXCERPT.sub(r'\1\2 title="\1"', LINK.sub(moved, markdown))
