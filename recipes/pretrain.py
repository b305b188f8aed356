"""Pretrain a LLaDA on documents (LLaDA, arXiv 2502.09992, Alg. 1).

accelerate launch recipes/pretrain.py --config recipes/tiny_pretrain.yaml
"""

from trl import ModelConfig, get_peft_config

from llada import launch
from llada.trainer import MaskedDiffusionConfig, MaskedDiffusionTrainer

ARGUMENTS = (launch.RecipeArguments, ModelConfig, MaskedDiffusionConfig)
COLUMNS = (("text",),)


def main(argv: list[str] | None = None) -> None:
    recipe, model_args, args = launch.parse(ARGUMENTS, argv)
    launch.check_processes(args, recipe.expected_processes)
    checkpoint = launch.resume_point(args.output_dir, recipe.resume, recipe.overwrite)
    model, tokenizer = launch.load_model(recipe, model_args, args.seed)
    train, held_out = launch.load_datasets(recipe, args, tokenizer, model.config, MaskedDiffusionTrainer, COLUMNS)
    trainer = MaskedDiffusionTrainer(
        model,
        args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    launch.run(trainer, recipe, checkpoint)


if __name__ == "__main__":
    main()
