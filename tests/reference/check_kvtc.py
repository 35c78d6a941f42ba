#!/usr/bin/env python3
"""Plain KVTC in C against the numpy reference (kvtc.py): the same components, the same allocation, the same bytes, the
same tokens restored.

    check_kvtc.py EXAMPLE

EXAMPLE is tests/tools/kvtc-example.c: it codes the captures that are made up here. Coding is compared on the very
coefficients that C computed, so that codes must agree to the bit; those coefficients, mean and components are compared
with the reference's own, up to f32 and (for the basis) f16 rounding.
"""

import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import zlib

import numpy as np

import kvtc

LAYERS, HEADS, DIM, PROTECTED = 5, 2, 32, 8
P = LAYERS * HEADS * DIM
RATIOS = (4, 6, 8, 12, 16, 20, 32, 40)
INV_FREQ = (10000.0 ** (-2 * np.arange(DIM // 2) / DIM)).astype("f4")


def features(rng, mixing, n):
    """Low-rank tokens with a mean, some of them far out: scales of single tokens matter then."""
    z = rng.standard_normal((n, len(mixing))) * rng.choice([1, 1, 1, 4], size=(n, 1))
    return (z @ mixing + mixing.sum(axis=0)).reshape(n, LAYERS, HEADS, DIM)


def write_capture(path, k, v, positions):
    k = kvtc.rotate(k, INV_FREQ.astype("f8"), positions.astype("f8")).astype("<f2")
    v = v.astype("<f2")
    tensors = {"positions": ("I64", positions.astype("<i8")), "inv_freq": ("F32", INV_FREQ)}
    for layer in range(LAYERS):
        tensors[f"layers.{layer}.k"] = ("F16", np.ascontiguousarray(k[:, layer]))
        tensors[f"layers.{layer}.v"] = ("F16", np.ascontiguousarray(v[:, layer]))
    header, body = {"__metadata__": {"format": "cistern-capture-1", "model": "made-up", "rope_kind": "half"}}, b""
    for name, (kind, array) in tensors.items():
        data = array.tobytes()
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return k, v


def as_cached(x, positions, plane):
    """f16 tokens -> features [tokens, P], rotation undone for keys"""
    x = kvtc.unrotate(x, INV_FREQ.astype("f8"), positions) if plane == 0 else x.astype("f8")
    return x.reshape(len(x), P)


class Folder:
    def __init__(self, path):
        self.path = pathlib.Path(path)

    def read(self, name, kind, *shape):
        return np.frombuffer((self.path / name).read_bytes(), kind).reshape(shape or -1)


def check_components(folder, plane, calib):
    """C's mean and basis are the principal components of the same tokens."""
    mean, variance, _ = kvtc.calibrate(calib)
    their_mean, basis = folder.read(f"{plane}.mean", "<f4"), folder.read(f"{plane}.basis", "<f4", P, P).astype("f8")
    spread = np.sqrt(variance.sum())
    assert np.abs(mean - their_mean).max() < 1e-5 * spread
    assert np.abs(basis @ basis.T - np.eye(P)).max() < 5e-3  # rows are rounded to f16
    within = basis @ np.cov(calib.T, bias=True) @ basis.T
    assert np.abs(within - np.diag(variance)).max() < 2e-3 * variance[0]
    assert np.allclose(np.diag(within)[:64], variance[:64], rtol=5e-3)
    return their_mean.astype("f8"), basis


def check_plans(folder, plane):
    sample = folder.read(f"{plane}.sample", "<f4", P, -1)
    plans = kvtc.allocate(sample, [P * 16 // ratio for ratio in RATIOS])
    kinds = set()
    for ratio, (plan, error) in zip(RATIOS, plans):
        theirs = [tuple(pair) for pair in folder.read(f"{plane}.{ratio}.plan", "<u2", -1, 2).tolist()]
        assert plan == theirs, f"plane {plane}, ratio {ratio}: {plan} here, {theirs} in C"
        assert np.isclose(error, folder.read(f"{plane}.{ratio}.error", "<f8")[0], rtol=1e-9)
        kinds |= {kind for _, kind in plan}
    print(f"plane {plane}: {len(plans)} plans agree, over {sample.shape[1]} tokens; kinds in use: {sorted(kinds)}")
    return [plan for plan, _ in plans], kinds


def check_coding(c, plan):
    """-> deflated bytes, restored coefficients; and the streams alone give them back."""
    streams, restored = kvtc.code(c, plan)
    assert np.array_equal(kvtc.decode(streams, plan, *c.shape), restored)
    return sum(kvtc.deflated_bytes(s) for s in streams), restored


def check_e4m3():
    every = kvtc.e4m3_values(np.arange(127))
    assert every[-1] == 448 and np.all(np.diff(every) > 0)
    assert np.array_equal(kvtc.round_e4m3(every), every) and np.array_equal(kvtc.e4m3_bytes(every), np.arange(127))


def main(example):
    rng = np.random.default_rng(20251103)
    check_e4m3()
    mixings = [rng.standard_normal((P, P)) * np.exp(-np.arange(P) / scale)[:, None] for scale in (12, 30)]
    calib_positions, positions = np.arange(2000), 5000 + np.arange(200)
    with tempfile.TemporaryDirectory() as path:
        folder = Folder(path)
        calib = write_capture(folder.path / "calib.safetensors",
                              *(features(rng, m, 2000) for m in mixings), calib_positions)
        test = write_capture(folder.path / "test.safetensors", *(features(rng, m, 200) for m in mixings), positions)
        subprocess.run([example, path], check=True)

        coded, total, kinds = slice(PROTECTED, -PROTECTED), dict.fromkeys(RATIOS, 0), set()
        for plane in (0, 1):
            mean, basis = check_components(folder, plane, as_cached(calib[plane], calib_positions, plane))
            x = as_cached(test[plane], positions, plane)[coded]
            c = folder.read(f"{plane}.coefficients", "<f4", P, -1)
            assert np.abs(c - basis @ (x - mean).T).max() < 1e-5 * np.abs(c).max()
            plans, used = check_plans(folder, plane)
            kinds |= used
            for ratio, plan in zip(RATIOS, plans):
                n_bytes, restored = check_coding(c, plan)
                total[ratio] += n_bytes
                back = (mean + restored.T.astype("f8") @ basis).reshape(-1, LAYERS, HEADS, DIM)
                if plane == 0:
                    back = kvtc.rotate(back, INV_FREQ.astype("f8"), positions[coded])
                theirs = folder.read(f"{ratio}.restored", "<f2", LAYERS, 2, 200, HEADS, DIM)[:, plane]
                theirs = theirs.transpose(1, 0, 2, 3)
                assert np.array_equal(theirs[:PROTECTED], test[plane][:PROTECTED])
                assert np.array_equal(theirs[-PROTECTED:], test[plane][-PROTECTED:])
                # The last rounding to f16 may fall on either side of a boundary; sums are f32 there, f64 here.
                slack = np.spacing(np.abs(theirs[coded])).astype("f8") + 3e-6 * np.abs(back).max()
                worst = (np.abs(back - theirs[coded].astype("f8")) / slack).max()
                assert worst <= 1, f"plane {plane}, ratio {ratio}: {worst} places off"
        # Another release of zlib may choose other matches; the same one must not.
        same = (folder.path / "zlib").read_text() == zlib.ZLIB_RUNTIME_VERSION
        for ratio in RATIOS:
            theirs = int(folder.read(f"{ratio}.bytes", "<u8")[0])
            assert abs(theirs - total[ratio]) <= (0 if same else 0.01 * theirs), (ratio, theirs, total[ratio])
            print(f"{ratio}x: {theirs} bytes in C, {total[ratio]} here")
    assert kinds >= {kvtc.INT2, kvtc.INT4, kvtc.FP8}, kinds


if __name__ == "__main__":
    main(*sys.argv[1:])
