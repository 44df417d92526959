"""The pages of the site (mkdocs.yml): those of docs/, and whatever they link to.

Each page keeps its path in the repository, so that links work on GitHub and on the
site alike. A linked page becomes a page, any other linked file a file to download. The
headings are named as GitHub names them. Colours, mark and typeface are the page's of the
program (docs/site.css).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify
from pymdownx.superfences import fence_code_format

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([^)\s#]+)")
LOOKS = (
    "docs/site.css",
    "extensions/tools/ui/static/icon.svg",
    "extensions/tools/ui/static/inter/inter.woff2",
)
"""Files that no page links to."""

MERMAID = {"name": "mermaid", "class": "mermaid", "format": fence_code_format}


def on_config(config: Any) -> Any:
    config.mdx_configs["toc"] = {"permalink": True, "slugify": slugify(case="lower")}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [MERMAID]}
    return config


def on_files(files: Files, config: Any) -> Files:
    found: dict[str, File] = {}
    wanted = [ROOT / "README.md", ROOT / "README.zh.md", *ROOT.glob("docs/*.md")]
    wanted += [ROOT / name for name in LOOKS]
    while wanted:
        path = wanted.pop().resolve()
        uri = path.relative_to(ROOT).as_posix()
        if uri in found:
            continue
        found[uri] = File.generated(config, uri, abs_src_path=str(path))
        if path.suffix == ".md":
            links = LINK.findall(path.read_text(encoding="utf-8"))
            linked = [path.parent / link for link in links if "://" not in link]
            wanted += [file for file in linked if file.is_file()]
    theme = [file for file in files if file.src_dir != config.docs_dir]
    return Files([*theme, *found.values()])
