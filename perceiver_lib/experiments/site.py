"""A static site from a run: README as the front page, executed notebooks, report and results; it needs no network."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from perceiver_lib.experiments import pages, report
from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.files import open_run, read_notebook, write_text
from perceiver_lib.experiments.results import HEADLINES, beside, result_records
from perceiver_lib.files import read_text
from perceiver_lib.training.progress import format_duration

_PAGE = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.55 system-ui, sans-serif; color: #16202c; overflow-wrap: anywhere;
  max-width: 62rem; margin: 0 auto; padding: 1rem 1.25rem 4rem; }}
a.anchor-link {{ display: none; }}
nav {{ display: flex; gap: 1.2rem; }}
img {{ max-width: 100%; height: auto; }}
td img {{ min-width: min(16rem, 80vw); }}
pre {{ overflow-x: auto; background: #f6f7f9; padding: .6rem; overflow-wrap: normal; }}
table {{ display: block; width: fit-content; max-width: 100%; overflow-x: auto; border-collapse: collapse;
  overflow-wrap: normal; }}
th, td {{ text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid #e2e6eb; }}
@media (max-width: 40rem) {{
  table:has(img) :is(tbody, tr, td) {{ display: block; border: 0; padding: .1rem 0; }}
  table:has(img) thead {{ display: none; }}
  table:has(img) tr {{ padding-bottom: 1rem; }}
}}
</style></head>
<body><nav><a href="index.html">Start</a><a href="results.html">Results</a><a href="report.html">Report</a></nav>
{body}
</body></html>
"""
_COPIED = ('figures', 'music', 'log.txt')


def write_site(run: Path, out: Path, root: Path) -> list[str]:
  """Writes the site of a run's complete notebooks; the rest of the gallery stands there without links.

  Args:
    run: folder of the run.
    out: new or empty folder, or an earlier site, which is replaced.
    root: the project, with README.md, RESULTS.md and figures/.

  Returns:
    The names of the notebooks that it holds.

  Raises:
    RequestError, DamagedFile: if the run has no complete notebook or is damaged, or `out` holds something else.
  """
  titles = open_run(run)['notebooks']
  found = {name: read_notebook(run / name) for name in titles}
  found = {name: both for name, both in found.items() if both[0] and both[0]['status'] == 'complete' and not both[2]}
  if not found:
    raise RequestError(f'{run} has no complete notebook to show; make one with: python -m perceiver_lib reproduce')
  if out.exists() and any(out.iterdir()):
    if not (out / 'report.html').is_file():
      raise RequestError(f'{out} holds something that is no site; choose a new folder.')
    shutil.rmtree(out)
  out.mkdir(parents=True, exist_ok=True)
  for name in found:
    (out / name).mkdir()
    pages.write_page(run / name / 'executed.ipynb', out / name / 'reader.html', title=titles[name])
    for part in _COPIED:
      if (source := run / name / part).exists():
        (shutil.copytree if source.is_dir() else shutil.copy)(source, out / name / part)
  report.write_report(run, out / 'report.html')
  front = read_text(root / 'README.md') or ''
  for name, (result, manifest, _) in found.items():
    front = _with_answer(front, name, result, manifest)
  for file, text, title in (
    ('index.html', front, 'The Perceiver family in JAX'),
    ('results.html', read_text(root / 'RESULTS.md') or '', 'Results'),
  ):
    write_text(out / file, _PAGE.format(title=title, body=_body(text, set(found))))
  for picture in set(re.findall(r'src="(figures/[\w.]+)"', front)):
    (out / 'figures').mkdir(exist_ok=True)
    shutil.copy(root / picture, out / picture)
  return list(found)


def _with_answer(text: str, name: str, result: dict, manifest: dict) -> str:
  """The gallery's row of a notebook with what this run measured in it, and how long it took."""
  records = {f'{name}/{row["metric"]}': row for row in result_records(manifest)}
  named = next((records[one] for group in HEADLINES.values() for one in group if one in records), None)
  row = named or next(iter(records.values()))
  measured, baseline = beside(row)
  answer = f'<br>{row["metric"].replace("_", " ")}: {measured}, beside {baseline}'
  start = re.escape(f'| <a href="notebooks/{name}.ipynb"><img')
  pattern = rf'^({start}.*) \| [^|]* \|$'
  return re.sub(pattern, lambda m: f'{m[1]}{answer} | {format_duration(result["seconds"])} |', text, flags=re.MULTILINE)


def _body(text: str, notebooks: set[str]) -> str:
  """Markdown as HTML whose links lead to pages of the site; what is not in it is text."""
  from nbconvert.filters.markdown_mistune import markdown2html_mistune

  def link(found: re.Match[str]) -> str:
    target, words = found[1], found[2]
    if target == 'RESULTS.md':
      target = 'results.html'
    elif name := re.fullmatch(r'notebooks/(\w+)\.ipynb', target):
      target = f'{name[1]}/reader.html' if name[1] in notebooks else ''
    return f'<a href="{target}">{words}</a>' if target else words

  return re.sub(r'<a href="([^"]*)">(.*?)</a>', link, markdown2html_mistune(text), flags=re.DOTALL)
