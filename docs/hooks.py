"""What MkDocs takes from elsewhere in the repository, so that no page is written twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "benchmarks/results/README.md",
    "examples/README.md",
    "examples/catalogue/README.md",
    "tests/integrations/README.md",
)
PICTURES = ("benchmarks/results/*.png", "examples/*.png", "examples/catalogue/*.png")
DRAWN_HERE = ("-torch.png", "-jax.png", "-keras.png", "-numpy.png")  # by a run of an example, and not committed


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them where they are in the repository: links from one to another hold."""
    found = [path for pattern in PICTURES for path in ROOT.glob(pattern) if not path.name.endswith(DRAWN_HERE)]
    for path in [ROOT / page for page in PAGES] + sorted(found):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    # which MkDocs would take for the home page by its name
    files.append(File.generated(config, "short.md", abs_src_path=str(ROOT / "README.md")))
    return files


def on_page_markdown(markdown: str, **page: Any) -> str:
    """A list within a list is indented by three in the repository, by at least four in MkDocs."""
    return re.sub(r"^ {3}(?=- )", " " * 4, markdown, flags=re.MULTILINE)
