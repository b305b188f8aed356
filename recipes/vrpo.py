"""Align a LLaDA with preference pairs (VRPO; LLaDA 1.5, arXiv 2505.19223).

accelerate launch recipes/vrpo.py --config recipes/tiny_vrpo.yaml
"""

import sys
from pathlib import Path

# A script's folder leads the import path, and this script has the name of the package: `vrpo` must not be this file.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from trl import ModelConfig, get_peft_config

from llada import launch
from vrpo.trainer import VRPOConfig, VRPOTrainer

ARGUMENTS = (launch.RecipeArguments, ModelConfig, VRPOConfig)
COLUMNS = (("prompt", "chosen", "rejected"), ("chosen", "rejected"))


def main(argv: list[str] | None = None) -> None:
    recipe, model_args, args = launch.parse(ARGUMENTS, argv)
    launch.check_processes(args, recipe.expected_processes)
    checkpoint = launch.resume_point(args.output_dir, recipe.resume, recipe.overwrite)
    model, tokenizer = launch.load_model(recipe, model_args, args.seed)
    train, held_out = launch.load_datasets(recipe, args, tokenizer, model.config, VRPOTrainer, COLUMNS)
    trainer = VRPOTrainer(
        model,
        args=args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    launch.run(trainer, recipe, checkpoint)


if __name__ == "__main__":
    main()
