"""A model of one's own: any torch module with a `denoiser_spec` is trained, scored, sampled from and aligned.

    python examples/own_model.py        (about 20 seconds on a CPU, and ten to import torch)

The module here is PyTorch's own transformer encoder. It says in `denoiser_spec` what the package must know of it (ids,
context, vocabulary), and its `forward` returns logits where they are asked for, or log-probabilities of given tokens:
`llada/denoiser.py` describes both. It prints:

    after SFT on small and capital letters
      log-likelihood of 'cat' at least  -0.386 nats
      log-likelihood of 'CAT' at least  -1.644 nats
      samples 'cat' 'DOG' 'hen' 'cow'; 16% of 64 in capitals
    after VRPO with capitals preferred
      log-likelihood of 'cat' at least -10.474 nats
      log-likelihood of 'CAT' at least  -0.062 nats
      samples 'CAT' 'DOG' 'HEN' 'COW'; 100% of 64 in capitals
"""

import tempfile
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import set_seed

import llada
from llada import NOT_SCORED, DenoiserSpec, MaskedDiffusionConfig, MaskedDiffusionTrainer
from vrpo import VRPOConfig, VRPOTrainer

TOKENIZER = llada.byte_tokenizer()
IDS = llada.special_ids(TOKENIZER)
WORDS = ("cat", "dog", "hen", "cow")
COMMON: dict[str, Any] = dict(
    per_device_train_batch_size=32, gradient_accumulation_steps=1, warmup_steps=0, use_cpu=True, report_to="none",
    save_strategy="no", disable_tqdm=True, logging_strategy="no", log_level="error",
)  # fmt: skip


class Encoder(nn.Module):
    """Two layers of `nn.TransformerEncoder`, with learnt positions, counted from the first token that is no padding."""

    denoiser_spec = DenoiserSpec(IDS.mask, context=16, vocabulary=len(TOKENIZER), eos_id=IDS.eos, pad_id=IDS.pad)

    def __init__(self, width: int = 64):
        super().__init__()
        self.token = nn.Embedding(len(TOKENIZER), width)
        self.position = nn.Embedding(16, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(TOKENIZER))

    def forward(self, input_ids, attention_mask=None, target_ids=None, logits_at=None):
        real_BL = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        place_BL = (real_BL.cumsum(-1) - 1).clamp(min=0)
        hidden_BLD = self.token(input_ids) + self.position(place_BL)
        logits_BLV = self.head(self.layers(hidden_BLD, src_key_padding_mask=real_BL == 0))
        if logits_at is not None:
            return SimpleNamespace(logits=logits_BLV[logits_at])
        picked_BL = logits_BLV.log_softmax(-1).gather(-1, target_ids.clamp(min=0)[..., None])[..., 0]
        return SimpleNamespace(log_probs=picked_BL.masked_fill(target_ids == NOT_SCORED, 0.0))


@torch.no_grad()
def show(model: Encoder) -> float:
    """Print likelihoods of two answers and some samples; return the share of samples in capitals."""
    model.eval()
    prompt_L = torch.tensor(llada.encode_prompt(TOKENIZER, "cat:"))
    for answer in ("cat", "CAT"):
        tokens_L = torch.cat([prompt_L, torch.tensor([*TOKENIZER(answer).input_ids, IDS.eos])])
        exact = llada.exact_elbo(model, tokens_L, torch.arange(len(tokens_L)) >= len(prompt_L))
        print(f"  log-likelihood of {answer!r} at least {float(exact):7.3f} nats")
    settings = llada.SamplerSettings(gen_length=4, block_length=4, steps=4, temperature=1.0, remasking="random")
    prompts = [f"{word}:" for word in WORDS] * 16
    found = list(llada.answers(model, TOKENIZER, prompts, settings, 64, torch.Generator().manual_seed(0)))
    capitals = sum(text.isupper() for text in found) / len(found)
    print(f"  samples {' '.join(map(repr, found[:4]))}; {capitals:.0%} of {len(found)} in capitals", flush=True)
    return capitals


def main(sft_steps: int = 200, steps: int = 30) -> tuple[float, float]:
    """Train on both ways of writing, align with capitals; returns the share of capitals before and after."""
    set_seed(0)
    model = Encoder()
    rows = [{"prompt": f"{word}:", "completion": text} for word in WORDS for text in (word, word.upper())] * 8
    args = MaskedDiffusionConfig(tempfile.mkdtemp(), max_steps=sft_steps, learning_rate=2e-3, **COMMON)
    MaskedDiffusionTrainer(model, args, train_dataset=rows, processing_class=TOKENIZER).train()
    print("after SFT on small and capital letters")
    before = show(model)
    pairs = [{"prompt": f"{word}:", "chosen": word.upper(), "rejected": word} for word in WORDS] * 8
    rate = dict(learning_rate=3e-4, lr_scheduler_type="constant")
    args = VRPOConfig(tempfile.mkdtemp(), max_steps=steps, n_t=4, **rate, **COMMON)
    VRPOTrainer(model, args=args, train_dataset=pairs, processing_class=TOKENIZER).train()
    print("after VRPO with capitals preferred")
    return before, show(model)


if __name__ == "__main__":
    main()
