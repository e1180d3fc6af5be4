"""The static site: links that lead somewhere, folded code, pictures that survive, and a browser that finds no fault."""

import json
import re
import shutil

import pytest

from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.experiments.site import write_site
from perceiver_lib.plots import masks
from tests.browser import BROWSER, look
from tests.experiments.test_results import write_run

README = """# Title

[RESULTS.md](RESULTS.md)

| | question, and what the page shows | minutes |
|---|---|---|
| <a href="notebooks/01_images.ipynb"><img src="figures/01_curve.png" width="260" alt=""></a> | **[01](notebooks/01_images.ipynb): Can it?** | 5 |
| <a href="notebooks/02_gone.ipynb"><img src="figures/01_curve.png" width="260" alt=""></a> | **[02](notebooks/02_gone.ipynb): Or not?** | 7 |
"""  # noqa: E501 (a row of Markdown is one line)


@pytest.fixture
def site(tmp_path):
  run = write_run(tmp_path / 'run', ['01_images'])
  wide = {'output_type': 'stream', 'name': 'stdout', 'text': 'a long line ' * 40 + '\n'}
  touch = {'output_type': 'display_data', 'metadata': {}, 'data': {'text/html': masks.masks_to_touch().markup}}
  code = {'cell_type': 'code', 'id': 'a', 'metadata': {}, 'execution_count': 1, 'source': 'touch()', 'outputs': []}
  cells = [{**code, 'outputs': [wide, touch]}, {**code, 'id': 'b'}]
  notebook = {'cells': cells, 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5}
  (run / '01_images' / 'executed.ipynb').write_text(json.dumps(notebook))
  (root := tmp_path / 'root').mkdir()
  (root / 'README.md').write_text(README)
  (root / 'RESULTS.md').write_text('# Results\n\n## [01](notebooks/01_images.ipynb)\n')
  (root / 'figures').mkdir()
  shutil.copy(run / '01_images' / 'figures' / 'curve.png', root / 'figures' / '01_curve.png')
  assert write_site(run, tmp_path / 'site', root) == ['01_images']
  return tmp_path / 'site'


def test_every_link_leads_to_a_page_and_the_gallery_says_what_was_measured(site):
  for page in site.rglob('*.html'):
    for link in re.findall(r'(?:href|src)="([^"#]+)"', page.read_text()):
      assert link.startswith('data:') or (page.parent / link).is_file(), (page, link)
  index = (site / 'index.html').read_text()
  assert 'accuracy: <strong>97 %</strong>, beside 10 % (majority class)' in index and '1 min 01 s' in index
  assert '<strong>02: Or not?</strong>' in index
  reader = (site / '01_images' / 'reader.html').read_text()
  assert reader.count('<details class="code">') == 2 and 'data-ready' in reader


def test_a_site_replaces_a_site_and_nothing_else(site, tmp_path):
  write_site(tmp_path / 'run', site, tmp_path / 'root')
  (site / 'report.html').unlink()
  with pytest.raises(RequestError, match='no site'):
    write_site(tmp_path / 'run', site, tmp_path / 'root')


@pytest.mark.skipif(BROWSER is None, reason='no browser is installed')
def test_no_page_has_an_error_or_scrolls_sideways_on_a_phone_or_a_laptop(site, tmp_path):
  pages = sorted(site.rglob('*.html'))
  script = "window => window.document.querySelectorAll('.query.chosen').length"
  found, console = look(pages, tmp_path, widths=(390, 1280), script=script)
  assert len(pages) == 4 and console == ''
  assert [one['overflow'] for one in found] == [0] * 8
  assert [one['found'] for one in found if 'reader' in one['page']] == [1, 1]
