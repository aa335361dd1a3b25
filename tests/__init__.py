"""The tests of surm, and by what functions of surm are checked in them."""

import pathlib

from beartype import BeartypeConf, BeartypeHintOverrides, beartype
from etils import epath

# As for any checker of types an int passes for a float; and a local path for one that may lie in a bucket.
checked = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True, hint_overrides=BeartypeHintOverrides({epath.Path: epath.Path | pathlib.Path})
    )
)
