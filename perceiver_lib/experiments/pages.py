"""An executed notebook as two HTML pages: `reader.html` without code, `full.html` with it."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.environment import without_grammars
from perceiver_lib.experiments.files import write_text

_ONE_AT_A_TIME = threading.Lock()

# The stock template drops the alt text of pictures and loads require.js from the network.
_TEMPLATE = """\
{%- extends 'lab/index.html.j2' -%}
{% block html_head_js_requirejs %}{% endblock %}
{% block extra_css %}
<style>
body.jp-Notebook { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
.jp-RenderedHTMLCommon { font-size: 1rem; line-height: 1.6; }
.jp-RenderedImage img { max-width: 100%; height: auto; }
</style>
{% endblock %}
{% block data_png scoped %}
<div class="jp-RenderedImage jp-OutputArea-output" tabindex="0">
<img src="data:image/png;base64,{{ output.data['image/png'] }}"
  alt="{{ (output | get_metadata('alt', 'image/png') or 'A picture without a description') | escape_html }}"
  {%- set width = output | get_metadata('width', 'image/png') -%}{% if width %} width="{{ width }}"{% endif %}>
</div>
{% endblock %}
"""


def write_pages(executed: Path, *, title: str) -> None:
  """Writes both pages beside the executed notebook. They need no network, except for typeset formulas (MathJax).

  Raises:
    FileNotFoundError: if the notebook was never started.
    Exception: of nbformat or nbconvert, if it is damaged.
  """
  without_grammars()
  import nbformat

  notebook = nbformat.read(executed, as_version=4)
  with _ONE_AT_A_TIME:
    exporter = _exporter()
    for name, hidden in (('reader.html', True), ('full.html', False)):
      exporter.exclude_input = exporter.exclude_input_prompt = exporter.exclude_output_prompt = hidden
      page, _ = exporter.from_notebook_node(notebook, resources={'metadata': {'name': title}})
      write_text(executed.parent / name, page)


@functools.cache
def _exporter() -> Any:
  """Kept, because its templates take longer to compile than most notebooks to be shown."""
  from nbconvert import HTMLExporter

  return HTMLExporter(raw_template=_TEMPLATE)
