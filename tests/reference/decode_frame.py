#!/usr/bin/env python3
"""A frame decoder in numpy, written from docs/frame-format.md alone.

    decode_frame.py GOLDEN [EXAMPLES]

GOLDEN is a folder of frames (tests/golden), EXAMPLES the program that makes such a folder (tests/format/frame-examples.c),
which is run in a temporary one. There lies for each model MODEL.json (geometry) and MODEL.transform, and for each example
MODEL-WHAT.frame and MODEL-WHAT.decoded: what cistern's own decoder made of the frame. This one must come to the same
values, and must have met every feature of the format in each folder. In the second there is MODEL-WHAT.original too, what
the frame was made from: the errors that its header states are held against it.
"""

import collections
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import zlib

import numpy as np

from xxh3 import xxh3_64, xxh3_128

CLASSES, RAW, STEPS, CODES, LEVELS = 1, 2, 3, 4, 5
STORED, DEFLATE, RANS = 0, 1, 2
PLAIN, SINK, WINDOW, EXACT, SALIENT, REDUNDANT = range(6)
CODED = (PLAIN, SALIENT, REDUNDANT)

# Everything that a folder of examples must show, as note() calls it. A name is noted where the format's rule for it
# is applied, so what is missing here has not been proved.
FEATURES = {
    "codec: plain", "codec: transform", "entropy: rANS", "entropy: DEFLATE",
    *(f"token class {c}" for c in range(6)),
    "three coded classes, three rungs", "run of 32 tokens or more", "short run",
    "raw bytes: stored", "raw bytes: DEFLATE", "steps: stored", "steps: DEFLATE", "codes: stored", "codes: DEFLATE",
    *(f"mode {m}" for m in (0, 1, 2, 5)), "mode 5, last byte not full", "mode 2, last byte not full",
    "fewer than 32 lanes", "32 lanes, last block not full", "offset over 0", "offset under 0", "last band not full",
    "shift 0", "shift 1", "shift 2 or more", "symbol below 0 with low bits",
    "escape", "negative escape", "escape, shift 0", "escape, shift over 0",
    "table below 4 (a class under -2)", "table 19 or more",
    *(f"state {q}" for q in range(4)),
    "fewer components than the file has", "nothing coded in a part", "several parts in a plane", "several layers in a part",
    "type f16", "type bf16", "type f32", "one plane",
    "rotation half", "rotation interleaved", "rotation none", "rotation, offset over 0", "rotation of half a head",
    "rotation, scale not 1", "position over 2^20", "weights not 1", "saturated",
}


class Unreadable(ValueError):
    """A frame or transform that is refused; the message says why."""


def require(holds, why):
    if not holds:
        raise Unreadable(why)


# ---- Elements.

def from_bytes(data, kind):
    """Little-endian elements -> f64"""
    if kind == "bf16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype("f8")
    return np.frombuffer(data, {"f16": "<f2", "f32": "<f4"}[kind]).astype("f8")


def rounded(x, kind, note):
    """f64 -> the nearest value of a type, ties to even, of two bytes a finite one, as f64"""
    if kind != "f32":
        largest, half_place = {"f16": (65504, 16), "bf16": (2.0 ** 128 - 2.0 ** 120, 2.0 ** 119)}[kind]
        note("saturated", np.abs(x).max(initial=0) >= largest + half_place)
        x = np.clip(x, -largest, largest)
    if kind == "bf16":
        bits = x.astype("<f4").view("<u4").astype("u8")
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        return bits.astype("<u4").view("<f4").astype("f8")
    return x.astype({"f16": "<f2", "f32": "<f4"}[kind]).astype("f8")


def places(x, kind):
    """How far values of a type around x are apart."""
    digits, least = {"f16": (11, -24), "bf16": (8, -133), "f32": (24, -149)}[kind]
    return 2.0 ** np.maximum(np.where(x == 0, least, np.frexp(x)[1] - digits), least)


# ---- Transforms.

def read_transform(data):
    (n,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + n])
    meta = header["__metadata__"]
    require(meta["format"] == "cistern-transform-2", f"transform of another format: {meta['format']}")
    types = {"F32": "<f4", "F16": "<f2", "U16": "<u2"}

    def tensor(name):
        entry = header[name]
        lo, hi = (8 + n + offset for offset in entry["data_offsets"])
        return np.frombuffer(data[lo:hi], types[entry["dtype"]]).reshape(entry["shape"])

    parts = []
    for i in range(int(meta["n_parts"])):
        number = lambda key: int(meta[f"part.{i}.{key}"])
        basis = tensor(f"part.{i}.basis").astype("f8")
        parts.append({
            "plane": number("plane"), "first": number("first_layer"), "layers": number("n_layers"),
            "mean": tensor(f"part.{i}.mean").astype("f8"), "weight": tensor(f"part.{i}.weight").astype("f8"),
            "basis": basis - (basis @ basis.T - np.eye(len(basis))) @ basis / 2,
            "deviation": tensor(f"part.{i}.deviation"),
        })
    tables = []
    for plane in range(int(meta["n_planes"])):
        frequencies = tensor(f"plane.{plane}.frequencies").astype(int)
        require(frequencies.shape == (46, 32) and (frequencies > 0).all() and (frequencies.sum(1) == 4096).all(),
                "frequencies that are not 46 times 32, over 0, adding up to 4096")
        biases = tensor(f"plane.{plane}.biases").astype("f8")
        require(biases.shape == (46, 2) and (np.abs(biases) <= 1).all(), "biases out of range")
        tables.append({"frequency": frequencies.tolist(),
                       "below": (np.cumsum(frequencies, 1) - frequencies).tolist(),
                       "symbol": [np.repeat(np.arange(32), row).tolist() for row in frequencies],
                       "bias": biases})
    return {"id": xxh3_128(data), "fingerprint": bytes.fromhex(meta["fingerprint"]), "parts": parts, "tables": tables,
            "steps": tensor("steps")}


def component_class(deviation, step):
    """None: under -2"""
    v = np.float32(deviation) / np.float32(step)
    if v < 0.5:
        return None
    if v >= 2 ** 20:
        return 52
    m, e = np.frexp(v)  # m in [0.5, 1)
    bounds = np.array([1.0905077, 1.2968396, 1.5422108, 1.8340081], "<f4")
    c = 4 * (int(e) - 1) + int((bounds <= 2 * m).sum())
    return None if c < -2 else min(c, 52)


def table_and_shift(c):
    c = min(max(c, -6), 52)
    if c <= 12:
        return c + 6, 0
    h = -((12 - c) // 4)
    return c - 4 * h + 10, h


# ---- Levels.

def next_state(state, level):
    return state >> 1 | ((state ^ level) & 1) << 1


def rans_levels(body, n, classes, tables, note):
    """-> [r][n]"""
    r, lanes, bands = len(classes), min(n, 32), -(-len(classes) // 16)
    require(len(body) >= bands + 4 * lanes and (len(body) - bands) % 2 == 0, "a rANS body cut short")
    offsets = struct.unpack_from(f"<{bands}b", body)
    x = list(struct.unpack_from(f"<{lanes}I", body, bands))
    words = struct.unpack_from(f"<{(len(body) - bands - 4 * lanes) // 2}H", body, bands + 4 * lanes)
    at = 0
    states = [0] * n
    levels = [[0] * n for _ in range(r)]

    def refill(lane):
        nonlocal at
        if x[lane] < 1 << 16:
            require(at < len(words), "a rANS body that ends too soon")
            x[lane] = x[lane] << 16 | words[at]
            at += 1

    require(all(-4 <= o <= 4 for o in offsets), "an offset out of range")
    note("fewer than 32 lanes", n < 32)
    note("32 lanes, last block not full", n > 32 and n % 32)
    note("last band not full", r % 16)
    for i, c in enumerate(classes):
        offset = offsets[i // 16]
        table, h = table_and_shift(c + offset)
        note("offset over 0", offset > 0)
        note("offset under 0", offset < 0)
        note("shift 0", h == 0)
        note("shift 1", h == 1)
        note("shift 2 or more", h >= 2)
        note("table below 4 (a class under -2)", table < 4)
        note("table 19 or more", table >= 19)
        for start in range(0, n, 32):
            block = range(start, min(start + 32, n))
            symbols = {}
            for t in block:
                row = 2 * table + (states[t] >> 1)
                slot = x[t % 32] & 4095
                y = symbols[t] = tables["symbol"][row][slot]
                x[t % 32] = tables["frequency"][row][y] * (x[t % 32] >> 12) + slot - tables["below"][row][y]
                refill(t % 32)
            low = dict.fromkeys(block, 0)
            if h:
                for t in block:
                    if symbols[t] != 31:
                        low[t] = x[t % 32] & ((1 << h) - 1)
                        x[t % 32] >>= h
                        refill(t % 32)
            for t in block:
                if symbols[t] == 31:
                    low[t] = x[t % 32] & 65535
                    x[t % 32] >>= 16
                    refill(t % 32)
            for t in block:
                if symbols[t] == 31:
                    k = low[t] - (low[t] >> 15 << 16)
                    note("escape")
                    note("negative escape", k < 0)
                    note("escape, shift 0", h == 0)
                    note("escape, shift over 0", h > 0)
                else:
                    k = ((symbols[t] - 15) << h) + low[t]
                    note("symbol below 0 with low bits", symbols[t] < 15 and low[t])
                levels[i][t] = k
                note(f"state {states[t]}")
                states[t] = next_state(states[t], k)
    require(at == len(words) and all(lane == 1 << 16 for lane in x), "a rANS body that does not end where it should")
    return levels


def deflate_levels(body, n, r, note):
    """-> [r][n]"""
    levels, at = [], r
    require(len(body) >= r, "modes cut short")
    for mode in body[:r]:
        require(mode in (0, 1, 2, 5), f"mode {mode}")
        note(f"mode {mode}")
        size = 2 * n if mode == 0 else -(-n // mode)
        row = np.frombuffer(body[at:at + size], "<i2" if mode == 0 else "u1").astype(int)
        require(at + size <= len(body), "levels cut short")
        at += size
        if mode:
            base, zero = {5: (3, 1), 2: (15, 7), 1: (256, 128)}[mode]
            require((row < base ** mode).all(), "a byte of levels out of range")
            digits = (row[:, None] // base ** np.arange(mode) % base).reshape(-1)
            note("mode 5, last byte not full", mode == 5 and n % 5)
            note("mode 2, last byte not full", mode == 2 and n % 2)
            require((digits[n:] == 0).all(), "a last byte with more than its levels")
            row = digits - zero
        levels.append(row[:n].tolist())
    require(at == len(body), "bytes after the levels")
    return levels


def coefficients(levels, classes, biases, step):
    """levels [r][n] -> [r, n] f64"""
    out = np.zeros((len(levels), len(levels[0]) if levels else 0))
    states = np.zeros(out.shape[1], int)
    for i, row in enumerate(levels):
        k, u = np.array(row), states >> 1
        require((np.abs(k) <= 16383).all(), "a level out of range")
        pair = biases[2 * table_and_shift(classes[i])[0] + u]
        b = np.where(np.abs(k) == 1, pair[:, 0], pair[:, 1])
        out[i] = np.where(k == 0, 0, np.sign(k) * (2 * np.abs(k) - u + b) * float(step))
        states = next_state(states, k)
    return out


# ---- Features.

def rotate(x, plane, positions, note, back=False):
    """x: [n, layers, heads, dim]"""
    note("rotation " + plane["rope_kind"])
    if plane["rope_kind"] == "none":
        return x
    angle = positions[:, None] * np.array(plane["inv_freq"], "<f4").astype("f8")[None, :]
    scale = 1 / plane["rope_scale"] if back else plane["rope_scale"]
    cos, sin = (f(-angle if back else angle)[:, None, None, :] * scale for f in (np.cos, np.sin))
    first, half = plane["rope_offset"], plane["rope_dim"] // 2
    note("rotation, offset over 0", first)
    note("rotation of half a head", 2 * half < plane["dim"])
    note("rotation, scale not 1", plane["rope_scale"] != 1)
    note("position over 2^20", (positions > 2 ** 20).any())
    if plane["rope_kind"] == "half":
        a, b = slice(first, first + half), slice(first + half, first + 2 * half)
    else:
        a, b = slice(first, first + 2 * half, 2), slice(first + 1, first + 2 * half, 2)
    out = x.copy()
    out[..., a] = x[..., a] * cos - x[..., b] * sin
    out[..., b] = x[..., b] * cos + x[..., a] * sin
    return out


# ---- The frame.

def read_sections(frame, n_sections):
    """-> {(kind, plane, part, token class): (encoding, body)}"""
    sections, order, end = {}, [], 192 + 40 * n_sections
    for i in range(n_sections):
        kind, plane, part, encoding, token_class, zero, offset, size, full, checksum, zero_too = struct.unpack_from(
            "<BBHBBHQIIQQ", frame, 192 + 40 * i)
        key = kind, plane, part, token_class
        require(zero == 0 and zero_too == 0, f"section {key}: reserved bytes")
        require(offset == end and offset + size <= len(frame), f"section {key}: a gap, an overlap, or past the end")
        end = offset + size
        body = frame[offset:end]
        require(xxh3_64(body) == checksum, f"section {key}: checksum")
        require(encoding in (STORED, DEFLATE) or encoding == RANS and kind == LEVELS, f"section {key}: encoding {encoding}")
        if encoding == DEFLATE:
            inflater = zlib.decompressobj(-15)
            body = inflater.decompress(body)
            require(inflater.eof and not inflater.unused_data, f"section {key}: not one DEFLATE stream")
        require(len(body) == full, f"section {key}: length")
        require(key not in sections, f"section {key} twice")
        require(i > 0 or key == (CLASSES, 0, 0, 0) and encoding == STORED, "the first section is not the class map")
        order.append((kind != CLASSES, kind != RAW and kind != CLASSES, plane, part, token_class, kind))
        sections[key] = encoding, body
    require(order == sorted(order), "sections out of order")
    require(end == len(frame), "bytes after the last section")
    return sections


def read_classes(body, n_tokens, note):
    classes, at = [], 0
    while at < len(body):
        run, length = body[at] & 7, (body[at] >> 3) + 1
        at += 1
        note("run of 32 tokens or more", length == 32)
        note("short run", length < 32)
        if length == 32:
            require(at + 2 <= len(body), "class map cut short")
            length += struct.unpack_from("<H", body, at)[0]
            at += 2
        require(run <= REDUNDANT, f"token class {run}")
        note(f"token class {run}")
        classes += [run] * length
    require(len(classes) == n_tokens, "class map of another number of tokens")
    return np.array(classes)


class Frame:
    """Header and sections, checked."""

    def __init__(self, frame, geometry, transform, note):
        require(len(frame) >= 192, "shorter than a header")
        magic, version, header_bytes = struct.unpack_from("<IHH", frame)
        require(magic == 0x46545343, "not a frame")
        require(version == 2, f"a frame of version {version}; this reads version 2")
        require(header_bytes == 192, "header of another size")
        self.position, self.n_tokens, self.n_raw, *rungs = struct.unpack_from("<QIIBBB", frame, 120)
        self.rungs = dict(zip(CODED, rungs))
        n_sections, zero, length, self.raw_length, checksum = struct.unpack_from("<IIQQQ", frame, 160)
        require(length == len(frame) and 192 + 40 * n_sections <= length, "length")
        require(xxh3_64(frame[192:192 + 40 * n_sections], xxh3_64(frame[:184])) == checksum, "checksum")
        size = {"f16": 2, "bf16": 2, "f32": 4}
        token_bytes = geometry["layers"] * sum(p["heads"] * p["dim"] * size[p["dtype"]] for p in geometry["planes"])
        require(self.raw_length == self.n_tokens * token_bytes, "raw length")
        require(1 <= self.n_tokens <= 4096 and zero == 0 and frame[139] == 0, "header")
        require(frame[24:40] == geometry["fingerprint"], "a frame of another geometry")
        require(frame[40:56] == (transform["id"] if transform else bytes(16)), "a frame of another transform")
        require(not transform or transform["fingerprint"] == geometry["fingerprint"], "a transform of another geometry")
        self.sections = read_sections(frame, n_sections)
        self.errors = struct.unpack_from("<4f", frame, 144)
        self.features = {}  # by plane: of the coded tokens, before rotation, with their weights
        self.note = note
        self.classes = read_classes(self.take(CLASSES)[1], self.n_tokens, note)
        self.raw = np.flatnonzero(~np.isin(self.classes, CODED))
        self.coded = np.flatnonzero(np.isin(self.classes, CODED))
        ladder = len(transform["steps"]) if transform else 1
        require(max(rungs) < ladder, "a rung that is not on the ladder")
        require(transform or not np.isin(self.classes, (SALIENT, REDUNDANT)).any(), "the plain codec has one coded class")
        require(len(self.raw) == self.n_raw, "another number of raw tokens than the class map's")
        present = [c for c in CODED if (self.classes == c).any()]
        note("three coded classes, three rungs", len({self.rungs[c] for c in present}) == 3)

    def take(self, kind, plane=0, part=0, token_class=0):
        key = kind, plane, part, token_class
        require(key in self.sections, f"section {key} is missing")
        return self.sections.pop(key)

    def noted(self, name, section):
        encoding, body = section
        self.note(f"{name}: {('stored', 'DEFLATE')[encoding]}")
        return body

    def raw_tokens(self, index, plane, shape):
        """-> [n_raw, layers, heads, dim]"""
        size = 4 if plane["dtype"] == "f32" else 2
        n = int(np.prod(shape)) * self.n_raw
        bodies = [self.noted("raw bytes", self.take(RAW, index, byte)) for byte in range(size)]
        require(all(len(body) == n for body in bodies), "raw tokens of another length")
        together = np.stack([np.frombuffer(body, "u1") for body in bodies], 1).tobytes()
        values = from_bytes(together, plane["dtype"])
        return values.reshape(shape[0], self.n_raw, *shape[1:]).transpose(1, 0, 2, 3)

    def plain_layer(self, index, layer, w):
        """-> [coded tokens, w]"""
        n = len(self.coded)
        steps = np.frombuffer(self.noted("steps", self.take(STEPS, index, layer)), "<f2").astype("f8")
        codes = np.frombuffer(self.noted("codes", self.take(CODES, index, layer)), "u1")
        require(len(steps) == w and len(codes) == n * w, "steps or codes of another length")
        return ((codes.reshape(w, n) - 127.0) * steps[:, None]).T

    def part(self, number, part, tables, steps, token_class):
        """-> [tokens of a class, p]"""
        step = steps[self.rungs[token_class]]
        n = int((self.classes == token_class).sum())
        classes = []
        for deviation in part["deviation"]:
            c = component_class(deviation, step)
            if c is None:
                break
            classes.append(c)
        self.note("fewer components than the file has", 0 < len(classes) < len(part["deviation"]))
        self.note("nothing coded in a part", not classes)
        self.note("several layers in a part", part["layers"] > 1)
        self.note("weights not 1", (part["weight"] != 1).any())
        encoding, body = self.take(LEVELS, part["plane"], number, token_class)
        if encoding == RANS:
            self.note("entropy: rANS")
            levels = rans_levels(body, n, classes, tables, self.note)
        else:
            self.note("entropy: DEFLATE")
            levels = deflate_levels(body, n, len(classes), self.note)
        if not levels:
            return np.tile(part["mean"], (n, 1))
        c = coefficients(levels, classes, tables["bias"], step)
        return part["mean"] + c.T @ part["basis"][:len(classes)] / part["weight"]

    def plane(self, index, plane, n_layers, transform):
        """-> [n_tokens, layers, heads, dim], f64 values of the plane's type"""
        shape = n_layers, plane["heads"], plane["dim"]
        w = plane["heads"] * plane["dim"]
        out = np.zeros((self.n_tokens, *shape))
        if len(self.raw):
            out[self.raw] = self.raw_tokens(index, plane, shape)
        if len(self.coded):
            x, weight = np.zeros((self.n_tokens, n_layers, w)), np.ones((n_layers, w))
            if transform:
                parts = [p for p in transform["parts"] if p["plane"] == index]
                self.note("several parts in a plane", len(parts) > 1)
                for number, part in enumerate(parts):
                    layers = slice(part["first"], part["first"] + part["layers"])
                    weight[layers] = part["weight"].reshape(-1, w)
                    for c in CODED:
                        if (self.classes == c).any():
                            these = self.part(number, part, transform["tables"][index], transform["steps"], c)
                            x[self.classes == c, layers] = these.reshape(-1, part["layers"], w)
            else:
                for layer in range(n_layers):
                    x[self.coded, layer] = self.plain_layer(index, layer, w)
            x = x[self.coded].reshape(-1, *shape)
            self.features[index] = x, weight.reshape(shape)
            x = rotate(x, plane, self.position + self.coded.astype("f8"), self.note)
            out[self.coded] = rounded(x, plane["dtype"], self.note)
        self.note("type " + plane["dtype"])
        return out


def decode(data, geometry, transform, note):
    """-> the frame, and one array [n_tokens, layers, heads, dim] per plane"""
    frame = Frame(data, geometry, transform, note)
    planes = [frame.plane(i, plane, geometry["layers"], transform) for i, plane in enumerate(geometry["planes"])]
    require(not frame.sections, f"sections that nothing asks for: {list(frame.sections)}")
    note("codec: transform" if transform else "codec: plain")
    note("one plane", len(planes) == 1)
    return frame, planes


# ---- The test.

def fingerprint(geometry):
    f32 = lambda *values: np.array(values, "<f4").tobytes()
    name = geometry["name"].encode()
    out = b"cistern-geometry-1\0" + struct.pack("<I", len(name)) + name
    out += struct.pack("<4I", geometry["layers"], len(geometry["planes"]), geometry["tp_rank"], geometry["tp_size"])
    for p in geometry["planes"]:
        rotation = ("none", "half", "interleaved").index(p["rope_kind"])
        out += struct.pack("<4I", p["heads"], p["dim"], 1 + ("f16", "bf16", "f32").index(p["dtype"]), rotation)
        if rotation:
            out += struct.pack("<2I", p["rope_offset"], p["rope_dim"]) + f32(p["rope_scale"], *p["inv_freq"])
    return xxh3_128(out)


def read_example(folder, name):
    read = lambda suffix: (folder / suffix).read_bytes()
    model = name.partition("-")[0]
    geometry = json.loads(read(model + ".json"))
    geometry["fingerprint"] = fingerprint(geometry)
    data = read(name + ".frame")
    plain = data[40:56] == bytes(16)
    return data, geometry, None if plain else read_transform(read(model + ".transform")), read(name + ".decoded")


def check_errors(frame, index, plane, original, note):
    """What the header states of a plane's errors, against the values that the frame was made from."""
    x, weight = frame.features[index]
    was = rotate(original[frame.coded], plane, frame.position + frame.coded.astype("f8"), lambda *_: None, back=True)
    norm = lambda values: (values ** 2).reshape(len(values), -1).sum(1)
    square = norm(weight * (x - was)) / norm(weight * was)
    # The encoder has a token's error as a difference of energies, which is off by what the basis lacks in orthonormality
    # (the examples' rows are 1e-3 too long or short, and 1e-6 after the step) and by sums in f32.
    off = 5e-6
    least, most = np.sqrt(np.maximum(square - off, 0)), np.sqrt(square + off)
    for stated, of in zip(frame.errors[2 * index:2 * index + 2], (np.max, np.mean)):
        note("errors stated")
        assert of(least) <= stated <= of(most), f"plane {index}: error {of(np.sqrt(square))}, not {stated}"
        print(f"  {of.__name__} error {of(np.sqrt(square)):.6f}, stated {stated:.6f}")


def check(folder, name, note):
    data, geometry, transform, theirs = read_example(folder, name)
    frame, ours = decode(data, geometry, transform, note)
    at = 0
    for index, x in enumerate(ours):
        kind = geometry["planes"][index]["dtype"]
        size = x.size * (4 if kind == "f32" else 2)
        y = from_bytes(theirs[at:at + size], kind).reshape(x.shape)
        at += size
        assert np.array_equal(x[frame.raw], y[frame.raw], equal_nan=True), f"{name}, plane {index}: raw tokens differ"
        if (folder / (name + ".original")).exists() and len(frame.coded):
            original = from_bytes((folder / (name + ".original")).read_bytes()[at - size:at], kind).reshape(x.shape)
            check_errors(frame, index, geometry["planes"][index], original, note)
        x, y = x[frame.coded], y[frame.coded]
        # Sums in f32 against sums in f64: values next to a rounding boundary may fall on either side, and where
        # terms cancel the error is that of the terms, some 1e-6 of the token's largest value.
        slack = places(y, kind) + 1e-6 * np.abs(x).max(initial=0)
        worst = (np.abs(x - y) / slack).max(initial=0)
        assert worst <= 1, f"{name}, plane {index}: {worst} places off"
        # So few values lie so near a boundary that rounding which is not to nearest shows at once; and the products of
        # the plain codec, of a step and a small integer, are exact.
        differ = (x != y).sum()
        assert kind == "f32" or differ <= 0.02 * x.size, f"{name}, plane {index}: {differ} of {x.size} values differ"
        exact = geometry["planes"][index]["rope_kind"] == "none" and name.endswith("-plain")
        assert not exact or differ == 0, f"{name}, plane {index}: {differ} values of the plain codec differ"
        print(f"{name}, plane {index}: {x.size} coded values, {differ} differ in the last place")
    assert at == len(theirs)


def check_folder(folder, features):
    seen = collections.Counter()

    def note(feature, holds=True):
        if holds:
            assert feature in features, f"{feature} is on no list"
            seen[feature] += 1

    names = sorted(p.stem for p in folder.glob("*.frame"))
    for name in names:
        check(folder, name, note)
    missing = sorted(features - set(seen))
    assert not missing, f"{folder}: no example of: {', '.join(missing)}"
    print(f"{folder}: {len(names)} frames, {len(features)} features of the format, each met")


def main(golden, examples=None):
    check_folder(pathlib.Path(golden), FEATURES)
    if examples:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([examples, folder, "originals"], check=True)
            check_folder(pathlib.Path(folder), FEATURES | {"errors stated"})


if __name__ == "__main__":
    main(*sys.argv[1:])
