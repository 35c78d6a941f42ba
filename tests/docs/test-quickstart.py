#!/usr/bin/env python3
"""test-quickstart.py BUILD: runs the commands of docs/quickstart.md as they stand there, in a home of their own, and looks
at what they print. BUILD must be build/ in the source tree, since that is what the page says."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

root = pathlib.Path(__file__).resolve().parent.parent.parent
if pathlib.Path(sys.argv[1]).resolve() != root / "build":
    print("skipped: the build is not in build/, which the page names")
    sys.exit(77)
blocks = re.findall(r"^```sh\n(.*?)^```$", (root / "docs/quickstart.md").read_text(), re.M | re.S)
assert len(blocks) == 5
home = tempfile.mkdtemp(prefix="cistern-quickstart-")
environment = {k: v for k, v in os.environ.items() if not k.startswith("CISTERN")}
# The distribution's Python has the distribution's numpy.
environment.update(HOME=home, PATH="/usr/bin:" + environment["PATH"])
shell = subprocess.Popen(["bash", "-c", "trap 'kill -9 $(jobs -p) 2> /dev/null || true' EXIT\nset -eu\n" + "\n".join(blocks)], cwd=root, env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
try:
    said, _ = shell.communicate(timeout=100)
finally:
    try:
        os.killpg(shell.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    left = os.listdir(home)
    shutil.rmtree(home)
print(said)
assert shell.returncode == 0, shell.returncode
assert not left, left
for line in (r"cistern\.conf: sound", r"cached: 1000 tokens", r"of a longer prompt: 768 tokens are cached",
             r"restored: 1000 tokens; the window bit for bit: True", r"relative error of all: 0\.00\d\d",
             r"default +my-model "):
    assert re.search(line, said), line
