"""A real browser for tests, where one is installed: pages in frames of given widths, and what a script finds there."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BROWSER = shutil.which('google-chrome') or shutil.which('chromium')

_HARNESS = """<!DOCTYPE html><body><script>
const found = [];
addEventListener('load', async () => {
  for (const [page, width] of CASES) {
    const frame = document.createElement('iframe');
    frame.width = width;
    frame.height = 900;
    document.body.append(frame);
    await new Promise(done => { frame.onload = done; frame.src = page; });
    await frame.contentDocument.fonts.ready;
    const inside = frame.contentDocument.documentElement;
    found.push({page, width, overflow: inside.scrollWidth - inside.clientWidth, found: (SCRIPT)(frame.contentWindow)});
    frame.remove();
  }
  document.body.innerHTML = '<pre></pre>';
  document.querySelector('pre').textContent = JSON.stringify(found);
});
</script></body>"""


def look(pages: Sequence[Path], folder: Path, *, widths: Sequence[int], script: str = '() => null') -> tuple[Any, str]:
  """What a browser finds in every page at every width, and its console.

  Args:
    folder: an empty one, for the harness and the browser's profile.
    script: a JavaScript function of the page's window, whose result is JSON.

  Returns:
    A record a page and width: 'page', 'width', 'overflow' in pixels and 'found'; and the lines of the console.
  """
  cases = json.dumps([(page.resolve().as_uri(), width) for page in pages for width in widths])
  harness = folder / 'harness.html'
  harness.write_text(_HARNESS.replace('CASES', cases).replace('SCRIPT', script))
  done = subprocess.run(
    [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-web-security',
     '--enable-logging=stderr', '--allow-file-access-from-files', f'--user-data-dir={folder / "profile"}',
     '--virtual-time-budget=60000', '--dump-dom', harness.as_uri()],
    capture_output=True, text=True, timeout=120, check=True,
  )  # fmt: skip
  console = '\n'.join(line for line in done.stderr.splitlines() if 'CONSOLE' in line)
  [said] = re.findall(r'<pre>(.*?)</pre>', done.stdout, re.DOTALL) or [f'null{console}']
  return json.loads(html.unescape(said)), console
