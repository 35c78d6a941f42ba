#!/usr/bin/env python3
"""test-package.py CISTERND LIBRARY: the Python package against a daemon: numpy arrays stored by one process are loaded by
another, paged memory, layers, DLPack, statistics, and what goes wrong."""

import ctypes
import errno
import gc
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

cisternd, os.environ["CISTERN_LIBRARY"] = sys.argv[1:3]
here = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(here.parent.parent / "python"), str(here.parent / "tools")]

import numpy as np  # noqa: E402

import cistern  # noqa: E402
from daemon import Daemon  # noqa: E402

LAYERS, HEADS, DIM = 3, 2, 32
random = np.random.default_rng(7)


def made_up(tokens, dtype=np.float16):
    return random.standard_normal((LAYERS, 2, tokens, HEADS, DIM)).astype(dtype)


def relative_error(a, b):
    """Of the worst token."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    axes = (0, 3, 4)
    return float(np.sqrt(((a - b) ** 2).sum(axes) / (a ** 2).sum(axes)).max())


def connect(d, **more):
    c = cistern.connect(d.socket, **more)
    return c, c.model("m", LAYERS, HEADS, DIM)


def store_and_load(d):
    c, m = connect(d)
    tokens, kv = list(range(1000)), made_up(1000)
    assert m.lookup(tokens) == 0
    assert m.load(tokens) == (None, 0)
    assert m.store(tokens, kv) == 1000
    back, n = m.load(tokens)
    assert n == 1000 and back.shape == kv.shape and back.dtype == kv.dtype
    assert 0 < relative_error(kv, back) < 0.02  # the plain 8-bit codec
    assert np.array_equal(kv[:, :, :4], back[:, :, :4])  # sinks, bit for bit
    assert np.array_equal(kv[:, :, -128:], back[:, :, -128:])  # and the window
    m.remove(tokens)
    assert m.store(tokens, kv, preset="archival") == 1000
    # A longer prompt with the same beginning; another beginning; another salt.
    assert m.lookup(tokens + [7] * 300) == 768  # whole chunks
    assert m.lookup([1] + tokens[1:]) == 0
    assert m.lookup(tokens, salt=b"x") == 0
    c.sync()
    assert m.remove(tokens) == 4 and m.lookup(tokens) == 0
    c.close()


def another_process(d):
    c, m = connect(d)
    kv = made_up(512)
    m.store(list(range(512)), kv)
    np.save(d.folder / "kv.npy", kv)
    program = ("import sys, cistern, numpy as np\n"
               "with cistern.connect(sys.argv[1]) as c:\n"
               f"    kv, n = c.model('m', {LAYERS}, {HEADS}, {DIM}).load(list(range(512)))\n"
               "    kept = np.load(sys.argv[2])\n"
               "    assert n == 512 and np.array_equal(kv[:, :, -128:], kept[:, :, -128:])\n"
               "    assert abs(kv.astype(float) - kept).max() < 0.1\n")
    subprocess.run([sys.executable, "-c", program, d.socket, d.folder / "kv.npy"], check=True,
                   env=dict(os.environ, PYTHONPATH=sys.path[0]))
    c.close()


def paged(d):
    c, m = connect(d)
    memory = m.memory(1024, block_tokens=16)
    assert len(memory.keys) == LAYERS and memory.keys[0].shape == (64, 16, HEADS, DIM)
    blocks = random.permutation(64)[:40].astype(np.uint32)  # 640 tokens
    tokens = list(range(5000, 5640))
    for layer in range(LAYERS):
        memory.keys[layer][:] = random.standard_normal(memory.keys[layer].shape)
        memory.values[layer][:] = random.standard_normal(memory.values[layer].shape)
    before = memory.array.copy()
    assert memory.put(tokens, blocks) == 640
    memory.array[:] = 0
    assert memory.get(tokens, blocks) == 640
    whole, kept = memory.whole(), before.reshape(memory.whole().shape)
    assert not whole[:, :, np.setdiff1d(np.arange(64), blocks)].any()  # nothing beside the blocks was touched
    assert np.array_equal(whole[:, :, blocks[-8:]], kept[:, :, blocks[-8:]])
    assert abs(whole[:, :, blocks].astype(float) - kept[:, :, blocks]).max() < 0.1

    # Only the last chunk, behind two that are there; layer by layer.
    memory.array[:] = 0
    request = memory.start_get(tokens, blocks[32:], skip=512, layerwise=True)
    request.wait(layers=1)
    assert memory.keys[0][blocks[33]].any()
    assert request.wait() == 1
    assert np.array_equal(memory.whole()[:, :, blocks[32:]], kept[:, :, blocks[32:]])
    for skip in (100, 640, -256):
        try:
            memory.start_get(tokens, blocks, skip=skip)
            raise AssertionError("a skip that is no whole chunks was taken")
        except ValueError:
            pass
    try:
        memory.put(tokens, [70] * 40)
        raise AssertionError("blocks that there are not were taken")
    except cistern.Error as e:
        assert e.errno == errno.EINVAL
    # The views live on when memory and connection do not.
    keys = memory.keys
    memory.close()
    del memory
    c.close()
    gc.collect()
    assert keys[0].shape == (64, 16, HEADS, DIM) and keys[0].any()

    # Many requests at once, more than the ring holds.
    c, m = connect(d)
    requests = [m.start_keyed("lookup", c.keys(tokens)) for _ in range(1000)]
    assert [r.wait() for r in requests] == [3] * 1000
    c.close()


def tensors_of_others(d):
    c = cistern.connect(d.socket)
    tokens = list(range(300))
    m = c.model("f32", LAYERS, HEADS, DIM, dtype=np.float32, rope_theta=1e4)
    kv = made_up(300, np.float32)
    m.store(tokens, kv)
    assert relative_error(kv, m.load(tokens)[0]) < 0.02

    # Attention: the queries of the last tokens judge the chunk before theirs.
    memory = m.memory(304)
    memory.write(kv)
    shown = np.random.default_rng(1).standard_normal((LAYERS, 4, 2 * HEADS, DIM)).astype(np.float32)
    blocks = memory.first_blocks(300)
    assert memory.observe(tokens, blocks, shown, [296, 297, 298, 299]) == 1
    for wrong in (dict(queries=shown[0]), dict(queries=shown[:, :3])):
        try:
            memory.observe(tokens, blocks, positions=[296, 297, 298, 299], **wrong)
            raise AssertionError(wrong)
        except ValueError:
            pass
    memory.close()

    class Foreign:
        """An array that speaks DLPack alone."""

        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **more):
            return self.array.__dlpack__(**more)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    m.remove(tokens)
    assert m.store(tokens, Foreign(kv)) == 300
    b = c.model("bf16", LAYERS, HEADS, DIM, dtype="bfloat16")
    bits = (made_up(300, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    assert b.store(tokens, bits) == 300
    back = b.load(tokens)[0]
    assert back.dtype == np.uint16
    assert relative_error((bits.astype(np.uint32) << 16).view(np.float32), (back.astype(np.uint32) << 16).view(np.float32)) < 0.03

    # Ours for others: numpy takes it, and the memory lives as long as what was made of it.
    memory = m.memory(64)
    view = np.from_dlpack(memory)
    assert view.shape == (LAYERS, 2, 4, 16, HEADS, DIM) and view.dtype == np.float32
    memory.array[0] = 42
    assert view[0, 0, 0, 0, 0, 0] == 42
    memory.close()
    del memory
    gc.collect()
    assert view.flat[0] == 42
    from cistern import tensors
    del view
    gc.collect()
    assert not tensors._alive, "a tensor that nobody has is kept"
    m.memory(16).__dlpack__()  # a capsule that nobody takes
    gc.collect()
    assert not tensors._alive

    for bad, error in ((kv[:, :1], ValueError), (kv[:, :, :200], ValueError), (kv.astype(np.float64), TypeError),
                       (kv.astype(np.float16), TypeError)):
        try:
            m.store(tokens, bad)
            raise AssertionError(f"{bad.shape} {bad.dtype} was taken")
        except error:
            pass
    try:
        import torch
    except ImportError:
        print("without torch: its bfloat16 is not tried")
    else:
        t = torch.randn(LAYERS, 2, 300, HEADS, DIM).to(torch.bfloat16)
        b.remove(tokens)
        assert b.store(tokens, t) == 300
        mine = b.memory(304)
        theirs = torch.from_dlpack(mine)
        assert theirs.dtype == torch.bfloat16
        assert mine.get(tokens, mine.first_blocks(300)) == 300
        got = theirs.reshape(LAYERS, 2, 304, HEADS, DIM)[:, :, :300]
        assert torch.equal(got[:, :, -128:], t[:, :, -128:])
        assert (got.float() - t.float()).abs().max() < 0.1
    c.close()


def as_the_header(_):
    """Structs and functions of the package are those of <cistern.h>, field by field."""
    from cistern import library
    header = re.sub(r"/\*.*?\*/", "", (here.parent.parent / "shm/cistern.h").read_text(), flags=re.S)
    structs = dict(re.findall(r"^struct cistern_(\w+) \{\n(.*?)^\};", header, re.M | re.S))
    assert len(structs) > 7
    structs.pop("observation_kind", None)
    sizes = {"uint64_t": 8, "uint32_t": 4, "int32_t": 4, "int": 4, "float": 4}
    for name, body in structs.items():
        wanted = []
        for kind, pointer, field, length in re.findall(r"^\s*(?:const )?(?:struct )?(\w+) (\*?)(\w+)(?:\[(\d+)\])?;", body, re.M):
            wanted.append((field, 8 if pointer else int(length) if length else sizes[kind]))
        mine = [(field[0], ctypes.sizeof(field[1])) for field in
                getattr(library, name.title().replace("_", ""))._fields_]
        assert mine == wanted, (name, mine, wanted)
    presets = {m.lower(): int(n) for m, n in re.findall(r"CISTERN_PRESET_(\w+) = (\d)", header)}
    assert presets == {str(k).lower(): v for k, v in library.PRESETS.items()}


def observations(d):
    c, m = connect(d)
    memory, tokens = m.memory(600), list(range(8000, 8512))
    memory.array[:] = random.standard_normal(memory.array.shape)
    blocks = memory.first_blocks(512)
    positions = np.concatenate([np.arange(240, 256), np.arange(496, 512)])
    queries = random.standard_normal((LAYERS, 32, HEADS * 2, DIM)).astype(np.float16)
    n = memory.observe_queries(tokens, blocks, queries, positions)
    assert n == 1, n  # the last chunk has no queries behind it
    sums = np.full(512, 0.01, np.float32)
    sums[300] = 9
    assert memory.observe_sums(tokens, blocks, sums, 16) == 1
    assert memory.put(tokens, blocks) == 512
    for call in (lambda: memory.observe_queries(tokens, blocks, queries[:, :5], positions),
                 lambda: memory.observe_sums(tokens, blocks, sums[:5], 16)):
        try:
            call()
            raise AssertionError("shapes that do not fit were taken")
        except ValueError:
            pass
    c.close()


def refusals(d):
    for arguments, number in (((d.folder / "nowhere",), errno.ENOENT), ((d.socket, "no-such-tenant"), errno.EACCES)):
        try:
            cistern.connect(*arguments)
            raise AssertionError(arguments)
        except cistern.Error as e:
            assert e.errno == number and len(str(e)) > 20, e
    c, m = connect(d)
    for more in (dict(layers=0), dict(heads=0), dict(dim=100000)):
        try:
            c.model("x", **{**dict(layers=1, heads=1, dim=1), **more})
            raise AssertionError(more)
        except cistern.Error as e:
            assert e.errno == errno.EINVAL
    for wrong in (dict(dtype="int8"), dict(dtype="float64")):
        try:
            c.model("x", 1, 1, 8, **wrong)
            raise AssertionError(wrong)
        except TypeError:
            pass
    assert cistern.control({"command": "status"}, d.socket)["ok"]
    try:
        cistern.control({"command": "nonsense"}, d.socket)
        raise AssertionError
    except cistern.Error as e:
        assert "no such command" in str(e)
    c.close()
    try:
        m.lookup([1])
        raise AssertionError("a closed connection was used")
    except cistern.Error as e:
        assert e.errno == errno.ENOTCONN


def statistics(d):
    c, m = connect(d, name_space="other")
    tokens = list(range(900))
    with cistern.Statistics(d.socket) as s:
        m.store(tokens, made_up(900))
        assert m.lookup(tokens) == 900
        time.sleep(0.2)
        page = s.read()
        assert page["daemon"]["workers"] == 1 and page["daemon"]["version"]
        (cache,) = [x for x in page["caches"] if x["name_space"] == "other"]
        assert (cache["model"], cache["puts"], cache["put_chunks"], cache["tokens"]) == ("m", 1, 4, 900)
        assert cache["put_ns"].count == 1
        assert 0 < cache["put_ns"].sum_ns <= cache["put_ns"].quantile_ns(0.99) <= 1.26 * cache["put_ns"].sum_ns
        assert 0 < cache["key_error_max"] < 0.02
        assert s.alive
        d.end(signal.SIGKILL)
        deadline = time.monotonic() + 5
        while s.alive:
            assert time.monotonic() < deadline
        assert s.read()["caches"]
        try:
            while True:
                m.lookup(tokens)
        except cistern.Error as e:
            assert e.errno == errno.ENOTCONN
    c.close()


with Daemon(cisternd, f"[namespace other]\nuids = {os.geteuid()}\n") as daemon:
    for test in (as_the_header, store_and_load, another_process, paged, tensors_of_others, observations, refusals, statistics):
        test(daemon)
        print("ok", test.__name__)
