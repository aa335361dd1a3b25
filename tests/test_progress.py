import pytest

from surm import progress


@pytest.mark.parametrize(
    ("seconds", "steps", "said"),
    [(0.1, 100, "10 s"), (0.1, 1360, "2 min"), (1.0, 5401, "1.5 h"), (2.0, 36000, "20.0 h")],
)
def test_what_is_left_is_said_in_a_unit_that_fits(seconds, steps, said):
    assert progress._expected(seconds, steps).endswith(f"{steps:,} more will take about {said}, evaluation apart")
