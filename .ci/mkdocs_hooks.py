"""Hooks of MkDocs (mkdocs.yml) for what is not a file of docs/: the reference, and links out of the folder.

The pages of the reference are made from the code (reference.py) while the site is built; they are not
committed. OUTSIDE names the Markdown files that are pages too. Any other file of the repository that a page
links to is copied to files/, so that the site needs neither the repository nor a network.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent))

import reference  # noqa: E402, RUF100 - the folder has no name that Python can import

OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/detoxify/README.md": "detoxify.md",
}
# The site has pages of its own for these. Pages link to the code, which is there without the site too.
INSTEAD = {
    "README.md": "index.md",
    "commands/megatron_flags.yaml": "reference/megatron_flags.md",
    "commands/table.py": "reference/commands.md",
    "dataprep/filters/rules.py": "reference/rules.md",
}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills in the part of the navigation that the code decides."""
    for entry in config.nav or []:
        if "Reference" in entry:
            api = [{"Python": "api.md"}] if (ROOT / "docs" / "api.md").exists() else []
            entry["Reference"] = [*reference.navigation(), *api, *entry["Reference"]]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    pages = reference.pages() | {
        place: (ROOT / name).read_text(encoding="utf-8") for name, place in OUTSIDE.items()
    }
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text of a page, with links between files of the repository as links between pages of the site."""
    place = page.file.src_uri
    source = next((name for name, made in OUTSIDE.items() if made == place), f"docs/{place}")

    def on_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        if target.startswith("docs/"):
            found = target.removeprefix("docs/")
        elif target in {**OUTSIDE, **INSTEAD}:
            found = {**OUTSIDE, **INSTEAD}[target]
        elif target.endswith(".md"):
            raise PluginError(
                f"{source} links to {target}, which is no page: add it to OUTSIDE and to mkdocs.yml"
            )
        elif (ROOT / target).is_file():
            found = f"files/{target}"
            if files.get_file_from_path(found) is None:
                files.append(File.generated(config, found, abs_src_path=str(ROOT / target)))
        else:
            return link[1]  # MkDocs says that it does not exist
        return posixpath.relpath(found, posixpath.dirname(place) or ".")

    return LINK.sub(on_site, markdown)
