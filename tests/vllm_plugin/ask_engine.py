"""Run as a program: makes an engine, asks it, and prints its answers. What it is told stands in a JSON file."""

import json
import sys


def main(path):
    from vllm import LLM, SamplingParams

    from hsa_factory.vllm.types import fields_of

    with open(path, encoding="utf-8") as file:
        told = json.load(file)
    llm = LLM(disable_log_stats=True, enforce_eager=True, **told["engine"])
    params = [
        SamplingParams(temperature=0, max_tokens=told["number"], ignore_eos=True, extra_args=fields_of(types))
        for _, types in told["requests"]
    ]
    answers = llm.generate([{"prompt_token_ids": ids} for ids, _ in told["requests"]], params, use_tqdm=False)
    print("ANSWERS", json.dumps([list(answer.outputs[0].token_ids) for answer in answers]))


if __name__ == "__main__":
    main(sys.argv[1])
