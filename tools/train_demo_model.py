"""Train `models/demo` and `models/demo-draft` from the standard library of this Python.

    python tools/train_demo_model.py                                 everything
    python tools/train_demo_model.py --only prepare                  text and tokenizer; no training
    python tools/train_demo_model.py --only train --device cuda      weights, from what `prepare` left
    python tools/train_demo_model.py --only publish                  figures and model cards

Training takes six minutes on an NVIDIA H200 (2.5 million tokens/s); a CPU would take days. The three parts
may run on different machines: carry --work and --out along, and prepare and publish with the same Python.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from demo_model.architecture import DEMO_LAYERS, DRAFT_LAYERS, load_model, new_model, save_model
from demo_model.card import publish
from demo_model.corpus import collect
from demo_model.data import Streams, prepare, save_texts
from demo_model.tokenizer import save_tokenizer
from demo_model.training import Schedule, train

ROOT = Path(__file__).resolve().parent.parent
DEMO, DRAFT = "demo", "demo-draft"


def main() -> None:
    """Run the parts that the command line asks for."""
    args = _arguments()
    device = torch.device(
        args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    )
    if args.only == "train" and not (args.work / "train.npy").exists():
        sys.exit(f"{args.work} holds no token streams: run --only prepare first")
    if args.only in (None, "prepare"):
        corpus = collect()
        say(f"{len(corpus.train)} files to train on; corpus {corpus.digest()}")
        tokenizer, streams = prepare(corpus)
        streams.save(args.work)
        for name in (DEMO, DRAFT):
            save_tokenizer(tokenizer, args.out / name)
        save_texts(corpus, args.out / DEMO)
        say(f"{len(streams.train):,} tokens to train on, {len(streams.validation):,} to validate with")
    if args.only in (None, "train"):
        _train(args, device)
    if args.only in (None, "publish"):
        publish(args.out / DEMO, args.out / DRAFT, collect(), _schedules(args), say)


def _train(args: argparse.Namespace, device: torch.device) -> None:
    streams = Streams.load(args.work)
    demo, draft = _schedules(args)
    weights = train(new_model(DEMO_LAYERS, seed=0), streams, demo, device, say)
    save_model(weights, DEMO_LAYERS, args.out / DEMO)

    teacher = load_model(args.out / DEMO, DEMO_LAYERS).to(device)
    weights = train(new_model(DRAFT_LAYERS, seed=0), streams, draft, device, say, teacher)
    save_model(weights, DRAFT_LAYERS, args.out / DRAFT)


def _schedules(args: argparse.Namespace) -> tuple[Schedule, Schedule]:
    """The schedules of the demo model and of its draft, which is too small to need dropout."""
    return (
        Schedule(tokens=args.tokens, batch=args.batch),
        Schedule(tokens=args.draft_tokens, batch=args.batch, dropout=0.0),
    )


def say(text: str) -> None:
    """Print one line of progress, with the seconds since the start."""
    print(f"[{time.monotonic() - _BEGAN:6.0f} s] {text}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("prepare", "train", "publish"), help="one part instead of all")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--tokens", type=int, default=600_000_000, help="tokens to train the demo model on")
    parser.add_argument("--draft-tokens", type=int, default=280_000_000, help="tokens to train the draft on")
    parser.add_argument("--batch", type=int, default=64, help="sequences of 1024 tokens in a step")
    parser.add_argument("--out", type=Path, default=ROOT / "models", help="where the two models go")
    parser.add_argument("--work", type=Path, default=ROOT / "artifacts" / "demo-model", help="token streams")
    return parser.parse_args()


_BEGAN = time.monotonic()

if __name__ == "__main__":
    main()
