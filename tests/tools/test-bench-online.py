#!/usr/bin/env python3
"""cistern bench online, in a small: a version is learned while sequences come in, and nothing is left behind. How good the version is, the bench says; here it is only better than the plain codec.

    test-bench-online.py CISTERN MODEL
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time


def main(cistern, model):
    command = [cistern, "bench", "online", "--json", "--model", model, "--sequences", "4", "--test", "1",
               "--first-tokens", "2048", "--cpu-percent", "100", "--rate", "4000", "--busy"]
    with tempfile.TemporaryDirectory() as folder:
        env = dict(os.environ, TMPDIR=folder)
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
        result = json.loads(done.stdout)
        plain, calibrated, version = result["plain"], result["calibrated"], result["versions"][0]
        assert 2048 <= version["tokens_learned_from"] <= version["tokens_put"] <= result["tokens_put"], result
        assert 1.8 < plain["ratio"] < 2.2, plain
        for worth in (version["at_rung"], calibrated["at_rung"]):
            assert worth["rung"] == 16, worth
            assert worth["ratio"] > 4 * plain["ratio"], worth
            assert plain["error_k"] < worth["error_k"] < 0.5 and plain["error_v"] < worth["error_v"] < 0.5, worth
        assert 1.7 < result["put_ratios"][0] < 2 and len(result["put_ratios"]) == 4, result["put_ratios"]
        assert result["learning"]["samples"] > 0 and result["put_cost"]["sample_ns"] > 0
        assert os.listdir(folder) == []

        child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(1)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=60) in (130, 0)
        assert os.listdir(folder) == []

        for wrong in (["--sequences", "1"], ["--cpu-percent", "101"], ["--first-tokens", "few"], ["more"]):
            bad = subprocess.run([cistern, "bench", "online"] + wrong, env=env, capture_output=True)
            assert bad.returncode == 2 and bad.stderr, bad
        bad = subprocess.run([cistern, "bench", "online", "--model", folder], env=env, capture_output=True)
        assert bad.returncode == 1 and bad.stderr, bad
        assert os.listdir(folder) == []


if __name__ == "__main__":
    main(*sys.argv[1:])
