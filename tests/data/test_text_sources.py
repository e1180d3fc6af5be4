"""Text by name: bundled corpora, own files, prepared TFDS sets."""

import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds

from perceiver_lib.data import load_corpus
from perceiver_lib.data.text import RandomCrops
from perceiver_lib.data.text_sources import open_corpus, write_corpus
from tests.support import write_litter


def test_a_corpus_is_written_as_a_stream_and_mapped(tmp_path):
  corpus = write_corpus((text for text in (b'one', b'', b'three')), tmp_path / 'corpus')
  assert isinstance(corpus.data, np.memmap)
  assert [corpus[i]['text'] for i in range(len(corpus))] == [b'one', b'', b'three']
  again = open_corpus(tmp_path / 'corpus')
  assert again.checksum == corpus.checksum
  batch = RandomCrops(again, 3, 5, seed=0).batch(0)
  assert {row.tobytes() for row in batch['bytes']} <= {b'one', b'thr', b'hre', b'ree'}
  with pytest.raises(FileExistsError, match='already there'):
    write_corpus([b'other'], tmp_path / 'corpus')


def test_an_interrupted_or_empty_corpus_leaves_nothing(tmp_path):
  def broken():
    yield b'one'
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write_corpus(broken(), tmp_path / 'corpus')
  with pytest.raises(ValueError, match='2 documents were given, all empty'):
    write_corpus([b'', b''], tmp_path / 'corpus')
  assert list(tmp_path.iterdir()) == []


def test_damage_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='no prepared corpus'):
    open_corpus(tmp_path)
  write_corpus([b'one'], tmp_path / 'corpus')
  (tmp_path / 'corpus' / 'bytes.bin').write_bytes(b'on')
  with pytest.raises(ValueError, match=r'corpus is damaged \(ValueError: 2 bytes where 3 were written\): delete it'):
    open_corpus(tmp_path / 'corpus')


def test_one_file_is_cut_at_line_ends_with_gaps(tmp_path):
  lines = [f'line {i:04}\n'.encode() for i in range(1000)]
  (tmp_path / 'book.txt').write_bytes(b''.join(lines))
  data = load_corpus(tmp_path / 'book.txt')
  parts = [data.train.joined(), data.validation.joined(), data.test.joined()]
  whole = b''.join(lines)
  starts = [whole.index(part) for part in parts]
  ends = [start + len(part) for start, part in zip(starts, parts, strict=True)]
  assert starts[0] == 0
  assert ends[2] == len(whole)
  assert [start - end for start, end in zip(starts[1:], ends[:-1], strict=True)] == [100, 100]
  assert parts[0].endswith(b'\n')
  assert [len(part) / len(whole) for part in parts] == pytest.approx([0.8, 0.09, 0.09], abs=0.005)


@pytest.mark.parametrize('text', ['é猫🎉\n' * 315, '猫' * 1001])
def test_no_part_begins_or_ends_inside_a_character(tmp_path, text):
  (tmp_path / 'book.txt').write_text(text)
  data = load_corpus(tmp_path / 'book.txt')
  assert all(part.joined().decode() in text for part in (data.train, data.validation, data.test))


def test_of_many_files_whole_ones_are_held_out(tmp_path):
  for i in range(30):
    (tmp_path / f'{i}.txt').write_bytes(f'file {i}'.encode() * 10)
  (tmp_path / 'picture.png').write_bytes(b'not text')
  write_litter(tmp_path, '0.txt')
  data = load_corpus(tmp_path)
  names = [set(part.names) for part in (data.train, data.validation, data.test)]
  assert set.union(*names) == {f'{i}.txt' for i in range(30)}
  assert sum(map(len, names)) == 30
  assert [len(part) for part in names] == [24, 3, 3]
  assert load_corpus(tmp_path).test.names == data.test.names


def test_bundled_corpora_by_name():
  data = load_corpus('python_source')
  assert data.provenance.name == 'python_source' and data.provenance.kind == 'real'
  assert min(part.num_bytes for part in (data.train, data.validation, data.test)) > 100_000


def test_missing_and_tiny_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere must be a text file'):
    load_corpus(tmp_path / 'nowhere')
  with pytest.raises(FileNotFoundError, match='files that end in'):
    load_corpus(tmp_path)
  (tmp_path / 'a.txt').write_bytes(b'a')
  with pytest.raises(ValueError, match='1 bytes in 1 files, too little'):
    load_corpus(tmp_path)


class Letters(tfds.core.GeneratorBasedBuilder):
  """Forty texts, no validation and no test split."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = tfds.features.FeaturesDict({'text': tfds.features.Text(), 'label': tfds.features.Scalar(np.int64)})
    return tfds.core.DatasetInfo(builder=self, description='letters', features=features)

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i in range(40):
      yield i, {'text': f'text {i} \N{LATIN SMALL LETTER E WITH ACUTE}', 'label': i}


def test_a_prepared_tfds_set_becomes_mapped_corpora_once(tmp_path):
  tfds.disable_progress_bar()
  Letters(data_dir=tmp_path, file_format='array_record').download_and_prepare()
  data = load_corpus('letters', data_dir=tmp_path)
  splits = (data.train, data.validation, data.test)
  assert all(isinstance(part.data, np.memmap) for part in splits)
  texts = [[text for i in range(len(part)) for text in part[i]['text'].split(b'\n\n')] for part in splits]
  assert [len(part) for part in texts] == [32, 4, 4]
  assert sorted(itertools.chain(*texts)) == sorted(f'text {i} \u00e9'.encode() for i in range(40))
  assert data.train[0]['text'].count(b'\n\n') == 9
  assert data.provenance.kind == 'real'
  written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('bytes.bin')}
  again = load_corpus('letters', data_dir=tmp_path)
  assert again.provenance == data.provenance
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('bytes.bin')} == written
  with pytest.raises(ValueError, match='no set of texts; its features are image, label'):
    load_corpus('mnist', data_dir=tmp_path)


@pytest.mark.parametrize('name', ['imdb_reviews', 'lm1b'])
def test_tfds_names_by_mock(name):
  with tfds.testing.mock_data(num_examples=20):
    data = load_corpus(name)
  assert data.provenance.kind == 'mock'
  assert name in data.provenance.source
  assert data.train[0]['text'].count(b'\n\n') == 9
  assert min(data.validation.num_bytes, data.test.num_bytes) > 0
  assert RandomCrops(data.train, 17, 4, seed=0).batch(0)['bytes'].shape == (4, 17)


def test_an_unprepared_tfds_name_says_how_to_prepare_it(tmp_path):
  with pytest.raises(FileNotFoundError, match='tfds build imdb_reviews --file_format=array_record'):
    load_corpus('imdb_reviews', data_dir=tmp_path)
  with pytest.raises(FileNotFoundError, match="no text set 'no_such_set': choose 'shakespeare' or 'python_source'"):
    load_corpus('no_such_set', data_dir=tmp_path)
