"""A vLLM connector (KVConnectorBase_V1): prompts' KV is kept by a Cistern daemon and found again by any engine of the
machine, after a restart too.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "CisternConnector", "kv_role": "kv_both",
        "kv_connector_module_path": "cistern.vllm"}'

kv_connector_extra_config may have socket, name_space, and staging_tokens (default 8192).

Whole chunks of prompts are kept (256 tokens, unless the daemon is configured otherwise), by their tokens; prompts with
images or adapters are left alone, since their tokens do not tell them apart. KV travels through shared memory of this
connector's own, between which and vLLM's blocks it is copied: works on any device. Saving copies the blocks out before
the step ends and lets the daemon compress them while the next one runs; loading is done before the step begins. What
cannot be loaded is reported block by block, and vLLM computes it.

Written against vllm/distributed/kv_transfer/kv_connector/v1/base.py of vLLM's main branch, November 2026.
"""

import errno
import logging
import time
from dataclasses import dataclass, field

import numpy as np
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, KVConnectorRole

from .client import connect
from .library import Error

logger = logging.getLogger("vllm.cistern")
RETRY_S = 5.0


@dataclass
class Span:
    """Tokens [first, end) of a prompt, and where all of its blocks are."""

    token_ids: list
    block_ids: list
    first: int
    end: int


@dataclass
class CisternMetadata(KVConnectorMetadata):
    """What workers are to do in a step."""

    loads: list = field(default_factory=list)
    saves: list = field(default_factory=list)


@dataclass
class _Tracked:
    """The scheduler's knowledge of a request that runs."""

    token_ids: list  # of the prompt
    block_ids: list
    saved: int  # tokens that are cached, or were handed to workers to be


class _Geometry:
    """What a rank keeps of each token, from vLLM's configuration."""

    def __init__(self, vllm_config):
        model, parallel = vllm_config.model_config, vllm_config.parallel_config
        cache = vllm_config.cache_config
        self.name = str(model.model)
        self.layers = model.get_num_layers(parallel)
        self.heads = model.get_num_kv_heads(parallel)
        self.dim = model.get_head_size()
        dtype = getattr(cache, "cache_dtype", "auto")
        self.dtype = str(model.dtype if dtype == "auto" else dtype)
        self.block_tokens = cache.block_size
        self.tp_size = parallel.tensor_parallel_size
        self.pp_size = getattr(parallel, "pipeline_parallel_size", 1)
        self.rope_theta = _plain_rope(model.hf_config)
        if self.pp_size != 1:
            raise ValueError("CisternConnector: pipeline parallelism is not supported")
        if getattr(model, "use_mla", False):
            raise ValueError("CisternConnector: models with a latent cache (MLA) are not supported")

    def register(self, client, rank):
        return client.model(self.name, self.layers, self.heads, self.dim, dtype=self.dtype,
                            rope_theta=self.rope_theta, tp_rank=rank, tp_size=self.tp_size)


def _plain_rope(config):
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        return None  # cached as it is: right, only larger
    if getattr(config, "partial_rotary_factor", 1.0) not in (None, 1.0):
        return None
    return rope.get("rope_theta", getattr(config, "rope_theta", None))


def _permute(x, *order):
    return x.permute(*order) if hasattr(x, "permute") else x.transpose(order)


def split_layer(cache, block_tokens, heads, dim):
    """Keys and values of a layer's cache, each as a view [blocks, block_tokens, heads, dim]. Caches are [2, blocks,
    tokens, heads, dim], [blocks, 2, tokens, heads, dim], either with tokens and heads exchanged, or [blocks, heads,
    tokens, 2 dim]."""
    shape = tuple(cache.shape)
    nhd, hnd = (block_tokens, heads, dim), (heads, block_tokens, dim)
    if len(shape) == 4 and shape[1:] == (heads, block_tokens, 2 * dim):
        x = _permute(cache, 0, 2, 1, 3)
        return x[..., :dim], x[..., dim:]
    if len(shape) == 5 and shape[2:] in (nhd, hnd) and 2 in shape[:2] and shape[:2] != (2, 2):
        keys, values = (cache[0], cache[1]) if shape[0] == 2 else (cache[:, 0], cache[:, 1])
        if shape[2:] != nhd:
            keys, values = _permute(keys, 0, 2, 1, 3), _permute(values, 0, 2, 1, 3)
        return keys, values
    raise ValueError(f"CisternConnector: a layer's cache has the shape {shape}, which is none of the known ones for "
                     f"blocks of {block_tokens} tokens, {heads} heads, dim {dim}")


class CisternConnector(KVConnectorBase_V1):
    def __init__(self, vllm_config, role, kv_cache_config=None):
        try:
            super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        except TypeError:  # before kv_cache_config was there
            super().__init__(vllm_config=vllm_config, role=role)
        self._transfer = vllm_config.kv_transfer_config
        self._geometry = _Geometry(vllm_config)
        self._rank = vllm_config.parallel_config.rank % self._geometry.tp_size
        self._is_scheduler = role == KVConnectorRole.SCHEDULER
        self._to_load = {}  # scheduler; request id: how many tokens
        self._tracked = {}  # scheduler; request id: what it knows of it
        self._layers = []  # worker
        self._failed_blocks = set()  # worker
        self._client = None
        self._tried_s = 0.0
        self._connect()  # a daemon that is not there at the start is a mistake; one that goes away later is not

    # ---- the daemon ----

    def _connect(self):
        """Finds the daemon; sets up what hangs on the connection."""
        self._tried_s = time.monotonic()
        extra = self._transfer.get_from_extra_config
        client = connect(extra("socket", None), extra("name_space", None))
        self._chunk, block = client.chunk_tokens, self._geometry.block_tokens
        if self._chunk % block:
            raise ValueError(f"CisternConnector: the daemon's chunks of {self._chunk} tokens are no whole number of "
                             f"blocks of {block}")
        ranks = range(self._geometry.tp_size) if self._is_scheduler else [self._rank]
        self._models = [self._geometry.register(client, rank) for rank in ranks]
        self._pending = None  # the put that uses _staging_out
        if not self._is_scheduler:
            staging = max(int(extra("staging_tokens", 8192)) // self._chunk, 1) * self._chunk
            self._staging_in = self._models[0].memory(staging, block)
            self._staging_out = self._models[0].memory(staging, block)
        self._client = client

    def _ready(self):
        """Whether there is a daemon; after one was lost, tries every few seconds."""
        if self._client is None and time.monotonic() - self._tried_s > RETRY_S:
            try:
                self._connect()
                logger.warning("cistern: the daemon is back")
            except (Error, ValueError) as e:
                logger.warning("cistern: %s", e)
        return self._client is not None

    def _failed(self, what, error):
        logger.warning("cistern: %s failed: %s", what, error)
        self._pending = None
        if error.errno in (errno.ENOTCONN, errno.EPIPE):
            self._client.close()
            self._client, self._tried_s = None, time.monotonic()

    # ---- scheduler ----

    def _may_cache(self, request):
        return bool(request.prompt_token_ids) and not getattr(request, "mm_features", None) and \
            not getattr(request, "lora_request", None)

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        if not self._may_cache(request):
            return 0, False
        tokens = list(request.prompt_token_ids)
        # At least one token is left to compute; only whole chunks are kept.
        tokens = tokens[:(len(tokens) - 1) // self._chunk * self._chunk]
        if len(tokens) <= num_computed_tokens or not self._ready():
            return 0, False
        try:
            n = min(model.lookup(tokens) for model in self._models)
        except Error as e:
            self._failed("a lookup", e)
            return 0, False
        return max(n - num_computed_tokens, 0), False

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        if num_external_tokens > 0:
            self._to_load[request.request_id] = num_external_tokens

    def build_connector_meta(self, scheduler_output):
        meta = CisternMetadata()
        for new in scheduler_output.scheduled_new_reqs:
            if not self._may_cache(new):
                continue
            tracked = _Tracked(list(new.prompt_token_ids), list(new.block_ids[0]), 0)
            self._tracked[new.req_id] = tracked
            self._plan(meta, scheduler_output, new.req_id, tracked, new.num_computed_tokens)
        cached = scheduler_output.scheduled_cached_reqs
        for i, req_id in enumerate(cached.req_ids):
            tracked = self._tracked.get(req_id)
            if tracked is None:
                continue
            more = cached.new_block_ids[i]
            if req_id in getattr(cached, "resumed_req_ids", ()):
                tracked.block_ids = list(more[0]) if more else []
            elif more:
                tracked.block_ids += more[0]
            self._plan(meta, scheduler_output, req_id, tracked, cached.num_computed_tokens[i])
        for req_id in scheduler_output.finished_req_ids:
            self._tracked.pop(req_id, None)
        self._to_load.clear()
        return meta

    def _plan(self, meta, scheduler_output, req_id, tracked, n_computed):
        """Of one request: what is loaded before this step, which tokens vLLM counts as computed already, and which whole
        chunks of the prompt are complete after it."""
        load = self._to_load.get(req_id, 0)
        if load:
            meta.loads.append(Span(tracked.token_ids[:n_computed], tracked.block_ids, n_computed - load, n_computed))
            tracked.saved = max(tracked.saved, n_computed // self._chunk * self._chunk)
        after = min(n_computed + scheduler_output.num_scheduled_tokens.get(req_id, 0), len(tracked.token_ids))
        whole = after // self._chunk * self._chunk
        if whole > tracked.saved:
            meta.saves.append(Span(tracked.token_ids[:whole], tracked.block_ids, tracked.saved, whole))
            tracked.saved = whole

    def request_finished(self, request, block_ids):
        self._tracked.pop(request.request_id, None)
        return False, None

    # ---- worker ----

    def register_kv_caches(self, kv_caches):
        g = self._geometry
        if len(kv_caches) != g.layers:
            raise ValueError(f"CisternConnector: {len(kv_caches)} layers have a cache, where the model has {g.layers}: "
                             "models with shared or other caches are not supported")
        self._layers = [split_layer(cache, g.block_tokens, g.heads, g.dim) for cache in kv_caches.values()]

    def start_load_kv(self, forward_context, **kwargs):
        for span in self._get_connector_metadata().loads:
            try:
                if self._ready():
                    self._load(span)
                else:
                    self._fail(span, span.first)
            except Error as e:
                self._failed("a load", e)
                self._fail(span, span.first)

    def _fail(self, span, first):
        size = self._geometry.block_tokens
        self._failed_blocks.update(span.block_ids[first // size:-(-span.end // size)])

    def _load(self, span):
        """In pieces that fit the staging memory, from the chunk in which the first token lies; only blocks from the first
        token on are written, since those before it may be in use by others."""
        size, memory = self._geometry.block_tokens, self._staging_in
        at = span.first // self._chunk * self._chunk
        while at < span.end:
            end = min(at + memory.tokens, span.end)
            n = memory.get(span.token_ids[:end], memory.first_blocks(end - at), skip=at)
            first, last = max(at, span.first), at + n
            if last > first:
                self._copy(memory, slice((first - at) // size, -(-(last - at) // size)),
                           span.block_ids[first // size:-(-last // size)], to_engine=True)
            if last < end:
                self._fail(span, max(last, span.first))
                return
            at = end

    def _copy(self, memory, staged, block_ids, to_engine):
        """Between staged blocks (a slice) and vLLM's."""
        for layer, (keys, values) in enumerate(self._layers):
            for theirs, ours in ((keys, memory.keys[layer]), (values, memory.values[layer])):
                if to_engine:
                    theirs[_index(theirs, block_ids)] = _like(theirs, ours[staged], memory.model.dtype)
                else:
                    ours[staged] = _host(theirs[_index(theirs, block_ids)])

    def wait_for_layer_load(self, layer_name):
        return

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs):
        return

    def wait_for_save(self):
        for span in self._get_connector_metadata().saves:
            try:
                if self._ready():
                    self._save(span)
            except Error as e:
                self._failed("a save", e)

    def _save(self, span):
        size, memory = self._geometry.block_tokens, self._staging_out
        at = span.first
        while at < span.end:
            end = min(at + memory.tokens, span.end)
            self._settle()
            self._copy(memory, slice(0, (end - at) // size), span.block_ids[at // size:end // size], to_engine=False)
            self._pending = memory.start_put(span.token_ids[:end], memory.first_blocks(end - at), skip=at)
            at = end

    def _settle(self):
        """Until the daemon has read what was staged last."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.wait()

    def get_block_ids_with_load_errors(self):
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def shutdown(self):
        if self._client is None:
            return
        try:
            self._settle()
        except Error as e:
            logger.warning("cistern: the last save failed: %s", e)
        self._client.close()
        self._client = None


def _index(tensor, block_ids):
    """Block numbers as the tensor's library takes them."""
    if isinstance(tensor, np.ndarray):
        return np.asarray(block_ids)
    import torch
    return torch.as_tensor(block_ids, device=tensor.device, dtype=torch.long)


def _like(tensor, array, dtype):
    """A numpy array as the tensor's library and device have it."""
    if isinstance(tensor, np.ndarray):
        return array
    import torch
    if dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(tensor.device)
    return torch.from_numpy(array).to(tensor.device)


def _host(tensor):
    if isinstance(tensor, np.ndarray):
        return tensor
    import torch
    tensor = tensor.contiguous().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()
