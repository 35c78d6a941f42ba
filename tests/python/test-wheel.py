#!/usr/bin/env python3
"""test-wheel.py LIBRARY VERSION: the Python package as a wheel, built and imported away from the source tree."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

library, version = os.path.abspath(sys.argv[1]), sys.argv[2]
source = pathlib.Path(__file__).resolve().parent.parent.parent / "python"
try:
    import setuptools  # noqa: F401
    import wheel  # noqa: F401
except ImportError as e:
    print(f"skipped: {e} (apt-get install python3-setuptools python3-wheel)")
    sys.exit(77)

with tempfile.TemporaryDirectory() as folder:
    shutil.copytree(source, f"{folder}/python", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    built = subprocess.run([sys.executable, "-c", "from setuptools import build_meta; print(build_meta.build_wheel('..'))"],
                           cwd=f"{folder}/python", capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    name = built.stdout.splitlines()[-1]
    assert name == f"cistern-{version}-py3-none-any.whl", name
    program = "import cistern, numpy; print(cistern.__version__, cistern.__file__)"
    said = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True,
                          env=dict(os.environ, PYTHONPATH=f"{folder}/{name}", CISTERN_LIBRARY=library))
    assert said.stdout.split() == [version, f"{folder}/{name}/cistern/__init__.py"], said
    # Without the library it says what to do.
    said = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True,
                          env=dict(os.environ, PYTHONPATH=f"{folder}/{name}", CISTERN_LIBRARY="/nowhere/libcistern.so"))
    assert said.returncode and "install it, or name it in $CISTERN_LIBRARY" in said.stderr, said
