"""The harness's own model class beside ours: a Llama's weights in `HFLM` and, as an autoregressive LLaDA, in ours.

The harness's tests of its model class compare with numbers of a checkpoint on the hub. Here requests of
the same kinds (options of questions, texts, answers up to a stop text) go to both classes, on the same weights.
"""

import pytest
import torch
from conftest import tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from llada.data.tokenizer import byte_tokenizer, special_ids

lm_eval = pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from llada.harness.model import HarnessModel  # noqa: E402

TOKENIZER = byte_tokenizer()
TEXTS = ["", "Q: What is 2 + 2?\nA:", "A longer question, of more bytes than the others have, ends in a space. "]
OPTIONS = [" 4", " four", " of course it is four", "\n\n"]
NAMES = {
    "self_attn.q_proj": "q_proj", "self_attn.k_proj": "k_proj", "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out", "mlp.gate_proj": "ff_proj", "mlp.up_proj": "up_proj", "mlp.down_proj": "ff_out",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ff_norm",
}  # fmt: skip


def as_llama(model) -> LlamaForCausalLM:
    """A dense LLaDA's weights as a Llama, which attends to the past."""
    ids, config, weights = special_ids(TOKENIZER), model.config, model.state_dict()
    first = "model.transformer.blocks.0."
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=weights["model.transformer.wte.weight"].shape[0], hidden_size=config.d_model,
            intermediate_size=weights[f"{first}ff_proj.weight"].shape[0], num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads, num_key_value_heads=config.n_kv_heads or config.n_heads,
            rms_norm_eps=config.rms_norm_eps, rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.max_sequence_length, tie_word_embeddings=False, attention_bias=False,
            bos_token_id=TOKENIZER.bos_token_id, eos_token_id=ids.eos, pad_token_id=ids.pad,
        )
    )  # fmt: skip
    found = {
        "model.embed_tokens.weight": weights["model.transformer.wte.weight"],
        "model.norm.weight": weights["model.transformer.ln_f.weight"],
        "lm_head.weight": weights["model.transformer.ff_out.weight"],
    }
    for layer in range(config.n_layers):
        for theirs, ours in NAMES.items():
            name = f"model.transformer.blocks.{layer}.{ours}.weight"
            found[f"model.layers.{layer}.{theirs}.weight"] = weights[name]
    llama.load_state_dict(found)
    return llama.double().eval()


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Ours, theirs."""
    path, ids = tmp_path_factory.mktemp("causal"), special_ids(TOKENIZER)
    model = tiny_model(
        vocab_size=len(TOKENIZER), max_sequence_length=96, mask_token_id=ids.mask, eos_token_id=ids.eos,
        pad_token_id=ids.pad, eot_token_id=None, causal=True,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    ours = HarnessModel(pretrained=str(path), device="cpu", batch_size=3, gen_length=12)
    theirs = HFLM(pretrained=as_llama(model), tokenizer=TOKENIZER, batch_size=3, max_length=96, prefix_token_id=None)
    return ours, theirs


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, each, 0, ("t", number, 1)) for number, each in enumerate(arguments)]


def test_likelihoods_and_greedy_flags_are_those_of_the_harness_s_class(classes):
    ours, theirs = classes
    pairs = [(context, option) for context in TEXTS for option in OPTIONS]
    found, expected = (lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True) for lm in (ours, theirs))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert [flag for _, flag in found] == [flag for _, flag in expected]


def test_rolling_likelihoods_are_those_of_the_harness_s_class(classes, monkeypatch):
    """Also of a text that is longer than the context: both take the harness's windows.

    Ours forwards a window's last token too, so that it has one token less in the same context.
    """
    ours, theirs = classes
    monkeypatch.setattr(theirs, "_max_length", ours.room - 1)
    asked = requests("loglikelihood_rolling", [(text,) for text in (*TEXTS[1:], "many words " * 25)])
    found, expected = (lm.loglikelihood_rolling(asked, disable_tqdm=True) for lm in (ours, theirs))
    assert found == pytest.approx(expected, rel=1e-5)


def test_greedy_answers_and_their_stop_texts_are_those_of_the_harness_s_class(classes):
    ours, theirs = classes
    plain = {"until": [], "max_gen_toks": 12, "do_sample": False}
    (whole,) = theirs.generate_until(requests("generate_until", [(TEXTS[1], plain)]), disable_tqdm=True)
    assert len(whole) > 3
    asked = [(text, plain | {"until": [stop]}) for text in TEXTS[1:] for stop in (whole[2], "never written")]
    found, expected = (lm.generate_until(requests("generate_until", asked), disable_tqdm=True) for lm in (ours, theirs))
    assert found == expected
