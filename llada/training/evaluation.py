"""Evaluation, in which rows come in any form and the loader has settings of its own."""

import contextlib

from torch.utils.data import DataLoader

from llada.training.even_rows import MeanOverRows
from llada.training.inputs import as_datasets


class EvaluationTrainer(MeanOverRows):
    """A `Trainer` that evaluates rows in any form; a subclass has `prepared` and `collator`."""

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

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """`Trainer.evaluate`; like the constructor, it takes rows in any form, and a dict of datasets."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self.prepared(eval_dataset, "eval_dataset")
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix: str = "test"):
        """`Trainer.predict`; it takes rows in any form."""
        return super().predict(self.prepared(test_dataset, "test_dataset"), ignore_keys, metric_key_prefix)
