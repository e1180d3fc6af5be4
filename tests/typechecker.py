"""The checker behind `--jaxtyping-packages` in pyproject.toml: beartype that accepts an int where a float is asked."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
