from conftest import load_script, tiny_model
from test_sft import IDS, TOKENIZER

from llada.evaluation import same_as_answer
from llada.sampling.settings import SamplerSettings
from llada.sampling.text import answers
from vrpo.rollouts import pair_up

addition = load_script("examples/addition")


def test_right_and_wrong_answers_are_paired_in_order_without_repeats():
    row = {"prompt": "q", "answer": "4"}
    candidates = ["3", "4", " 4", "5", "3", "", "6"]
    expected = [("4", "3"), (" 4", "5")]
    pairs = pair_up(row, candidates, same_as_answer, most=5)
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == expected
    assert len(pair_up(row, candidates, same_as_answer, most=1)) == 1
    assert pair_up(row, ["4", " 4"], same_as_answer, most=5) == []


def test_pairs_of_messages_are_messages():
    prompt = [{"role": "user", "content": "q"}]
    (pair,) = pair_up({"prompt": prompt, "answer": "a"}, ["a", "b"], same_as_answer, most=1)
    assert pair["chosen"] == [{"role": "assistant", "content": "a"}]
    assert pair["prompt"] == prompt


def test_answers_do_not_depend_on_the_batch():
    model = tiny_model(**IDS)
    settings = SamplerSettings(gen_length=8, steps=8, block_length=8)
    prompts = ["a", "bcd", "ef", "ghijk"]
    whole = list(answers(model, TOKENIZER, prompts, settings, batch_size=4))
    assert whole == list(answers(model, TOKENIZER, prompts, settings, batch_size=3))
    assert len(whole) == 4


def test_worked_addition():
    """By hand, with and without carrying; the split is by prompt."""
    assert addition.work(385, 947, careful=True) == "5+7+0=12 8+4+1=13 3+9+1=13 1332"
    assert addition.work(385, 947, careful=False) == "5+7+0=12 8+4+0=12 3+9+0=12 1222"
    assert addition.work(123, 456, careful=True) == "3+6+0=09 2+5+0=07 1+4+0=05 0579"
    for a, b in ((999, 999), (100, 900), (507, 493)):
        assert int(addition.work(a, b, careful=True)[-4:]) == a + b
    import random

    inside, outside = (addition.prompts(50, random.Random(0), held_out) for held_out in (True, False))
    assert not set(inside) & set(outside)
