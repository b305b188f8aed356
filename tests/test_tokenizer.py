import pytest
from conftest import tiny_config
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llada.data.tokenizer import (
    CHAT_TEMPLATE,
    SpecialIds,
    byte_tokenizer,
    load_tokenizer,
    render,
    special_ids,
)

SYSTEM, QUESTION, ANSWER = (
    {"role": role, "content": text} for role, text in zip(("system", "user", "assistant"), "sqa", strict=False)
)
# What the published tokenizer_config.json holds: the assistant header is appended to every rendering.
PUBLISHED_TEMPLATE = CHAT_TEMPLATE.replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}")


def test_a_finished_dialogue_has_no_open_turn():
    tokenizer = byte_tokenizer()
    closed = render(tokenizer, [SYSTEM, QUESTION, ANSWER], open_turn=False)
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    turns = [header.format(role) + text + "<|eot_id|>" for role, text in (("system", "s"), ("user", "q"))]
    assert closed == "<|startoftext|>" + "".join(turns) + header.format("assistant") + "a<|eot_id|>"
    opened = render(tokenizer, [SYSTEM, QUESTION], open_turn=True)
    assert opened == "<|startoftext|>" + "".join(turns) + header.format("assistant")


def test_the_published_template_is_replaced_when_it_is_loaded(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = PUBLISHED_TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    untouched = AutoTokenizer.from_pretrained(tmp_path)
    assert render(untouched, [QUESTION, ANSWER], open_turn=False).endswith("assistant<|end_header_id|>\n\n")  # the trap
    assert render(load_tokenizer(str(tmp_path)), [QUESTION, ANSWER], open_turn=False).endswith("a<|eot_id|>")


def test_the_template_of_the_published_file_is_the_one_repaired(shared):
    import json

    config = json.loads((shared / "checkpoints/LLaDA-8B-Instruct/tokenizer_config.json").read_text())
    ours, theirs = byte_tokenizer(), byte_tokenizer()
    theirs.chat_template = config["chat_template"]
    messages = [SYSTEM, QUESTION, ANSWER, QUESTION]
    assert render(theirs, messages, open_turn=True) == render(ours, messages, open_turn=True)
    assert render(theirs, messages, open_turn=False) != render(ours, messages, open_turn=False)


def test_the_template_and_ids_of_a_mixture_of_experts(tmp_path):
    """Letters, and the special tokens of LLaDA-MoE, without a template; the ids are the tokenizer's own."""
    alphabet = {letter: index for index, letter in enumerate("aqs")}
    published = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(alphabet, [])), eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        mask_token="<|mask|>", extra_special_tokens=["<role>", "</role>", "<|role_end|>"],
    )  # fmt: skip
    published.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    system = "<role>SYSTEM</role>detailed thinking off<|role_end|>"
    opened = system + "<role>HUMAN</role>q<|role_end|><role>ASSISTANT</role>"
    assert render(tokenizer, [QUESTION], open_turn=True) == opened
    assert render(tokenizer, [QUESTION, ANSWER], open_turn=False) == opened + "a<|role_end|>"
    assert render(tokenizer, [SYSTEM, QUESTION], open_turn=True).startswith("<role>SYSTEM</role>s<|role_end|>")
    ids = special_ids(tokenizer)
    names = ["<|mask|>", "<|endoftext|>", "<|endoftext|>", "<|role_end|>"]
    assert [ids.mask, ids.eos, ids.pad, ids.eot] == tokenizer.convert_tokens_to_ids(names)


def test_a_foreign_template_that_ignores_the_flag_is_refused(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ignores add_generation_prompt and is not LLaDA's"):
        load_tokenizer(str(tmp_path))


def test_bytes_round_trip():
    tokenizer, text = byte_tokenizer(), "naïve café, 你好\n\t🙂  two  spaces"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 262


def test_special_ids_come_from_the_config_first_and_must_agree():
    tokenizer = byte_tokenizer()
    assert special_ids(tokenizer) == SpecialIds(mask=258, eos=257, pad=257, eot=261)
    untagged = byte_tokenizer()
    untagged.mask_token = None  # as in the published tokenizer: the id stands in the model's config only
    config = tiny_config(vocab_size=262, mask_token_id=258, eos_token_id=257, pad_token_id=257, eot_token_id=None)
    assert special_ids(untagged, config.denoiser_spec) == SpecialIds(mask=258, eos=257, pad=257, eot=261)
    with pytest.raises(ValueError, match=r"the tokenizer has 262 tokens but the model embeds 261 \(embedding_size\)"):
        special_ids(
            tokenizer, tiny_config(vocab_size=261, mask_token_id=258, eos_token_id=257, pad_token_id=257).denoiser_spec
        )
    with pytest.raises(ValueError, match="mask_token_id is 5 in the model's config but 258 in the tokenizer"):
        special_ids(tokenizer, tiny_config(mask_token_id=5).denoiser_spec)
    with pytest.raises(ValueError, match="has no mask token and the model's config no mask_token_id"):
        special_ids(untagged)
    config = tiny_config(vocab_size=400, mask_token_id=300, eos_token_id=257, pad_token_id=257)
    with pytest.raises(ValueError, match="mask_token_id=300 is outside the tokenizer's 262 tokens"):
        special_ids(untagged, config.denoiser_spec)


def test_tokenizers_without_any_special_token_say_so():
    bare = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer)
    with pytest.raises(ValueError, match="no mask token"):
        special_ids(bare)
