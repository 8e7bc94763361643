"""Hooks of mkdocs: pages and files of the repository that are not in docs/, and links to them.

Markdown in this repository links to files as GitHub shows them. On the site README.md is the home
page, files in docs/ are at the root, and linked source files are copied beside the pages.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPO = Path(__file__).parents[1]

#: Pages outside of docs/: path in the repository -> path on the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "launch/README.md": "launch/README.md",
}

#: A Markdown link with a relative target: its target, and its anchor.
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside of docs/, and all files that pages link to."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=(REPO / source).read_text()))
    for file in list(files.documentation_pages()):
        for match in _LINK.finditer(file.content_string):
            linked = _in_repository(file.src_uri, match[1])
            target = _on_site(linked)
            if (REPO / linked).is_file() and files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, abs_src_path=str(REPO / linked)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to where files are on the site."""
    here = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        target = _on_site(_in_repository(here, match[1]))
        relative = posixpath.relpath(target, posixpath.dirname(here) or ".")
        return f"]({relative}{match[2] or ''})"

    return _LINK.sub(moved, markdown)


def _in_repository(page: str, link: str) -> str:
    """Return the path in the repository that a page of the site links to."""
    sources = {target: source for source, target in PAGES.items()}
    source = sources.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _on_site(path: str) -> str:
    """Return where a path of the repository is on the site."""
    return PAGES.get(path, path.removeprefix("docs/"))
