"""From LoRA adapters to a model that others can load: merge, check, write a card, and push.

    python examples/merge_and_push.py                        (about ten seconds on a CPU, and ten to import torch)
    python examples/merge_and_push.py --push OWNER/NAME      also uploads; needs `hf auth login`, and the network

The base here is a small new model, and its adapters are trained for a few steps; for yours, begin at "merge". Adapters
may be pushed as they are: they are small, and whoever loads them gets the base by its name in `adapter_config.json`. A
merged model stands for itself. Nothing but the last step uses the network. Without --push it prints:

    largest difference of a logit, merged and apart: 3e-06
      README.md                          171 bytes
      chat_template.jinja                294 bytes
      config.json                        557 bytes
      manifest.json                      499 bytes
      model.safetensors              465,328 bytes
      tokenizer.json                   6,318 bytes
      tokenizer_config.json              477 bytes
    to upload this folder: --push OWNER/NAME
"""

import argparse
import tempfile
from pathlib import Path

import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, set_seed

import llada
from llada.cli.merge import merge
from vrpo import VRPOConfig, VRPOTrainer

TOKENIZER = llada.byte_tokenizer()


def make_base(folder: Path) -> None:
    """Save a small new model with its tokenizer."""
    set_seed(0)
    ids = llada.special_ids(TOKENIZER)
    config = llada.LLaDAConfig(
        d_model=64, n_layers=2, n_heads=4, mlp_hidden_size=128, max_sequence_length=64, rope_theta=100.0,
        vocab_size=len(TOKENIZER), mask_token_id=ids.mask, eos_token_id=ids.eos, pad_token_id=ids.pad,
    )  # fmt: skip
    llada.LLaDAModelLM(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)


def train_adapters(base: Path, folder: Path, steps: int) -> None:
    """Train LoRA on the base for a few steps, and save adapters and tokenizer."""
    args = VRPOConfig(
        str(folder), max_steps=steps, learning_rate=1e-2, warmup_steps=0, per_device_train_batch_size=8,
        gradient_accumulation_steps=1, n_t=2, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        logging_strategy="no", log_level="error",
    )  # fmt: skip
    pairs = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(16)]
    trainer = VRPOTrainer(str(base), args=args, train_dataset=pairs, peft_config=LoraConfig(r=4))
    trainer.train()
    trainer.save_model()


def largest_difference(base: Path, adapters: Path, merged: Path) -> float:
    """How far the logits of the merged model are from those of the base with its adapters."""
    ids = torch.tensor([TOKENIZER("yes or no?").input_ids])
    at = torch.ones_like(ids, dtype=torch.bool)
    apart = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapters)
    whole = AutoModelForCausalLM.from_pretrained(merged)
    with torch.no_grad():
        return float((apart.eval()(ids, logits_at=at).logits - whole.eval()(ids, logits_at=at).logits).abs().max())


def push(folder: Path, name: str) -> str:
    """Upload a folder without its manifest, private at first; returns its address. The only step with a network."""
    HfApi().create_repo(name, private=True, exist_ok=True)
    return HfApi().upload_folder(repo_id=name, folder_path=folder, ignore_patterns="manifest.json")


def main(argv: list[str] | None = None, steps: int = 10) -> Path:
    """Make, merge, check and describe a model; returns its folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the merged model to this repository of the hub")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp())
    base, adapters, merged = (folder / name for name in ("base", "adapters", "merged"))
    make_base(base)
    train_adapters(base, adapters, steps)

    merge(str(adapters), str(merged))  # what `python -m llada.merge ADAPTERS OUT` calls
    print(f"largest difference of a logit, merged and apart: {largest_difference(base, adapters, merged):.0e}")
    fields = ModelCardData(license="apache-2.0", tags=["llada", "masked-diffusion", "vrpo"])
    text = "# My model\n\nLLaDA, aligned with LoRA and VRPO, adapters merged.\n\nWhat it was trained on, and how: ...\n"
    ModelCard(f"---\n{fields.to_yaml()}\n---\n\n{text}").save(merged / "README.md")
    for file in sorted(merged.iterdir()):
        print(f"  {file.name:28} {file.stat().st_size:9,} bytes")
    print(f"pushed: {push(merged, args.push)}" if args.push else "to upload this folder: --push OWNER/NAME")
    return merged


if __name__ == "__main__":
    main()
