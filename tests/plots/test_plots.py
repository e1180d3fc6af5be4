"""Every figure is drawn without a warning, is not blank, has alt text and readable type; mask pictures are true."""

from __future__ import annotations

import io
import itertools
import pkgutil
import subprocess
import sys
import textwrap

import matplotlib

matplotlib.use('Agg')

import numpy as np
import pytest
from matplotlib.text import Text

from perceiver_lib import plots
from perceiver_lib.plots import attention, context, curves, masks, theme
from perceiver_lib.tokens import SOURCE_TIME, may_attend

RANDOM = np.random.default_rng(5)
TEXT = 'To be, or not\nto be'


def softmax(logits):
  weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return weights / weights.sum(axis=-1, keepdims=True)


FIGURES = {
  'mask': lambda: masks.render_mask([0, 1, 1], [0, 1, 2, SOURCE_TIME], [True, True, True, False])[1],
  'mask_without_time': lambda: masks.render_mask(None, None, num_queries=2, num_keys=3)[1],
  'four_models': masks.four_model_masks,
  'logits_on_image': lambda: attention.image_maps(
    RANDOM.normal(size=(7, 11, 3)), RANDOM.normal(size=(13, 77)), title='Logits', pre_softmax=True
  ),
  'weights_on_image': lambda: attention.image_maps(
    RANDOM.normal(size=(7, 11)), softmax(RANDOM.normal(size=(3, 77))).reshape(3, 7, 11), title='Weights'
  ),
  'text': lambda: attention.text_heat(TEXT, softmax(RANDOM.normal(size=(2, len(TEXT)))), title='Text'),
  'heads': lambda: attention.head_grid(softmax(RANDOM.normal(size=(5, 7, 11))), title='Heads'),
  'curves': lambda: curves.training_curves(
    {'train': (np.arange(11), np.arange(11)[::-1]), 'validation': (np.arange(11), RANDOM.normal(size=(3, 11)) + 5)},
    title='Curves', y_label='loss (bits per byte)', baselines={'unigram': 4.78, 'bz2': 2.43, 'xz': 2.39},
  ),
  'bars': lambda: curves.bars_beside_paper(
    {'Fourier': [95.0, 96.0, 97.0], 'learned': [90.0, 91.0, 93.0]}, title='Bars', y_label='accuracy (%)',
    baselines={'chance': 10.0}, paper={'Fourier': 78.0}, paper_label='paper (ImageNet)',
  ),
  'ranked': lambda: curves.ranked_bars(
    {'continue': {'count': 1.67, 'model': 0.95}, 'harmonise': {'count': 1.74, 'model': 0.91}}, ours='model',
    title='Ranked', x_label='nats per token', notes={'continue': {'model': '(71 % right)'}},
  ),
  'copies': lambda: context.copies_by_distance(
    {'reader, 64 tokens': (np.arange(1, 63, 2), np.ones(31))},
    {'window 16': (np.arange(1, 63, 2), (np.arange(1, 63, 2) <= 16) * 1.0)},
    window=16, guessing=1 / 256, title='Copies',
  ),
  'settings': lambda: context.bits_by_setting(
    {'stride': {64: 2.5, 128: 2.6}}, {'ms': {16: (2.6, 10.0), 64: (2.5, 31.0)}},
    title='Run',
  ),
  'context': lambda: context.where_context_pays(
    {'code': {16: 2.6, 64: 2.5}, 'prose': {16: 2.4, 64: 2.4}},
    {'code': {16: 2.7, 64: 2.5}, 'prose': {16: 2.4, 64: 2.4}},
    {'first': 40.0, 'third': 12.0, 'third, replaced': 41.0}, title='Context',
  ),
  'surprise': lambda: context.surprise(TEXT, RANDOM.uniform(0, 12, len(TEXT)), title='Surprise'),
}  # fmt: skip


@pytest.fixture(params=FIGURES)
def figure(request):
  return FIGURES[request.param]()


def pixels(figure):
  buffer = io.BytesIO()
  figure.savefig(buffer, format='rgba')
  return np.frombuffer(buffer.getvalue(), np.uint8).reshape(-1, 4)[:, :3]


@pytest.mark.filterwarnings('error')
def test_figures_are_not_blank(figure):
  drawn = pixels(figure)
  assert (drawn != 255).any(axis=-1).mean() > 0.01
  assert len(np.unique(drawn, axis=0)) > 5


def test_figures_have_alt_text_and_legible_type(figure):
  assert len(figure.alt_text) > 30
  figure.draw_without_rendering()
  sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
  assert min(sizes) >= 9
  assert figure.get_figwidth() <= theme.NOTEBOOK_WIDTH


def test_nothing_is_drawn_outside_the_figure(figure):
  figure.draw_without_rendering()
  box, size = figure.get_tightbbox(), figure.get_size_inches()
  assert box.x0 >= -0.05 and box.y0 >= -0.05
  assert box.x1 <= size[0] + 0.05 and box.y1 <= size[1] + 0.05


@pytest.mark.parametrize('function', [may_attend, masks.render_mask])
def test_text_picture_is_the_docstring_picture(function):
  text, _ = masks.render_mask([0, 1, 1], [0, 1, 2, SOURCE_TIME])
  assert text == 'query 0   # . . #\nquery 1   # # . #\nquery 1   # # . #'
  lines = [line for line in function.__doc__.splitlines() if line.strip().startswith('query') and '#' in line]
  assert textwrap.dedent('\n'.join(lines)) == text


def test_figure_shows_the_same_mask_as_the_text():
  text, figure = masks.render_mask([3, 1, 2, 2], [0, 1, 2, 3, 3], [True, False, True, True, False])
  drawn = np.asarray(figure.axes[0].images[0].get_array())
  assert [' '.join('#' if value == 0 else '.' for value in row) for row in drawn] == [
    line[10:] for line in text.splitlines()
  ]
  # Key 4 is padding, whether or not it is later as well; key 3 is only later than queries 1, 2 and 3.
  assert drawn[0].tolist() == [0, 2, 0, 0, 2]
  assert drawn[1].tolist() == [0, 2, 1, 1, 1]


def test_padding_alone_gives_a_mask_without_time():
  text, _ = masks.render_mask(None, None, [True, False, True], num_queries=2)
  assert text == 'query   # . #\nquery   # . #'


def test_four_models_show_the_reductions():
  figure = masks.four_model_masks()
  drawn = {}
  for place, axes in enumerate(a for a in figure.axes):
    if axes.images:
      drawn[divmod(place, 3)] = np.asarray(axes.images[0].get_array()) == 0
  assert drawn[0, 0].all() and drawn[1, 0].all() and drawn[1, 2].shape == (5, 3)
  assert np.array_equal(drawn[2, 1], np.tril(np.ones((4, 4), bool)))
  assert np.array_equal(drawn[2, 0], np.tril(np.ones((4, 8), bool), 4))
  assert np.array_equal(drawn[3, 1], np.kron(np.tril(np.ones((4, 4))), np.ones((2, 2))).astype(bool))


def test_ranked_bars_put_the_smallest_on_top_and_refuse_a_panel_without_the_model():
  figure = curves.ranked_bars({'': {'a': 3.0, 'model': 2.0, 'b': 1.0}}, ours='model', title='Ranked', x_label='bits')
  [axes] = figure.axes
  assert [label.get_text() for label in axes.get_yticklabels()] == ['b', 'model', 'a'] and axes.yaxis_inverted()
  with pytest.raises(ValueError, match="needs a bar 'model'"):
    curves.ranked_bars({'': {'a': 3.0, 'b': 1.0}}, ours='model', title='Ranked', x_label='bits')


def test_image_maps_share_one_scale_and_print_row_sums():
  weights = softmax(RANDOM.normal(size=(3, 77)))
  weights[2] = 0.0
  figure = attention.image_maps(RANDOM.normal(size=(7, 11)), weights, title='Weights')
  maps = [axes.images[0] for axes in figure.axes[1:4]]
  assert {image.get_clim() for image in maps} == {(0.0, weights.max())}
  assert [axes.get_title(loc='left').split('\n')[1] for axes in figure.axes[1:4]] == ['sum 1.000'] * 2 + ['sum 0.000']
  np.testing.assert_array_equal(np.asarray(maps[1].get_array()).ravel(), weights[1])


def test_text_heat_shades_the_heaviest_character_most():
  weights = np.full(5, 0.1)
  weights[3] = 0.6
  axes = attention.text_heat('abcde', weights, title='Text').axes[0]
  shades = [patch.get_facecolor()[:3] for patch in axes.patches]
  assert shades[3] == pytest.approx(matplotlib.colors.to_rgb(theme.BLUE))
  assert len(set(shades)) == 2 and sum(shades[0]) > sum(shades[3])
  assert "most at 'd'" in axes.figure.alt_text


def test_baseline_names_do_not_overlap():
  figure = curves.training_curves(
    {'validation': ([0, 1], [5.0, 2.0])}, title='t', y_label='y (bits)', baselines={'a': 2.40, 'b': 2.41, 'c': 2.42}
  )
  figure.draw_without_rendering()
  boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
  assert len(boxes) == 3
  assert all(lower.y1 <= upper.y0 + 1 for lower, upper in itertools.pairwise(boxes))


def test_curves_of_several_seeds_show_median_and_range():
  y = np.array([[1.0, 2.0], [4.0, 9.0], [5.0, 3.0]])
  figure = curves.training_curves({'loss': ([0, 7], y)}, title='t', y_label='y', baselines={'chance': 5})
  assert figure.axes[0].lines[0].get_ydata().tolist() == [4.0, 3.0]
  band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
  assert band.min() == 1.0 and band.max() == 9.0


@pytest.mark.parametrize(
  ('call', 'sentence'),
  [
    (lambda: masks.render_mask(None, None), 'pass num_queries and num_keys'),
    (lambda: masks.render_mask([0], None, num_keys=2), 'must both carry time'),
    (lambda: attention.image_maps(np.ones((3, 5)), np.ones((2, 14)), title='t'), r'\[k, 15\]'),
    (lambda: attention.image_maps(np.ones((3, 5)), np.full((2, 15), np.nan), title='t'), 'finite'),
    (lambda: attention.text_heat('abc', np.ones(2), title='t'), r'\[queries, 3\]'),
    (lambda: attention.text_heat('abc', -np.ones(3), title='t'), 'not be negative'),
    (lambda: attention.head_grid(np.ones((2, 3)), title='t'), r'\[heads, queries, keys\]'),
    (lambda: curves.training_curves({'a': ([0], [0])}, title='t', y_label='y', baselines={}), 'one baseline'),
    (
      lambda: curves.training_curves({'a': ([0], [0, 1])}, title='t', y_label='y', baselines={'b': 0}),
      'as many y as x',
    ),
    (
      lambda: curves.bars_beside_paper({'a': 1}, title='t', y_label='y', baselines={'b': 0}, paper={'a': 1}),
      'what scale',
    ),
    (lambda: theme.describe(theme.new_figure(1.0), ' '), 'what the figure shows'),
  ],
)
def test_bad_input_gets_one_clear_sentence(call, sentence):
  with pytest.raises(ValueError, match=sentence):
    call()


def test_importing_the_plots_does_not_import_matplotlib():
  names = [module.name for module in pkgutil.iter_modules(plots.__path__, 'perceiver_lib.plots.')]
  code = f"import sys, {', '.join(names)}; print('matplotlib' in sys.modules)"
  done = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
  assert done.stdout == 'False\n'


def test_masks_side_by_side_say_how_much_each_allows():
  attentions = {'causal': ([0, 1], [0, 1], None), 'padded': ([0], [0, 0], [True, False])}
  figure = masks.render_masks(attentions, title='Two')
  assert figure.alt_text.endswith('causal: 75% of the pairs, padded: 50% of the pairs.')
  assert [axes.get_title(loc='left') for axes in figure.axes] == ['causal', 'padded']
