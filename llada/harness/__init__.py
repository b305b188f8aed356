"""LLaDA as a model of lm-evaluation-harness (`pip install "llada-vrpo[eval]"`), and the papers' evaluations in it.

    llada harness run --model llada --model_args pretrained=DIR,preset=llada-1.5/gsm8k --tasks gsm8k

is the harness's own command line with the model `llada` added. The harness has no plug-ins for models; in Python,
importing `llada.harness.model` registers it. `llada evaluate` runs a paper's benchmarks
(`llada.harness.published`).
"""
