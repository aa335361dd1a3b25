"""What a person sees of many runs."""

from surm import report


def result(accuracy: float, loss: float, trained: int = 6_528, seconds: float = 12.3, **more: float) -> dict:
    values = {"accuracy": accuracy, **more, "loss": loss}
    return {"metric": "accuracy", "eval": values, "trainable_parameters": trained, "seconds": seconds}


def test_the_table_is_aligned_and_the_best_comes_first():
    rates = {"circulant": "0.1", "kronecker": "None", "toeplitz": "1", "head": "2", "low": "3"}
    settings = [{"family": name, "rate": rate} for name, rate in rates.items()]
    results = [result(0.5, 1.0), None, result(0.75, 0.5, trained=1_234_567), None, result(0.5, 0.9, seconds=1234)]
    states = ["finished", "failed", "finished", "missing", "finished"]
    assert report.sweep_table(settings, results, states).splitlines() == [
        "rank  family     rate  accuracy    loss    trained  seconds  state",
        "   1  toeplitz   1       0.7500  0.5000  1,234,567       12  finished",
        "   2  low        3       0.5000  0.9000      6,528     1234  finished",
        "   3  circulant  0.1     0.5000  1.0000      6,528       12  finished",
        "   -  kronecker  None         -       -          -        -  failed",
        "   -  head       2            -       -          -        -  missing",
    ]


def test_runs_of_different_metrics_stay_apart():
    spearman = {"metric": "spearman", "eval": {"spearman": 0.9, "loss": 0.1}, "trainable_parameters": 1, "seconds": 1.0}
    lines = report.sweep_table([{}] * 3, [result(0.1, 2.0), spearman, result(0.2, 3.0)], ["finished"] * 3).splitlines()
    assert lines[0].split() == ["rank", "accuracy", "spearman", "loss", "trained", "seconds", "state"]
    assert [line.split()[1:3] for line in lines[1:]] == [["0.2000", "-"], ["0.1000", "-"], ["-", "0.9000"]]


def test_without_any_result_no_metric_is_shown():
    assert report.sweep_table([{"seed": "0"}], [None], ["missing"]).splitlines() == [
        "rank  seed  trained  seconds  state",
        "   -  0           -        -  missing",
    ]


def test_of_a_metric_that_says_so_less_is_better():
    losing = {"metrics": {"perplexity": {"better": "less", "unit": ""}}, "metric": "perplexity"}
    results = [result(0.1, 2.0) | losing | {"eval": {"perplexity": value, "loss": 1.0}} for value in (30.0, 12.5, 99.0)]
    lines = report.sweep_table([{"run": name} for name in "abc"], results, ["finished"] * 3).splitlines()
    assert [line.split()[1:3] for line in lines[1:]] == [["b", "12.5000"], ["a", "30.0000"], ["c", "99.0000"]]
    assert min(results, key=report.place) is results[1]
