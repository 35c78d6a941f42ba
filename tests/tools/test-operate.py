#!/usr/bin/env python3
"""test-operate.py CISTERND CISTERN EXAMPLE: what operators type: ls, drain, events, doctor, against a daemon and without."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time

from daemon import Daemon

cisternd, cistern, example = sys.argv[1:4]


def run(*arguments, status=0, **more):
    r = subprocess.run([cistern, *map(str, arguments)], capture_output=True, text=True, timeout=60, **more)
    assert r.returncode == status, (arguments, r)
    return r


def run_example(d):
    subprocess.run([example], env=dict(os.environ, CISTERN_SOCKET=str(d.socket)), check=True, stdout=subprocess.DEVNULL)


def ls(d):
    assert run("ls", "--socket", d.socket).stdout == ""
    run_example(d)
    lines = run("ls", "--socket", d.socket).stdout.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"default +my-model +[0-9a-f]{32} +256 +\d+\.\d KiB +\d+\.\d KiB +P[D-] +0 +plain", lines[0]), lines
    chunks = [json.loads(line) for line in run("ls", "--json", "--socket", d.socket).stdout.splitlines()]
    assert sorted(c["parent"] for c in chunks) == [0, chunks[0]["number"]]
    assert all(len(c["key"]) == 64 and c["in_pool"] and c["raw_bytes"] > c["frame_bytes"] > 0 for c in chunks)
    limited = run("ls", "--limit", "1", "--socket", d.socket)
    assert len(limited.stdout.splitlines()) == 1
    assert run("ls", "--namespace", "other", "--socket", d.socket).stdout == ""
    assert len(run("ls", "--namespace", "default", "--limit", "0", "--socket", d.socket).stdout.splitlines()) == 2
    for wrong in (["--limit", "x"], ["--limit", "-1"], ["more"], ["--nonsense"]):
        run("ls", *wrong, status=2)
    status = run("status", "--socket", d.socket).stdout
    assert re.search(r"^store     .* in .*/store, 0 dropped, 0 errors\n          good, 0 chunks wait", status, re.M), status
    assert re.search(r"^namespace default, 2 chunks, \d+\.\d KiB in the pool, ", status, re.M), status
    assert "draining" not in status
    # After a restart they are found on disk, with no name for their model yet.
    d.end()
    d.start()
    (first, _) = run("ls", "--socket", d.socket).stdout.splitlines()
    assert re.search(r"default +[0-9a-f]{16} .* -D ", first), first


def events(d):
    r = run("events", "--json", "--socket", d.socket)
    numbers = [json.loads(line)["number"] for line in r.stdout.splitlines()]
    assert numbers == sorted(numbers)
    follower = subprocess.Popen([cistern, "events", "--follow", "--socket", str(d.socket)], stdout=subprocess.PIPE, text=True)
    run("drain", "--timeout", "0", "--socket", d.socket)
    run("drain", "--cancel", "--socket", d.socket)
    seen = ""
    deadline = time.monotonic() + 20
    while "no longer draining" not in seen:
        assert time.monotonic() < deadline, seen
        seen += follower.stdout.readline()
    follower.kill()
    follower.wait()
    assert re.search(rf"^ *\d+ \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d daemon +uid {os.geteuid()} draining: no new engines", seen, re.M), seen
    run("events", "--from", "x", status=2)


def drain(d):
    busy = subprocess.Popen([sys.executable, "-c", "import socket, sys, time\n"
                             "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
                             "s.connect(sys.argv[1])\n"
                             "hello = b'CCIS' + bytes([1, 0, 1, 0, 96, 0, 0, 0, 0, 0, 0, 0]) + b'default'.ljust(64, b'\\0')\n"
                             "s.send(hello + (16).to_bytes(8, 'little') + (4096).to_bytes(8, 'little'))\n"
                             "answer, fds, *_ = socket.recv_fds(s, 4096, 3)\n"
                             "assert len(answer) == 72 and len(fds) == 3\n"
                             "print('attached', flush=True)\n"
                             "time.sleep(60)\n", str(d.socket)], stdout=subprocess.PIPE, text=True)
    assert busy.stdout.readline() == "attached\n"
    r = run("drain", "--timeout", "0.3", "--json", "--socket", d.socket, status=1)
    assert json.loads(r.stdout)["engines"] == 1 and json.loads(r.stdout)["draining"]
    # Nobody new gets in, and is told why; operators do.
    assert "draining  no new engines are taken" in run("status", "--socket", d.socket).stdout
    refused = subprocess.run([example], env=dict(os.environ, CISTERN_SOCKET=str(d.socket)), capture_output=True, text=True)
    assert refused.returncode and "an operator is about to stop it" in refused.stderr, refused
    run("status", "--socket", d.socket)
    run("drain", "--cancel", "--socket", d.socket)
    run_example(d)
    busy.kill()
    busy.wait()
    r = run("drain", "--stop", "--socket", d.socket)
    assert r.stdout.startswith("drained: 0 engines attached, 0 chunks to be written"), r
    assert d.process.wait(20) == 0
    d.process = None
    r = run("drain", "--socket", d.socket, status=1)
    assert "cannot reach a daemon" in r.stderr
    for wrong in (["--timeout", "x"], ["--timeout", "-1"], ["--stop", "--cancel"], ["more"]):
        run("drain", *wrong, status=2)


def trace(d):
    run_example(d)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        deadline = time.monotonic() + 10
        while True:  # the disk's part comes after the example has ended
            run("trace", "--out", path, "--socket", d.socket)
            events = json.load(open(path))["traceEvents"]
            spans = [e for e in events if e["ph"] == "X"]
            names = [s["name"] for s in spans]
            if names.count("write") == 2:
                break
            assert time.monotonic() < deadline, names
        assert (names.count("PUT"), names.count("GET"), names.count("encode"), names.count("decode")) == (1, 1, 2, 2), names
        tracks = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
        assert {"codec 0"} <= tracks and any(re.fullmatch(r"session \d+", t) for t in tracks), tracks
        assert any(t.startswith("disk") for t in tracks), tracks
        # Jobs lie within their request, and name it.
        put = next(s for s in spans if s["name"] == "PUT")
        for s in spans:
            if s["name"] == "encode":
                assert s["args"]["request"] == put["args"]["request"]
                assert put["ts"] <= s["ts"] and s["ts"] + s["dur"] <= put["ts"] + put["dur"] + 0.01
        # On one row no span begins before the one before it has ended.
        rows = {}
        for s in sorted(spans, key=lambda s: s["ts"]):
            assert s["ts"] >= rows.get((s["pid"], s["tid"]), 0) - 0.01, s
            rows[s["pid"], s["tid"]] = s["ts"] + s["dur"]
        assert json.loads(run("trace", "--socket", d.socket).stdout)["displayTimeUnit"] == "ms"
        time.sleep(0.2)
        late = json.loads(run("trace", "--last", "0.1", "--socket", d.socket).stdout)["traceEvents"]
        assert not [e for e in late if e["ph"] == "X"]
        r = run("trace", "--out", "/nowhere/trace.json", "--socket", d.socket, status=1)
        assert "/nowhere/trace.json: No such file or directory" in r.stderr, r
    for wrong in (["--last", "x"], ["--last", "-1"], ["more"]):
        run("trace", *wrong, status=2)


def capacity():
    run("plan", "capacity", "--help")
    r = json.loads(run("plan", "capacity", "--json", "--layers", "1", "--kv-heads", "1", "--dim", "25", "--pool", "100M",
                       "--store", "0", "--sessions", "100", "--turns", "3", "--turn-tokens", "10000", "--kept", "0").stdout)
    assert r["token_bytes"] == 100
    at = {row["rung"]: row for row in r["rungs"]}
    assert at[1]["session_bytes"] == 1e6 and at[4]["session_bytes"] == 250000
    assert at[1]["hit"] == 1 and at[1]["token_hit"] == 0.5
    lines = run("plan", "capacity").stdout.splitlines()
    assert lines[0].startswith("32 layers, 8 KV heads, dim 128: 128.0 KiB a token") and len(lines) == 14, lines
    for wrong in (["--pool", "x"], ["--turns", "1"], ["--layers", "1.5"], ["--model", "none"], ["more"], ["--nonsense"]):
        run("plan", "capacity", *wrong, status=2)


def pool(d):
    shown = run("pool", "--socket", d.socket).stdout
    assert re.match(r"memory  .* of .*iB\nGPU     (none|.* of .*)\n$", shown), shown
    answer = json.loads(run("pool", "--json", "--socket", d.socket).stdout)
    assert answer["pool"]["limit_bytes"] > 0
    if answer["device"] is None:
        r = run("pool", "resize", "1G", "--socket", d.socket, status=1)
        assert "uses no GPU" in r.stderr, r
    for wrong in (["resize"], ["resize", "x"], ["resize", "-1"], ["resize", "1Q"], ["shrink", "1G"], ["resize", "1", "2"]):
        run("pool", "--socket", d.socket, "--", *wrong, status=2)


def doctor():
    with Daemon(cisternd) as d, tempfile.TemporaryDirectory() as folder:
        r = run("doctor", "--config", d.config, "--disk", folder)
        assert os.listdir(folder) == []
        subjects = re.findall(r"^(?:good|slow) +(\w+) ", r.stdout, re.M)
        assert subjects == "kernel cpu memory memlock io_uring driver ipc disk daemon".split(), r.stdout
        verdicts = json.loads(run("doctor", "--json", "--config", d.config, "--disk", folder).stdout)["verdicts"]
        assert len(verdicts) == 9 and all(v["grade"] in ("good", "slow") for v in verdicts)
        assert all(bool(v["advice"]) == (v["grade"] != "good") for v in verdicts), verdicts
        socket = d.socket
    # What is bad is said, with what to do, and shows in the exit status.
    r = run("doctor", "--socket", socket, "--disk", "/nowhere", status=1)
    assert re.search(r"^bad +disk +/nowhere: No such file or directory\n +the folder of \[store\]", r.stdout, re.M), r
    assert re.search(r"^bad +daemon +cannot reach a daemon at .*\n +start it ", r.stdout, re.M), r
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as f:
        f.write("[pool]\nsize = 8T\n")
        f.flush()
        r = run("doctor", "--config", f.name, "--disk", "/tmp", status=1)
        assert re.search(r"^bad +memory .*\n +make \[pool\] size smaller", r.stdout, re.M), r
        f.write("[poll]\n")
        f.flush()
        assert "did you mean [pool]?" in run("doctor", "--config", f.name, status=2).stderr
    run("doctor", "more", status=2)


with Daemon(cisternd) as daemon:
    ls(daemon)
    events(daemon)
    drain(daemon)
with Daemon(cisternd) as daemon:
    trace(daemon)
    pool(daemon)
capacity()
doctor()
