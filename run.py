"""Makes .venv from requirements.lock and runs a job in it. Needs Python 3.11 or newer, no more.

python3 run.py [test | bench] [arguments]    trains on MNIST, or runs the tests or the benchmarks
python3 run.py --here [as above]             uses this Python and its jax, adds what is missing
"""

import os
import pathlib
import sys
from importlib import metadata, util
from subprocess import call, check_call


def make_venv(python, recipe):
    stamp = pathlib.Path(".venv/made_from")
    if stamp.exists() and stamp.read_text() == recipe:
        return
    print("run.py: makes .venv, which takes a minute or two", file=sys.stderr)
    # Debian keeps ensurepip in a package of its own; apt-get refuses all but root.
    apt = "apt-get install --yes python{}.{}-venv".format(*sys.version_info)
    if not util.find_spec("ensurepip") and os.system(f"apt-get update && {apt}"):
        sys.exit(f"run.py: this Python cannot make environments; type: sudo {apt}")
    check_call([sys.executable, "-m", "venv", "--clear", ".venv"])
    pip = (python, "-m", "pip", "install", "-qq")
    check_call([*pip, "--require-hashes", "--only-binary=:all:", "-r", "requirements.lock"])
    check_call([*pip, "--no-index", "--no-deps", "--no-build-isolation", "-e", "."])
    stamp.write_text(recipe)


def add_missing(pyproject):
    import tomllib  # since Python 3.11; an older one gets as far as the sentence in `main`

    if not util.find_spec("jax"):
        sys.exit("run.py --here: this Python has no jax; install the one for your accelerator")
    project = tomllib.loads(pyproject)["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["test"]
    own_jax = [f"{name}=={metadata.version(name)}" for name in ("jax", "jaxlib")]
    print("run.py: keeps", *own_jax, file=sys.stderr)
    check_call([sys.executable, "-m", "pip", "install", "-qq", *own_jax, *needed])
    os.environ["PYTHONPATH"] = os.getcwd()


def main(python, job):
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(f"run.py: jloss needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    os.chdir(pathlib.Path(__file__).resolve().parent)
    lock, project = (pathlib.Path(f).read_text() for f in ("requirements.lock", "pyproject.toml"))
    if "--here" in job:
        job.remove("--here")
        add_missing(project)
    else:
        python = os.path.abspath(f".venv/{'Scripts' if os.name == 'nt' else 'bin'}/python")
        make_venv(python, f"{sys.version} in {os.getcwd()}\n{project}\n{lock}")
    named = {"test": "-m pytest -n auto", "bench": "-m benchmarks"}.get("".join(job[:1]))
    sys.exit(call([python, *(named.split() + job[1:] if named else ["examples/mnist.py", *job])]))


if __name__ == "__main__":
    main(sys.executable, sys.argv[1:])
