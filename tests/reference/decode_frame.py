#!/usr/bin/env python3
"""A frame decoder in numpy, written from docs/frame-format.md alone.

    decode_frame.py EXAMPLES

EXAMPLES is the program that makes example frames (tests/runtime/frame-examples.c). It is run in a temporary folder,
where it leaves for each example NAME.json (geometry), NAME.frame, maybe NAME.transform, and NAME.decoded: what
cistern's own decoder made of the frame. This one must come to the same values, up to the last place of an f16.
"""

import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import zlib

import numpy as np

CLASSES, RAW, STEPS, CODES = 1, 2, 3, 4


def read_transform(data):
    (n,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + n])
    types = {"F32": "<f4", "F16": "<f2", "U8": "u1"}

    def tensor(name):
        entry = header[name]
        lo, hi = (8 + n + offset for offset in entry["data_offsets"])
        return np.frombuffer(data[lo:hi], types[entry["dtype"]]).reshape(entry["shape"])

    parts = []
    meta = header["__metadata__"]
    for i in range(int(meta["n_parts"])):
        number = lambda key: int(meta[f"part.{i}.{key}"])
        parts.append({
            "plane": number("plane"), "first": number("first_layer"), "layers": number("n_layers"),
            "mean": tensor(f"part.{i}.mean").astype("f8"), "basis": tensor(f"part.{i}.basis").astype("f8"),
            "bits": tensor(f"part.{i}.bits"),
        })
    return parts


def plain_parts(geometry):
    parts = []
    for plane, p in enumerate(geometry["planes"]):
        w = p["heads"] * p["dim"]
        for layer in range(geometry["layers"]):
            parts.append({"plane": plane, "first": layer, "layers": 1, "mean": np.zeros(w), "basis": np.eye(w),
                          "bits": np.full((1, w), 8)})
    return parts


def unpack(body, n, bits):
    """n codes of `bits` bits, least significant bit first."""
    stream = np.unpackbits(np.frombuffer(body, "u1"), bitorder="little")[:n * bits].reshape(n, bits)
    return stream @ (1 << np.arange(bits))


def rotate(x, plane, positions):
    """x: [n, layers, heads, dim]"""
    angle = positions[:, None] * np.array(plane["inv_freq"])[None, :]
    cos, sin = (f(angle)[:, None, None, :] * plane["rope_scale"] for f in (np.cos, np.sin))
    first, half = plane["rope_offset"], plane["rope_dim"] // 2
    if plane["rope_kind"] == "half":
        a, b = slice(first, first + half), slice(first + half, first + 2 * half)
    else:
        a, b = slice(first, first + 2 * half, 2), slice(first + 1, first + 2 * half, 2)
    out = x.copy()
    out[..., a] = x[..., a] * cos - x[..., b] * sin
    out[..., b] = x[..., b] * cos + x[..., a] * sin
    return out


def decode(frame, geometry, transform):
    """-> one array [n_tokens, layers, heads, dim] of f16 per plane"""
    magic, version, head = struct.unpack_from("<IHH", frame)
    assert (magic, version, head) == (0x46545343, 1, 192)
    position, n_tokens, n_raw, rung = struct.unpack_from("<QIII", frame, 120)
    (n_sections,) = struct.unpack_from("<I", frame, 160)
    sections = []
    for i in range(n_sections):
        kind, plane, part, encoding, _, _, offset, size, full = struct.unpack_from("<BBHBBHQII", frame, 192 + 40 * i)
        body = frame[offset:offset + size]
        if encoding:
            body = zlib.decompress(body, -15)
        assert len(body) == full
        sections.append((kind, plane, part, body))

    def bodies(*wanted):
        return [s[3] for s in sections if s[:3] == wanted]

    classes = []
    for run_class, length in struct.iter_unpack("<BH", sections[0][3]):
        classes += [run_class] * length
    assert len(classes) == n_tokens
    raw, coded = np.flatnonzero(np.array(classes) != 0), np.flatnonzero(np.array(classes) == 0)
    assert len(raw) == n_raw

    planes = []
    for index, plane in enumerate(geometry["planes"]):
        shape = (geometry["layers"], plane["heads"], plane["dim"])
        out = np.zeros((n_tokens,) + shape, "<f2")
        if len(raw):
            body = np.frombuffer(bodies(RAW, index, 0)[0], "<f2").reshape(shape[0], len(raw), *shape[1:])
            out[raw] = body.transpose(1, 0, 2, 3)
        parts = [p for p in transform or plain_parts(geometry) if p["plane"] == index]
        for number, part in enumerate(parts if len(coded) else []):
            widths = part["bits"][rung]
            active = int((widths > 0).sum())
            steps = np.frombuffer(bodies(STEPS, index, number)[0], "<f2").astype("f8")
            assert len(steps) == active
            stream, at = b"".join(bodies(CODES, index, number)), 0
            c = np.zeros((len(widths), len(coded)))
            for i in range(active):
                b = int(widths[i])
                packed = b if b in (1, 2, 4) else 8
                row = (len(coded) * packed + 7) // 8
                centre = 0.5 if b == 1 else 2 ** (b - 1) - 1
                c[i] = (unpack(stream[at:at + row], len(coded), packed) - centre) * steps[i]
                at += row
            assert at == len(stream)
            x = part["mean"] + c.T @ part["basis"]
            x = x.reshape(len(coded), part["layers"], *shape[1:])
            if plane["rope_kind"] != "none":
                x = rotate(x, plane, position + coded.astype("f8"))
            out[coded, part["first"]:part["first"] + part["layers"]] = x
        planes.append(out)
    return planes


def check(folder, name):
    read = lambda suffix: (folder / (name + suffix)).read_bytes()
    geometry = json.loads(read(".json"))
    transform = read_transform(read(".transform")) if (folder / (name + ".transform")).exists() else None
    ours = decode(read(".frame"), geometry, transform)
    theirs = np.frombuffer(read(".decoded"), "<f2")
    at = 0
    for index, x in enumerate(ours):
        y = theirs[at:at + x.size].reshape(x.shape)
        at += x.size
        # Sums in f32 against sums in f64: values next to a rounding boundary may fall on either side, and where
        # terms cancel the error is that of the terms, some 1e-6 of the token's largest value.
        slack = np.spacing(np.abs(y)).astype("f8") + 1e-6 * np.abs(x.astype("f8")).max()
        worst = (np.abs(x.astype("f8") - y.astype("f8")) / slack).max()
        assert worst <= 1, f"{name}, plane {index}: {worst} places off"
        print(f"{name}, plane {index}: {x.size} values, {(x != y).mean():.4%} differ in the last place")
    assert at == theirs.size


def main(examples):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([examples, folder], check=True)
        folder = pathlib.Path(folder)
        names = sorted(p.stem for p in folder.glob("*.frame"))
        assert len(names) >= 3
        for name in names:
            check(folder, name)


if __name__ == "__main__":
    main(*sys.argv[1:])
