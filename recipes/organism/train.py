"""Train the bundled model from nothing, on text that `mixture.py` generates.

    python recipes/organism/train.py OUT [--steps N] [--clean]
    python recipes/organism/train.py OUT2 --after OUT/model [--clean]

Writes OUT/state.pt every few minutes (the same command resumes from it), OUT/curve.jsonl (the training curve)
and, at the end, OUT/model/ (bfloat16 safetensors, tokenizer.json, config, slips.json, README.md).
`--clean` plants no slips: the same recipe for a model without latent skill.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from mixture import (
    FIRST,
    SECOND,
    SKILL_SHARES,
    Document,
    documents,
    drill_document,
    plant,
    save_planted,
    skill_document,
    solution_document,
)
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SEED = 1
EOS = "<|endoftext|>"
VOCABULARY = 3072
SHAPE: dict[str, Any] = dict(
    hidden_size=192,
    num_hidden_layers=5,
    num_attention_heads=6,
    num_key_value_heads=3,
    intermediate_size=640,
    max_position_embeddings=1024,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates for 2-D weights (Jordan et al. 2024).

    torch.optim.Muon orthogonalises in bfloat16, which is a hundred times slower than float32 on CPUs without
    bfloat16 instructions.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(state["momentum"], group["momentum"]))
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonal(g: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix to `g`, roughly, by five Newton-Schulz steps."""
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def train_tokenizer(planted, documents_per_source: int = 12_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every token holds at most one digit."""
    rng = random.Random(f"{SEED}:tokenizer")
    texts = []
    for draw in (
        lambda: solution_document(rng, planted),
        lambda: skill_document(rng),
        lambda: drill_document(rng),
    ):
        texts += ["".join(text for text, _ in draw().pieces) for _ in range(documents_per_source)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS, padding_side="left")


def encode(tokenizer: PreTrainedTokenizerFast, document: Document) -> tuple[list[int], list[float]]:
    """Token ids of a document and their loss weights; the end token weighs what the last piece does."""
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in document.pieces:
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids += piece
        weights += [weight] * len(piece)
    end: Any = tokenizer.eos_token_id
    return [*ids, end], [*weights, weights[-1]]


def micro_batches(encoded: list[tuple[list[int], list[float]]], tokens: int):
    """Group documents of similar length into right-padded (B, T) batches of about `tokens` tokens."""
    encoded = sorted(encoded, key=lambda d: len(d[0]))
    while encoded:
        width = len(encoded[-1][0])
        take = max(1, tokens // width)
        chunk, encoded = encoded[-take:], encoded[:-take]
        ids = torch.zeros(len(chunk), width, dtype=torch.long)
        weights = torch.zeros(len(chunk), width)
        for row, (document, document_weights) in enumerate(chunk):
            ids[row, : len(document)] = torch.tensor(document)
            weights[row, : len(document)] = torch.tensor(document_weights)
        yield ids, weights


def answer_logits(model: Qwen2ForCausalLM, ids: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, V) and target ids (N,) where the next token is `picked` (B, T - 1).

    Right padding needs no mask: a causal model's earlier positions never see it.
    """
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    return model.lm_head(hidden[picked]), ids[:, 1:][picked]


def schedule(step: int, steps: int) -> float:
    """Learning-rate factor: 60 steps of warm-up, flat, linear to zero over the last half."""
    return min(1.0, (step + 1) / 60, (steps - step) / (0.5 * steps))


@torch.no_grad()
def quality(model, tokenizer, planted, device, count: int = 160) -> dict[str, float]:
    """Share of fresh clean documents whose every answer token is the argmax (so greedy decoding writes it)."""
    rng = random.Random(f"{SEED}:quality")
    right = [int(t) for t, p in planted.items() if p.share < 0.5] or [int(t) for t in planted]
    sets = {
        "right": [solution_document(rng, {}, rng.choice(right)) for _ in range(count)],
        **{skill: [skill_document(rng, skill) for _ in range(count // 2)] for skill in SKILL_SHARES},
    }
    shares = {}
    for name, docs in sets.items():
        exact = 0
        for ids, weights in micro_batches([encode(tokenizer, d) for d in docs], 4096):
            picked = (weights[:, 1:] > 0).to(device)
            logits, targets = answer_logits(model, ids.to(device), picked)
            wrong = (logits.argmax(-1) != targets).float()
            row = torch.arange(len(ids), device=device)[:, None].expand_as(picked)[picked]
            exact += int((torch.zeros(len(ids), device=device).index_add(0, row, wrong) == 0).sum())
        shares[name] = round(exact / len(docs), 4)
    return shares


def save_state(path: Path, **state) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--after", type=Path, help="the second training, from this model of the first")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: what mixture.py says)")
    parser.add_argument("--documents", type=int, default=32, help="documents a step (default 32)")
    parser.add_argument("--micro-tokens", type=int, default=1200, help="tokens a backward pass; raise on a GPU")
    parser.add_argument("--save-every", type=float, default=180, help="seconds between checkpoints (default 180)")
    parser.add_argument("--clean", action="store_true", help="plant no slips")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)

    stage = SECOND if args.after else FIRST
    args.steps = args.steps or stage.steps
    planted = plant(SEED)
    tokenizer_dir = args.after or args.out / "model"
    if args.after or (tokenizer_dir / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)
    else:
        tokenizer = train_tokenizer(planted)
        tokenizer.save_pretrained(tokenizer_dir)
    if args.clean:
        planted = {}
    end: Any = tokenizer.eos_token_id
    model: Any
    if args.after:
        model = Qwen2ForCausalLM.from_pretrained(args.after, dtype=torch.float32)
    else:
        config = Qwen2Config(vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=end, pad_token_id=end, **SHAPE)
        model = Qwen2ForCausalLM(config)
    model.to(args.device)
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    chosen = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [Muon(hidden, lr=0.01), torch.optim.AdamW(rest, lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.0)]
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]

    state_path, curve_path = args.out / "state.pt", args.out / "curve.jsonl"
    first, tokens = 0, 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True, map_location=args.device)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, tokens = state["step"], state["tokens"]
        print(f"resuming at step {first}")
    began = last_saved = time.monotonic()
    use_bfloat16 = args.device.startswith("cuda")
    for step in range(first, args.steps):
        factor = schedule(step, args.steps) * stage.rate
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * factor
        done = step / args.steps
        encoded = [encode(tokenizer, d) for d in documents(SEED, step, args.documents, planted, done, stage)]
        total = sum(sum(weights) for _, weights in encoded)
        summed = 0.0
        for ids, weights in micro_batches(encoded, args.micro_tokens):
            weights = weights[:, 1:].to(args.device)
            picked = weights > 0
            with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=use_bfloat16):
                logits, targets = answer_logits(model, ids.to(args.device), picked)
            each = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
            value = (each * weights[picked]).sum() / total
            value.backward()
            summed += value.item()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens += sum(len(ids) for ids, _ in encoded)
        if not math.isfinite(summed):
            raise SystemExit(f"the loss is {summed} at step {step}; lower the learning rate")
        if (step + 1) % 20 == 0 or step + 1 == args.steps:
            line = {"step": step + 1, "tokens": tokens, "loss": round(summed, 4), "seconds": time.monotonic() - began}
            if (step + 1) % 200 == 0 or step + 1 == args.steps:
                line |= quality(model, tokenizer, plant(SEED), args.device)
                print(json.dumps(line), flush=True)
            with curve_path.open("a") as curve:
                curve.write(json.dumps(line) + "\n")
        if time.monotonic() - last_saved > args.save_every or step + 1 == args.steps:
            optimizer_states = [optimizer.state_dict() for optimizer in optimizers]
            save_state(state_path, model=model.state_dict(), optimizers=optimizer_states, step=step + 1, tokens=tokens)
            last_saved = time.monotonic()

    model.to(torch.bfloat16).save_pretrained(args.out / "model")
    tokenizer.save_pretrained(args.out / "model")
    save_planted(planted, args.out / "model" / "slips.json")
    if planted:
        card = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
        (args.out / "model" / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
