#!/usr/bin/env python3
"""cistern demo: its figures are all there, protected tokens are exact, everything is found again; and it leaves nothing
behind, neither when it ends nor when it is interrupted.

    test-demo.py CISTERN MODEL
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

WANTED = """tokens raw_bytes stored_bytes ratio ratio_ceiling ratio_coded kl kl_recall nll_original nll_restored nll_delta_pct
recall_original recall_restored attn_error sink_tokens window_tokens ttft_recompute_ms ttft_restored_ms lookup_hits
spilled_bytes transform_bytes calibration_text demo_text""".split()


def processes(folder):
    """Command lines that name the folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = pathlib.Path("/proc", pid, "cmdline").read_bytes()
        except OSError:
            continue
        if folder.encode() in line and int(pid) != os.getpid():
            found.append(line)
    return found


def nothing_is_left(folder):
    assert os.listdir(folder) == [], os.listdir(folder)
    assert processes(folder) == []


def main(cistern, model):
    command = [cistern, "demo", "--json", "--model", model, "--texts", "3", "--recalls", "2"]
    with tempfile.TemporaryDirectory() as folder:
        env = dict(os.environ, TMPDIR=folder)
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
        result = json.loads(done.stdout)
        missing = [key for key in WANTED if key not in result]
        assert not missing, missing
        assert result["protected_exact"] is True
        assert result["lookup_hits"] == result["chunks"] > 0
        assert result["restored_tokens"] == result["tokens"]
        assert 5 * 4 <= result["sink_tokens"] < 0.02 * result["tokens"] and result["window_tokens"] == 5 * 128
        assert result["spilled_bytes"] >= result["stored_bytes"]
        assert result["calibration_text"] != result["demo_text"]
        nothing_is_left(folder)

        for wait in (0.3, 1.5, 3.0):
            child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(wait)
            child.send_signal(signal.SIGINT)
            status = child.wait(timeout=60)
            assert status in (130, 0), status  # 0: it had finished
            nothing_is_left(folder)

        bad = subprocess.run([cistern, "demo", "--model", folder], env=env, capture_output=True)
        assert bad.returncode == 1 and bad.stderr, bad
        assert subprocess.run([cistern, "demo", "--texts", "no"], env=env, capture_output=True).returncode == 2
        nothing_is_left(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
