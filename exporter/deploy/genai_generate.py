"""Continues a prompt with onnxruntime-genai and the model in this script's folder, taking the best token each time."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    """Prints the text as it comes, or the token ids as one JSON list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--ids", action="store_true", help="print the ids of the new tokens as JSON")
    arguments = parser.parse_args()
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(Path(__file__).parent))
    tokenizer = onnxruntime_genai.Tokenizer(model)
    # Off by default: BOS would be missing.
    tokenizer.update_options(add_special_tokens="true")
    stream = tokenizer.create_stream()
    prompt = tokenizer.encode(arguments.prompt)
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + arguments.max_new_tokens, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    ids: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        ids.append(int(generator.get_next_tokens()[0]))
        if not arguments.ids:
            print(stream.decode(ids[-1]), end="", flush=True)
    print(json.dumps(ids) if arguments.ids else "")


if __name__ == "__main__":
    main()
