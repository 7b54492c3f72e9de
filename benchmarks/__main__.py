"""Runs every question of `benchmarks/questions`, or those that are named.

Writes results.json, results.md and pictures. On an accelerator it picks sizes that fill it.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import pathlib
import pkgutil
import sys

import jax

from benchmarks import compiled, questions, report
from benchmarks.machine import machine, version
from benchmarks.measure import measure

ROUNDS = {False: (25, 15.0), True: (5, 0.4)}  # quick or not: rounds, and seconds for a case


def main(given) -> int:
    """Measures, writes, and says how many rows could not be trusted."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # of a GPU, torch needs some
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")
    if jax.default_backend() != "cpu":  # as torch: float32 is no TF32
        jax.config.update("jax_default_matmul_precision", "highest")
    results = ask(given.questions or names_of_questions(), given.quick, given.out)
    if version("matplotlib"):
        from benchmarks import pictures

        pictures.draw(results, given.out)
    else:
        print("matplotlib is absent: no pictures")
    print(f"wrote {', '.join(sorted(str(file) for file in given.out.iterdir()))}")
    return any(
        row["status"] != "exact" for row in results["rows"] if report.is_ours(row["competitor"])
    )


def ask(names: list[str], quick: bool, folder: pathlib.Path) -> dict:
    """The machine, and a row for every competitor in every case of these questions."""
    modules = {name: importlib.import_module(f"benchmarks.questions.{name}") for name in names}
    scale = "quick" if quick else "cpu" if jax.default_backend() == "cpu" else "accelerator"
    asked = [(name, case) for name, module in modules.items() for case in module.cases(scale)]
    peers = {rival.split()[0] for _, case in asked for rival in case.competitors}
    here, rows = machine(quick, peers), []
    told = {name: module.__doc__.strip() for name, module in modules.items()}
    results = {"machine": here._asdict(), "scale": scale, "questions": told, "rows": rows}
    print(*report.header(here._asdict()), sep="\n", flush=True)
    for i, (name, case) in enumerate(asked, 1):
        print(f"[{i}/{len(asked)}] {name}: {case.name} {report.told(case.at)}", flush=True)
        for row in measure(case, *ROUNDS[quick], here.versions.get):
            rows.append({"question": name, **row})
            print(f"    {report.in_a_line(row)}", flush=True)
        forget()
        report.save(results, folder)  # each time: the machine may be taken away
    if scale == "cpu":
        results["compiled"] = compile_for_absent(modules)
        report.save(results, folder)
    return results


def forget():
    """Leaves to the next case what memory the last one took."""
    jax.clear_caches()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()


def compile_for_absent(modules) -> list[dict]:
    """Where there is no accelerator: what the compilers say of the sizes that would fill one."""
    rows = []
    for target in compiled.NEEDS:
        if absent := compiled.missing(target):
            print(f"not compiled for {target}: {', '.join(absent)} not installed", flush=True)
            continue
        for name, module in modules.items():
            print(f"compiling {name} for {target}, running nothing", flush=True)
            for case in module.cases("accelerator"):
                rows += [{"question": name, **row} for row in compiled.facts(case, target)]
    return rows


def names_of_questions() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(questions.__path__))


def arguments(argv=None):
    names = names_of_questions()
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="small sizes; under two minutes")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/benchmarks"))
    given = parser.parse_args(argv)
    if unknown := sorted(set(given.questions) - set(names)):
        parser.error(f"no question {', '.join(unknown)}; there are {', '.join(names)}")
    return given


if __name__ == "__main__":
    sys.exit(main(arguments()))
