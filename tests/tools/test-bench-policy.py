#!/usr/bin/env python3
"""cistern bench policy, in a small: changes are measured, no engine call fails, the figures hang together, and nothing is
left behind. How soon and how near, the bench says; a handful of chunks meets no target.

    test-bench-policy.py CISTERN MODEL
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time


def main(cistern, model):
    command = [cistern, "bench", "policy", "--json", "--model", model, "--sequences", "2", "--calibrate", "3", "--changes", "12",
               "--depth", "3", "--chunks", "24", "--targets", "8,24"]
    with tempfile.TemporaryDirectory() as folder:
        env = dict(os.environ, TMPDIR=folder)
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
        result = json.loads(done.stdout)
        assert result["changes"] + result["changes_unseen"] == 12 and result["changes"] > 0, result
        assert result["engine_calls"] > 12 * 6 and result["engine_calls_failed"] == 0, result
        effect, put = result["effect_ms"], result["put_ms"]
        assert 0 < effect["p50"] <= effect["p99"] <= effect["max"], effect
        assert result["answer_ms"]["p50"] < effect["max"] and 0 < put["p50"] <= put["p99"], result
        low, high = result["targets"]
        assert low["target"] == 8 and high["target"] == 24 and low["chunks"] == high["chunks"] == 24, result
        # Each target is nearer than the other one is.
        assert low["ratio"] < 14 < high["ratio"], result
        for t in (low, high):
            assert t["ratio_total"] < t["ratio"] and abs(t["off"] - (t["ratio"] / t["target"] - 1)) < 1e-4, t
        assert abs(result["worst_off"] - max(abs(t["off"]) for t in result["targets"])) < 1e-4, result
        assert os.listdir(folder) == []

        child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(1)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=60) in (130, 0)
        assert os.listdir(folder) == []

        for wrong in (["--changes", "0"], ["--depth", "65"], ["--targets", "12,,20"], ["--targets", "0.5"], ["more"]):
            bad = subprocess.run([cistern, "bench", "policy"] + wrong, env=env, capture_output=True)
            assert bad.returncode == 2 and bad.stderr, bad
        bad = subprocess.run([cistern, "bench", "policy", "--model", folder], env=env, capture_output=True)
        assert bad.returncode == 1 and bad.stderr, bad
        bad = subprocess.run([cistern, "bench", "policy", "--model", model, "--text", "none.txt"], env=env,
                             capture_output=True)
        assert bad.returncode == 1 and bad.stderr, bad
        assert os.listdir(folder) == []


if __name__ == "__main__":
    main(*sys.argv[1:])
