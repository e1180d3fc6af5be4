"""Pictures that answer the mouse: what a real browser shows when a query is pointed at are the maps that went in."""

import numpy as np
import pytest

from perceiver_lib.plots import masks
from perceiver_lib.plots.interactive import LARGEST_BYTES, Cells, reads
from tests.browser import BROWSER, look

RANDOM = np.random.default_rng(3)
TEXT = 'To be,\nor not</script>'
# Points at every query in every view and reads the shares back; then walks one query back by the keyboard.
PROBE = """window => [...window.document.querySelectorAll('.perceiver-reads')].map(root => {
  const range = root.querySelector('input'), views = [];
  const read = () => [...root.querySelectorAll('.cells')].at(-1);
  const values = () => [...read().children].map(node => Number(node.dataset.value));
  for (let view = 0; view <= (range ? Number(range.max) : 0); view++) {
    if (range) { range.value = view; range.dispatchEvent(new window.Event('input')); }
    views.push([...root.querySelectorAll('.query')].map(node => {
      node.dispatchEvent(new window.PointerEvent('pointerenter'));
      return values();
    }));
  }
  const box = root.querySelector('.asks');
  box.dispatchEvent(new window.KeyboardEvent('keydown', {key: 'ArrowLeft'}));
  return {views, walked: values(), reached: box.tabIndex, said: root.querySelector('output').textContent};
})"""


def shares(*shape):
  weights = RANDOM.random(shape) ** 4
  return weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.skipif(BROWSER is None, reason='no browser is installed')
def test_a_browser_shows_what_was_captured_at_every_width_without_an_error(tmp_path):
  text, image = shares(2, 7, len(TEXT)), shares(1, 5, 77)
  pictures = [
    reads(text, Cells(name='byte', labels=list(TEXT)), title='A text.', places=range(len(TEXT) - 7, len(TEXT))),
    reads(image, Cells.numbered('latent', 5), Cells.of_image(RANDOM.normal(size=(7, 11))), title='An image.'),
    masks.masks_to_touch(),
  ]
  page = tmp_path / 'page.html'
  viewport = '<!DOCTYPE html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
  page.write_text(viewport + ''.join(picture.markup for picture in pictures), encoding='utf-8')
  found, console = look([page], tmp_path, widths=(390, 1280), script=PROBE)
  assert console == '' and [one['overflow'] for one in found] == [0, 0]
  for one in found:
    for shown, captured in zip(one['found'], (text, image), strict=False):
      # Half of one of 255 parts of the largest share in each row.
      assert (np.abs(shown['views'] - captured) < captured.max(-1, keepdims=True) / 509).all()
      np.testing.assert_array_equal(shown['walked'], shown['views'][-1][-2])
      assert shown['reached'] == 0 and ' %' in shown['said']
    mask = one['found'][2]['views']
    assert len(mask) == 11 and mask[0] == [[1] * 8] * 3
    assert mask[6] == np.tri(4, 8, 4).tolist()  # the read of Perceiver AR


def test_what_does_not_fit_or_is_too_large_is_refused():
  cells = Cells.numbered('latent', 3)
  for wrong in (shares(1, 3, 4), np.full((1, 3, 3), np.nan), -shares(1, 3, 3), shares(1, 4, 3)):
    with pytest.raises(ValueError, match='fit its cells'):
      reads(wrong, cells, title='Wrong.')
  many = LARGEST_BYTES // 600
  with pytest.raises(ValueError, match='show fewer'):
    reads(shares(1, many, 600), Cells.numbered('latent', many), Cells.numbered('latent', 600), title='Large.')
