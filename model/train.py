#!/usr/bin/env python3
"""Train one stage of cistern-mini; README.md lists the stages that made the committed weights.

    ./train.py TEXTDIR CKPT --minutes M --length T --batch B --lr HIGH LOW --shares TEXT REPEATS RECORDS --spread S

Continues from CKPT where it exists (weights, optimizer, counters) and writes it back. Lines go to
stdout and, appended, to log.txt beside this file.
"""

import argparse
import math
import os
import random
import time

import torch
import torch.nn.functional as F

import data
import net
from muon import Muon

HERE = os.path.dirname(os.path.abspath(__file__))


def batch_of(make, n_sequences):
    pairs = [make() for _ in range(n_sequences)]
    return torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])


def exact_answers(right, weight):
    """Share of answers whose every digit is the argmax: teacher forcing and greedy agree on those."""
    n_right = n = 0
    for row_right, row_weight in zip(right.tolist(), weight.tolist()):
        t = 0
        while t < len(row_weight):
            if row_weight[t] == data.W_ANSWER:
                run = row_right[t:t + data.VALUE_LEN]
                if len(run) == data.VALUE_LEN:
                    n, n_right = n + 1, n_right + all(run)
                t += data.VALUE_LEN
            else:
                t += 1
    return n_right / max(1, n)


@torch.no_grad()
def check(model, rng, text, length):
    """Figures for the log, on fresh sequences over text never trained on."""
    def measure(make, wanted):
        x, w = batch_of(make, max(2, 4096 // length))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(x[:, :-1]).float()
        y, w = x[:, 1:], w[:, 1:]
        chosen = w == wanted
        nll = F.cross_entropy(logits[chosen], y[chosen]).item() if chosen.any() else math.nan
        right = logits.argmax(-1) == y
        return nll, right[chosen].float().mean().item(), exact_answers(right, w)
    text_nll, _, _ = measure(lambda: data.text_sequence(rng, text, length), data.W_TEXT)
    _, copied, _ = measure(lambda: data.repeat_sequence(rng, text, length, 1.0), data.W_COPY)
    nll0, _, exact0 = measure(lambda: data.record_sequence(rng, text, length, 0), data.W_ANSWER)
    nll1, _, exact1 = measure(lambda: data.record_sequence(rng, text, length, 1), data.W_ANSWER)
    return (f"text {text_nll / math.log(2):.3f} bits/byte, copy {copied:.3f}, "
            f"recall dense {exact0:.3f} ({nll0:.2f}) spread {exact1:.3f} ({nll1:.2f})")


# Heads that look for matches; in text that has none they are to rest on BOS or SEP (--rest).
RESTING = {2: (0, 1), 4: (0, 1)}


class Rest:
    """Auxiliary loss: on text, the RESTING heads give BOS and SEP at least a share `wanted` of their attention."""

    def __init__(self, x, w, wanted):
        self.sink = (x == data.BOS) | (x == data.SEP)
        self.text = w == data.W_TEXT
        self.wanted, self.terms = wanted, []

    def probes(self, n_layers):
        return [self.probe(RESTING[i]) if i in RESTING else None for i in range(n_layers)]

    def probe(self, heads):
        def look(first, weight):  # [batch, head, query, key]
            keys, queries = weight.shape[3], weight.shape[2]
            share = (weight[:, list(heads)].float() * self.sink[:, None, None, :keys]).sum(-1)
            short = (math.log(self.wanted) - (share + 1e-6).log()).clamp(min=0)
            on = self.text[:, None, first:first + queries].float()
            self.terms.append((short * on).sum() / (on.sum() * len(heads) + 1))
        return look

    def loss(self):
        return sum(self.terms) / len(self.terms)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("textdir")
    a.add_argument("ckpt")
    a.add_argument("--minutes", type=float, default=10)
    a.add_argument("--length", type=int, default=256)
    a.add_argument("--batch", type=int, default=16)
    a.add_argument("--lr", type=float, nargs=2, default=(2e-3, 2e-3))
    a.add_argument("--shares", type=float, nargs=3, default=(0.2, 0.4, 0.4))
    a.add_argument("--spread", type=float, default=0.0)
    a.add_argument("--attention-decay", type=float, default=0.1, help="weight decay of the attention's matrices")
    a.add_argument("--rest", type=float, default=0.0, help="share of attention that idle heads are to give to sinks")
    a.add_argument("--threads", type=int, default=2)
    a = a.parse_args()
    torch.set_num_threads(a.threads)

    torch.manual_seed(1)
    model = net.Mini()
    inner = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    # Decay of both factors of a product presses on the product's rank: keys and values as low-rank as those of
    # models that were trained for long. Muon alone leaves all directions equally strong.
    attention = [p for name, p in model.named_parameters() if p.dim() == 2 and "self_attn" in name]
    groups = [{"params": attention, "weight_decay": a.attention_decay},
              {"params": [p for p in inner if all(p is not q for q in attention)]}]
    outer = [p for name, p in model.named_parameters() if p.dim() == 1 or "embed" in name]
    optimizers = [Muon(groups, lr=a.lr[0]), torch.optim.AdamW(outer, lr=a.lr[0], betas=(0.9, 0.95), weight_decay=0.0)]
    step = seen = 0
    if os.path.exists(a.ckpt):
        kept = torch.load(a.ckpt)
        model.load_state_dict(kept["model"])
        for optimizer, state in zip(optimizers, kept["optimizers"]):
            if len(state["param_groups"]) == len(optimizer.param_groups):  # else the moments start anew
                decays = [group["weight_decay"] for group in optimizer.param_groups]
                optimizer.load_state_dict(state)
                for group, decay in zip(optimizer.param_groups, decays):
                    group["weight_decay"] = decay
        step, seen = kept["step"], kept["seen"]
    train = data.Text(os.path.join(a.textdir, "train.txt"))
    tune = data.Text(os.path.join(a.textdir, "tune.txt"))
    rng = random.Random(1000 + step)
    check_rng = random.Random(7)

    log = open(os.path.join(HERE, "log.txt"), "a", buffering=1)

    def say(line):
        print(line, flush=True)
        log.write(line + "\n")

    n_params = sum(p.numel() for p in model.parameters())
    say(f"# stage: length {a.length} batch {a.batch} lr {a.lr[0]:g}..{a.lr[1]:g} shares {a.shares} "
        f"spread {a.spread} attention decay {a.attention_decay:g} rest {a.rest:g} minutes {a.minutes:g} parameters {n_params} torch {torch.__version__}")
    started, first, running = time.time(), step, None
    seen_before = seen

    def save():
        torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step, "seen": seen},
                   a.ckpt + ".tmp")
        os.replace(a.ckpt + ".tmp", a.ckpt)

    while True:
        done = (time.time() - started) / (60 * a.minutes)
        if done >= 1:
            break
        lr = a.lr[1] + (a.lr[0] - a.lr[1]) * 0.5 * (1 + math.cos(math.pi * done))
        lr *= min(1, (step - first + 1) / 100)  # every stage warms up: its sequences are new to the model
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        x, w = batch_of(lambda: data.mixture(rng, train, a.length, a.shares, a.spread), a.batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rest = Rest(x, w, a.rest) if a.rest else None
            loss = model.loss(x, w, rest.probes(model.config["num_hidden_layers"]) if rest else None)
            total = loss + 0.1 * rest.loss() if rest else loss
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + x.numel()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            rate = (seen - seen_before) / (time.time() - started)
            say(f"step {step} tokens {seen / 1e6:.2f}M loss {running:.3f} lr {lr:.2g} {rate:.0f}/s | "
                + check(model, check_rng, tune, a.length))
        if step % 1000 == 0:
            save()
    save()


if __name__ == "__main__":
    main()
