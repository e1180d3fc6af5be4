"""Notebooks as the runner sees them: a name, a title, a hash of their cells, and typed parameters that are checked."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perceiver_lib.experiments.errors import RequestError

REQUIRED_PARAMETERS: Mapping[str, type] = {'profile': str, 'seed': int, 'run_dir': str}
_TYPES: Mapping[str, type] = {'str': str, 'int': int, 'float': float, 'bool': bool}


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
      try:
        if self.type is not bool:
          return self.type(value)
        return {'true': True, 'false': False}[value.lower()]
      except (ValueError, KeyError):
        pass
    elif self.type is float and isinstance(value, int) and not isinstance(value, bool):
      return float(value)
    elif type(value) is self.type:
      return value
    raise RequestError(f'Parameter {self.name!r} must be {self.type.__name__}; got {value!r}.')


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
  cells = _cells(path)
  titles = (re.search(r'^# (.+)$', cell['source'], re.M) for cell in cells if cell['cell_type'] == 'markdown')
  title = next((match.group(1).strip() for match in titles if match), path.stem)
  tagged = [c for c in cells if c['cell_type'] == 'code' and 'parameters' in c.get('metadata', {}).get('tags', [])]
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


def _cells(path: Path) -> list[dict[str, Any]]:
  try:
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [{**cell, 'source': ''.join(cell['source'])} for cell in cells]
  except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
    raise RequestError(f'{path} is not a notebook: it is not JSON with a list of cells.') from None


def _parameters(source: str, where: str) -> dict[str, Parameter]:
  lines, parameters = source.splitlines(), {}
  try:
    statements = ast.parse(source).body
  except SyntaxError as error:
    raise RequestError(f'The parameters cell of {where} is not Python: {error.msg}, line {error.lineno}.') from None
  for node in statements:
    text = ast.unparse(node)
    if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
      raise RequestError(f'The parameters cell of {where} may hold only "name: type = literal"; it holds "{text}".')
    kind = _TYPES.get(ast.unparse(node.annotation))
    if kind is None:
      raise RequestError(f'In {where}, "{text}": a parameter is one of {", ".join(_TYPES)}.')
    try:
      default = ast.literal_eval(node.value)
    except ValueError:
      raise RequestError(f'In {where}, "{text}": the value must be a literal, derived values go below.') from None
    comment = lines[node.end_lineno - 1][node.end_col_offset :].strip().lstrip('#').strip()
    parameter = Parameter(name=node.target.id, type=kind, default=default, help=comment)
    parameter.accept(default)
    if type(default) is not kind:
      raise RequestError(f'In {where}, "{text}": the default is {type(default).__name__}, not {kind.__name__}.')
    parameters[parameter.name] = parameter
  return parameters
