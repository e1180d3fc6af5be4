"""Notebooks as the runner sees them: a name, a title, a hash of their cells, and typed parameters that are checked."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.errors import RequestError
from perceiver_lib.files import DamagedFile, misfit, plain_name, read_json

REQUIRED_PARAMETERS: Mapping[str, type] = {'profile': str, 'seed': int, 'run_dir': str}
_TYPES: Mapping[str, type] = {'str': str, 'int': int, 'float': float, 'bool': bool}
_TAGGED = {'metadata': {'tags': [str]}}
_SHAPE = {'cells': [{'cell_type': str, 'source': (str, [str])}]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
  """One line of a parameters cell: `learning_rate: float = 3e-4  # peak`."""

  name: str
  type: type
  default: Any
  help: str

  def accept(self, value: Any) -> Any:
    """The value in the parameter's type; text, as from a command line, is converted.

    Raises:
      RequestError: if it can't be.
    """
    if isinstance(value, str) and self.type is not str:
      with contextlib.suppress(ValueError, KeyError):
        value = self.type(value) if self.type is not bool else {'true': True, 'false': False}[value.lower()]
    elif self.type is float and isinstance(value, int) and not isinstance(value, bool):
      with contextlib.suppress(OverflowError):
        value = float(value)
    if type(value) is not self.type:
      raise RequestError(f'Parameter {self.name!r} must be {self.type.__name__}; got {value!r}.')
    if self.type is float and not math.isfinite(value):
      raise RequestError(f'Parameter {self.name!r} must be a finite number; got {value}.')
    if self.type is str:
      check_writable(value)
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Notebook:
  """A notebook of the sequence."""

  path: Path
  title: str
  sha256: str
  parameters: Mapping[str, Parameter]

  @property
  def name(self) -> str:
    return self.path.stem

  def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a run: the given values, checked by name and type, over the defaults.

    Raises:
      RequestError: for a name the notebook does not have, or a value of another type.
    """
    for name in given:
      if name not in self.parameters:
        raise RequestError(f'{self.name} has no parameter {name!r}; it has {", ".join(self.parameters)}.')
    return {p.name: p.accept(given[p.name]) if p.name in given else p.default for p in self.parameters.values()}


def discover(folder: Path) -> list[Notebook]:
  """The sequence: every `NN_topic.ipynb` of a folder, in order.

  Raises:
    RequestError: if there is none, or one cannot be read.
  """
  paths = sorted(folder.glob('[0-9][0-9]_*.ipynb'))
  if not paths:
    raise RequestError(f'No notebooks (NN_topic.ipynb) in {folder}; run from the project folder, or pass --notebooks.')
  return [load(path) for path in paths]


def load(path: Path) -> Notebook:
  """Reads one notebook and its parameters cell.

  Raises:
    RequestError: if it is not a notebook or its parameters cell is missing, doubled or not made of typed literals.
  """
  if not plain_name(path.name):
    raise RequestError(f'{str(path)!r} has a name that a run cannot record; rename it.')
  cells = _cells(path)
  titles = (re.search(r'^# (.+)$', cell['source'], re.M) for cell in cells if cell['cell_type'] == 'markdown')
  title = next((match.group(1).strip() for match in titles if match), path.stem)
  code = [cell for cell in cells if cell['cell_type'] == 'code']
  tagged = [cell for cell in code if not misfit(cell, _TAGGED) and 'parameters' in cell['metadata']['tags']]
  if len(tagged) != 1:
    raise RequestError(f'{path.name} has {len(tagged)} code cells tagged "parameters"; it needs exactly one.')
  parameters = _parameters(tagged[0]['source'], path.name)
  for name, kind in REQUIRED_PARAMETERS.items():
    if name not in parameters or parameters[name].type is not kind:
      raise RequestError(f'{path.name} needs a parameter "{name}: {kind.__name__}" in its parameters cell.')
  return Notebook(path=path, title=title, sha256=notebook_hash(path), parameters=parameters)


def select(notebooks: Sequence[Notebook], only: Sequence[str]) -> list[Notebook]:
  """Those whose number ('01') or name is listed, in the order of the sequence; all for an empty list.

  Raises:
    RequestError: for an entry that matches nothing.
  """
  wanted = set()
  for entry in only:
    matches = [n.name for n in notebooks if entry in (n.name, n.path.name, n.name.split('_')[0])]
    if not matches:
      raise RequestError(f'No notebook {entry!r}; there are {", ".join(n.name for n in notebooks)}.')
    wanted.update(matches)
  return [n for n in notebooks if n.name in wanted or not only]


def notebook_hash(path: Path) -> str:
  """SHA-256 over the kind and source of every cell: running, saving or formatting the file does not change it."""
  content = [[cell['cell_type'], cell['source']] for cell in _cells(path)]
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_writable(text: str) -> str:
  """Returns the text, or raises a RequestError where it cannot be written into a file of a run."""
  try:
    text.encode()
  except UnicodeEncodeError:
    raise RequestError(f'{text!r} is not UTF-8, so a run cannot record it; choose another name.') from None
  return text


def _cells(path: Path) -> list[dict[str, Any]]:
  try:
    content = read_json(path, _SHAPE)
  except DamagedFile as error:
    raise RequestError(f'{path} is not a notebook: it is not JSON with a list of cells ({error})') from None
  if content is None:
    raise RequestError(f'There is no notebook {path}.')
  return [{**cell, 'source': ''.join(cell['source'])} for cell in content['cells']]


def _parameters(source: str, where: str) -> dict[str, Parameter]:
  lines, parameters = source.splitlines(), {}
  try:
    statements = ast.parse(source).body
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    raise RequestError(f'The parameters cell of {where} is not Python: {error}.') from None
  for node in statements:
    text = ast.unparse(node)
    if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
      raise RequestError(f'The parameters cell of {where} may hold only "name: type = literal"; it holds "{text}".')
    kind = _TYPES.get(ast.unparse(node.annotation))
    if kind is None:
      raise RequestError(f'In {where}, "{text}": a parameter is one of {", ".join(_TYPES)}.')
    try:
      default = ast.literal_eval(node.value)
    except (ValueError, TypeError, RecursionError, MemoryError):
      raise RequestError(f'In {where}, "{text}": the value must be a literal, derived values go below.') from None
    comment = lines[node.end_lineno - 1][node.end_col_offset :].strip().lstrip('#').strip()
    parameter = Parameter(name=node.target.id, type=kind, default=default, help=comment)
    parameter.accept(default)
    if type(default) is not kind:
      raise RequestError(f'In {where}, "{text}": the default is {type(default).__name__}, not {kind.__name__}.')
    parameters[parameter.name] = parameter
  return parameters
