"""An executed notebook as two HTML pages: `reader.html` without code, `full.html` with it."""

from __future__ import annotations

from pathlib import Path

_STYLE = """<style>
body.jp-Notebook { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
.jp-RenderedHTMLCommon { font-size: 1rem; line-height: 1.6; }
.jp-OutputArea-output img, .jp-RenderedImage img { max-width: 100%; height: auto; }
</style>
</head>"""


def write_pages(executed: Path, *, title: str) -> None:
  """Writes both pages beside the executed notebook. They need no network, except for typeset formulas (MathJax).

  Raises:
    FileNotFoundError: if the notebook was never started.
  """
  import nbformat
  from nbconvert import HTMLExporter

  notebook = nbformat.read(executed, as_version=4)
  for name, without_code in (('reader.html', True), ('full.html', False)):
    exporter = HTMLExporter(
      exclude_input=without_code,
      exclude_input_prompt=without_code,
      exclude_output_prompt=without_code,
      require_js_url='',
      jquery_url='',
    )
    page, _ = exporter.from_notebook_node(notebook, resources={'metadata': {'name': title}})
    (executed.parent / name).write_text(page.replace('</head>', _STYLE, 1), encoding='utf-8')
