"""The harness of the benchmarks: what is wrong is caught, what overlaps is not claimed."""

import importlib
import json
import math
import types

import jax
import jax.numpy as jnp
import optax
import pytest

import jloss
from benchmarks import __main__ as command
from benchmarks import (
    competitors,
    compiled,
    convergence,
    machine,
    measure,
    pictures,
    regression,
    report,
    traffic,
)
from benchmarks.competitors import STEPS, Case, Jitted, Stepped, Torch, nbytes
from benchmarks.questions import lean_optimizers, optimizer_steps, training_step

QUESTIONS = command.names_of_questions()
every_question = pytest.mark.parametrize("name", QUESTIONS)


def module(name):
    return importlib.import_module(f"benchmarks.questions.{name}")


def draw():
    return (jax.random.normal(jax.random.key(0), (4, 8)),)


def square(x):
    return jnp.mean(x**2), 2 * x / x.size


def case(**competitors):
    return Case(
        "square",
        {"dtype": "float32", "n": 32},
        draw,
        square,
        {"value": 1e-5, "gradient": 1e-5},
        {"jloss": Jitted(square)} | competitors,
        floor_bytes=2 * 4 * 32,
        flops=96,
    )


def measured(case, installed=lambda name: True):
    return {row["competitor"]: row for row in measure.measure(case, 5, 1.0, installed)}


def test_a_right_competitor_is_timed_with_its_memory():
    row = measured(case())["jloss"]
    assert row["status"] == "exact"
    assert row["ms"] == sorted(row["ms"])
    assert row["rounds"] == 5
    assert row["temp_bytes"] >= 0
    assert row["compile_s"] > 0
    assert max(row["errors"].values()) < 1e-6


@pytest.mark.parametrize(
    "f",
    [
        lambda x: (1.2 * square(x)[0], square(x)[1]),
        lambda x: (square(x)[0], -square(x)[1]),
        lambda x: (square(x)[0], square(x)[1].at[0, 0].set(jnp.nan)),
        lambda x: (jnp.inf + square(x)[0], square(x)[1]),
    ],
)
def test_another_computation_is_caught_and_not_timed(f):
    row = measured(case(optax=Jitted(f)))["optax"]
    assert row["status"] == "wrong"
    assert "ms" not in row


def test_an_inexact_peer_is_timed_with_its_error_beside_it():
    rough = Jitted(lambda x: (1.001 * square(x)[0], square(x)[1]))
    row = measured(case(optax=rough))["optax"]
    assert row["status"] == "inexact"
    assert row["errors"]["value"] == pytest.approx(1e-3, rel=1e-2)
    assert "**inexact** value 1.0e-03" in table({"optax": row, **measured(case())})


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda x: (square(x)[0], square(x)[1][0]), "shapes"),
        (lambda x: (square(x)[0],), "argument 2 is longer"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_peer_that_fails_is_named_with_its_reason(f, reason):
    row = measured(case(optax=Jitted(f)))["optax"]
    assert row["status"] == "failed"
    assert reason in row["reason"]
    assert "ms" not in row


def test_an_absent_peer_is_named():
    never = Torch(lambda torch, x: pytest.fail("ran"))
    rows = measured(case(**{"torch compiled": never}), {"jloss": "0.1"}.get)
    assert rows["torch compiled"]["status"] == "absent"
    assert "torch is not installed" in table(rows)
    assert machine.version("no_package_of_this_name") is None


def test_a_step_is_compared_after_all_its_steps():
    """A second moment that forgets what came before is right after one step alone."""
    start, batches = jnp.ones(8), list(jnp.arange(1.0, 25).reshape(STEPS, 8))

    def descend(decay):
        def step(state, gradient):
            parameters, trace = state
            trace = gradient + decay * trace
            return parameters - trace, trace

        return Stepped(lambda p: (p, jnp.zeros_like(p)), step, lambda state: state[:1])

    def exact(start, batches):
        a, b, c = batches
        return (-(a + (b + 0.5 * a) + (c + 0.5 * b + 0.25 * a)),)

    rows = measured(
        case()._replace(
            draw=lambda: (start, batches),
            exact=exact,
            tolerance={"change": 1e-5},
            competitors={"jloss": descend(0.5), "optax": descend(0.0)},
        )
    )
    assert rows["jloss"]["status"] == "exact"
    assert rows["optax"]["status"] == "wrong"


def test_turns_rotate_and_every_competitor_has_as_many():
    turns = []
    runs = {
        name: types.SimpleNamespace(call=lambda name=name: turns.append(name), wait=lambda _: None)
        for name in "abc"
    }
    seconds = measure.take_turns(runs, 5, 60.0)
    calls = {name: turns.count(name) for name in runs}
    assert {len(times) for times in seconds.values()} == {5}
    assert min(calls.values()) > 5  # the clock cannot resolve one such call


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ([1, 2, 3], [3.1, 4, 5], "faster"),
        ([1, 2, 3], [2.9, 4, 5], "no difference"),
        ([4, 5, 6], [1, 2, 3.9], "slower"),
        ([4, 5, 6], [1, 2, 4], "no difference"),
    ],
)
def test_nothing_is_claimed_where_quartiles_overlap(ours, theirs, said):
    assert report.verdict({"ms": ours}, {"ms": theirs}) == said
    fixed = {"question": "q", "case": "c", "at": {}, "status": "exact", "compile_s": None}
    fixed |= {"floor_bytes": 0, "flops": 0, "errors": {}}
    rows = {"jloss": {**fixed, "ms": ours}, "optax": {**fixed, "ms": theirs}}
    ratio = f"{theirs[1] / ours[1]:.2f}"
    assert (f"**{ratio}**" in table(rows)) == (said != "no difference")
    assert (f"{ratio} (overlap)" in table(rows)) == (said == "no difference")
    summary = "\n".join(report.summary([{**r, "competitor": n} for n, r in rows.items()]))
    counts = [int(said == verdict) for verdict in ("faster", "no difference", "slower")]
    assert f"| optax | 1 | {counts[0]} | {counts[1]} | {counts[2]} | 0 |" in summary
    rows["optax"]["status"] = "inexact"
    summary = "\n".join(report.summary([{**r, "competitor": n} for n, r in rows.items()]))
    assert "1 (1 with an inexact result)" in summary


def table(rows):
    here = {"copy": 1e9, "matmul": {"float32": 1e9}}
    fixed = {"question": "q", "case": "square", "at": {"n": 32}}
    ordered = sorted(rows.items(), key=lambda item: item[0] != "jloss")
    return "\n".join(
        report.table("q", [{**row, **fixed, "competitor": n} for n, row in ordered], here)
    )


def test_the_ceiling_is_the_later_of_memory_and_arithmetic():
    here = {"copy": 1e9, "matmul": {"float32": 1e12}}
    row = {"at": {"dtype": "float32"}, "floor_bytes": 1e6, "flops": 1e6, "ms": [1.0, 2.0, 3.0]}
    assert report.of_ceiling(row, here) == pytest.approx(0.5)
    assert report.of_ceiling({**row, "flops": 2e9}, here) == pytest.approx(1.0)


def test_the_compiler_counts_a_scan_once():
    """Why FLOP are counted by formula; where this fails, the note in the tables can go."""

    def scanned(length):
        body = lambda x, _: (x @ x, None)
        run = jax.jit(lambda x: jax.lax.scan(body, x, length=length)[0])
        return run.lower(jnp.ones((64, 64))).compile().cost_analysis()["flops"]

    assert scanned(10) < 2 * scanned(1)


@every_question
def test_a_question_asks_in_its_first_line_and_says_how_it_measures(name):
    text = module(name).__doc__
    assert text.splitlines()[0].endswith("?")
    for part in ("Peers:", "Floor:", "Check:"):
        assert part in text


@every_question
@pytest.mark.parametrize("scale", ["quick", "cpu", "accelerator"])
def test_cases_differ_and_can_be_drawn(name, scale):
    cases = list(module(name).cases(scale))
    assert len({(c.name, json.dumps(c.at)) for c in cases}) == len(cases) > 0
    for c in cases:
        assert any(rival.split()[0] == "jloss" for rival in c.competitors)
        assert "dtype" in c.at
        jax.eval_shape(c.draw)


@every_question
def test_the_floor_is_each_input_once_and_each_output_once(name):
    for c in module(name).cases("quick"):
        shapes = jax.eval_shape(c.draw)
        competitor = next(iter(c.competitors.values()))
        if c.floor_bytes == 0:
            continue
        read = nbytes(shapes)
        if isinstance(competitor, Stepped):
            read = nbytes((jax.eval_shape(competitor.start, shapes[0]), shapes[1][0]))
        with jax.numpy_dtype_promotion("standard"):
            written = nbytes(competitor.lower(shapes).out_info)
        assert c.floor_bytes == pytest.approx(read + written, rel=0.01)


QUICK = [
    pytest.param(c, id=f"{n}: {c.name} {c.at}") for n in QUESTIONS for c in module(n).cases("quick")
]


def checked(case, *competitors):
    """The rows of these competitors, not timed; peers compute as their users do."""
    with jax.numpy_dtype_promotion("standard"):
        arguments = jax.jit(case.draw)()
        exact = measure.in_float64(case, arguments)
        return [measure.check(case, rival, arguments, exact)[0] for rival in competitors]


@pytest.mark.parametrize("case", QUICK)
def test_ours_is_exact_in_every_case(case):
    ours = [rival for name, rival in case.competitors.items() if name.startswith("jloss")]
    assert {row["status"] for row in checked(case, *ours)} == {"exact"}


@pytest.mark.parametrize("case", QUICK)
def test_torch_computes_the_same(case):
    pytest.importorskip("torch")
    theirs = [rival for name, rival in case.competitors.items() if name.startswith("torch")]
    assert {row["status"] for row in checked(case, *theirs)} <= {"exact", "inexact"}


def sgd_step(**changes):
    """A training step of the question that is wrong in one thing."""
    given = {
        "b1": 0.9,
        "weight_decay": training_step.DECAY,
        "smoothing": 0.0,
        "scale": 1.0,
    } | changes
    ce = jloss.softmax_cross_entropy_with_integer_labels
    loss = lambda x, y: (
        given["scale"] * ce(x, y, label_smoothing=given["smoothing"], reduction=jloss.mean)
    )
    tx = optax.adamw(training_step.RATE, b1=given["b1"], weight_decay=given["weight_decay"])
    return training_step.stepped(loss, tx, "float32")


@pytest.mark.parametrize(
    "change", [{"weight_decay": 0.0}, {"b1": 0.8}, {"smoothing": 0.1}, {"scale": 64.0}]
)
def test_a_training_step_that_is_wrong_in_one_thing_is_not_exact(change):
    case = next(training_step.cases("quick"))
    right, wrong = checked(case, sgd_step(), sgd_step(**change))
    assert right["status"] == "exact"
    assert wrong["status"] in ("inexact", "wrong")


def test_a_forgotten_weight_decay_is_another_optimizer():
    *_, case = optimizer_steps.cases("quick")
    right, wrong = checked(
        case,
        optimizer_steps.stepped(optax.adamw(1e-3, weight_decay=0.01)),
        optimizer_steps.stepped(optax.adam(1e-3)),
    )
    assert (right["status"], wrong["status"]) == ("exact", "wrong")


def test_a_bad_gradient_is_skipped_by_all():
    good = next(lean_optimizers.cases("quick"))
    start, (first, bad, last) = good.draw()
    bad = [bad[0].at[0, 0].set(jnp.nan), *bad[1:]]
    twice = lambda start, batches: good.exact(start, [batches[0], batches[2]])
    case = good._replace(draw=lambda: (start, [first, bad, last]), exact=twice)
    rows = checked(case, *case.competitors.values())
    assert {row["status"] for row in rows} <= {"exact", "absent"}


@pytest.mark.parametrize("place", range(1, 4))
def test_another_decay_is_noticed_in_low_precision(place):
    case = list(lean_optimizers.cases("quick"))[place]
    ours = next(iter(case.competitors.values()))
    other = optimizer_steps.stepped(jloss.adam(1e-3, b1=0.8))
    right, wrong = checked(case, ours, other._replace(read=ours.read, seen=ours.seen))
    assert right["status"] == "exact"
    assert wrong["status"] in ("inexact", "wrong")
    assert right["state_bytes"] < wrong["state_bytes"] / 1.9


def test_torch_runs_where_jax_does(monkeypatch):
    pytest.importorskip("torch")
    assert competitors.torch_and_device()[1] == "cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    (row,) = checked(case(), Torch(lambda torch, x: pytest.fail("ran")))
    assert row == {"status": "absent", "reason": "this torch has no tpu here"}


def test_what_torch_allocates_is_counted_without_its_results():
    """As the compiler counts: a fake allocator, 100 before, a result of 30, 170 at the most."""
    allocated = iter([100, 130])
    cuda = types.SimpleNamespace(
        reset_peak_memory_stats=lambda: None,
        memory_allocated=lambda: next(allocated),
        max_memory_allocated=lambda: 170,
    )
    torch = types.SimpleNamespace(cuda=cuda)
    assert competitors.peak(torch, "cuda", lambda: "result") == 40
    assert competitors.peak(torch, "cpu", lambda: pytest.fail("ran")) is None


def test_a_case_that_fails_as_a_whole_leaves_the_others():
    rows = measured(case()._replace(exact=lambda x: 1 / 0))
    assert rows["jloss"]["status"] == "failed"
    assert "ZeroDivisionError" in rows["jloss"]["reason"]


def test_pictures_are_drawn_of_every_kind(tmp_path):
    pytest.importorskip("matplotlib")
    fixed = {"question": "q", "case": "c", "status": "exact", "flops": 1e6, "floor_bytes": 1e6}
    rows = [
        {**fixed, "at": {"dtype": "float32", "n": n}, "competitor": name, "ms": [n, n + 1, n + 2]}
        | {"temp_bytes": n * 2**20}
        for n in (1, 10, 100)
        for name in ("jloss", "optax")
    ]
    here = {"copy": 1e9, "matmul": {"float32": 1e12, "bfloat16": 2e12}}
    pictures.draw({"machine": here, "rows": rows}, tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"times.png", "roofline.png", "growth.png"}


def test_ours_comes_first_and_forms_meet_their_like():
    fixed = {"question": "q", "case": "c", "at": {}, "status": "exact"}
    names = ["optax", "optax vmap", "jloss", "jloss vmap", "torch"]
    (rows,) = report.cases([{**fixed, "competitor": name} for name in names])
    assert [row["competitor"] for row in rows[:2]] == ["jloss", "jloss vmap"]
    meets = {r["competitor"]: report.counterpart(r, rows)["competitor"] for r in rows[2:]}
    assert meets == {"optax": "jloss", "optax vmap": "jloss vmap", "torch": "jloss"}


def test_a_busy_machine_is_told():
    here = machine.Machine("d", "cpu", 2, "3", {"optax": None}, 1.9, 1e9, {"float32": 1e9})
    assert any("publish no times" in line for line in report.header(here._asdict()))
    assert not any(
        "publish no times" in line for line in report.header(here._asdict() | {"load": 0})
    )


def test_the_command_writes_what_it_measured(tmp_path, capsys):
    given = command.arguments(["value_checks", "--quick", "--out", str(tmp_path)])
    assert command.main(given) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert {row["competitor"] for row in results["rows"]} >= {"jloss", "jloss checked", "optax"}
    assert results["machine"]["copy"] > 0
    text = (tmp_path / "results.md").read_text()
    assert module("value_checks").__doc__.splitlines()[0] in text
    assert "[1/1] value_checks" in capsys.readouterr().out
    assert regression.main(*2 * [str(tmp_path / "results.json")]) == 0


def test_the_table_of_convergence_has_every_run(tmp_path):
    """Three steps on noise: this is about the table, not about what it says."""
    images = jax.random.normal(jax.random.key(0), (40, 8)), jnp.arange(40) % 10
    few = {"Adam": list(convergence.by_adam(1e-4))[::8]}
    noise = {"noise": lambda: convergence.Data(images, images)}
    with jax.numpy_dtype_promotion("standard"):
        result = convergence.measured(noise, few, steps=3, seeds=2)
    convergence.save(result, tmp_path)
    assert result == json.loads((tmp_path / "convergence.json").read_text())
    text = (tmp_path / "convergence.md").read_text()
    rows = result["data"]["noise"]["Adam"]
    assert all(convergence.in_a_line(row) in text for row in rows)
    assert [round(row["state"]) for row in rows] == [8, 4]
    assert rows[0]["training loss"] != rows[1]["training loss"]
    assert {len(row["test loss"]) for row in rows} == {2}


def test_an_unknown_question_is_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        command.arguments(["no_question"])
    assert "no question no_question; there are" in capsys.readouterr().err


def test_json_is_strict():
    text = json.dumps(
        report.strict({"a": [math.nan, {"b": math.inf}], "c": (1, 2.0)}), allow_nan=False
    )
    assert json.loads(text) == {"a": ["nan", {"b": "inf"}], "c": [1, 2.0]}


ROW = {
    "question": "q", "case": "c", "at": {"n": 8}, "competitor": "jloss", "status": "exact",
    "ms": [1.0, 2.0, 3.0], "temp_bytes": 1000, "errors": {"value": 1e-7},
    "tolerance": {"value": 1e-5},
}  # fmt: skip
PEER = {**ROW, "competitor": "optax"}


def worse(now, peer=PEER, device="cpu"):
    old = {"machine": {"device": "cpu"}, "rows": [ROW, PEER]}
    rows = [{**ROW, **now}] if now is not None else []
    return list(regression.compare(old, {"machine": {"device": device}, "rows": [*rows, peer]}))


def test_a_regression_is_claimed_by_kind():
    assert worse({}) == []
    assert worse({"ms": [3.1, 4.0, 5.0]}) == ["slower, 2.00 times: c: n 8 [jloss]"]
    assert worse({"temp_bytes": 2**20}) == ["larger, 0.00 to 1.00 MiB: c: n 8 [jloss]"]
    assert worse({"errors": {"value": 1e-6}}) == []  # luck, far inside the tolerance
    assert worse({"errors": {"value": 2e-6}}) == [
        "less exact, value 1e-07 to 2e-06: c: n 8 [jloss]"
    ]
    assert worse({"status": "inexact"}) == ["from exact to inexact: c: n 8 [jloss]"]
    assert worse(None) == ["gone: c: n 8 [jloss]"]
    assert len(worse({"errors": {"value": "nan"}})) == 1


def test_a_regression_is_not_claimed_of_the_machine():
    slow_peer = {**PEER, "ms": [3.1, 4.0, 5.0]}
    assert worse({"ms": [2.9, 4.0, 5.0]}) == []  # quartiles overlap
    assert worse({"ms": [3.1, 4.0, 5.0]}, slow_peer) == []
    assert worse({"ms": [31.0, 40.0, 50.0]}, slow_peer) == ["slower, 10.00 times: c: n 8 [jloss]"]


def test_another_device_is_judged_by_the_peers_alone():
    quick_peer = {**PEER, "ms": [0.1, 0.2, 0.3]}
    assert worse({}, quick_peer, "gpu") == ["slower, 10.00 times: c: n 8 [jloss]"]
    assert worse({}, quick_peer) == []
    assert worse({"temp_bytes": 2**20, "errors": {"value": 1e-3}}, device="gpu") == []


@pytest.mark.parametrize("target", compiled.NEEDS)
def test_what_a_compiler_says_without_its_device(target):
    if absent := compiled.missing(target):
        pytest.skip(f"not installed: {', '.join(absent)}")
    (row,) = compiled.facts(case(), target)
    assert row["target"] == target
    assert row["temp_bytes"] >= 0
    assert row["compiler_bytes"] >= 2 * 4 * 32


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(compiled.util, "find_spec", lambda name: None)
    assert compiled.missing("TPU v5e") == ["jax[tpu]"]


PROGRAM = """
%branch (p: f32[8]) -> f32[8] {
  ROOT %kernel.1 = f32[8]{0} fusion(%p), kind=kLoop, calls=%fused
}

ENTRY %main (a: f32[8], b: bf16[8]) -> (f32[8], f32[8], bf16[8]) {
  %a = f32[8]{0} parameter(0)
  %b = bf16[8]{0} parameter(1)
  %here = (f32[8]{0:T(8)S(1)}, f32[8]{0:T(8)}, u32[]{:S(2)}) copy-start(%a)
  %a.1 = f32[8]{0:T(8)S(1)} copy-done(%here)
  %half = ((bf16[8]{0:T(8)}), bf16[4]{0:T(8)S(1)}, s32[]{:S(2)}) slice-start(%b), slice={[0:4]}
  %both = (f32[8]{0}, /*index=1*/bf16[8]{0}) fusion(%a.1, %b, %b), kind=kLoop, calls=%fused
  %c = f32[8]{0} get-tuple-element(%both), index=0
  %d = f32[8]{0} conditional(%a, %c), branch_computations={%branch, %branch}
  ROOT %all = (f32[8]{0}, f32[8]{0}, bf16[8]{0}) tuple(%c, %d, %b)
}
"""


def test_traffic_is_of_main_memory_alone():
    copied, sliced, fused, branch = 32, 8, 32 + 16 + 16, 32
    assert traffic.bytes_moved(PROGRAM) == copied + sliced + fused + branch


def test_what_does_not_compile_for_one_target_is_told():
    fact = {"question": "q", "case": "c", "at": {"n": 1}, "floor_bytes": 4}
    fact |= {"temp_bytes": 2**20, "compiler_bytes": 8}
    rows = [
        {**fact, "competitor": name, "target": target}
        for name, target in (("jloss", "H100"), ("jloss", "TPU v5e"), ("jax", "H100"))
    ]
    *_, ours, theirs = report.compiler_facts(rows)
    assert ours == "| c: n 1 | jloss | 1.00 | 2.00 | 1.00 | 2.00 |"
    assert theirs == "|  | jax | 1.00 | 2.00 | none |  |"
