#!/usr/bin/env python3
"""cistern plan: its figures against the same sums written down again, and what it refuses.

    test-cmd-plan.py CISTERN
"""

import json
import math
import subprocess
import sys


def transform_bytes(layers, per_group, width, kept):
    total = 2 * 46 * (2 * 32 + 4 * 2)  # tables of both planes: 32 frequencies and 2 biases in each of 46 rows
    for first in range(0, layers, per_group):
        p = min(per_group, layers - first) * width
        r = math.ceil(kept * p)
        total += 2 * (2 * r * p + 8 * p + 4 * r)  # basis; mean and weights; deviations; K and V
    return total


def main(cistern):
    def run(*arguments):
        return subprocess.run([cistern, "plan", *arguments], capture_output=True, text=True)

    models = json.loads(run("--json").stdout)["models"]
    assert [(m["model"], m["layers"], m["layers_per_group"]) for m in models] == [
        ("Llama-3.1-8B", 32, 2), ("Llama-3.3-70B", 80, 2)]
    for m in models:
        width = m["kv_heads"] * m["dim"]
        for row in m["costs"]:
            for cost, per_group in ((row["grouped"], m["layers_per_group"]), (row["full"], m["layers"])):
                # kept is printed to a few digits: a component more or less in each group
                p = per_group * width
                slack = 2 * cost["groups"] * (2 * p + 12) + 1e-5 * cost["transform_bytes"]
                assert abs(cost["transform_bytes"] -
                           transform_bytes(m["layers"], per_group, width, row["kept"])) <= slack
                assert math.isclose(cost["share"], cost["transform_bytes"] / (2 * m["parameters"]), rel_tol=1e-4)
            # Equal components in all: as many times less work as there are groups.
            ratio = row["full"]["decode_flops"] / row["grouped"]["decode_flops"]
            assert math.isclose(ratio, row["grouped"]["groups"], rel_tol=1e-2)
        assert m["costs"][-1]["grouped"]["share"] <= m["share_goal"]
        assert m["kept_within_goal"] == 1 or m["costs"][-1]["grouped"]["share"] > 0.99 * m["share_goal"]

    other = json.loads(run("--json", "--layers", "5", "--kv-heads", "2", "--dim", "64", "--parameters", "3019520",
                           "--layers-per-group", "2", "--kept", "0.5").stdout)["models"][0]["costs"][0]
    assert other["grouped"]["transform_bytes"] == transform_bytes(5, 2, 128, 0.5)
    assert other["grouped"]["groups"] == 3 and other["grouped"]["components"] == 2 * 320

    assert "Llama-3.3-70B" in run("--model", "llama-3.3-70b").stdout
    for bad in (["--model", "none"], ["--layers", "3"], ["--layers", "0"], ["--kept", "0"], ["--kept", "1.1"],
                ["--kept", "nan"], ["--layers-per-group", "33"], ["--layers", "-1"], ["more"]):
        done = run(*bad)
        assert done.returncode == 2 and done.stderr and not done.stdout, (bad, done)


if __name__ == "__main__":
    main(*sys.argv[1:])
