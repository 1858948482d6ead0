"""What MkDocs does to a page before it is drawn, see `hooks` in mkdocs.yml.

A link out of docs/ (`../tests/…`, `../conf/…`) works where the repository is browsed; the site has no such page, so
there the name stands alone. One whose target is gone ends a strict build.
"""

import logging
import re
from pathlib import Path
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]*)\]\((\.\./[^)\s#]+)(?:#[^)]*)?\)")
_log = logging.getLogger("mkdocs.hooks.site")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Leave of links that end outside of docs/ the words that are shown."""
    folder, docs = Path(page.file.abs_src_path).parent, Path(config["docs_dir"]).resolve()

    def shown(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if target.is_relative_to(docs):
            return link[0]  # of another page, which MkDocs checks
        if not target.exists():
            _log.warning("%s links to %s, which is not there", page.file.src_path, link[2])
        return link[1] if link[1].startswith("`") else f"`{link[1]}`"

    return _OUTSIDE.sub(shown, markdown)
