#!/usr/bin/env python3
"""Frames whose checksums hold but which break one rule of docs/frame-format.md each, and frames written in another way
that is allowed: both decoders, the one beside this file and cistern's, refuse the first and read the second.

    spoilt_frames.py GOLDEN VERDICT

GOLDEN is tests/golden, whose frames are changed; VERDICT the program of tests/format/frame-verdict.c.
"""

import pathlib
import struct
import subprocess
import sys
import tempfile
import zlib

import decode_frame as reader
from decode_frame import CLASSES, CODES, DEFLATE, LEVELS, RANS, RAW, STEPS, STORED
from xxh3 import xxh3_64

PLAIN, SALIENT, REDUNDANT = reader.CODED


class Section:
    def __init__(self, kind, plane, part, encoding, token_class, data, full):
        self.kind, self.plane, self.part, self.encoding, self.token_class = kind, plane, part, encoding, token_class
        self.data, self.full = data, full

    def body(self):
        return zlib.decompress(self.data, -15) if self.encoding == DEFLATE else self.data

    def put(self, body, encoding=None):
        self.encoding = self.encoding if encoding is None else encoding
        self.full = len(body)
        if self.encoding == DEFLATE:
            deflater = zlib.compressobj(9, wbits=-15)
            body = deflater.compress(body) + deflater.flush()
        self.data = body


class Draft:
    """A frame taken apart, to be put together with checksums that hold."""

    def __init__(self, data):
        self.head = bytearray(data[:192])
        self.sections, self.gap_before = [], None
        for i in range(struct.unpack_from("<I", data, 160)[0]):
            *what, _, offset, size, full = struct.unpack_from("<BBHBBHQII", data, 192 + 40 * i)
            self.sections.append(Section(*what, data[offset:offset + size], full))

    def at(self, kind, plane=0, part=0, token_class=0):
        wanted = kind, plane, part, token_class
        return next(s for s in self.sections if (s.kind, s.plane, s.part, s.token_class) == wanted)

    def set(self, form, offset, *values):
        struct.pack_into("<" + form, self.head, offset, *values)

    def build(self):
        table, bodies = b"", b""
        for s in self.sections:
            bodies += b"\0" * (s is self.gap_before)
            offset = 192 + 40 * len(self.sections) + len(bodies)
            table += struct.pack("<BBHBBHQIIQQ", s.kind, s.plane, s.part, s.encoding, s.token_class, 0, offset, len(s.data),
                                 s.full, xxh3_64(s.data), 0)
            bodies += s.data
        self.set("I", 160, len(self.sections))
        self.set("Q", 168, 192 + len(table) + len(bodies))
        self.set("Q", 184, xxh3_64(table, xxh3_64(bytes(self.head[:184]))))
        return bytes(self.head) + table + bodies


def head(form, offset, *values):
    return lambda draft: draft.set(form, offset, *values)


def body(change, *where, encoding=None):
    def edit(draft):
        section = draft.at(*where)
        section.put(change(section.body()), encoding)
    return edit


def attribute(name, value, *where):
    return lambda draft: setattr(draft.at(*where), name, value)


def drop(*where):
    return lambda draft: draft.sections.remove(draft.at(*where))


def swap(i, j):
    def edit(draft):
        draft.sections[i], draft.sections[j] = draft.sections[j], draft.sections[i]
    return edit


def byte(i, change):
    return lambda old: old[:i] + bytes([change(old[i]) & 255]) + old[i + 1:]


def with_mode(mode, change):
    """Changes the levels of the first component of a mode; 54 levels, 18 components, in the frame that is used."""
    def edit(old):
        r, n, start = 18, 54, 18
        i = old[:r].index(mode)
        for m in old[:i]:
            start += 2 * n if m == 0 else -(-n // m)
        size = 2 * n if mode == 0 else -(-n // mode)
        new_mode, row = change(old[start:start + size])
        return old[:i] + bytes([new_mode]) + old[i + 1:start] + row + old[start + size:]
    return edit


def level(k):
    return body(with_mode(0, lambda row: (0, struct.pack("<h", k) + row[2:])), LEVELS)


def one_by_one(row):
    return 1, bytes([row[i // 5] // 3 ** (i % 5) % 3 - 1 + 128 for i in range(54)])


def junk(draft):
    draft.at(LEVELS).data += b"junk"


def gap(draft):
    draft.gap_before = draft.sections[4]


def plain_codec_with_salient(draft):
    draft.sections[0].put(bytes(b | SALIENT if b & 7 == PLAIN else b for b in draft.sections[0].body()))


def as_rans(other):
    def edit(draft):
        theirs = Draft(other).at(LEVELS)
        ours = draft.at(LEVELS)
        ours.encoding, ours.data, ours.full = theirs.encoding, theirs.data, theirs.full
    return edit


def spoilt(old_version):
    """(rule, frame, edit)"""
    return [
        ("magic", "gqa-rans", head("I", 0, 0x46545344)),
        ("version 1", "gqa-rans", head("H", 4, 1)),
        ("version 1, a frame of that time", "gqa-rans", lambda draft: old_version),
        ("version 3", "gqa-rans", head("H", 4, 3)),
        ("header bytes", "gqa-rans", head("H", 6, 200)),
        ("fingerprint", "gqa-rans", head("B", 24, 0)),
        ("no tokens", "gqa-rans", head("I", 128, 0)),
        ("4097 tokens", "gqa-rans", head("I", 128, 4097)),
        ("more tokens than the class map's", "gqa-rans", head("I", 128, 80)),
        ("another n_raw", "gqa-rans", head("I", 132, 1)),
        ("a rung that is not on the ladder", "gqa-rans", head("B", 136, 3)),
        ("the same, of a class that no token has", "gqa-one", head("B", 137, 3)),
        ("the same, where nothing is coded", "partial-raw", head("B", 136, 3)),
        ("reserved", "gqa-rans", head("B", 139, 1)),
        ("reserved", "gqa-rans", head("I", 164, 1)),
        ("a gap between bodies", "gqa-rans", gap),
        ("no sections", "gqa-rans", lambda draft: draft.sections.clear()),
        ("a section of no kind", "gqa-rans", lambda draft: draft.sections.append(Section(9, 0, 0, STORED, 0, b"x", 1))),
        ("classes not first", "gqa-rans", swap(0, 1)),
        ("bytes of raw tokens swapped", "gqa-rans", swap(1, 2)),
        ("codes before steps", "gqa-plain", swap(5, 6)),
        ("raw tokens lacking", "gqa-rans", drop(RAW, 0, 1)),
        ("levels lacking", "gqa-rans", drop(LEVELS)),
        ("levels of nothing lacking", "gqa-rans", drop(LEVELS, 0, 1, REDUNDANT)),
        ("levels of a part that is none", "gqa-rans", attribute("part", 2, LEVELS, 1, 1, REDUNDANT)),
        ("levels of a raw class", "gqa-rans", attribute("token_class", 1, LEVELS, 0, 0, REDUNDANT)),
        ("class 6", "gqa-rans", body(byte(1, lambda b: b & ~7 | 6), CLASSES)),
        ("class 7", "partial-raw", body(byte(0, lambda b: b | 7), CLASSES)),
        ("a class map too long", "gqa-rans", body(lambda b: b + b"\0", CLASSES)),
        ("a class map too short", "gqa-rans", body(lambda b: b[:-1], CLASSES)),
        ("a class map cut in a length", "partial-raw", body(lambda b: b"\x09\xfa", CLASSES)),
        ("a class map that is not stored", "gqa-rans", body(lambda b: b, CLASSES, encoding=DEFLATE)),
        ("salient tokens of the plain codec", "gqa-plain", plain_codec_with_salient),
        ("an encoding that is none", "gqa-rans", attribute("encoding", 3, LEVELS)),
        ("raw tokens as rANS", "gqa-rans", attribute("encoding", RANS, RAW)),
        ("raw tokens too short", "gqa-rans", body(lambda b: b[:-1], RAW)),
        ("raw tokens too long", "gqa-rans", body(lambda b: b + b"x", RAW)),
        ("steps too short", "gqa-plain", body(lambda b: b[:-2], STEPS)),
        ("codes too short", "gqa-plain", body(lambda b: b[:-1], CODES)),
        ("a full length that is not", "gqa-deflate", lambda draft: setattr(draft.at(LEVELS), "full", 1)),
        ("bytes after a DEFLATE stream", "gqa-deflate", junk),
        ("mode 3", "gqa-deflate", body(byte(0, lambda b: 3), LEVELS)),
        ("levels cut short", "gqa-deflate", body(lambda b: b[:-1], LEVELS)),
        ("bytes after the levels", "gqa-deflate", body(lambda b: b + b"\0", LEVELS)),
        ("a level of 16384", "gqa-deflate", level(16384)),
        ("a level of -16384", "gqa-deflate", level(-16384)),
        ("offset 5", "gqa-rans", body(byte(0, lambda b: 5), LEVELS)),
        ("offset -5", "gqa-rans", body(byte(0, lambda b: -5), LEVELS)),
        ("a state changed", "gqa-rans", body(byte(2, lambda b: b ^ 1), LEVELS)),
        ("the last word changed", "gqa-rans", body(byte(-2, lambda b: b ^ 1), LEVELS)),
        ("a word left", "gqa-rans", body(lambda b: b + b"\0\0", LEVELS)),
        ("half a word left", "gqa-rans", body(lambda b: b + b"\0", LEVELS)),
        ("a word lacking", "gqa-rans", body(lambda b: b[:-2], LEVELS)),
        ("states of nothing that are not 2^16", "gqa-rans", body(byte(2, lambda b: 2), LEVELS, 0, 1, REDUNDANT)),
    ]


def allowed(rans):
    """(what, frame, edit): the values stay the same."""
    return [
        ("unchanged", "gqa-deflate", lambda draft: None),
        ("a run in two pieces", "partial-raw", body(lambda b: b"\x09\x09" + bytes([2 | 15 << 3]), CLASSES)),
        ("raw tokens as DEFLATE", "partial-raw", body(lambda b: b, RAW, encoding=DEFLATE)),
        ("levels stored", "gqa-deflate", body(lambda b: b, LEVELS, encoding=STORED)),
        ("both entropy codings in a frame", "gqa-deflate", as_rans(rans)),
        ("levels in a byte each", "gqa-deflate", body(with_mode(5, one_by_one), LEVELS)),
    ]


def ours(golden, name, data):
    _, geometry, transform, _ = reader.read_example(golden, name)
    try:
        frame, planes = reader.decode(data, geometry, transform, lambda *_: None)
    except reader.Unreadable as fault:
        return f"refused: {fault}"
    return b"".join(x.tobytes() for x in planes)


def main(golden, verdict):
    golden = pathlib.Path(golden)
    read = lambda name: (golden / (name + ".frame")).read_bytes()
    cases = [(*case, True) for case in spoilt((golden / "version-1.old").read_bytes())]
    cases += [(*case, False) for case in allowed(read("gqa-rans"))]
    names = sorted({name for _, name, _, _ in cases})
    frames = [(name, read(name)) for name in names]
    for rule, name, edit, _ in cases:
        draft = Draft(read(name))
        replaced = edit(draft)
        frames.append((name, replaced or draft.build()))
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i, (name, data) in enumerate(frames):
            paths.append(f"{folder}/{name}-{i}")
            pathlib.Path(paths[-1]).write_bytes(data)
        lines = subprocess.run([verdict, golden, *paths], check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == len(frames)
    sound = {name: (ours(golden, name, data), line) for (name, data), line in zip(frames, lines[:len(names)])}
    assert all(line.startswith("decoded") for _, line in sound.values()), sound

    faults = 0
    for (rule, name, _, refused), (_, data), line in zip(cases, frames[len(names):], lines[len(names):]):
        said = ours(golden, name, data)
        if refused:
            good = isinstance(said, str) and line.startswith("refused")
            good &= not rule.startswith("version 1") or "of version 1" in said and line == "refused 95"  # ENOTSUP
        else:
            good = (said, line) == sound[name]
        if not good:
            faults += 1
            print(f"{name}, {rule}: cistern: {line}; here: {said if isinstance(said, str) else 'decoded'}")
    print(f"{len(cases)} frames changed, {faults} of them taken wrongly")
    return faults > 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
