"""The certificate of `benchmarks/accuracy.py` measures what it says, and misses nothing."""

import json

import numpy as np
import oracle
import pytest
from catalog import CATALOG

from benchmarks import accuracy, report

PLACE = ("3", "single", 3)  # of the oracle: inputs of size 3, three of them


def run(name, library):
    """Value and gradient in float64, and the exact ones."""
    x, y = oracle.examples(name, *PLACE)
    got = accuracy.competitors(name)[library](x, y, "float64")
    return zip(got, (part[..., 0] for part in oracle.exact(name, *PLACE)))


@pytest.mark.parametrize("name", accuracy.TORCH)
def test_torchs_entry_means_the_same(name):
    pytest.importorskip("torch")
    for got, exact in run(name, "torch"):
        np.testing.assert_allclose(got.reshape(exact.shape), exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in CATALOG if accuracy.optax_twin(CATALOG[n].loss)])
def test_optaxs_twin_means_the_same(name):
    for got, exact in run(name, "optax"):
        np.testing.assert_allclose(got.reshape(exact.shape), exact, rtol=1e-6, atol=1e-9)


def test_a_twin_takes_the_same_arguments():
    twins = {name for name in CATALOG if accuracy.optax_twin(CATALOG[name].loss)}
    assert {"huber_loss", "sigmoid_focal_loss-balanced"} <= twins
    assert not {"absolute_error", "sigmoid_binary_cross_entropy-weighted-smoothed"} & twins
    assert accuracy.TORCH.keys() <= CATALOG.keys()


def checked(change=lambda value, gradient: (value, gradient)):
    """A row of the certificate for jloss's Huber loss, with its results changed."""
    mine = accuracy.competitors("huber_loss")["jloss"]
    changed = lambda *place: change(*mine(*place))
    return accuracy.check("huber_loss", "float32", "3", "jloss", changed, 3)


def test_the_loss_itself_passes():
    row = checked()
    assert (row["status"], row["reason"]) == ("passed", "")
    assert row["value"]["worst"] < 2
    assert row["gradient"]["mean"] < 2


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (lambda value, gradient: (value * np.float32(1.01), gradient), ["value"]),
        (lambda value, gradient: (value, gradient * np.float32(1.01)), ["gradient"]),
        (lambda value, gradient: (value * np.float32("nan"), gradient), ["value"]),
        (lambda value, gradient: (value, gradient / np.float32(0)), ["gradient"]),
        (lambda value, gradient: (-value, -gradient), ["value", "gradient"]),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_is_wrong_fails(change, failed):
    row = checked(change)
    assert [part for part in accuracy.PARTS if accuracy.is_over(row, part)] == failed
    assert row["status"] == "failed"
    assert accuracy.counts([row]) == {"checks": 2, "failed": len(failed), "refused": 0}


@pytest.mark.parametrize("what", [np.nan, np.inf])
def test_one_example_that_is_no_number_is_an_infinite_error(what):
    got = np.array([1.0, what, 3.0], np.float16)
    exact = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    error = accuracy.error(got, exact, "float16")
    assert error["worst"] == np.inf
    assert error["not_finite"] == ("NaN" if np.isnan(what) else "inf")


def test_a_unit_is_what_rounding_the_input_may_do():
    eps = 2.0**-7  # bfloat16's
    exact = np.array([[1.0, 3.0]])
    error = accuracy.error(np.array([1 + 6 * eps], np.float32), exact, "bfloat16")
    assert error["worst"] == pytest.approx(2)


def test_what_raises_is_refused():
    def refuse(x, y, dtype):
        raise TypeError("no such dtype\nand more")

    row = accuracy.check("huber_loss", "float16", "3", "torch", refuse, 3)
    assert (row["status"], row["reason"]) == ("refused", "TypeError: no such dtype")
    assert accuracy.counts([row]) == {"checks": 2, "failed": 0, "refused": 2}
    assert accuracy.cell([row], "value") == "refused"


@pytest.fixture(scope="module")
def result():
    return accuracy.certificate(["l2_loss", "absolute_error", "hinge_loss"], 1)


def test_totals_add_up(result):
    places = len(accuracy.DTYPES) * len(oracle.REGIONS)
    assert result["totals"]["jloss"]["checks"] == 3 * places * len(accuracy.PARTS)
    for library in accuracy.LIBRARIES:
        total = result["totals"][library]
        mine = [row for row in result["rows"] if row["library"] == library]
        assert total["checks"] == len(accuracy.PARTS) * len(mine)
        for kind in ("checks", "failed", "refused"):
            assert total[kind] == sum(of[kind] for of in total["by_dtype"].values())
    common = result["totals"]["common"]["optax"]
    assert common["losses"] == 2
    assert (
        common["jloss"]["checks"] == common["optax"]["checks"] < result["totals"]["jloss"]["checks"]
    )


def test_markdown_has_a_row_for_each_loss_and_dtype(result):
    lines = accuracy.markdown(result).splitlines()
    for name in ("l2_loss", "absolute_error", "hinge_loss"):
        rows = [line for line in lines if line.startswith(f"| `{name}` |")]
        assert len(rows) == len(accuracy.DTYPES)
        assert all(line.count("|") == 9 for line in rows)
    assert all("| - |" in line for line in lines if line.startswith("| `absolute_error`"))


def test_over_budget_is_bold_and_says_where():
    row = checked(lambda value, gradient: (value * np.float32("nan"), gradient))
    assert accuracy.cell([row], "value") == "**NaN** (3)"
    assert not accuracy.cell([row], "gradient").startswith("**")


def test_json_is_strict(result):
    text = json.dumps(report.strict({"rows": [{"worst": np.inf}]}), allow_nan=False)
    assert json.loads(text) == {"rows": [{"worst": "inf"}]}
    assert json.loads(json.dumps(report.strict(result), allow_nan=False)) == result


def test_a_missing_peer_is_named_as_absent(monkeypatch):
    monkeypatch.setattr(accuracy, "torch", None)
    result = accuracy.certificate(["absolute_error"], 1)
    assert {row["library"] for row in result["rows"]} == {"jloss"}
    assert "torch: absent" in list(accuracy.summary(result))
    assert "torch absent" in accuracy.markdown(result)


@pytest.mark.parametrize(("ours", "status"), [((0, 0), 0), ((1, 0), 1), ((0, 2), 1)])
def test_a_failure_or_a_refusal_of_ours_is_the_exit_status(monkeypatch, tmp_path, ours, status):
    failed, refused = ours
    total = {"checks": 2, "failed": failed, "refused": refused}
    monkeypatch.setattr(accuracy, "certificate", lambda *given: {"totals": {"jloss": total}})
    for name in ("markdown", "summary"):
        monkeypatch.setattr(accuracy, name, lambda result: "")
    monkeypatch.setattr(accuracy, "picture", lambda result, path: None)
    assert accuracy.main(["--out", str(tmp_path)]) == status


def test_the_picture_is_drawn(result, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    accuracy.picture(result, tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
