"""The README's code runs, and prints what its comments say."""

import contextlib
import io
import json
import pathlib
import re

import jax
import pytest

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_code_prints_what_it_says():
    namespace = {}
    with jax.numpy_dtype_promotion("standard"):
        for block in BLOCKS:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(block, namespace)
            said = re.findall(r"print\(.*\)(?:  # (.*))?", block)
            lines = printed.getvalue().splitlines()
            assert len(lines) >= len(said)
            for line, expected in zip(lines, said):
                assert not expected or line == expected


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http|#)([^)]+)\)", README))
def test_links_lead_somewhere(path):
    assert (pathlib.Path(__file__).parent.parent / path).exists()


def test_it_quotes_the_committed_certificate():
    results = pathlib.Path(__file__).parent.parent / "benchmarks/results/cpu/accuracy.json"
    totals = json.loads(results.read_text())["totals"]
    for library in ("jloss", "optax", "torch"):
        counts = (totals[library][kind] for kind in ("checks", "failed", "refused"))
        row = r"\| {} [^|]+\| {} \| {} \| {} \|".format(library, *counts)
        assert re.search(row, README), library
