"""What mkdocs has no setting for: the pages in the root of the project, where GitHub looks for them."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT_PAGES = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the pages of the root in, as if they stood in docs/."""
    root = Path(config.docs_dir).parent
    for name in ROOT_PAGES:
        files.append(File(name, str(root), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links to them say ``../NAME.md`` in docs/, so that they lead there on GitHub, too: one step less is left here."""
    return re.sub(rf"\]\(\.\./((?:\.\./)*(?:{'|'.join(ROOT_PAGES)}))", r"](\1", markdown)
