"""What a page of docs/ means by a path that leads out of docs/.

On GitHub `../benchmarks/results/x.png` and `../export/folds` are files of the repository, and the
links work as they stand. The site has docs/ alone. So plots are copied into it, and links to other
files become plain text; a path that does not exist is a warning, which `--strict` makes an error.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).resolve().parents[1]
_PLOTS = "benchmarks/results"
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\(\.\./(?P<path>[^)#]*)[^)]*\)")
_log = logging.getLogger("mkdocs.hooks.lotus_edge")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the plots as results/*.png."""
    for path in sorted((_ROOT / _PLOTS).glob("*.png")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point images at the copied plots, and turn links to files of the repository into text."""

    def replace(match: re.Match[str]) -> str:
        path = match["path"]
        if not (_ROOT / path).exists():
            _log.warning("%s: no file %s in the repository", page.file.src_uri, path)
        if match["image"]:
            return f"![{match['text']}]({path.replace(_PLOTS, 'results')})"
        text, shown = match["text"], f"`{path}`"
        if text.rstrip("/") in (path, Path(path).name):
            return shown
        in_brackets = markdown[match.start() - 1] == "("
        return f"{text}, {shown}" if in_brackets else f"{text} ({shown})"

    return _LINK.sub(replace, markdown)
