"""What a model says of a good and a bad answer: the log-prob of each, summed over its tokens.

python examples/02_score_a_pair.py models/student "What is 2 + 2?" "It is 4." "Ask someone else."
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkd.data.sides import ModelSide
from prefkd.method.logprobs import token_logprobs


def main(model: str, prompt: str, chosen: str, rejected: str) -> None:
    side = ModelSide(AutoTokenizer.from_pretrained(model))
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    frame = side.frame([{"role": "user", "content": prompt}])
    [before] = side.encode_prompts([frame])
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        [[ids], _] = side.encode_responses([answer])
        answer_ids = [*ids, side.eos_id]
        labels = torch.tensor([[-100] * len(before) + answer_ids])
        logits = lm(torch.tensor([before + answer_ids])).logits
        print(f"{name:8} {token_logprobs(logits, labels).sum().item():8.2f} nats over {len(answer_ids)} tokens")


if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:])
