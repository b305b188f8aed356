"""Answer a prompt with a saved model.

python examples/sample.py --model runs/tiny_sft --prompt "Tom has 3 apples and buys 4. How many has he?"
python examples/sample.py --model runs/tiny_pretrain --prompt "KING RICHARD:" --plain
"""

from dataclasses import dataclass, field

import torch
from transformers import HfArgumentParser

import llada
from llada.cli.checkpoint import load_config, load_model
from llada.data.turns import speaks_in_turns


@dataclass
class Arguments:
    model: str = field(metadata={"help": "A saved model or adapters, or a hub name."})
    prompt: str = field(metadata={"help": "What to answer, or with --plain to continue."})
    plain: bool | None = field(
        default=None,
        metadata={"help": "Continue the text itself; default: as the model was trained.", "nargs": "?", "const": True},
    )
    gen_length: int = 128
    steps: int = 128
    block_length: int = 32
    temperature: float = 0.0
    seed: int = 0


def main() -> None:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    tokenizer, config = load_config(args.model)
    plain = not speaks_in_turns(tokenizer) if args.plain is None else args.plain
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(args.model, config).to(device)
    messages = [{"role": "user", "content": args.prompt}]
    prompt_ids = torch.tensor([llada.encode_prompt(tokenizer, args.prompt if plain else messages)], device=device)
    canvas, stats = llada.generate(
        model,
        prompt_ids,
        gen_length=args.gen_length,
        steps=args.steps,
        block_length=args.block_length,
        temperature=args.temperature,
        generator=torch.Generator(device).manual_seed(args.seed),
        return_stats=True,
    )
    print(tokenizer.decode(canvas[0, prompt_ids.shape[1] :], skip_special_tokens=True))
    print(f"[{stats.forwards} forwards]")


if __name__ == "__main__":
    main()
