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


def as_ours(script: str) -> str:
    return (
        script.replace("from trl import DPOConfig, DPOTrainer", "from vrpo import VRPOConfig, VRPOTrainer")
        .replace("DPOConfig(", "VRPOConfig(")
        .replace("DPOTrainer(", "VRPOTrainer(")
        .replace("VRVRPO", "VRPO")
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    tiny_model(seed=1, dtype=torch.float32, **IDS).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
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
