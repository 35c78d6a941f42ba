"""Connections, models, memories and requests. A Client and what is made from it belong to one thread at a time."""

import ctypes
import errno
import fcntl
import json
import mmap
import os
from ctypes import byref, c_uint32, c_void_p

import numpy as np

from . import library, tensors
from .library import Error, check, lib, path_bytes

_F_ADD_SEALS, _F_SEAL_SHRINK = 1033, 2  # linux/fcntl.h


def connect(socket=None, name_space=None, spin_us=0):
    """A Client. socket: None for $CISTERN_SOCKET, else /run/cistern/cistern.sock. name_space: the tenant; None for
    "default". spin_us: how long waiting polls before it sleeps."""
    return Client(socket, name_space, spin_us)


def control(request, socket=None, timeout_ms=10000):
    """Sends an operator's command, as {"command": "status"}, and returns the daemon's answer. For root and the daemon's
    own user."""
    answer = c_void_p()
    check(lib.cistern_control(path_bytes(socket), json.dumps(request).encode(), byref(answer), timeout_ms))
    try:
        result = json.loads(ctypes.string_at(answer))
    finally:
        library.libc.free(answer)
    if not result.get("ok"):
        raise Error(errno.EINVAL, result.get("error", "the daemon refused"))
    return result


class Request:
    """A request on its way. wait() returns how many chunks it reached, or raises an Error."""

    def __init__(self, client):
        self.client, self.completion, self.n_layers = client, None, 0

    @property
    def done(self):
        return self.completion is not None

    def wait(self, layers=None):
        """Until it has ended; or, of a layerwise get, until that many layers are written."""
        while not self.done and not (layers is not None and self.n_layers >= layers):
            self.client._take(-1)
        if not self.done:
            return None
        check(self.completion.status)
        return self.completion.n_chunks


class Client:
    def __init__(self, socket=None, name_space=None, spin_us=0):
        self._handle = c_void_p()
        options = library.Options(socket_path=path_bytes(socket),
                                  name_space=None if name_space is None else name_space.encode(), spin_us=spin_us)
        check(lib.cistern_connect(byref(options), byref(self._handle)))
        self._requests, self._last = {}, 0
        self.chunk_tokens = lib.cistern_chunk_tokens(self._handle)

    def close(self):
        """Ends the connection; chunks stay cached. What is in flight is dropped, and its wait fails."""
        if self._handle:
            lib.cistern_close(self._handle)
            self._handle = c_void_p()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        self.close()

    def fileno(self):
        """For select and asyncio: readable when completions may be there."""
        return lib.cistern_fd(self._open())

    def model(self, name, layers, heads, dim, dtype="float16", rope_theta=None, inv_freq=None, rope="half",
              rope_dim=None, value_heads=None, value_dim=None, tp_rank=0, tp_size=1):
        """A Model of keys and values. rope_theta or inv_freq: keys were rotated (rope: "half" as Hugging Face does it, or
        "interleaved"); None: they were not, or it is not known: then they are cached as they are, which takes more room."""
        return Model(self, name, layers, heads, dim, dtype, rope_theta, inv_freq, rope, rope_dim,
                     value_heads or heads, value_dim or dim, tp_rank, tp_size)

    def keys(self, token_ids, salt=b"", parent=None):
        """The keys of a prompt's chunks, [chunks, 32] uint8, the last chunk maybe shorter. salt keeps unrelated caches of
        one namespace apart. parent: the key before these, where they go on a sequence."""
        tokens = np.ascontiguousarray(token_ids, dtype=np.uint32)
        n = -(-len(tokens) // self.chunk_tokens)
        keys, root = np.zeros((n, 32), np.uint8), library.Key()
        if parent is None:
            lib.cistern_key_root(salt, len(salt), byref(root))
        else:
            ctypes.memmove(byref(root), bytes(parent), 32)
        lib.cistern_key_chain(byref(root), tokens.ctypes.data_as(ctypes.POINTER(c_uint32)), len(tokens),
                              self.chunk_tokens, _key_pointer(keys))
        return keys

    def sync(self):
        """Until what was put before is on stable storage."""
        return self._start(lambda data: lib.cistern_sync(self._handle, data)).wait()

    def nop(self):
        return self._start(lambda data: lib.cistern_nop(self._handle, data)).wait()

    # ---- inside ----

    def _open(self):
        if not self._handle:
            raise Error(errno.ENOTCONN, "this connection was closed")
        return self._handle

    def _start(self, queue):
        """Queues a request: queue(user_data) makes the call. When the ring is full, takes completions and tries again."""
        self._open()
        request = Request(self)
        self._last += 1
        self._requests[self._last] = request
        try:
            while (r := queue(self._last)) == -errno.EAGAIN:
                self._take(-1)
            check(r, self._handle)
            check(lib.cistern_submit(self._handle), self._handle)
        except BaseException:
            self._requests.pop(self._last, None)
            raise
        return request

    def _take(self, timeout_ms):
        done = (library.Completion * 64)()
        r = lib.cistern_wait(self._open(), done, len(done), timeout_ms)
        if r == -errno.EINTR:
            return
        check(r, self._handle)
        for i in range(r):
            request = self._requests.get(done[i].user_data)
            if request is None:
                continue
            if done[i].flags & library.MORE:
                request.n_layers = done[i].n_layers
                continue
            request.completion = library.Completion.from_buffer_copy(done[i])
            del self._requests[done[i].user_data]


class Model:
    """A geometry, registered. The same description names the same cached chunks, whoever registers it."""

    def __init__(self, client, name, layers, heads, dim, dtype, rope_theta, inv_freq, rope, rope_dim, value_heads,
                 value_dim, tp_rank, tp_size):
        self.client, self.layers, self.dtype = client, layers, tensors.dtype_name(dtype)
        self.heads, self.dims = (heads, value_heads), (dim, value_dim)
        number = tensors.DTYPES[self.dtype][0]
        keys = library.Plane(n_heads=heads, dim=dim, dtype=number)
        if rope_theta is not None or inv_freq is not None:
            if rope not in ("half", "interleaved"):
                raise ValueError(f'rope is "half" or "interleaved", not {rope!r}')
            keys.rope_kind = library.ROPE_HALF if rope == "half" else library.ROPE_INTERLEAVED
            keys.rope_dim = rope_dim or dim
            if inv_freq is None:
                inv_freq = 1.0 / rope_theta ** (np.arange(0, keys.rope_dim, 2) / keys.rope_dim)
            frequencies = np.ascontiguousarray(inv_freq, dtype=np.float32)
            if frequencies.shape != (keys.rope_dim // 2,):
                raise ValueError(f"inv_freq has the shape {frequencies.shape}, not ({keys.rope_dim // 2},)")
            keys.inv_freq = frequencies.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        planes = (library.Plane * 2)(keys, library.Plane(n_heads=value_heads, dim=value_dim, dtype=number))
        description = library.Model(name=name.encode(), n_layers=layers, n_planes=2, planes=planes, tp_rank=tp_rank,
                                    tp_size=tp_size)
        model_id = c_uint32()
        check(lib.cistern_register_model(client._open(), byref(description), byref(model_id)), client._handle)
        self._id = model_id.value
        self._staging = None

    def memory(self, tokens, block_tokens=16):
        """A Memory with room for that many tokens: a paged cache that the daemon shares."""
        return Memory(self, tokens, block_tokens)

    def lookup(self, token_ids, salt=b""):
        """How many tokens of the prompt are cached, from its start. Whole chunks count, and the last one if it ends where
        the prompt does."""
        keys = self.client.keys(token_ids, salt)
        return self._tokens(self.start_keyed("lookup", keys).wait(), len(token_ids))

    def remove(self, token_ids, salt=b""):
        """Forgets the prompt's chunks; returns how many there were."""
        return self.start_keyed("remove", self.client.keys(token_ids, salt)).wait()

    def prefetch(self, token_ids, salt=b""):
        """Brings the prompt's chunks from disk into the pool; returns how many are there now."""
        return self.start_keyed("prefetch", self.client.keys(token_ids, salt)).wait()

    def start_keyed(self, op, keys):
        """Queues lookup, prefetch, pin, unpin or remove of keys from Client.keys."""
        call = getattr(lib, "cistern_" + op)
        return self.client._start(
            lambda data: call(self.client._handle, self._id, _key_pointer(keys), len(keys), data))

    def store(self, token_ids, kv, salt=b"", preset=None):
        """Caches a prompt's KV: [layers, 2, tokens, heads, dim], numpy or DLPack. Returns how many tokens are cached now.
        Copies kv once. preset: None for what the namespace's policy says, or "archival", "balanced" or "compact"."""
        kv = tensors.host_array(kv, self.dtype)
        wanted = (self.layers, 2, len(token_ids), self.heads[0], self.dims[0])
        if kv.shape != wanted or self.heads[0] != self.heads[1] or self.dims[0] != self.dims[1]:
            raise ValueError(f"kv has the shape {kv.shape}, not {wanted} [layers, 2, tokens, heads, dim]")
        memory = self._room(len(token_ids))
        memory.write(kv)
        return memory.put(token_ids, memory.first_blocks(len(token_ids)), salt=salt, preset=preset)

    def load(self, token_ids, salt=b""):
        """The KV of as much of the prompt's start as is cached: (array [layers, 2, n, heads, dim], n), a copy; (None, 0)
        when nothing is."""
        memory = self._room(len(token_ids))
        n = memory.get(token_ids, memory.first_blocks(len(token_ids)), salt=salt)
        return (memory.read(n), n) if n else (None, 0)

    def _tokens(self, n_chunks, n_tokens):
        return min(n_chunks * self.client.chunk_tokens, n_tokens)

    def _room(self, tokens):
        if self._staging is None or self._staging.tokens < tokens:
            if self._staging is not None:
                self._staging.close()
            self._staging = self.memory(tokens)
        return self._staging


class Memory:
    """A paged cache in shared memory. keys and values are views [layers, blocks, block_tokens, heads, dim]; the engine
    writes and reads them as it likes, but not while a request on those blocks is on its way. Use as an array (numpy), or
    through DLPack ([layers, 2, blocks, block_tokens, heads, dim], where keys and values are of one shape). Views stay
    valid after close()."""

    def __init__(self, model, tokens, block_tokens):
        self.model, self.client = model, model.client
        self.block_tokens, self.n_blocks = block_tokens, -(-tokens // block_tokens)
        self.tokens = self.n_blocks * block_tokens
        if self.n_blocks < 1:
            raise ValueError("a memory has room for one token at least")
        element = tensors.DTYPES[model.dtype][1]
        sizes = [self.tokens * h * d * element.itemsize for h, d in zip(model.heads, model.dims)]
        self._map, fd = _shared(model.layers * sum(sizes))
        self.array = np.frombuffer(self._map, dtype=element)
        layouts = (library.Layout * (model.layers * 2))()
        views = ([], [])
        base = 0
        for i in range(model.layers * 2):
            plane = i % 2
            heads, dim = model.heads[plane], model.dims[plane]
            token = heads * dim * element.itemsize
            layouts[i] = library.Layout(base, token * block_tokens, token, dim * element.itemsize)
            start = base // element.itemsize
            views[plane].append(self.array[start:start + sizes[plane] // element.itemsize].reshape(
                self.n_blocks, block_tokens, heads, dim))
            base += sizes[plane]
        self.keys, self.values = views
        description = library.Memory(model_id=model._id, fd=fd, size_bytes=len(self._map), block_tokens=block_tokens,
                                     n_blocks=self.n_blocks, layouts=layouts)
        memory_id = c_uint32()
        try:
            check(lib.cistern_register_memory(self.client._open(), byref(description), byref(memory_id)),
                  self.client._handle)
        finally:
            os.close(fd)
        self._id = memory_id.value

    def close(self):
        """Takes the registration back, once no request uses it."""
        if self._id and self.client._handle:
            check(lib.cistern_unregister_memory(self.client._handle, self._id), self.client._handle)
        self._id = 0

    # ---- one array of all ----

    def whole(self):
        """[layers, 2, blocks, block_tokens, heads, dim], where keys and values are of one shape."""
        m = self.model
        if m.heads[0] != m.heads[1] or m.dims[0] != m.dims[1]:
            raise ValueError("keys and values have different shapes")
        return self.array.reshape(m.layers, 2, self.n_blocks, self.block_tokens, m.heads[0], m.dims[0])

    def __array__(self, dtype=None, copy=None):
        return self.whole() if dtype is None else self.whole().astype(dtype)

    def __dlpack__(self, stream=None, **_):
        return tensors.dlpack(self.whole(), self.model.dtype)

    def __dlpack_device__(self):
        return tensors.CPU, 0

    def first_blocks(self, tokens):
        return np.arange(-(-tokens // self.block_tokens), dtype=np.uint32)

    def write(self, kv):
        """Lays [layers, 2, tokens, heads, dim] into the first blocks."""
        n = kv.shape[2]
        flat = self.whole().reshape(kv.shape[0], 2, self.tokens, *kv.shape[3:])
        flat[:, :, :n] = kv

    def read(self, tokens):
        """A copy of the first tokens, [layers, 2, tokens, heads, dim]."""
        m = self.model
        return self.whole().reshape(m.layers, 2, self.tokens, m.heads[0], m.dims[0])[:, :, :tokens].copy()

    # ---- requests ----

    def put(self, token_ids, blocks, salt=b"", skip=0, preset=None):
        """Caches tokens that lie in these blocks; returns how many of them are cached now. token_ids is the prompt from its
        start. skip: that many of its tokens (whole chunks) are cached already; blocks begin behind them. preset: as in
        Model.store."""
        r = self.start_put(token_ids, blocks, salt, skip, preset)
        return min(r.wait() * self.client.chunk_tokens, len(token_ids) - skip)

    def get(self, token_ids, blocks, salt=b"", skip=0):
        """Restores as much of the prompt's start as is cached into these blocks; returns how many tokens that is. skip: as
        in put."""
        r = self.start_get(token_ids, blocks, salt, skip)
        return min(r.wait() * self.client.chunk_tokens, len(token_ids) - skip)

    def observe(self, token_ids, blocks, queries, positions, first_layer=0, scale=0.0, salt=b""):
        """Shows the daemon recent queries of a prompt whose keys lie in these blocks, so that what is put next keeps the
        tokens they rest on. queries: [layers, n, heads, dim] of the model's dtype, as they meet the cached (rotated) keys;
        positions: where each of the n stands, rising. Returns how many chunks were judged."""
        queries = tensors.host_array(queries, self.model.dtype)
        positions = np.ascontiguousarray(positions, dtype=np.uint32)
        if queries.ndim != 4 or queries.shape[1] != len(positions):
            raise ValueError(f"queries have the shape {queries.shape}, not [layers, {len(positions)}, heads, dim]")
        queries = np.ascontiguousarray(queries)
        run, _, alive = self._run(token_ids, blocks, salt, 0, 0)
        shown = library.Observation(
            kind=library.QUERIES, n_queries=len(positions), n_heads=queries.shape[2], first_layer=first_layer,
            n_layers=queries.shape[0], scale=scale,
            positions=positions.ctypes.data_as(ctypes.POINTER(c_uint32)), values=queries.ctypes.data)
        return self.client._start(lambda data: lib.cistern_observe(
            self.client._handle, byref(run), byref(shown), data) if alive else 0).wait()

    def start_put(self, token_ids, blocks, salt=b"", skip=0, preset=None):
        if preset not in library.PRESETS:
            raise ValueError(f"preset {preset!r} is none of {list(library.PRESETS)}")
        run, parent, alive = self._run(token_ids, blocks, salt, skip, 0)
        run.preset = library.PRESETS[preset]
        return self.client._start(
            lambda data: lib.cistern_put(self.client._handle, byref(run), parent, data) if alive else 0)

    def start_get(self, token_ids, blocks, salt=b"", skip=0, layerwise=False):
        run, _, alive = self._run(token_ids, blocks, salt, skip, library.LAYERWISE if layerwise else 0)
        return self.client._start(lambda data: lib.cistern_get(self.client._handle, byref(run), data) if alive else 0)

    def observe_queries(self, token_ids, blocks, queries, positions, first_layer=0, scale=0.0, salt=b""):
        """Tells the daemon where attention rested, before the prompt's chunks are put: queries [layers, n, heads, dim], of
        layers from first_layer on, rotated as they meet the keys in these blocks, at these positions (rising). A few of
        each chunk are enough. scale: of the scores, 0 for 1 / sqrt(dim). Returns how many chunks were judged."""
        queries = np.ascontiguousarray(tensors.host_array(queries, self.model.dtype))
        positions = np.ascontiguousarray(positions, dtype=np.uint32)
        if queries.ndim != 4 or queries.shape[1] != len(positions) or queries.shape[3] != self.model.dims[0]:
            raise ValueError(f"queries have the shape {queries.shape}, not [layers, {len(positions)}, heads, "
                             f"{self.model.dims[0]}]")
        seen = library.Observation(kind=library.QUERIES, n_queries=len(positions), n_heads=queries.shape[2],
                                   first_layer=first_layer, n_layers=queries.shape[0], scale=scale,
                                   positions=positions.ctypes.data_as(ctypes.POINTER(c_uint32)),
                                   values=queries.ctypes.data)
        return self._observe(token_ids, blocks, seen, salt)

    def observe_sums(self, token_ids, blocks, sums, n_queries, salt=b""):
        """The same from attention weights: sums [tokens], what each token was given by the sequence's last n_queries
        queries, added up, in the layer and head where that is most."""
        sums = np.ascontiguousarray(sums, dtype=np.float32)
        if sums.shape != (len(token_ids),):
            raise ValueError(f"sums have the shape {sums.shape}, not ({len(token_ids)},)")
        seen = library.Observation(kind=library.SUMS, n_queries=n_queries,
                                   sums=sums.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
        return self._observe(token_ids, blocks, seen, salt)

    def _observe(self, token_ids, blocks, seen, salt):
        run, _, alive = self._run(token_ids, blocks, salt, 0, 0)
        return self.client._start(
            lambda data: lib.cistern_observe(self.client._handle, byref(run), byref(seen), data) if alive else 0).wait()

    def _run(self, token_ids, blocks, salt, skip, flags):
        chunk = self.client.chunk_tokens
        if skip % chunk or not 0 <= skip < len(token_ids):
            raise ValueError(f"skip is {skip}: not whole chunks of {chunk} tokens that leave some of {len(token_ids)}")
        keys = self.client.keys(token_ids, salt)
        blocks = np.ascontiguousarray(blocks, dtype=np.uint32)
        mine = np.ascontiguousarray(keys[skip // chunk:])
        parent = _key_pointer(np.ascontiguousarray(keys[skip // chunk - 1])) if skip else None
        run = library.Run(memory_id=self._id, n_tokens=len(token_ids) - skip, position=skip, keys=_key_pointer(mine),
                          n_chunks=len(mine), n_blocks=len(blocks),
                          blocks=blocks.ctypes.data_as(ctypes.POINTER(c_uint32)), flags=flags)
        return run, parent, (keys, mine, blocks)


def _key_pointer(keys):
    return keys.ctypes.data_as(ctypes.POINTER(library.Key))


def _shared(size):
    """A mapped memfd that cannot shrink, as the daemon wants it, and its descriptor."""
    fd = os.memfd_create("cistern-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SHRINK)
        return mmap.mmap(fd, size), fd
    except BaseException:
        os.close(fd)
        raise
