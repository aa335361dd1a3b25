import re

import pytest

from surm import InputError
from surm.peft.kernels import KernelLayout


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": (-1,)}, "inputs=(-1,), expected axes by number from 0 on, such as (0,)"),
        ({"stacked": (True,)}, "stacked=(True,), expected axes by number"),
        ({"outputs": 1}, "outputs=1, expected axes by number"),
        ({"outputs": (0,)}, "outputs=(0,), stacked=(); expected inputs and outputs, and each axis once"),
        ({"outputs": ()}, "given the axes inputs=(0,), outputs=(), stacked=(); expected inputs and outputs"),
        ({"segments": "qkv"}, "segments='qkv', expected names, or a mapping from names to (start, stop)"),
        ({"segments": (1, 2)}, "segments=(1, 2), expected names"),
        ({"segments": ("q", "q")}, "segments=('q', 'q'), expected each name once"),
        ({"segments": {"q": (2, 2)}}, "segment 'q' is (2, 2), expected (start, stop) with 0 <= start < stop"),
        ({"segments": {"q": slice(0, 2)}}, "segment 'q' is slice(0, 2, None), expected (start, stop)"),
        ({"segments": {"q": (3, 6), "k": (0, 4)}}, "segments 'k' (0, 4) and 'q' (3, 6) overlap"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(fields, message):
    layout = KernelLayout()
    for name, value in fields.items():
        object.__setattr__(layout, name, value)  # from behind, since the type checker of the tests watches the front
    with pytest.raises(InputError, match=re.escape(message)):
        layout.__post_init__()
