"""Trajectories that must not depend on how a run is split, and what the trainer promises about masks and errors."""

import math

import pytest
import torch
from conftest import Recording, tiny_config, tiny_model, trajectory, two_processes
from datasets import Dataset
from peft import LoraConfig

from llada import LLaDAModelLM
from llada.data.tokenizer import byte_tokenizer
from llada.diffusion.likelihood import elbo_draws, exact_elbo
from llada.diffusion.masking import draw_masks
from llada.diffusion.random_streams import generator_for
from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer, random_lengths

TOKENIZER = byte_tokenizer()
IDS = dict(vocab_size=262, mask_token_id=258, eos_token_id=257, pad_token_id=257, eot_token_id=261)
TEXTS = ["some words", "other", "a longer line of text", "x", "and the rest", "again", "one more", "last of all"]
PAIRS = [{"prompt": f"{index}: ", "completion": text} for index, text in enumerate(TEXTS * 4)]


class Recorded(Recording, MaskedDiffusionTrainer):
    pass


def config(tmp_path, **changes) -> MaskedDiffusionConfig:
    settings = dict(
        output_dir=str(tmp_path), max_steps=20, per_device_train_batch_size=8, learning_rate=1e-3, warmup_steps=2,
        logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, dataloader_drop_last=True,
        disable_tqdm=True, max_length=48, optim="adamw_torch", seed=3,
    )  # fmt: skip
    return MaskedDiffusionConfig(**(settings | changes))


def trainer(tmp_path, dtype=torch.float64, rows=PAIRS, model=None, **changes) -> Recorded:
    extra = {key: changes.pop(key) for key in ("eval_dataset", "peft_config") if key in changes}
    model = tiny_model(seed=1, dtype=dtype, **IDS) if model is None else model
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    args = config(tmp_path, **changes)
    return Recorded(model, args, train_dataset=dataset, processing_class=TOKENIZER, **extra)


# Absolute. The 1/t weights of Bernoulli masks make losses above 10 that float32 cannot hold to 1e-5.
PRECISIONS = [
    (torch.float64, "bernoulli", 1e-10),
    pytest.param(torch.float32, "exact_count", 1e-5, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("dtype", "masks", "bound"), PRECISIONS)
def test_accumulation_of_eight_single_rows_equals_one_batch_of_eight(tmp_path, dtype, masks, bound):
    whole = trajectory(trainer(tmp_path, dtype, masks=masks))
    split = trajectory(
        trainer(tmp_path, dtype, masks=masks, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    )
    assert whole.shape == split.shape == (20, 2)
    assert (whole - split).abs().max() <= bound


@pytest.mark.parametrize(("dtype", "masks", "bound"), PRECISIONS)
def test_resumed_equals_uninterrupted(tmp_path, dtype, masks, bound):
    """Stopped in the middle of the third pass over the data (4 steps a pass)."""
    whole = trajectory(trainer(tmp_path / "whole", dtype, masks=masks))
    trajectory(trainer(tmp_path / "cut", dtype, masks=masks, save_strategy="steps", save_steps=10))
    resumed = trajectory(
        trainer(tmp_path / "cut", dtype, masks=masks), resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-10")
    )
    assert len(resumed) == 10
    assert (whole[10:] - resumed).abs().max() <= bound


@pytest.mark.slow  # half a minute; test_vrpo_trainer.py has the same of the preference trainer
@pytest.mark.parametrize(("dtype", "masks", "bound"), PRECISIONS)
def test_two_processes_equal_one(tmp_path, dtype, masks, bound):
    """DDP with 2 x 4 rows against 1 x 8; the logged loss is the mean over processes."""
    whole = trajectory(trainer(tmp_path, dtype, masks=masks))
    split = two_processes(tmp_path, "test_sft", dtype, masks=masks, per_device_train_batch_size=4)
    assert (whole - split).abs().max() <= bound


def test_the_loss_is_the_paper_s_with_masks_from_the_keys(tmp_path):
    """Alg. 2 by hand: for each row, the drawn ELBO divided by its scored tokens; then the mean over rows."""
    run = trainer(tmp_path, max_steps=1, masks="exact_count", eos_tail="2")
    model = tiny_model(seed=1, **IDS)
    batch = next(iter(run.get_train_dataloader()))
    expected = []
    for index in range(8):
        key = int(batch["example_id"][index])
        plan = draw_masks(batch["response_mask"][index : index + 1], [generator_for(3, 0, key)], 1, "exact_count")
        tokens, mask = batch["input_ids"][index : index + 1], batch["attention_mask"][index : index + 1]
        elbo = elbo_draws(run.denoiser(model), tokens, plan, mask)[0, 0]
        expected.append(-elbo / batch["response_mask"][index].sum())
    run.epoch_counter.epoch = 0
    assert run.compute_loss(run.model, batch).item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-12)


def test_masks_change_with_the_epoch_and_not_in_evaluation(tmp_path):
    run = trainer(tmp_path)
    batch = next(iter(run.get_train_dataloader()))

    def drawn(epoch):
        return run.negative_elbo(run.denoiser(run.model), batch, epoch, 1, "exact_count", "iid")[0]

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    before = run.prediction_step(run.model, batch, True)[1]
    run.epoch_counter.epoch = 5
    assert torch.equal(run.prediction_step(run.model, batch, True)[1], before)


class Epochs(Recorded):
    """Keeps the epoch key of every step."""

    def compute_loss(self, *args, **kwargs):
        self.epochs = [*getattr(self, "epochs", []), self.epoch_counter.epoch]
        return super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_epoch_key_counts_passes_over_the_data(tmp_path, streamed):
    """32 rows in batches of 8: four steps a pass, also for a stream, whose length the Trainer does not know."""
    rows = Dataset.from_list(PAIRS)
    rows = rows.to_iterable_dataset() if streamed else rows
    model, args = tiny_model(seed=1, **IDS), config(tmp_path, max_steps=10, save_strategy="steps", save_steps=6)
    run = Epochs(model, args, train_dataset=rows, processing_class=TOKENIZER)
    run.train()
    assert run.epochs == [0] * 4 + [1] * 4 + [2] * 2
    resumed = Epochs(tiny_model(seed=1, **IDS), args, train_dataset=rows, processing_class=TOKENIZER)
    if streamed:  # the Trainer would skip 6 batches of a pass that has 4
        with pytest.raises(RuntimeError, match="a stream can be resumed in its first pass only"):
            resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    else:
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
        assert resumed.epochs == [1] * 2 + [2] * 2


def test_a_stream_resumed_in_its_first_pass_continues(tmp_path):
    rows = Dataset.from_list(PAIRS).to_iterable_dataset()
    whole = trajectory(trainer(tmp_path, rows=rows, max_steps=4, save_strategy="steps", save_steps=2))
    resumed = trajectory(
        trainer(tmp_path, rows=rows, max_steps=4), resume_from_checkpoint=str(tmp_path / "checkpoint-2")
    )
    assert (whole[2:] - resumed).abs().max() <= 1e-10


def test_evaluation_reports_bits_from_the_exact_elbo(tmp_path):
    """Responses of up to 4 scored tokens and many draws: bits per token and byte within 1% of enumeration."""
    rows = [{"prompt": "q", "completion": text} for text in ("ab", "cde", "f")]
    run = trainer(tmp_path, rows=rows, eval_dataset=Dataset.from_list(rows), eval_draws=400)
    metrics = run.evaluate()
    batch = run.data_collator(list(run.eval_dataset))
    nats, denoiser = 0.0, run.denoiser(run.model)
    for tokens, scored, mask in zip(batch["input_ids"], batch["response_mask"], batch["attention_mask"], strict=True):
        real = mask.bool()
        nats -= exact_elbo(denoiser, tokens[real], scored[real]).item()
    assert metrics["eval_bits_per_token"] == pytest.approx(nats / 9 / math.log(2), rel=0.01)  # 6 bytes + an EOS each
    assert metrics["eval_bits_per_byte"] == pytest.approx(nats / 6 / math.log(2), rel=0.01)


@pytest.mark.parametrize("eos_tail", ["2", "batch"])
def test_evaluation_does_not_depend_on_the_batch_size(tmp_path, eos_tail):
    """Every row counts, also of an incomplete batch, and has one EOS where training fills the batch."""
    rows = Dataset.from_list(PAIRS)
    losses = [
        trainer(tmp_path, eval_dataset=rows, per_device_eval_batch_size=size, eos_tail=eos_tail).evaluate()
        for size in (1, 5)
    ]
    assert losses[0]["eval_bits_per_byte"] == pytest.approx(losses[1]["eval_bits_per_byte"], abs=1e-10)


def test_random_lengths_cut_documents_and_never_responses():
    scored = torch.ones(2000, 10, dtype=torch.bool)
    scored[1000:, 0] = False  # a prompt of one token: responses
    keep = random_lengths(scored, [generator_for(0, row) for row in range(2000)], 0.5)
    assert keep[1000:].all()
    cut = keep[:1000].sum(-1)
    assert torch.equal(keep[:1000], torch.arange(10) < cut[:, None])  # a prefix is kept
    shares = torch.bincount(cut, minlength=11)[1:] / 1000
    exact = torch.full((10,), 0.05)
    exact[9] += 0.5
    assert ((shares - exact).abs() / (exact * (1 - exact) / 1000).sqrt()).max() < 4


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_and_names_the_rows(tmp_path):
    model = tiny_model(seed=1, **IDS)
    model.model.transformer.wte.weight.data[TOKENIZER.convert_tokens_to_ids("7")] = torch.nan
    run = trainer(tmp_path, model=model, per_device_train_batch_size=32)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(
        FloatingPointError,
        match=r"not finite after 0 optimizer steps, for 3 of 32 examples .*row 7 \(example id -?\d+\): nan",
    ):
        run.train()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.nan_to_num(), before[name].nan_to_num())


def test_lora_trains_the_blocks_only_and_saves_adapters(tmp_path):
    run = trainer(tmp_path, peft_config=LoraConfig(r=2, task_type="CAUSAL_LM"), max_steps=3)
    trained = {name for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 7 * 2
    assert all("lora_" in name and ".blocks." in name for name in trained)
    rows = trajectory(run)
    assert rows.isfinite().all()
    run.save_model()
    assert (tmp_path / "adapter_model.safetensors").exists()
    assert not (tmp_path / "model.safetensors").exists()


def test_adapters_on_the_head_are_refused_and_the_configuration_is_kept(tmp_path):
    given = LoraConfig(r=2, target_modules=["ff_out"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="puts adapters on the language-model head"):
        trainer(tmp_path, peft_config=given)
    assert given.task_type == "CAUSAL_LM"


def test_half_precision_weights_are_warned_of(tmp_path, caplog):
    trainer(tmp_path, torch.bfloat16)
    assert "small updates round away" in caplog.text


def test_vectors_are_not_decayed(tmp_path):
    run = trainer(tmp_path)
    decayed = set(run.get_decay_parameter_names(run.model))
    assert decayed == {name for name, parameter in run.model.named_parameters() if parameter.dim() == 2}


def test_the_schedule_warms_up_holds_and_decays_to_a_tenth(tmp_path):
    run = trainer(tmp_path, max_steps=20, warmup_steps=4, decay_steps=0.25, learning_rate=1.0)
    run.create_optimizer_and_scheduler(20)
    rates = []
    for _ in range(21):
        rates.append(run.lr_scheduler.get_last_lr()[0])
        run.optimizer.step()
        run.lr_scheduler.step()
    assert rates[4:16] == [1.0] * 12
    assert rates[20] == pytest.approx(0.1)
    assert rates[0] == pytest.approx(0.1)
    steps = torch.tensor(rates[15:21]).diff()
    assert (steps - steps[0]).abs().max() < 1e-6  # linear


def test_pretraining_on_a_repeated_document_learns_it(tmp_path):
    """300 steps on "abcdefgh" repeated: from about 8 bits per byte to below 2 (3 is all that frequencies can give)."""
    text = Dataset.from_dict({"text": ["abcdefgh" * 64]})
    run = trainer(
        tmp_path, torch.float32, rows=text, eval_dataset=text, max_steps=300, max_length=32, learning_rate=5e-3,
        random_length_probability=0.01, masks="exact_count", logging_steps=100,
    )  # fmt: skip
    before = run.evaluate()["eval_bits_per_byte"]
    run.train()
    assert before > 7
    assert run.evaluate()["eval_bits_per_byte"] < 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": "gauss"}, "masks='gauss' is unknown"),
        ({"eos_tail": "all"}, "eos_tail='all' must be a number of tokens or 'batch'"),
        ({"random_length_probability": 2.0}, "random_length_probability=2.0 must be between 0 and 1"),
        ({"eval_draws": 0}, "eval_draws=0 must be at least 1"),
        ({"max_length": 100}, "max_length=100 must be between 1 and the model's context, 64"),
        ({"max_length": 8}, "train_dataset: .*\n  .*rows are longer than 7 tokens"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_training(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **changes)


def test_a_model_without_its_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs processing_class, the tokenizer"):
        MaskedDiffusionTrainer(
            LLaDAModelLM(tiny_config(**IDS)), config(tmp_path), train_dataset=Dataset.from_list(PAIRS)
        )
    with pytest.raises(ValueError, match="mask_token_id is 39 in the model's config but 258 in the tokenizer"):
        trainer(tmp_path, model=tiny_model())
