"""The flat teaching loops and the trainers compute the same numbers."""

import json

import torch
from conftest import load_script, tiny_model
from datasets import Dataset
from test_sft import IDS, TOKENIZER

from vrpo import VRPOConfig, VRPOTrainer

scratch = load_script("examples/vrpo_from_scratch")
lora = load_script("examples/lora_finetuning")


def test_the_flat_vrpo_loop_has_the_trainer_s_losses_on_the_same_plan(tmp_path, monkeypatch):
    """To 1e-6 in float32, for a policy away from its reference; responses of 6 tokens, EOS included."""
    policy, reference = (tiny_model(seed=seed, dtype=torch.float32, **IDS) for seed in (1, 2))
    rows = [{"prompt": "ab", "chosen": f"{i}abcd", "rejected": f"{i}wxyz"} for i in range(4)]
    args = VRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", per_device_train_batch_size=4, n_t=scratch.DRAWS
    )
    run = VRPOTrainer(policy, reference, args, train_dataset=Dataset.from_list(rows), processing_class=TOKENIZER)
    batch = next(iter(run.get_train_dataloader()))
    with torch.no_grad():
        scores = run.scores(run.denoiser(policy), batch, epoch=0)
        loss = run.compute_loss(policy, batch)
    monkeypatch.setattr(scratch, "MASK", IDS["mask_token_id"])
    assert int(batch["response_mask"].sum(-1)[0]) == scratch.RESPONSE
    loss_P, _ = scratch.vrpo_loss(policy, reference, batch["input_ids"], scores.draws)
    assert abs(loss_P.mean().item() - loss.item()) <= 1e-6


def test_the_lora_example_trains_merges_and_samples(tmp_path, capsys):
    tiny_model(dtype=torch.float32, max_sequence_length=256, **{k: v for k, v in IDS.items()}).save_pretrained(
        tmp_path / "model"
    )
    TOKENIZER.save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "pairs.jsonl"), "--steps", "1"]
    lora.main([*command, "--output", str(tmp_path / "out"), "--max_length", "64"])
    assert (tmp_path / "out" / "adapters" / "adapter_model.safetensors").exists()
    assert (tmp_path / "out" / "merged" / "model.safetensors").exists()
    assert capsys.readouterr().out.strip()
