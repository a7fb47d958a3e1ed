"""Look inside a run: logits, hidden states, and how far stored keys and values have drifted from fresh ones.

Usage: probes_and_trace.py FILE.safetensors [MODEL] (default: nano-llada)
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

import unmask
from unmask.core.events import Probed, tee
from unmask.core.types import Probe
from unmask.sinks.trace import TraceSaver

PROMPT = "Tell a story about Mia the fox, a lamp and a river."


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    path = Path(sys.argv[1])
    model = unmask.load(sys.argv[2] if len(sys.argv) > 2 else "nano-llada")  # full attention: stored rows do drift
    (prepared,) = model.prepare(PROMPT, max_tokens=32, schedule="blocks(8)", policy="threshold(0.9)", cache="dual")
    probes = (Probe("logits"), Probe("hidden", -1), Probe("kv_cosine", -1))
    prepared = replace(prepared, request=replace(prepared.request, probes=probes))
    for event in tee(model.events([prepared]), TraceSaver(path)):
        if not isinstance(event, Probed) or not event.positions:
            continue
        values = torch.tensor(event.values)
        if event.kind == "logits":
            entropy = torch.distributions.Categorical(logits=values).entropy().mean()
            print(f"forward {event.nfe:3}: {len(event.positions):3} open positions, mean entropy {entropy:.3f} nats")
        elif event.kind == "kv_cosine":
            key, value = values.mean(0).tolist()
            rows = len(event.positions)
            print(f"forward {event.nfe:3}: {rows:3} rows as before, cosine of keys {key:.4f}, of values {value:.4f}")
    print(f"saved to {path}")


if __name__ == "__main__":
    main()
