"""Whatever the images come from, they come out as bytes with a class number, an id and three splits."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from perceiver_lib.data import from_folder, load_images, stack, training_batches
from perceiver_lib.data.images import _files_checksum, full_range, halved
from perceiver_lib.data.user_files import image_suffixes, read_image
from tests.support import write_litter

SPLITS = ('train', 'validation', 'test')


class Colours(tfds.core.GeneratorBasedBuilder):
  """Labels are text, image names are odd, and there is neither a validation nor a test part."""

  VERSION = tfds.core.Version('2.0.0')

  def _info(self):
    features = {
      'picture': tfds.features.Image(shape=(None, None, 3)),
      'colour': tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description='colours',
      license='CC0',
      features=tfds.features.FeaturesDict(features),
      supervised_keys=('picture', 'colour'),
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i in range(40):
      yield (
        i,
        {
          'picture': Image.new('RGB', (6 + i % 2, 5), (255 * (i % 2), 100 + i, 0)),
          'colour': ('green', 'yellow')[i % 2],
        },
      )


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tfds')
  tfds.disable_progress_bar()
  builder = Colours(data_dir=folder, file_format='array_record')
  builder.download_and_prepare()
  return folder


def check_colours(data):
  assert [len(getattr(data, split)) for split in SPLITS] == [32, 4, 4]
  ids = [int(example['id']) for split in SPLITS for example in getattr(data, split)]
  assert sorted(ids) == list(range(40))
  greens = []
  for split in SPLITS:
    for example in getattr(data, split):
      assert example['image'].dtype == np.uint8 and example['image'].shape[2] == 3
      red, green, _ = example['image'][0, 0]
      assert example['label'] == (red > 0) and example['label'].dtype == np.int64
      greens.append(int(green))
  assert sorted(greens) == list(range(100, 140))
  assert data.provenance.kind == 'real' and data.provenance.licence == 'CC0'
  assert 'test and validation carved out of train' in data.provenance.note


def test_prepared_tfds_set_by_name_folder_and_builder(prepared):
  by_name = load_images('colours', data_dir=prepared)
  check_colours(by_name)
  check_colours(load_images(prepared / 'colours' / '2.0.0'))
  check_colours(load_images(Colours(data_dir=prepared, file_format='array_record')))
  again, other = load_images('colours', data_dir=prepared), load_images('colours', data_dir=prepared, seed=1)
  ids = [[int(example['id']) for example in data.test] for data in (by_name, again, other)]
  assert ids[0] == ids[1] != ids[2]
  assert by_name.provenance.checksum == again.provenance.checksum


def test_images_of_different_sizes_need_a_size(prepared):
  with pytest.raises(ValueError, match='image_size='):
    stack(load_images('colours', data_dir=prepared).train)
  data = load_images('colours', data_dir=prepared, image_size=(4, 3))
  batch = next(training_batches(data.train, 8, seed=0))
  assert batch['image'].shape == (8, 4, 3, 3)
  np.testing.assert_array_equal(batch['image'][:, 0, 0, 0] > 0, batch['label'])


def test_classic_tfds_sets_by_mock():
  with tfds.testing.mock_data(num_examples=17):
    data = load_images('mnist')
    example = data.train[3]
  assert example['image'].shape == (28, 28, 1) and example['image'].dtype == np.uint8
  assert 0 <= example['label'] < 10
  assert data.provenance.kind == 'mock'


def test_sets_that_are_not_there(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'not prepared in .*tfds build mnist --file_format=array_record'):
    load_images('mnist', data_dir=tmp_path)
  with pytest.raises(FileNotFoundError, match="There is no image set 'mnits'"):
    load_images('mnits', data_dir=tmp_path)
  with pytest.raises(FileNotFoundError, match='No images found'):
    load_images(tmp_path / 'nowhere')
  assert not list(tmp_path.iterdir())


def test_a_format_without_random_access_says_how_to_convert(prepared, tmp_path):
  version = tmp_path / 'colours' / '2.0.0'
  version.mkdir(parents=True)
  for path in (prepared / 'colours' / '2.0.0').iterdir():
    (version / path.name).write_bytes(path.read_bytes())
  info = json.loads((version / 'dataset_info.json').read_text())
  (version / 'dataset_info.json').write_text(json.dumps(info | {'fileFormat': 'tfrecord'}))
  with pytest.raises(FileNotFoundError, match='without random access'):
    load_images('colours', data_dir=tmp_path)


def test_sets_without_images_are_refused():
  with tfds.testing.mock_data(num_examples=17), pytest.raises(ValueError, match='no set of images'):
    load_images('lm1b')


def test_bundled_sets_by_name(tmp_path):
  data = load_images('digits', data_dir=tmp_path)
  assert (data.provenance.name, len(data.test)) == ('digits', 382)
  with pytest.raises(ValueError, match='leave image_size out'):
    load_images('digits', data_dir=tmp_path, image_size=(4, 4))


def write_pictures(folder, count, size=(9, 6)):
  for label, name in enumerate(('cat', 'dog')):
    (folder / name).mkdir(parents=True)
    for i in range(count):
      Image.new('RGB', size, (200 * label, i, 0)).save(folder / name / f'{i}.png')
  (folder / 'cat' / 'notes.txt').write_text('not an image')
  (folder / 'cat' / 'table.h5').write_text('not an image')


def test_folder_with_a_sub_folder_a_class(tmp_path):
  write_pictures(tmp_path, 20)
  write_litter(tmp_path, 'cat/0.png')
  data = load_images(tmp_path, image_size=(4, 5))
  assert data.provenance.counts == {'train': 32, 'validation': 4, 'test': 4}
  for split in SPLITS:
    for example in getattr(data, split):
      assert example['image'].shape == (4, 5, 3) and (example['image'][0, 0, 0] > 0) == example['label']
  assert from_folder(tmp_path, grey=True).train[0]['image'].shape == (6, 9, 1)
  (tmp_path / 'dog' / '0.png').write_bytes(b'broken')
  broken = from_folder(tmp_path)
  assert broken.provenance.checksum != data.provenance.checksum
  with pytest.raises(ValueError, match=r'0\.png is not an image'):
    for split in SPLITS:
      stack(getattr(broken, split))


def test_folder_with_its_own_splits(tmp_path):
  for number, split in enumerate(SPLITS):
    write_pictures(tmp_path / split, number + 1)
  data = from_folder(tmp_path)
  assert data.provenance.counts == {'train': 2, 'validation': 4, 'test': 6}
  assert [int(example['label']) for example in data.validation] == [0, 0, 1, 1]
  (tmp_path / 'test' / 'dog').rename(tmp_path / 'test' / 'wolf')
  with pytest.raises(ValueError, match='must have the same classes'):
    from_folder(tmp_path)


@pytest.mark.parametrize(
  ('layout', 'sentence'),
  [
    ('train/1.png test/1.png', 'has test, train, which look like splits'),
    ('train/1.png', 'has train, which look like splits'),
    ('train/cat/1.png val/cat/1.png test/cat/1.png', 'has test, train, val, which'),
    ('train/1.png validation/1.png test/1.png', '1.png lies elsewhere'),
    ('train/cat/1.png validation/cat/1.png test/cat/1.png more/cat/1.png', 'more/cat/1.png lies elsewhere'),
    ('cat/1.png dog/1.png 1.png', '1.png lies elsewhere'),
    ('cat/1.png dog/young/1.png', 'dog/young/1.png lies elsewhere'),
  ],
)
def test_no_image_is_left_out_or_labelled_by_a_split(tmp_path, layout, sentence):
  for place in layout.split():
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(b'')
  with pytest.raises(ValueError, match=sentence):
    from_folder(tmp_path)


def test_classes_may_be_called_train_among_others(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write_pictures(tmp_path / 'data' / 'vehicles', 10)
  (tmp_path / 'data' / 'vehicles' / 'cat').rename(tmp_path / 'data' / 'vehicles' / 'train')
  assert load_images('data/vehicles').provenance.source.endswith('classes dog, train')


RAMP = np.tile(np.linspace(0, 255, 40), (4, 1))
DEEP = Image.fromarray(np.rint(RAMP * 257).astype(np.uint16))
SHALLOW = Image.fromarray(np.rint(RAMP).astype(np.uint8))


def with_alpha(mode):
  """Black that is the more opaque the darker the ramp is: the same ramp on white."""
  image = Image.new(mode, SHALLOW.size)
  image.putalpha(Image.fromarray(255 - np.asarray(SHALLOW)))
  return image


@pytest.mark.parametrize(
  ('name', 'image', 'settings'),
  [
    *((f'{mode}.{suffix}', SHALLOW.convert(mode), {}) for mode, suffix in [('L', 'png'), ('P', 'gif'), ('RGB', 'bmp')]),
    *((f'{mode}.tif', SHALLOW.convert(mode), {}) for mode in ('RGBX', 'CMYK', 'YCbCr')),
    ('LAB.tif', SHALLOW.convert('RGB').convert('LAB'), {}),
    *((f'alpha {mode}.png', with_alpha(mode), {}) for mode in ('LA', 'RGBA')),
    *((f'16.{suffix}', DEEP, {}) for suffix in ('png', 'tif', 'pgm', 'jp2')),
    ('big_endian.tif', Image.frombytes('I;16B', DEEP.size, np.asarray(DEEP).astype('>u2').tobytes()), {}),
    ('white is transparent.png', DEEP, {'transparency': 65535}),
    ('colour.png', SHALLOW.convert('RGB'), {'transparency': (255, 255, 255)}),
  ],
)
@pytest.mark.parametrize('grey', [False, True])
def test_every_kind_of_pixel_keeps_its_brightness(tmp_path, name, image, settings, grey):
  image.save(tmp_path / name, **settings)
  assert {(tmp_path / name).suffix} <= image_suffixes()
  read = read_image(tmp_path / name, grey=grey).astype(int)
  assert np.abs(read - np.rint(RAMP if grey else RAMP[..., None])).max() <= 2


@pytest.mark.parametrize(
  ('image', 'sentence'),
  [
    (Image.fromarray(RAMP.astype(np.int32)), 'mode I, whose black and white are unknown'),
    (Image.fromarray(RAMP.astype(np.float32)), 'mode F, whose black and white are unknown'),
    (None, 'pixels.tif is not an image'),
  ],
)
def test_pixels_of_unknown_meaning_are_refused(tmp_path, image, sentence):
  (tmp_path / 'pixels.tif').write_bytes(b'') if image is None else image.save(tmp_path / 'pixels.tif')
  with pytest.raises(ValueError, match=sentence):
    read_image(tmp_path / 'pixels.tif')


def test_photographs_are_turned_upright(tmp_path):
  write_pictures(tmp_path, 10)
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was held upright
  Image.new('RGB', (9, 6)).save(tmp_path / 'cat' / '0.png', exif=exif)
  shapes = {example['image'].shape for split in SPLITS for example in getattr(from_folder(tmp_path), split)}
  assert shapes == {(6, 9, 3), (9, 6, 3)}


def test_checksum_of_more_than_a_gibibyte_covers_names_and_sizes(tmp_path, monkeypatch):
  file = tmp_path / 'a'
  file.write_bytes(b'12')
  whole, no_note = _files_checksum([file], tmp_path)
  monkeypatch.setattr('perceiver_lib.data.images.MAX_CHECKSUM_BYTES', 1)
  sizes, note = _files_checksum([file], tmp_path)
  assert no_note == '' and 'names and sizes' in note and whole != sizes
  file.write_bytes(b'34')
  assert _files_checksum([file], tmp_path)[0] == sizes


def test_images_are_halved_by_means_and_stretched_to_the_full_range():
  image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
  half = halved({'image': image, 'label': np.zeros(1, np.int32)})
  assert half['image'][0, :, :, 0].tolist() == [[2, 4], [10, 12]]  # 2.5, 4.5, 10.5 and 12.5, rounded to even
  stretched = full_range({'image': image, 'label': np.zeros(1, np.int64)})
  assert stretched['image'].max() == 255 and stretched['label'].dtype == np.int32
