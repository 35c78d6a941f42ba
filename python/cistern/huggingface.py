"""Prompts of Hugging Face models, kept by a Cistern daemon.

    prompts = cistern.huggingface.PromptCache(client, "meta-llama/Llama-3.1-8B", model.config)
    past, n = prompts.restore(token_ids)              # as much of the prompt's start as is cached
    out = model(input_ids[:, n:], past_key_values=past, use_cache=True)
    prompts.save(token_ids, out.past_key_values)

For decoder models whose cache is one key and one value tensor [1, heads, tokens, dim] a layer, each holding every token
(no sliding-window layers, no batches). Tensors on a GPU are copied to and from shared memory.
"""

import torch

from . import tensors


def _geometry(config):
    """Layers, KV heads, dim, and the base of a plain rotation, or None where keys are not rotated plainly."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    # transformers 5 keeps both in rope_parameters; before, scaling stood beside the base.
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    theta = rope.get("rope_theta", getattr(config, "rope_theta", None))
    plain = rope.get("rope_type", rope.get("type", "default")) == "default" and \
        getattr(config, "partial_rotary_factor", 1.0) in (None, 1.0)
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, dim, theta if plain else None


def _layers(cache):
    """[(keys, values)] of a cache of any age: layers with tensors, two lists, or tuples of old."""
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    if hasattr(cache, "key_cache"):
        return list(zip(cache.key_cache, cache.value_cache))
    return [(layer[0], layer[1]) for layer in cache]


class PromptCache:
    """name and config describe the model; the same ones find the same prompts again, from any process. dtype: of the
    cache, config's if it says. salt keeps apart what must not be shared (an adapter, for instance)."""

    def __init__(self, client, name, config, dtype=None, salt=b""):
        layers, heads, dim, theta = _geometry(config)
        dtype = dtype or getattr(config, "torch_dtype", None) or getattr(config, "dtype", None) or torch.float32
        self.client, self.salt = client, salt
        self.model = client.model(name, layers, heads, dim, dtype=tensors.dtype_name(dtype), rope_theta=theta)
        self._memory = None

    def lookup(self, token_ids):
        """How many tokens of the prompt are cached."""
        return self.model.lookup(_ids(token_ids), self.salt)

    def save(self, token_ids, past_key_values):
        """Caches the prompt's KV, which past_key_values begins with; returns how many of its tokens are cached now."""
        ids = _ids(token_ids)
        pairs = _layers(past_key_values)
        if len(pairs) != self.model.layers:
            raise ValueError(f"a cache of {len(pairs)} layers, where the model has {self.model.layers}")
        view = self._view(len(ids))
        for i, pair in enumerate(pairs):
            for plane, tensor in enumerate(pair):
                wanted = (1, self.model.heads[plane], self.model.dims[plane])
                if tensor is None or (tensor.shape[0], tensor.shape[1], tensor.shape[3]) != wanted or \
                        tensor.shape[2] < len(ids):
                    raise ValueError(f"layer {i} has {None if tensor is None else tuple(tensor.shape)}, not "
                                     f"[1, {wanted[1]}, {len(ids)} or more, {wanted[2]}]: batches and sliding windows "
                                     "cannot be kept")
                view[i, plane, :len(ids)] = tensor[0, :, :len(ids)].transpose(0, 1)
        return self._memory.put(ids, self._memory.first_blocks(len(ids)), salt=self.salt)

    def restore(self, token_ids, device="cpu"):
        """A DynamicCache with as much of the prompt's start as is cached, and how many tokens that is: (None, 0) when
        nothing is. The last token is never among them, since a model must be given one."""
        from transformers import DynamicCache
        ids = _ids(token_ids)
        view = self._view(len(ids))
        n = self._memory.get(ids, self._memory.first_blocks(len(ids)), salt=self.salt)
        n = min(n, len(ids) - 1)
        if n < 1:
            return None, 0
        cache = DynamicCache()
        for i in range(self.model.layers):
            # A copy: the memory is used again for the next prompt.
            k, v = (view[i, plane, :n].transpose(0, 1)[None].clone().to(device) for plane in (0, 1))
            cache.update(k, v, i)
        return cache, n

    def _view(self, n_tokens):
        """The shared memory as a tensor [layers, 2, tokens, heads, dim] with room for the prompt."""
        if self._memory is None or self._memory.tokens < n_tokens:
            if self._memory is not None:
                self._memory.close()
            self._memory = self.model.memory(n_tokens)
        m = self.model
        return torch.from_dlpack(self._memory).reshape(m.layers, 2, self._memory.tokens, m.heads[0], m.dims[0])


def _ids(token_ids):
    ids = token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids)
    if ids and isinstance(ids[0], list):
        if len(ids) != 1:
            raise ValueError("a batch: prompts are kept one by one")
        ids = ids[0]
    return ids
