"""The command `cistern calibrate` as a user meets it: exit statuses, the report, folders, numpy's arrays."""

import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile

cistern = sys.argv[1]
layers, tokens, heads, dim = 2, 600, 1, 8


def calibrate(*arguments):
    return subprocess.run([cistern, "calibrate", *map(str, arguments)], capture_output=True, text=True)


def write_npy(path, shape, seed):
    random.seed(seed)
    count = 1
    for n in shape:
        count *= n
    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    values = struct.pack(f"<{count}f", *(random.gauss(0, 1 + i % dim) for i in range(count)))
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + values)


def expect(condition, what):
    if not condition:
        sys.exit(f"failed: {what}")


with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    captures, empty, out = folder / "captures", folder / "empty", folder / "out.safetensors"
    captures.mkdir()
    empty.mkdir()
    write_npy(captures / "a.npy", (layers, 2, tokens, heads, dim), 1)
    write_npy(captures / "b.k.npy", (layers, tokens, heads, dim), 2)
    write_npy(captures / "b.v.npy", (layers, tokens, heads, dim), 3)
    (captures / "notes.txt").write_text("not a capture")

    for arguments, status, words in (
        ([], 2, "Usage"),
        (["--out", out], 2, "Usage"),
        ([captures], 2, "Usage"),
        (["--bogus"], 2, "bogus"),
        (["--out", out, "--rope", "odd", captures], 2, "odd"),
        (["--out", out, "--skip", "-1", captures], 2, "-1"),
        (["--out", out, "--theta", "nan", captures], 2, "nan"),
        (["--out", out, captures / "a.npy"], 1, "name"),
        (["--out", out, folder / "missing"], 1, "No such file"),
        (["--out", out, empty], 1, "no captures in this folder"),
        (["--out", folder / "no" / "out", "--model", "m", captures], 1, "No such file"),
        (["--out", out, "--model", "m", captures / "notes.txt"], 1, "notes.txt"),
    ):
        result = calibrate(*arguments)
        expect(result.returncode == status, f"{arguments}: exit status {result.returncode}, not {status}")
        expect(words in result.stderr, f"{arguments}: '{words}' not in '{result.stderr}'")
        expect(not out.exists(), f"{arguments}: leaves a file behind")

    result = calibrate("--help")
    expect(result.returncode == 0 and result.stdout.startswith("Usage: cistern calibrate"), "--help")

    options = ["--out", out, "--model", "m", "--rope", "half", "--layers-per-group", 1, "--note", "a note"]
    result = calibrate(*options, "--json", captures)
    expect(result.returncode == 0, result.stderr)
    report = json.loads(result.stdout)
    expect(report["model"] == "m" and report["file"] == str(out), "names in the report")
    expect(report["tokens"] == 2 * (tokens - 4) and report["tokens_skipped"] == 8, "tokens in the report")
    expect([rung["ratio"] for rung in report["rungs"]] == [4, 6, 8, 12, 16, 20, 32, 40], "rungs in the report")
    expect(report["bytes"] == out.stat().st_size, "size in the report")
    data = out.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    metadata = header["__metadata__"]
    expect(metadata["n_parts"] == "4" and metadata["note"] == "a note", "metadata of the file")
    expect(header["part.3.mean"]["shape"] == [heads * dim], "tensors of the file")

    result = calibrate(*options, captures)
    expect(result.returncode == 0 and "1192 tokens, 8 skipped" in result.stdout, "the report as text")
    expect(out.read_bytes() == data, "the same captures give the same file")
