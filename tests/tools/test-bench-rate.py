#!/usr/bin/env python3
"""cistern bench rate --quick: every codec has its curve, the figures hang together, protection shows; and nothing is
left behind.

    test-bench-rate.py CISTERN MODEL

A few prompts say nothing about who wins, so no figure is held against a goal here.
"""

import json
import os
import subprocess
import sys
import tempfile

WANTED = {"cistern", "kvtc", "uniform", "fp8"}


def check_curve(name, points):
    """More loss for more ratio, as far as a curve of squared error must."""
    points = sorted(points, key=lambda p: p["ratio_coded"])
    for a, b in zip(points, points[1:]):
        # One of the two may stand where the other saves all that a rung has to.
        assert a["error_k"] <= b["error_k"] and a["error_v"] <= b["error_v"], (name, a, b)
        assert a["error_k"] + a["error_v"] < b["error_k"] + b["error_v"], (name, a, b)
    for p in points:
        assert 1 <= p["ratio_total"] <= p["ratio_coded"] < 100, p
        assert p["kl"] >= 0 and p["attn_error"] > 0 and 0 <= p["recall"] <= 1, p
        assert p["bound_bits_per_value"] < p["bits_per_value"], p
        assert abs(p["ratio_coded"] * p["bits_per_value"] - 16) < 1e-3, p


def main(cistern, model):
    with tempfile.TemporaryDirectory() as folder:
        env = dict(os.environ, TMPDIR=folder)

        def run(*arguments):
            return subprocess.run([cistern, "bench", "rate", *arguments], env=env, capture_output=True)

        done = run("--json", "--quick", "--no-sinks", "--no-window", "--model", model)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["sink_tokens"] == result["window_tokens"] == 0
        curves = {name: [p for p in result["points"] if p["codec"] == name] for name in
                  {p["codec"] for p in result["points"]}}
        assert set(curves) >= WANTED, set(curves)
        for name, points in curves.items():
            check_curve(name, points)
        for codec in ("cistern", "kvtc"):
            worth = {p["without"]: p for p in result["protection"] if p["codec"] == codec}
            assert set(worth) == {"nothing", "sinks", "window"}
            assert all(worth[w]["attn_error"] > worth["nothing"]["attn_error"] for w in ("sinks", "window"))
            assert worth["nothing"]["ratio_total"] < worth["window"]["ratio_total"]
        assert result["summary"]["cistern"]["ratio_over_kvtc"]["goal"] == 1.6
        assert os.listdir(folder) == [], os.listdir(folder)

        assert run("--quick", "--model", folder).returncode == 1
        for bad in (["--texts", "0"], ["--texts", "x"], ["--recalls", "-1"], ["more"], ["--what"]):
            done = run(*bad)
            assert done.returncode == 2 and done.stderr, (bad, done)
        assert os.listdir(folder) == [], os.listdir(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
