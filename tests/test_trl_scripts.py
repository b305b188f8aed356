"""Scripts as TRL's users write them, with two names changed: what they save loads, what they log has TRL's names."""

import json

import pytest
import torch
from conftest import tiny_model
from test_sft import IDS, TOKENIZER
from test_vrpo_trainer import PAIRS
from transformers import AutoModelForCausalLM, AutoTokenizer

FULL = """
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer

dataset = load_dataset("json", data_files="pairs.jsonl", split="train").train_test_split(test_size=4, seed=0)
training_args = DPOConfig(
    output_dir="out", learning_rate=1e-3, beta=0.1, per_device_train_batch_size=2, gradient_accumulation_steps=2,
    num_train_epochs=1, max_length=60, warmup_steps=1, logging_steps=1, eval_strategy="steps", eval_steps=2,
    save_strategy="no", report_to="none", gradient_checkpointing=True, loss_type="sigmoid",
)
trainer = DPOTrainer(
    model="model", args=training_args, train_dataset=dataset["train"], eval_dataset=dataset["test"],
)
trainer.train()
trainer.save_model("out")
"""

LORA = """
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained("model")
rows = [
    {"prompt": [{"role": "user", "content": row["prompt"]}],
     "chosen": [{"role": "assistant", "content": row["chosen"]}],
     "rejected": [{"role": "assistant", "content": row["rejected"]}]}
    for row in Dataset.from_json("pairs.jsonl")
]
trainer = DPOTrainer(
    model, None,
    DPOConfig("out", learning_rate=1e-2, max_steps=3, per_device_train_batch_size=4, logging_steps=1,
              loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0], report_to="none"),
    None, Dataset.from_list(rows), processing_class=tokenizer, peft_config=LoraConfig(r=4, lora_alpha=8),
)
trainer.train()
trainer.save_model()
"""


SFT = """
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

dataset = load_dataset("json", data_files="dialogues.jsonl", split="train").train_test_split(test_size=2, seed=0)
training_args = SFTConfig(
    output_dir="out", learning_rate=1e-3, per_device_train_batch_size=2, gradient_accumulation_steps=2,
    num_train_epochs=1, max_length=64, packing=True, assistant_only_loss=True, logging_steps=1, eval_strategy="steps",
    eval_steps=2, save_strategy="no", report_to="none", gradient_checkpointing=True, dataset_num_proc=1,
)
trainer = SFTTrainer(
    model="model", args=training_args, train_dataset=dataset["train"], eval_dataset=dataset["test"],
)
trainer.train()
trainer.save_model("out")
"""

SFT_LORA = """
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained("model")
rows = [{"question": f"what is {n}?", "answer": "a number"} for n in range(8)]
trainer = SFTTrainer(
    model, SFTConfig("out", learning_rate=1e-2, max_steps=3, logging_steps=1, packing=False, report_to="none"),
    None, rows, processing_class=tokenizer, peft_config=LoraConfig(r=4, lora_alpha=8),
    formatting_func=lambda row: f"### Question: {row['question']} ### Answer: {row['answer']}",
)
trainer.train()
trainer.save_model()
"""


def as_ours(script: str) -> str:
    return (
        script.replace("from trl import DPOConfig, DPOTrainer", "from vrpo import VRPOConfig, VRPOTrainer")
        .replace("DPOConfig(", "VRPOConfig(")
        .replace("DPOTrainer(", "VRPOTrainer(")
        .replace("VRVRPO", "VRPO")
        .replace("from trl import SFTConfig, SFTTrainer", "from llada import SFTConfig, SFTTrainer")
        .replace("SFTConfig", "MaskedDiffusionConfig")
        .replace("SFTTrainer", "MaskedDiffusionTrainer")
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    tiny_model(seed=1, dtype=torch.float32, **IDS).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    dialogues = [
        [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "odd" if n % 2 else "even"}]
        for n in range(14)
    ]
    lines = [json.dumps({"messages": messages}) for messages in dialogues]
    (tmp_path / "dialogues.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("script", [FULL, LORA], ids=["full", "lora"])
def test_a_dpo_script_runs_with_two_names_changed(folder, script):
    names: dict = {}
    exec(as_ours(script), names)
    logs = names["trainer"].state.log_history
    for name in ("loss", "rewards/chosen", "rewards/accuracies", "rewards/margins", "logps/chosen", "num_tokens"):
        assert name in logs[0]
    assert ("eval_rewards/margins" in logs[-2]) == (script is FULL)
    assert logs[0]["rewards/margins"] == 0  # the policy starts as the reference
    trained = AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32)
    text = AutoTokenizer.from_pretrained("out")("what is it?", return_tensors="pt", add_special_tokens=False).input_ids
    before = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    assert not torch.equal(trained(text).logits, before(text).logits)


@pytest.mark.parametrize("script", [SFT, SFT_LORA], ids=["full", "lora"])
def test_an_sft_script_runs_with_two_names_changed(folder, script):
    names: dict = {}
    exec(as_ours(script), names)
    run = names["trainer"]
    logs = run.state.log_history
    assert {"loss", "grad_norm", "num_tokens"} <= set(logs[0])
    rows = [TOKENIZER.decode([label for label in row["labels"] if label != -100]) for row in run.train_dataset]
    if script is SFT:
        assert "eval_loss" in logs[-2]
        assert len(rows) < 12  # packed
        answers = "".join(rows).split("<|eot_id|><|endoftext|>")
        assert sorted(set(answers)) == ["", "even", "odd"]
        assert len(answers) == 13
    else:
        assert rows == [f"### Question: what is {n}? ### Answer: a number<|endoftext|>" for n in range(8)]
    trained = AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32)
    text = AutoTokenizer.from_pretrained("out")("what is it?", return_tensors="pt", add_special_tokens=False).input_ids
    before = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    assert not torch.equal(trained(text).logits, before(text).logits)
