"""The console command `llada`: `llada chat ...`, `python -m llada chat ...`, `accelerate launch -m llada sft ...`."""

from llada.cli import console, failure

COMMANDS = {
    "chat": ("llada.chat", "talk to a model in the terminal and watch it fill in its answer"),
    "info": ("llada.info", "a checkpoint on one screen: architecture, size, memory to run and to train"),
    "generate": ("llada.recipes.generate", "answer every prompt of a file"),
    "pretrain": ("llada.recipes.pretrain", "train a model on documents"),
    "sft": ("llada.recipes.sft", "fine-tune a model on prompts and answers"),
    "merge": ("llada.merge", "make a model of its own of what LoRA trained"),
    "evaluate": ("llada.recipes.evaluate", "run a paper's benchmarks, beside its published figures"),
    "harness": ("llada.harness.__main__", "lm-evaluation-harness with the model `llada`"),
}


def main() -> None:
    """Run the command as a script: an error for its user is one message."""
    failure.run(lambda: console.run("llada", "Masked diffusion language models of the LLaDA family.", COMMANDS))


if __name__ == "__main__":
    main()
