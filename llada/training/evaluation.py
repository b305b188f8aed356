"""Evaluation: rows come in any form, the loader has settings of its own, and the models stay as they were.

The Trainer prepares a model for evaluation where training has not prepared it yet, and leaves it so.
"""

import contextlib
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from llada.training.even_rows import MeanOverRows
from llada.training.inputs import as_datasets


class EvaluationTrainer(MeanOverRows):
    """A `Trainer` that evaluates rows in any form; a subclass has `prepared` and `collator`.

    Raises:
        ValueError: by `check_full_evaluation`, half-precision evaluation of a model whose weights an engine shards.
    """

    def prepared(self, data, name: str):
        """Rows in any form as tokenized datasets."""
        raise NotImplementedError

    def collator(self, training: bool):
        """The collator of batches for training or evaluation."""
        raise NotImplementedError

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        with self.evaluation_settings():
            return super().get_eval_dataloader(self.evaluation_rows(eval_dataset))

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        with self.evaluation_settings():
            return super().get_test_dataloader(self.evaluation_rows(test_dataset))

    def evaluation_rows(self, rows):
        """Rows with a length. A stream is read whole: the Trainer would count the rows that fill up its last batch."""
        found = self.eval_dataset if rows is None else self.eval_dataset[rows] if isinstance(rows, str) else rows
        return rows if hasattr(found, "__len__") else as_datasets(list(found), "an evaluation set")

    @contextlib.contextmanager
    def evaluation_settings(self):
        # The Trainer would use training settings for held-out rows too: drop an incomplete batch, and pad EOS to the
        # longest row of the batch. With persistent workers it would keep the loader, and with it the rows, of the
        # first dataset that it evaluates.
        args = self.args
        kept = args.dataloader_drop_last, args.dataloader_persistent_workers, self.data_collator
        args.dataloader_drop_last = args.dataloader_persistent_workers = False
        self.data_collator = self.collator(training=False)
        try:
            yield
        finally:
            args.dataloader_drop_last, args.dataloader_persistent_workers, self.data_collator = kept

    def evaluated_models(self) -> list[nn.Module]:
        """All models that an evaluation runs; they compute in one precision."""
        return [self.model]

    def check_full_evaluation(self) -> None:
        """Raise ValueError if `bf16_full_eval` or `fp16_full_eval` would have to cast weights that are sharded."""
        if self.half_precision() is not None and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ValueError(
                "bf16_full_eval and fp16_full_eval cast whole weights, which DeepSpeed and FSDP keep in pieces of "
                "their own: leave them out, and use bf16=True"
            )

    def half_precision(self) -> torch.dtype | None:
        """The dtype to which evaluations outside of training cast the models, if any."""
        return torch.float16 if self.args.fp16_full_eval else torch.bfloat16 if self.args.bf16_full_eval else None

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        dtype = None if self.is_in_train else self.half_precision()
        with self.preparation_undone(), cast(self.evaluated_models() if dtype else [], dtype):
            return super().evaluation_loop(*args, **kwargs)

    @contextlib.contextmanager
    def preparation_undone(self) -> Iterator[None]:
        """Take back that the Trainer prepares a model which training has not prepared, for evaluation alone.

        accelerate marks such a model as prepared. Training would then not wrap it, and each process would train a model
        of its own. Engines that shard keep what they have made of the model.
        """
        prepared, sharded = self.accelerator._models, self.is_deepspeed_enabled or self.is_fsdp_enabled
        if prepared or sharded:
            yield
            return
        names = ("forward", "_original_forward", "_is_accelerate_prepared")  # what accelerate sets on a model
        kept = {name: value for name, value in self.model.__dict__.items() if name in names}
        try:
            yield
        finally:
            for name in names:
                self.model.__dict__.pop(name, None)
            self.model.__dict__.update(kept)
            self.model_wrapped = self.model
            prepared.clear()

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """`Trainer.evaluate`; like the constructor, it takes rows in any form, and a dict of datasets."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self.prepared(eval_dataset, "eval_dataset")
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix: str = "test"):
        """`Trainer.predict`; it takes rows in any form."""
        return super().predict(self.prepared(test_dataset, "test_dataset"), ignore_keys, metric_key_prefix)


@contextlib.contextmanager
def cast(models: list[nn.Module], dtype: torch.dtype | None) -> Iterator[None]:
    """Let models have floating-point weights of another dtype for a while; they get back the very tensors they had.

    The Trainer's own cast would leave a model that is trained on, or saved, rounded to half precision.
    """
    tensors = [
        each for model in models for each in chain(model.parameters(), model.buffers()) if each.is_floating_point()
    ]
    kept: list[Tensor] = [each.data for each in tensors]
    try:
        for each in tensors:
            each.data = each.data.to(dtype)
        yield
    finally:
        for each, data in zip(tensors, kept, strict=True):
            each.data = data
