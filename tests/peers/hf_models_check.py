#!/usr/bin/env python3
"""Converts made-up Hugging Face models with nibble, has llama.cpp run them, and runs them itself.

    hf_models_check.py TEXT NIBBLE

For every architecture llama.cpp must load the file that nibble writes and compute the logits that
numpy computes from the original weights, and nibble, where it runs the architecture, must give
numpy's perplexity. For every kind of tokenizer, trained here on TEXT, llama.cpp must cut text into
the tokens that the original library gives, and nibble into llama.cpp's. Needs llama-cpp-python,
numpy, safetensors, sentencepiece and tokenizers.
"""
import json
import os
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from hf_models import CONFIGS, Model

VOCABULARY = 512
CONTEXT = 96
RUN_BY_NIBBLE = ["llama", "llama3", "mistral", "qwen2", "qwen3", "gemma", "gemma2"]
SAMPLES = ["The command prints 12345 lines, isn't it?", "  two  spaces\n\n\tand tabs\r\n",
           "def f(x):\n    return x**2 + 3.14159  # über-naïve Straße",
           "日本語のテキスト 🙂 mixed with English", "ﬁne ①② ｆｕｌｌ　ｗｉｄｔｈ é…  x", "I'LL SAY it's WE'RE 2nd 007 100000"]

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTED}|"
         rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTED}|\p{{N}}{{1,3}}|"
         r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_level(folder, text, kind):
    """Trains a byte-level BPE tokenizer.json; returns its encoding of a text."""
    def split(regex):
        return pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    tokenizer = Tokenizer(models.BPE(ignore_merges=kind in ("llama-bpe", "tekken")))
    tokenizer.pre_tokenizer = {
        "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
        "smollm": lambda: pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        "llama-bpe": lambda: split(LLAMA3), "smaug-bpe": lambda: split(LLAMA3),
        "qwen2": lambda: split(LLAMA3.replace("{1,3}", "")),
        "tekken": lambda: split(TEKKEN), "gpt-4o": lambda: split(GPT4O)}[kind]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train([text], trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    tokenizer.add_special_tokens([AddedToken("<|begin|>", special=True),
                                  AddedToken("<|end|>", special=True)])
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    if kind == "gpt-2":  # the older form of merges
        path = os.path.join(folder, "tokenizer.json")
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        content["model"]["merges"] = [m if isinstance(m, str) else " ".join(m)
                                      for m in content["model"]["merges"]]
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content, file)
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump(dict(bos_token="<|begin|>", eos_token="<|end|>"), file)
    return lambda sample: tokenizer.encode(sample, add_special_tokens=False).ids


def sentence_piece(folder, text, kind):
    """Trains a tokenizer.model; "json" stores it as the tokenizer.json that libraries make of it."""
    bpe = dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
               remove_extra_whitespaces=False)
    settings = dict(bpe=bpe, json=bpe, plain=dict(bpe, add_dummy_prefix=False),
                    unigram=dict(model_type="unigram"),
                    **{"unigram-as-is": dict(model_type="unigram", add_dummy_prefix=False,
                                             normalization_rule_name="identity",
                                             remove_extra_whitespaces=False)})[kind]
    prefix = os.path.join(folder, "tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        input=text, model_prefix=prefix, vocab_size=VOCABULARY - 8, split_digits=True,
        allow_whitespace_only_pieces=True, minloglevel=2, num_threads=1, **settings)
    processor = sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")
    if kind == "json":
        size = processor.vocab_size()
        vocab = {processor.id_to_piece(i): i for i in range(size)}
        ranked = sorted((i for i in range(size) if not processor.is_byte(i)),
                        key=lambda i: -processor.get_score(i))
        merges = []
        for i in ranked:
            piece = processor.id_to_piece(i)
            pairs = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
            pairs = [p for p in pairs if p[0] in vocab and p[1] in vocab]
            pairs.sort(key=lambda p: (vocab[p[0]], vocab[p[1]]))
            if not processor.is_control(i) and not processor.is_unknown(i):
                merges += [list(p) for p in pairs]
        content = dict(
            added_tokens=[dict(id=i, content=processor.id_to_piece(i), special=True)
                          for i in range(3)],
            normalizer=dict(type="Sequence", normalizers=[
                dict(type="Prepend", prepend="▁"),
                dict(type="Replace", pattern=dict(String=" "), content="▁")]),
            pre_tokenizer=None, post_processor=None, decoder=None,
            model=dict(type="BPE", byte_fallback=True, unk_token="<unk>", vocab=vocab,
                       merges=merges))
        with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.remove(prefix + ".model")
    return processor.encode


def open_model(path, **options):
    return llama_cpp.Llama(path, n_ctx=256, verbose=False, n_threads=2, logits_all=True,
                           type_k=0, type_v=0, **options)


def convert(nibble, folder):
    output = os.path.join(folder, "model.gguf")
    subprocess.run([nibble, "convert", folder, "-o", output, "--quiet"], check=True)
    return output


def ask_nibble(*command):
    run = subprocess.run([*command, "--precision", "f32", "--json", "--quiet"], check=True,
                         capture_output=True)
    return json.loads(run.stdout)


def mean_nll(model, tokens, bos):
    """numpy's mean of -log p over windows of CONTEXT tokens that begin with `bos`."""
    losses = []
    for begin in range(0, len(tokens) - CONTEXT + 2, CONTEXT - 1):
        window = [bos, *tokens[begin:begin + CONTEXT - 1]]
        logits = model.logits(window)[:-1]
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(logits)), window[1:]]
        losses.append(np.log(np.exp(logits).sum(axis=1)) - chosen)
    return float(np.concatenate(losses).mean())


def main():
    text, nibble = sys.argv[1:]
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        sample_path = os.path.join(temporary, "sample.txt")
        with open(text, "rb") as file:
            sample_text = file.read(1200).decode(errors="ignore")
        with open(sample_path, "w", encoding="utf-8") as file:
            file.write(sample_text)
        for name in CONFIGS:
            folder = os.path.join(temporary, name)
            original = Model(name, VOCABULARY)
            original.save(folder)
            sentence_piece(folder, text, "bpe")
            with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as file:
                # llama.cpp asks a model called phi3 for this token.
                json.dump(dict(added_tokens_decoder={str(VOCABULARY - 4): dict(
                    content="<|endoftext|>", special=True)}), file)
            path = convert(nibble, folder)
            model = open_model(path)
            tokens = [int(t) for t in np.random.default_rng(7).integers(3, VOCABULARY - 8, 96)]
            model.eval(tokens)
            got, wanted = np.array(model.scores[:len(tokens)]), original.logits(tokens)
            error = float(np.abs(got - wanted).max() / wanted.std())
            failures += not error < 0.01
            print(f"{'ok  ' if error < 0.01 else 'FAIL'} {name}: logits within {error:.1e} "
                  "of their standard deviation")
            if name not in RUN_BY_NIBBLE:
                continue
            wanted = mean_nll(original, model.tokenize(sample_text.encode(), add_bos=False),
                              model.token_bos())
            got = ask_nibble(nibble, "perplexity", path, "--text", sample_path, "--context",
                             str(CONTEXT), "--score", "all")["mean_nll"]["value"]
            good = abs(got - wanted) < 1e-3  # keys and values are rounded to f16
            failures += not good
            print(f"{'ok  ' if good else 'FAIL'} {name}: nibble's mean loss {got:.5f}, "
                  f"numpy's {wanted:.5f}")
        kinds = [(byte_level, k) for k in ("gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2",
                                           "tekken", "gpt-4o")]
        kinds += [(sentence_piece, k) for k in ("bpe", "plain", "json", "unigram", "unigram-as-is")]
        for make, kind in kinds:
            folder = os.path.join(temporary, f"{make.__name__}-{kind}")
            Model("llama", VOCABULARY).save(folder)
            encode = make(folder, text, kind)
            path = convert(nibble, folder)
            model = open_model(path)
            wrong = [s for s in SAMPLES
                     if model.tokenize(s.encode(), add_bos=False) != encode(s)]
            other = [s for s in SAMPLES
                     if ask_nibble(nibble, "generate", path, "-p", s, "-n", "1")["prompt_ids"] !=
                     model.tokenize(s.encode(), add_bos=True)]
            failures += bool(wrong or other)
            print(f"{'FAIL' if wrong or other else 'ok  '} {make.__name__} {kind}: "
                  f"{len(SAMPLES) - len(wrong)} of {len(SAMPLES)} texts cut alike, "
                  f"{len(SAMPLES) - len(other)} by nibble")
            for sample in wrong:
                print("    ", repr(sample), model.tokenize(sample.encode(), add_bos=False),
                      encode(sample))
            for sample in other:
                print("     nibble:", repr(sample), model.tokenize(sample.encode(), add_bos=True))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
