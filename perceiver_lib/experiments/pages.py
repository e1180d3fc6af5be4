"""An executed notebook as an HTML page that needs no network: `reader.html`, its code folded."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.environment import without_grammars
from perceiver_lib.experiments.files import write_text

_ONE_AT_A_TIME = threading.Lock()

# The stock template drops the alt text of pictures, and loads require.js, MathJax and mermaid from the network; no
# notebook has a formula or a diagram of these.
_TEMPLATE = """\
{%- extends 'lab/index.html.j2' -%}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block extra_css %}
<style>
body.jp-Notebook { max-width: 62rem; margin: 0 auto; padding: 1rem 1.25rem 4rem; overflow-wrap: anywhere; }
.jp-RenderedHTMLCommon { font-size: 1rem; line-height: 1.6; }
.jp-RenderedHTMLCommon table { display: block; width: fit-content; max-width: 100%; overflow-x: auto; }
.jp-RenderedHTMLCommon th, .jp-RenderedHTMLCommon td { overflow-wrap: normal; }
.jp-RenderedImage img, .jp-OutputArea-output svg, audio, video { max-width: 100%; height: auto; }
audio { height: 2.5rem; }
.jp-OutputArea-output, .jp-OutputArea-child, .jp-Cell-outputArea, .jp-RenderedText { min-width: 0; max-width: 100%; }
body :is(.jp-RenderedText, .jp-RenderedMarkdown, .jp-InputArea-editor) :is(pre, pre code) { white-space: pre;
  overflow-x: auto; overflow-wrap: normal; word-break: normal; }
details.code > summary { cursor: pointer; color: #5b6876; font: 0.8rem system-ui, sans-serif; margin: 0.3rem 0; }
nav.notebook { display: flex; gap: 1rem; font: 0.9rem system-ui, sans-serif; margin-bottom: 1rem; }
@media (max-width: 45rem) { body.jp-Notebook { padding: 0.5rem 0.25rem 3rem; } }
</style>
{% endblock %}
{% block body_header %}
{{ super() }}
<nav class="notebook"><a href="../index.html">All notebooks</a>
<button onclick="const all = [...document.querySelectorAll('details.code')], open = !all.every(one => one.open);
  for (const one of all) one.open = open;">Show or fold all code</button></nav>
{% endblock %}
{% block input_group %}
<details class="code"><summary>Code</summary>{{ super() }}</details>
{% endblock %}
{% block data_png scoped %}
<div class="jp-RenderedImage jp-OutputArea-output" tabindex="0">
<img src="data:image/png;base64,{{ output.data['image/png'] }}"
  alt="{{ (output | get_metadata('alt', 'image/png') or 'A picture without a description') | escape_html }}"
  {%- set width = output | get_metadata('width', 'image/png') -%}{% if width %} width="{{ width }}"{% endif %}>
</div>
{% endblock %}
"""


def write_page(executed: Path, target: Path, *, title: str) -> None:
  """Writes an executed notebook as a page, which links to `../index.html`.

  Raises:
    FileNotFoundError: if the notebook was never started.
    Exception: of nbformat or nbconvert, if it is damaged.
  """
  without_grammars()
  import nbformat

  notebook = nbformat.read(executed, as_version=4)
  with _ONE_AT_A_TIME:
    page, _ = _exporter().from_notebook_node(notebook, resources={'metadata': {'name': title}})
  write_text(target, page)


@functools.cache
def _exporter() -> Any:
  """Kept, because its templates take longer to compile than most notebooks to be shown."""
  from nbconvert import HTMLExporter

  return HTMLExporter(raw_template=_TEMPLATE, exclude_input_prompt=True, exclude_output_prompt=True)
