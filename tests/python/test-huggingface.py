#!/usr/bin/env python3
"""test-huggingface.py CISTERND LIBRARY: a small Llama with random weights goes on from a restored prompt as from its own."""

import os
import pathlib
import sys

cisternd, os.environ["CISTERN_LIBRARY"] = sys.argv[1:3]
here = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(here.parent.parent / "python"), str(here.parent / "tools")]

try:
    import torch
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

import cistern  # noqa: E402
import cistern.huggingface  # noqa: E402
from daemon import Daemon  # noqa: E402

torch.manual_seed(3)
config = LlamaConfig(vocab_size=300, hidden_size=128, intermediate_size=128, num_hidden_layers=3,
                     num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048)
model = LlamaForCausalLM(config).eval()
tokens = torch.randint(0, 300, (1, 700))


def run(ids, past=None):
    with torch.no_grad():
        return model(ids, past_key_values=past if past is not None else DynamicCache(), use_cache=True)


with Daemon(cisternd) as d, cistern.connect(d.socket) as c:
    prompts = cistern.huggingface.PromptCache(c, "tiny-llama", config)
    assert prompts.model.dtype == "float32"
    assert prompts.restore(tokens) == (None, 0)
    computed = run(tokens)
    assert prompts.save(tokens, computed.past_key_values) == 700

    # Another connection, as another process would have.
    with cistern.connect(d.socket) as other:
        again = cistern.huggingface.PromptCache(other, "tiny-llama", config)
        past, n = again.restore(tokens)
        assert n == 699 and past.get_seq_length() == 699, n
        for (k, v), (k0, v0) in zip(cistern.huggingface._layers(past), cistern.huggingface._layers(computed.past_key_values)):
            assert torch.equal(k[:, :, -127:], k0[:, :, 572:699])  # the window
            assert (k - k0[:, :, :699]).norm() / k0.norm() < 0.02
            assert (v - v0[:, :, :699]).norm() / v0.norm() < 0.02
        restored = run(tokens[:, n:], past).logits[0, -1].log_softmax(-1)
        wanted = computed.logits[0, -1].log_softmax(-1)
        kl = (wanted.exp() * (wanted - restored)).sum().item()
        print(f"KL divergence of the next token {kl:.2e}")
        assert 0 <= kl + 1e-6 < 1e-3
        # A longer prompt has the whole chunks.
        past, n = again.restore(torch.cat([tokens, tokens[:, :5]], 1))
        assert n == 512 and past.get_seq_length() == 512
        salted = cistern.huggingface.PromptCache(other, "tiny-llama", config, salt=b"adapter")
        assert salted.restore(tokens) == (None, 0)
    for bad in (torch.cat([tokens, tokens]), ):
        try:
            prompts.save(bad, computed.past_key_values)
            raise AssertionError("a batch was taken")
        except ValueError:
            pass
    try:
        prompts.save(torch.cat([tokens, tokens], 1), computed.past_key_values)
        raise AssertionError("a cache that is shorter than the prompt was taken")
    except ValueError:
        pass
