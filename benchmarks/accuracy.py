"""How exact is every loss, beside optax and torch?

The certificate: for every row of the tests' catalogue, every size of input and every dtype, how far
value and gradient are from mpmath's at a hundred digits or more, for jloss and for the peers that
have the loss too, where they fail included. It leaves `accuracy.json` (all of it), `accuracy.md`
and `accuracy.png` in the folder `--out`, and exits with 1 if a check of jloss failed.
Inputs and budgets are those of jloss's own tests; torch runs on the CPU.

Errors are in units of conditioning: 1 is what rounding every input once, to the input's dtype, may
do. (The tests take the result's dtype. For half-precision inputs jloss answers in float32, so that
here, where all are measured alike, its values lie far below 1.) NaN or inf where the exact number
is finite is an infinite error: also where only float16 cannot hold it.

    python -m benchmarks.accuracy [--quick] [--out FOLDER]
"""

import argparse
import concurrent.futures
import functools
import inspect
import json
import math
import multiprocessing
import os
import pathlib
import platform
import sys

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax

import jloss
from benchmarks import report

try:
    import torch
except ImportError:
    torch = None

# The catalogue and its oracle are the tests', and no package.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
import oracle
from catalog import CATALOG

DTYPES = ("float16", "bfloat16", "float32", "float64")
LIBRARIES = ("jloss", "optax", "torch")
PARTS = ("value", "gradient")
EXAMPLES, QUICK = 16, 3
SPAWNED = multiprocessing.get_context("spawn")  # jax and torch have threads, which no fork survives

# Where torch.nn.functional (F) has the loss with the same meaning: one value for each example.
TORCH = {
    "squared_error": lambda F, x, y: F.mse_loss(x, y, reduction="none"),
    "absolute_error": lambda F, x, y: F.l1_loss(x, y, reduction="none"),
    "huber_loss": lambda F, x, y: F.huber_loss(x, y, reduction="none"),
    "smooth_l1_loss": lambda F, x, y: F.smooth_l1_loss(x, y, reduction="none"),
    "cosine_similarity": lambda F, x, y: F.cosine_similarity(x, y, dim=-1),
    "softmax_cross_entropy": lambda F, x, y: F.cross_entropy(x, y, reduction="none"),
    "softmax_cross_entropy_with_integer_labels": lambda F, x, y: F.cross_entropy(
        x, y, reduction="none"
    ),
    "softmax_cross_entropy_with_integer_labels-smoothed": lambda F, x, y: F.cross_entropy(
        x, y, label_smoothing=0.125, reduction="none"
    ),
    "sigmoid_binary_cross_entropy": lambda F, x, y: F.binary_cross_entropy_with_logits(
        x, y.to(x.dtype), reduction="none"
    ),
    "sigmoid_binary_cross_entropy-soft": lambda F, x, y: F.binary_cross_entropy_with_logits(
        x, y, reduction="none"
    ),
    "sigmoid_binary_cross_entropy-weighted-smoothed": (  # torch smooths no bits: by hand, exactly
        lambda F, x, y: F.binary_cross_entropy_with_logits(
            x, 0.75 * y.to(x.dtype) + 0.125, pos_weight=x.new_tensor(3.0), reduction="none"
        )
    ),
    "binary_cross_entropy": lambda F, x, y: F.binary_cross_entropy(
        x, y.to(x.dtype), reduction="none"
    ),
    "nll_loss": lambda F, x, y: F.nll_loss(x, y, reduction="none"),
    "kl_divergence": lambda F, x, y: F.kl_div(x, y, reduction="none").sum(-1),
    "kl_divergence_with_log_targets": lambda F, x, y: F.kl_div(
        x, y, reduction="none", log_target=True
    ).sum(-1),
    "poisson_nll_loss": lambda F, x, y: F.poisson_nll_loss(
        x, y.to(x.dtype), log_input=True, full=False, reduction="none"
    ),
    "gaussian_nll_loss": lambda F, x, y: F.gaussian_nll_loss(
        x, y, torch.full_like(x, math.exp(0.5)), reduction="none"
    ),
}


def in_jax(loss):
    """From inputs in float64 and a dtype to value and gradient, in one compiled function."""

    @jax.jit
    def both(x, y):
        value, pull = jax.vjp(lambda x: loss(x, y), x)
        return value, *pull(jnp.ones_like(value))

    def run(x, y, dtype):
        with jax.enable_x64(dtype == "float64"):
            return both(
                jnp.asarray(x, dtype), jnp.asarray(y, dtype if y.dtype.kind == "f" else None)
            )

    def as_users_do(x, y, dtype):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return tuple(map(np.asarray, run(x, y, dtype)))

    return as_users_do


def in_torch(loss):
    """The same by autograd."""

    def run(x, y, dtype):
        kind = getattr(torch, dtype)
        x = torch.tensor(x, dtype=kind, requires_grad=True)
        y = torch.tensor(y, dtype=kind if y.dtype.kind == "f" else None)
        value = loss(torch.nn.functional, x, y)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        return tuple(
            t.detach().double().numpy().astype(jnp.dtype(str(t.dtype).removeprefix("torch.")))
            for t in (value, gradient)
        )

    return run


def optax_twin(loss):
    """optax's function of the same name, with the same arguments bound; None if it takes others."""
    bound = loss if isinstance(loss, functools.partial) else functools.partial(loss)
    twin = getattr(optax.losses, bound.func.__name__, None)
    if twin is None or not bound.keywords.keys() <= inspect.signature(twin).parameters.keys():
        return None
    return functools.partial(twin, **bound.keywords)


def competitors(name):
    """By library: how to run this loss."""
    runs = {"jloss": in_jax(CATALOG[name].loss)}
    twin = optax_twin(CATALOG[name].loss)
    if twin is not None:
        runs["optax"] = in_jax(twin)
    if torch is not None and name in TORCH:
        runs["torch"] = in_torch(TORCH[name])
    return runs


def exact(place, dtype):
    """As the tests' oracle; by enough digits for float64 where a hundred leave mere noise."""
    known = oracle.exact(*place)
    small = any(np.abs(part[..., 0]).min() < 1e-30 for part in known)
    return oracle.exact(*place, digits=330) if small and dtype == "float64" else known


def error(got, exact, dtype):
    """The worst and the mean error of the examples, and what there was in place of a number."""
    tiny, eps = float(jnp.finfo(got.dtype).tiny), float(jnp.finfo(dtype).eps)
    got = got.astype("f8").reshape(exact.shape[:-1])
    with np.errstate(invalid="ignore"):  # inf less a number
        off = np.abs(got - exact[..., 0]) / (eps * exact[..., 1] + tiny)
    off = np.where(np.isfinite(got), off, np.inf)
    kind = "NaN" if np.isnan(got).any() else "inf" if np.isinf(got).any() else None
    return {"worst": float(off.max()), "mean": float(off.mean()), "not_finite": kind}


def check(name, dtype, region, library, run, count):
    """Two checks: of the value and of the gradient."""
    row = {"loss": name, "dtype": dtype, "region": region, "library": library}
    row |= {"value": None, "gradient": None, "budget": oracle.budget(name)}
    place = name, region, "half" if "16" in dtype else "single", count
    examples = oracle.examples(*place)
    try:
        got = run(*examples, dtype)
    except Exception as refusal:  # each library has its own ways to say that it has no such dtype
        reason = str(refusal).partition("\n")[0][:200]
        return {**row, "status": "refused", "reason": f"{type(refusal).__name__}: {reason}"}
    row |= {p: error(g, e, dtype) for p, g, e in zip(PARTS, got, exact(place, dtype), strict=True)}
    over = [p for p in PARTS if is_over(row, p)]
    reason = ", ".join(f"{p} {shown(row[p])}" for p in over)
    return {**row, "status": "failed" if over else "passed", "reason": reason}


def is_over(row, part):
    return row[part] is not None and not row[part]["worst"] <= row["budget"]


def shown(error):
    return error["not_finite"] or f"{error['worst']:.2g}"


def checks_of(name, count):
    """All checks of one loss."""
    rows = [
        check(name, dtype, region, library, run, count)
        for library, run in competitors(name).items()
        for dtype in DTYPES
        for region in oracle.REGIONS
    ]
    jax.clear_caches()  # else what was compiled for every loss is kept
    return rows


def certify(names, count, tell=lambda line: None, each=map):
    """The rows of the certificate; `each` is the `map` of a pool, or Python's."""
    rows = []
    for i, mine in enumerate(each(functools.partial(checks_of, count=count), names), 1):
        sides = (f"{k} {in_words(counts(of(k, mine)))}" for k in LIBRARIES if of(k, mine))
        tell(f"{i:3}/{len(names)} {mine[0]['loss']}: {'; '.join(sides)}")
        rows += mine
    return rows


def counts(rows):
    failed = sum(is_over(row, part) for row in rows for part in PARTS)
    refused = len(PARTS) * sum(row["status"] == "refused" for row in rows)
    tried = len(PARTS) * len(rows)
    return {"checks": tried, "failed": failed, "refused": refused}


def of(library, rows):
    return [row for row in rows if row["library"] == library]


def in_words(total):
    refused = f", {total['refused']} refused" if total["refused"] else ""
    return f"{total['checks']} checks, {total['failed']} failed{refused}"


def totals(rows):
    """By library, by dtype, and of jloss and each peer where the peer has the loss."""
    result = {}
    for library in LIBRARIES:
        mine = of(library, rows)
        by_dtype = {d: counts([row for row in mine if row["dtype"] == d]) for d in DTYPES}
        result[library] = {**counts(mine), "by_dtype": by_dtype}
    result["common"] = {}
    for peer in LIBRARIES[1:]:
        shared = {row["loss"] for row in of(peer, rows)}
        both = [row for row in rows if row["loss"] in shared]
        pair = {library: counts(of(library, both)) for library in ("jloss", peer)}
        result["common"][peer] = {"losses": len(shared), **pair}
    return result


def versions():
    return {
        "jloss": jloss.__version__,
        "optax": optax.__version__,
        "torch": torch.__version__ if torch is not None else "absent",
        "jax": jax.__version__,
        "mpmath": mpmath.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
    }


def certificate(names, count, tell=lambda line: None, each=map):
    rows = certify(names, count, tell, each)
    return {"versions": versions(), "examples": count, "totals": totals(rows), "rows": rows}


def summary(result):
    """The totals as lines."""
    total, used = result["totals"], result["versions"]
    for library in LIBRARIES:
        absent = used[library] == "absent"
        yield f"{library}: " + ("absent" if absent else in_words(total[library]))
    for peer, pair in total["common"].items():
        if pair["losses"]:
            sides = "; ".join(f"{k}: {in_words(pair[k])}" for k in ("jloss", peer))
            yield f"the {pair['losses']} losses that {peer} has: {sides}"


def cell(rows, part):
    """The worst over the regions, and, where it is over budget, in which."""
    if not rows:
        return "-"
    answered = [row for row in rows if row[part]]
    if not answered:
        return "refused"
    worst = max(answered, key=lambda row: row[part]["worst"])
    text = shown(worst[part])
    return f"**{text}** ({worst['region']})" if is_over(worst, part) else text


def table(rows, dtype):
    """Markdown, one line per loss."""
    columns = [(part, library) for part in PARTS for library in LIBRARIES]
    yield "| loss | budget | " + " | ".join(f"{p}, {library}" for p, library in columns) + " |"
    yield "|---|--:|" + "--:|" * len(columns)
    for name in dict.fromkeys(row["loss"] for row in rows):
        mine = [row for row in rows if row["loss"] == name and row["dtype"] == dtype]
        cells = [cell(of(library, mine), part) for part, library in columns]
        yield f"| `{name}` | {mine[0]['budget']} | " + " | ".join(cells) + " |"


def table_of_totals(result):
    yield "| | " + " | ".join(("all dtypes", *DTYPES)) + " |"
    yield "|---|" + "--:|" * (1 + len(DTYPES))
    for library in LIBRARIES:
        total = result["totals"][library]
        cells = [in_words(t) for t in (total, *total["by_dtype"].values())]
        yield f"| {library} {result['versions'][library]} | " + " | ".join(cells) + " |"


HEADING = """# How exact is every loss, beside optax and torch?

Worst errors of value and of gradient against mpmath at a hundred digits or more, in units of
conditioning: 1 is what rounding every input once, to the input's dtype, may do. Inputs of sizes
{sizes}; {count} examples of each. A check is the value, or the gradient, of one loss at one dtype
and size.

**Bold** is over budget, with the size of the inputs in brackets. "NaN" and "inf" stand where the
exact number is finite, "refused" where there was an error in place of a number, "-" where the
library has no such loss. Inputs and budgets are those of jloss's own tests, the first example
confident and right; where the exact number is 0, as of a hinge beyond its margin, any other is far
over budget. torch runs on the CPU.

Run with {versions}.
"""


def markdown(result):
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    sizes, count = ", ".join(oracle.REGIONS), result["examples"]
    lines = [HEADING.format(sizes=sizes, count=count, versions=versions)]
    lines += [*table_of_totals(result), "", *(f"- {line}" for line in summary(result))]
    for dtype in DTYPES:
        lines += ["", f"## {dtype}", "", *table(result["rows"], dtype)]
    return "\n".join(lines) + "\n"


LEAST, MOST, INFINITE = 1e-3, 1e9, 1e11  # the ends of the picture's axis, and what lies on none
TICKS = {LEAST: "0.001", 1: "1", 1e3: "$10^3$", 1e6: "$10^6$", MOST: "$10^9$", INFINITE: "inf"}
COLOURS = {"jloss": "#0072b2", "optax": "#d55e00", "torch": "#009e73"}
MARKERS = {"jloss": "o", "optax": "s", "torch": "^"}
CAPTION = (
    "Worst error over all sizes of input; 1 is what rounding every input once may do. Shaded: over"
    " budget. Left edge: 0.001 or less; $10^9$: that or more; inf: NaN or inf; a cross: refused."
)


def picture(result, path):
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["loss"] for row in result["rows"]))
    panels = [(part, dtype) for part in PARTS for dtype in DTYPES]
    size = (4.5 + 2.5 * len(panels), 3 + 0.28 * len(names))
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, layout="constrained")
    for axis, (part, dtype) in zip(axes, panels):
        frame(axis, names, f"{part}, {dtype}")
        for library in LIBRARIES:
            mine = [row for row in of(library, result["rows"]) if row["dtype"] == dtype]
            dots(axis, names, library, mine, part)
    figure.suptitle("\n".join(summary(result)), fontsize=14)
    figure.supxlabel(CAPTION, fontsize=14)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", fontsize=14, markerscale=2)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def frame(axis, names, title):
    """An empty panel: a line for each loss, and what is over budget shaded."""
    budgets = [oracle.budget(name) for name in (names[0], *names, names[-1])]
    heights = range(-1, len(names) + 1)
    axis.fill_betweenx(heights, budgets, MOST * 3, step="mid", color="#f6e4e4", zorder=0)
    axis.axvline(INFINITE, color="#cc8888", linewidth=1, zorder=0)
    axis.set_xscale("log")
    axis.set(xlim=(LEAST / 3, INFINITE * 3), ylim=(len(names) - 0.4, -0.6), title=title)
    axis.set_xticks(list(TICKS), list(TICKS.values()))
    axis.set_yticks(range(len(names)), names, fontsize=11)
    axis.minorticks_off()
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)


def dots(axis, names, library, rows, part):
    height = lambda name: names.index(name) + 0.25 * (LIBRARIES.index(library) - 1)
    worst = {}
    for row in (row for row in rows if row[part]):
        worst[row["loss"]] = max(worst.get(row["loss"], 0), row[part]["worst"])
    places = [INFINITE if e == math.inf else min(max(e, LEAST), MOST) for e in worst.values()]
    style = {"color": COLOURS[library], "s": 22}
    axis.scatter(
        places, [*map(height, worst)], marker=MARKERS[library], label=library, zorder=3, **style
    )
    refused = {row["loss"] for row in rows if row["status"] == "refused"}
    axis.scatter([INFINITE] * len(refused), [*map(height, refused)], marker="x", **style)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer examples")
    parser.add_argument("--out", default="outputs/benchmarks", type=pathlib.Path)
    options = parser.parse_args(arguments)
    count = QUICK if options.quick else EXAMPLES
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), SPAWNED) as pool:
        each = pool.map if jax.default_backend() == "cpu" else map  # an accelerator is not shared
        # of paths, gradients are rounded as probabilities are: `sequence_losses` measures those
        names = [name for name, row in CATALOG.items() if not row.lattice]
        result = certificate(names, count, functools.partial(print, flush=True), each)
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.strict(result), indent=1, allow_nan=False)
    (options.out / "accuracy.json").write_text(text + "\n")
    (options.out / "accuracy.md").write_text(markdown(result))
    picture(result, options.out / "accuracy.png")
    print(*summary(result), f"wrote {options.out}/accuracy.{{json,md,png}}", sep="\n")
    ours = result["totals"]["jloss"]
    return int(ours["failed"] + ours["refused"] > 0)


if __name__ == "__main__":
    sys.exit(main())
