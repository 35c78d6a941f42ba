#!/usr/bin/env python3
"""cistern bench sinks, in a small: on the model that is kept here every planted separator is found, and finding it helps.

    test-bench-sinks.py CISTERN MODEL
"""

import json
import os
import subprocess
import sys
import tempfile


def main(cistern, model):
    with tempfile.TemporaryDirectory() as folder:
        env = dict(os.environ, TMPDIR=folder)
        done = subprocess.run([cistern, "bench", "sinks", "--json", "--model", model, "--sequences", "3"], env=env,
                              stdout=subprocess.PIPE, check=True)
        result = json.loads(done.stdout)
        for way in ("cold", "trained", "observed"):
            found = result["found"][way]
            assert found["sinks"] > 20 and found["planted"] >= 3, found
            assert found["planted_found"] == found["planted"], (way, found)
        # Some fifty sinks: one that is missed is 2%.
        for way, least in (("cold", 0.9), ("trained", 0.9), ("observed", 0.95)):
            assert result["found"][way]["recall_at_2pct"] >= least, (way, result["found"][way])
        assert result["detector"]["correlation"] > 0.5, result["detector"]
        for row in result["planted"]:
            assert row["trained"]["kl"] < 1.5 * row["oracle"]["kl"] + 1e-5, row
            assert row["nothing"]["kl"] > 2 * row["trained"]["kl"], row
        assert 0 < result["cost"]["share"] < 1
        assert os.listdir(folder) == []
        for wrong in (["--sequences", "1"], ["more"]):
            bad = subprocess.run([cistern, "bench", "sinks"] + wrong, env=env, capture_output=True)
            assert bad.returncode == 2 and bad.stderr, bad
        bad = subprocess.run([cistern, "bench", "sinks", "--model", folder], env=env, capture_output=True)
        assert bad.returncode == 1 and bad.stderr, bad
        assert os.listdir(folder) == []


if __name__ == "__main__":
    main(*sys.argv[1:])
