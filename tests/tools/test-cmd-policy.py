#!/usr/bin/env python3
"""cistern policy and cistern inspect as their user types them: simulate on a made-up capture, a daemon's policies set and
read, a chunk explained and drawn.

    test-cmd-policy.py CISTERN CISTERND EXAMPLE ENGINE MODEL
EXAMPLE: a program that attaches to the daemon in $CISTERN_SOCKET and puts something. ENGINE: cistern-engine, with MODEL.
"""

import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

import numpy as np

cistern, cisternd, example, engine, model = sys.argv[1:]


def run(*arguments, status=0):
    done = subprocess.run([cistern, *arguments], capture_output=True, text=True)
    assert done.returncode == status, (arguments, done)
    return done.stdout if status == 0 else done.stderr


def capture(path, tokens, layers=3, heads=2, dim=16):
    """A capture as capture.h has it; token 100 is far from all others."""
    random = np.random.default_rng(1)
    tensors = {}
    for layer in range(layers):
        for plane in "kv":
            x = random.standard_normal((tokens, heads, dim)) + 2
            x[100] += 30 * np.sign(random.standard_normal((heads, dim)))
            tensors[f"layers.{layer}.{plane}"] = ("F16", x.astype(np.float16))
    tensors["positions"] = ("I64", np.arange(tokens, dtype=np.int64))
    header, body = {"__metadata__": {"format": "cistern-capture-1", "model": "made up", "rope_kind": "none"}}, b""
    for name, (kind, x) in tensors.items():
        header[name] = {"dtype": kind, "shape": x.shape, "data_offsets": [len(body), len(body) + x.nbytes]}
        body += x.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def simulated(folder):
    capture(folder / "a.safetensors", 600)
    capture(folder / "b.safetensors", 300)
    result = json.loads(run("policy", "simulate", "--json", "--capture", str(folder)))
    assert result["tokens"] == 900 and result["chunks"] == 5, result
    # Four and the outlier of each sequence; of the first chunk nothing is known before it.
    assert result["sinks_found"] >= 1 and result["classes"]["sink"] >= 9, result
    assert result["classes"]["window"] >= 2 * 120 and 1.5 < result["coded_ratio"] < 3, result
    fewer = json.loads(run("policy", "simulate", "--json", "--capture", str(folder), "--set", "sink_search=off",
                           "--set", "window_tokens=0", "--set", "sink_tokens=2"))
    assert fewer["classes"] == dict(fewer["classes"], sink=4, window=0), fewer
    bound = json.loads(run("policy", "simulate", "--json", "--capture", str(folder), "--set", "max_error=0.001"))
    assert max(bound["worst_error"]) <= 0.001 and bound["classes"]["exact"] > 0, bound
    assert "tokens in 5 chunks" in run("policy", "simulate", "--capture", str(folder / "a.safetensors"),
                                       str(folder / "b.safetensors"))
    assert "did you mean max_error" in run("policy", "simulate", "--capture", str(folder), "--set", "max_eror=1", status=1)
    assert "no-such" in run("policy", "simulate", "--capture", str(folder / "no-such"), status=1)
    (folder / "c.safetensors").write_bytes(b"nonsense")
    assert "c.safetensors" in run("policy", "simulate", "--capture", str(folder / "c.safetensors"), status=1)
    run("policy", "simulate", status=2)


def live(folder):
    socket = str(folder / "s")
    (folder / "c.conf").write_text(f"[daemon]\nsocket = {socket}\n[pool]\nsize = 16M\n[namespace b]\n")
    with subprocess.Popen([cisternd, "--config", str(folder / "c.conf")], stderr=subprocess.DEVNULL) as daemon:
        try:
            for _ in range(200):
                if os.path.exists(socket):
                    break
                time.sleep(0.05)
            told(socket)
            subprocess.run([example], env=dict(os.environ, CISTERN_SOCKET=socket), check=True)
            explained(folder, socket)
            shown(folder, socket)
        finally:
            daemon.terminate()


def told(socket):
    at = ("--socket", socket)
    assert run("policy", "set", "target_ratio=20", *at).startswith("default: version 2: target_ratio 16 -> 20")
    assert run("policy", "get", "default", "target_ratio", *at) == "20\n"
    assert run("policy", "set", "b", "preset=compact", "alarm_error=1%", *at).startswith("b: version 3:")
    assert "[b] version 3" in run("policy", "get", *at)
    assert json.loads(run("policy", "get", "b", "--json", *at))["policies"][0]["policy"]["alarm_error"] == 0.01
    assert run("policy", "reset", "b", "alarm_error", *at).startswith("b: version 4: alarm_error 0.01 -> 0")
    assert run("policy", "reset", "target_ratio", *at).startswith("default: version 5: target_ratio 20 -> 16")
    listed = run("policy", "list", *at)
    assert "target_ratio = 16   (1 to 1000 x)" in listed and "mode = ratio   (ratio|fidelity|pressure)" in listed
    assert "max_error: 2 is not 0 to 1" in run("policy", "set", "max_error=2", *at, status=1)
    assert "no such namespace" in run("policy", "set", "c", "max_error=0", *at, status=1)
    assert "policy_file" in run("policy", "save", *at, status=1)
    for wrong in (("set",), ("set", "b"), ("set", "x=1", "x=2"), ("list", "more"), ("sit",), ()):
        run("policy", *wrong, *at, status=2)


def explained(folder, socket):
    at = ("--socket", socket)
    chunks = json.loads(run("inspect", "--json", *at))["chunks"]
    assert chunks and len(run("inspect", *at).splitlines()) == len(chunks)
    key = chunks[-1]["key"]
    picture = folder / "out.svg"
    said = run("inspect", key[:10], "--plot", str(picture), *at)
    assert key in said and "position" in said and "plain" in said, said
    root = xml.etree.ElementTree.parse(picture).getroot()
    assert root.tag.endswith("svg") and len(root) > 20
    whole = json.loads(run("inspect", key, "--json", *at))
    assert whole["frame"]["key"] == key and whole["decision"]["policy_version"] == 5
    assert sum(n for _, n in whole["frame"]["classes"]) == whole["frame"]["tokens"]
    assert sum(s["bytes"] for s in whole["frame"]["sections"]) < whole["frame"]["bytes"]
    assert "hexadecimal" in run("inspect", "xyz", *at, status=1)
    assert "no decisions" in run("inspect", "0123456789", *at, status=1)
    assert "not a frame" in run("inspect", str(folder / "c.conf"), *at, status=1)


def shown(folder, socket):
    """An engine that shows its queries trains the model's detector, and later chunks are judged by it."""
    text = (pathlib.Path(model) / "heldout/test.txt").read_text()
    prompts = [{"id": i, "text": "\x01" + text[i * 3000:i * 3000 + 900] + "\x02" + text[i * 5000 + 9:i * 5000 + 600]}
               for i in range(3)]
    (folder / "p.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    command = [engine, "prefill", "--socket", socket, "--model", model, "--prompts", str(folder / "p.jsonl")]
    done = subprocess.run(command + ["--observe"], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    # 1492 tokens are six chunks; the last one has no queries behind it.
    assert [line["judged_chunks"] for line in lines[:3]] == [5, 5, 5], lines
    status = json.loads(run("status", "--json", "--socket", socket))
    known = [s for s in status["sinks"] if s["model"].startswith("cistern-mini")][0]
    assert known["trained"] and known["observed_tokens"] == 3 * 5 * 256 and known["correlation"] > 0.3, known
    reasons = {}
    for chunk in json.loads(run("inspect", "--json", "--socket", socket))["chunks"]:
        for sink in json.loads(run("inspect", chunk["key"], "--json", "--socket", socket))["decision"]["sinks"]:
            reasons.setdefault(sink["reason"], []).append(sink["position"])
    # The separator in the middle is one: attention was seen resting on it.
    assert 901 in reasons["attention"], reasons


with tempfile.TemporaryDirectory() as name:
    simulated(pathlib.Path(name))
with tempfile.TemporaryDirectory() as name:
    live(pathlib.Path(name))
