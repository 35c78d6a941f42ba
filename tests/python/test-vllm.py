#!/usr/bin/env python3
"""test-vllm.py CISTERND LIBRARY: the vLLM connector, driven as vLLM's scheduler and worker drive one. vLLM itself is not
here: its base class stands in as the abstract methods that vllm/distributed/kv_transfer/kv_connector/v1/base.py declared
in November 2026, and KV caches are numpy arrays. What this cannot show is that vLLM calls them so."""

import abc
import enum
import inspect
import os
import pathlib
import sys
import types
from types import SimpleNamespace as Named

cisternd, os.environ["CISTERN_LIBRARY"] = sys.argv[1:3]
here = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(here.parent.parent / "python"), str(here.parent / "tools")]

import numpy as np  # noqa: E402

from daemon import Daemon  # noqa: E402

# Names and parameters of the methods that the connector defines or must.
INTERFACE = {
    "start_load_kv": "self forward_context kwargs", "wait_for_layer_load": "self layer_name",
    "save_kv_layer": "self layer_name kv_layer attn_metadata kwargs", "wait_for_save": "self",
    "get_num_new_matched_tokens": "self request num_computed_tokens",
    "update_state_after_alloc": "self request blocks num_external_tokens",
    "build_connector_meta": "self scheduler_output", "register_kv_caches": "self kv_caches",
    "request_finished": "self request block_ids", "get_block_ids_with_load_errors": "self", "shutdown": "self",
}
ABSTRACT = ("start_load_kv wait_for_layer_load save_kv_layer wait_for_save get_num_new_matched_tokens "
            "update_state_after_alloc build_connector_meta").split()


class Base(abc.ABC):
    def __init__(self, vllm_config, role, kv_cache_config):
        self._meta = None

    def bind_connector_metadata(self, meta):
        self._meta = meta

    def _get_connector_metadata(self):
        assert self._meta is not None
        return self._meta


for name in ABSTRACT:
    setattr(Base, name, abc.abstractmethod(lambda self: None))
Base.__abstractmethods__ = frozenset(ABSTRACT)
path = ""
for part in "vllm.distributed.kv_transfer.kv_connector.v1.base".split("."):
    path = f"{path}.{part}".strip(".")
    sys.modules[path] = types.ModuleType(path)
base = sys.modules[path]
base.KVConnectorBase_V1 = Base
base.KVConnectorMetadata = type("KVConnectorMetadata", (), {})
base.KVConnectorRole = enum.Enum("KVConnectorRole", "SCHEDULER WORKER")

from cistern import vllm as ours  # noqa: E402

LAYERS, HEADS, DIM, BLOCK, BLOCKS = 2, 2, 16, 16, 100
random = np.random.default_rng(5)


def shapes(kind):
    return {"2BNHD": (2, BLOCKS, BLOCK, HEADS, DIM), "B2NHD": (BLOCKS, 2, BLOCK, HEADS, DIM),
            "2BHND": (2, BLOCKS, HEADS, BLOCK, DIM), "BHN2D": (BLOCKS, HEADS, BLOCK, 2 * DIM)}[kind]


class Engine:
    """vLLM as far as a connector sees it: a scheduler's and a worker's half, and blocks."""

    def __init__(self, d, kind, staging=512, tp=(0, 1)):
        transfer = {"socket": str(d.socket), "staging_tokens": staging}
        config = Named(
            kv_transfer_config=Named(get_from_extra_config=lambda key, default: transfer.get(key, default)),
            model_config=Named(model="m", dtype="float16", use_mla=False, hf_config=Named(rope_theta=1e4),
                               get_num_layers=lambda p: LAYERS, get_num_kv_heads=lambda p: HEADS,
                               get_head_size=lambda: DIM),
            parallel_config=Named(rank=tp[0], tensor_parallel_size=tp[1], pipeline_parallel_size=1),
            cache_config=Named(block_size=BLOCK, cache_dtype="auto"))
        self.scheduler = ours.CisternConnector(config, base.KVConnectorRole.SCHEDULER, None)
        self.worker = ours.CisternConnector(config, base.KVConnectorRole.WORKER, None)
        self.caches = {f"layer.{i}": np.zeros(shapes(kind), np.float16) for i in range(LAYERS)}
        self.worker.register_kv_caches(self.caches)
        self.free = list(random.permutation(BLOCKS))

    def views(self):
        return [ours.split_layer(x, BLOCK, HEADS, DIM) for x in self.caches.values()]

    def step(self, new=(), cached=(), scheduled=None, finished=()):
        """One step; the model's computation is a function that is called amid it."""
        out = Named(scheduled_new_reqs=[Named(req_id=r, prompt_token_ids=t, block_ids=(b,), num_computed_tokens=n,
                                              mm_features=[], lora_request=None) for r, t, b, n in new],
                    scheduled_cached_reqs=Named(req_ids=[c[0] for c in cached], resumed_req_ids=set(),
                                                new_block_ids=[c[1] for c in cached],
                                                num_computed_tokens=[c[2] for c in cached]),
                    num_scheduled_tokens=scheduled, finished_req_ids=set(finished))
        meta = self.scheduler.build_connector_meta(out)
        self.worker.bind_connector_metadata(meta)
        self.worker.start_load_kv(None)
        return meta

    def ended(self):
        for name in self.caches:
            self.worker.wait_for_layer_load(name)
            self.worker.save_kv_layer(name, self.caches[name], None)
        self.worker.wait_for_save()
        return self.worker.get_block_ids_with_load_errors()

    def close(self):
        self.scheduler.shutdown()
        self.worker.shutdown()


def request(tokens, name):
    return Named(request_id=name, prompt_token_ids=tokens, mm_features=[], lora_request=None)


def truth(n):
    return random.standard_normal((LAYERS, 2, n, HEADS, DIM)).astype(np.float16)


def fill(engine, blocks, kv, first, end):
    """What the model's computation leaves in the blocks."""
    for layer, pair in enumerate(engine.views()):
        for plane, view in enumerate(pair):
            for t in range(first, end):
                view[blocks[t // BLOCK], t % BLOCK] = kv[layer, plane, t]


def read(engine, blocks, n):
    out = np.zeros((LAYERS, 2, n, HEADS, DIM), np.float16)
    for layer, pair in enumerate(engine.views()):
        for plane, view in enumerate(pair):
            for t in range(n):
                out[layer, plane, t] = view[blocks[t // BLOCK], t % BLOCK]
    return out


def interface():
    for name, parameters in INTERFACE.items():
        mine = list(inspect.signature(getattr(ours.CisternConnector, name)).parameters)
        assert mine == parameters.split(), (name, mine)


def prefill_and_restore(d, kind):
    tokens, kv = [ord(kind[0])] + list(range(999)), truth(1000)
    a = Engine(d, kind)
    r = request(tokens, "a")
    assert a.scheduler.get_num_new_matched_tokens(r, 0) == (0, False)
    a.scheduler.update_state_after_alloc(r, None, 0)
    blocks = [int(b) for b in a.free[:63]]
    # In two steps, as chunked prefill does.
    a.step(new=[("a", tokens, blocks[:38], 0)], scheduled={"a": 600})
    fill(a, blocks, kv, 0, 600)
    assert a.ended() == set()
    a.step(cached=[("a", (blocks[38:],), 600)], scheduled={"a": 400})
    fill(a, blocks, kv, 600, 1000)
    assert a.ended() == set()
    # Then tokens are generated; nothing more is kept of them.
    meta = a.step(cached=[("a", None, 1000)], scheduled={"a": 1})
    assert not meta.saves and not meta.loads
    a.ended()
    assert a.scheduler.request_finished(r, blocks) == (False, None)
    a.close()

    # Another engine, with blocks elsewhere; it has 5 blocks of the prompt itself, which others may be using.
    b = Engine(d, "BHN2D" if kind != "BHN2D" else "2BNHD")
    r = request(tokens, "b")
    for _ in range(2):  # may be asked more than once
        assert b.scheduler.get_num_new_matched_tokens(r, 80) == (768 - 80, False)
    b.scheduler.update_state_after_alloc(r, None, 688)
    blocks = [int(x) for x in b.free[:63]]
    fill(b, blocks, kv, 0, 80)
    meta = b.step(new=[("b", tokens, blocks, 768)], scheduled={"b": 232})
    assert [(s.first, s.end) for s in meta.loads] == [(80, 768)] and not meta.saves, meta
    got = read(b, blocks, 768)
    assert np.array_equal(got[:, :, :80], kv[:, :, :80])
    assert abs(got.astype(float) - kv[:, :, :768]).max() < 0.1
    assert not read(b, blocks, 1000)[:, :, 768:].any()
    assert b.ended() == set()

    # What was there at the lookup is gone at the load: its blocks are named, and vLLM computes them.
    b.scheduler._models[0].remove(tokens[:768])
    b.scheduler.update_state_after_alloc(request(tokens, "c"), None, 768)
    blocks = [int(x) for x in b.free[:63]]
    b.step(new=[("c", tokens, blocks, 768)], scheduled={"c": 232})
    assert b.ended() == set(blocks[:48])
    b.close()


def ranks(d):
    """A rank finds its own; the scheduler counts what all have."""
    tokens, kv = list(range(7000, 7600)), truth(600)
    a = Engine(d, "2BNHD", tp=(0, 2))
    blocks = [int(x) for x in a.free[:38]]
    a.step(new=[("a", tokens, blocks, 0)], scheduled={"a": 600})
    fill(a, blocks, kv, 0, 600)
    a.ended()
    a.worker._settle()
    assert a.scheduler.get_num_new_matched_tokens(request(tokens, "x"), 0) == (0, False)
    b = Engine(d, "2BNHD", tp=(1, 2))
    b.step(new=[("a", tokens, blocks, 0)], scheduled={"a": 600})
    fill(b, blocks, kv, 0, 600)
    b.ended()
    b.worker._settle()
    assert a.scheduler.get_num_new_matched_tokens(request(tokens, "x"), 0) == (512, False)
    a.close()
    b.close()


def left_alone(d):
    a = Engine(d, "2BNHD")
    r = request(list(range(600)), "a")
    r.mm_features = [1]
    assert a.scheduler.get_num_new_matched_tokens(r, 0) == (0, False)
    assert a.scheduler.get_num_new_matched_tokens(request([1, 2, 3], "b"), 0) == (0, False)
    for shape in ((3, BLOCKS, BLOCK, HEADS, DIM), (BLOCKS, BLOCK, HEADS, DIM), (2, 2, BLOCK, HEADS, DIM)):
        try:
            a.worker.register_kv_caches({str(i): np.zeros(shape, np.float16) for i in range(LAYERS)})
            raise AssertionError(shape)
        except ValueError as e:
            assert "shape" in str(e)
    # A daemon that has gone costs hits, not requests.
    d.end()
    assert a.scheduler.get_num_new_matched_tokens(request(list(range(600)), "c"), 0) == (0, False)
    a.scheduler.update_state_after_alloc(request(list(range(600)), "c"), None, 512)
    a.step(new=[("c", list(range(600)), list(range(38)), 512)], scheduled={"c": 88})
    assert a.ended() == set(range(32))
    # It is found again when it is back.
    d.start()
    ours.RETRY_S = 0
    assert a.scheduler.get_num_new_matched_tokens(request(list(range(600)), "d"), 0) == (0, False)
    a.step(new=[("d", list(range(600)), list(range(38)), 0)], scheduled={"d": 600})
    assert a.ended() == set()
    a.worker._settle()
    assert a.scheduler.get_num_new_matched_tokens(request(list(range(600)), "e"), 0) == (512, False)
    a.close()


interface()
with Daemon(cisternd) as daemon:
    for layout in ("2BNHD", "B2NHD", "2BHND", "BHN2D"):
        prefill_and_restore(daemon, layout)
    ranks(daemon)
    left_alone(daemon)
