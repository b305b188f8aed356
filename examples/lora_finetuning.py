"""LoRA on a JSONL file of preferences: train adapters, save them, merge them and sample from the result.

    python examples/lora_finetuning.py --model runs/tiny_sft --data PAIRS.jsonl --output runs/my_lora --prompt "2+2?"

The reference is the model with its adapters off, so memory holds only one model.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, HfArgumentParser

import llada
from llada.data.loading import load_rows
from llada.data.tokenizer import load_tokenizer
from vrpo import VRPOConfig, VRPOTrainer


@dataclass
class Arguments:
    model: str = field(metadata={"help": "A saved model, or a hub name."})
    data: str = field(metadata={"help": "JSONL with prompt, chosen and rejected."})
    output: str = field(metadata={"help": "Where adapters/ and merged/ are written."})
    prompt: str = "What is 2+2?"
    steps: int = 20
    learning_rate: float = 1e-3
    max_length: int = 640


def main(argv: list[str] | None = None) -> None:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(argv)
    output = Path(args.output)
    if output.exists():
        raise SystemExit(f"{output} exists: choose another --output")
    tokenizer = load_tokenizer(args.model)
    trainer = VRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.model, dtype="auto"),
        args=VRPOConfig(
            output_dir=str(output / "adapters"), max_steps=args.steps, learning_rate=args.learning_rate, warmup_steps=2,
            per_device_train_batch_size=2, gradient_accumulation_steps=4, n_t=2, max_length=args.max_length,
            drop_overlong=True, save_strategy="no", report_to="none", logging_steps=5,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=load_rows(args.data),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16),
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    trainer.model.merge_and_unload().save_pretrained(output / "merged")
    tokenizer.save_pretrained(output / "merged")

    model = AutoModelForCausalLM.from_pretrained(output / "merged", dtype="auto").eval()
    ids = torch.tensor([llada.encode_prompt(tokenizer, [{"role": "user", "content": args.prompt}])])
    canvas = llada.generate(model, ids, gen_length=64, steps=64, block_length=32)
    print(tokenizer.decode(canvas[0, ids.shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    main()
