"""Tiny Hugging Face models with random weights, and what they compute, in numpy.

Written from the models' published definitions, so that the file nibble makes of one and the engine
that runs it can be compared with something that knows neither.
"""
import json
import math
import os

import numpy as np
from safetensors.numpy import save_file

BASE = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5,
            rope_theta=10000.0, tie_word_embeddings=False)

# What each architecture adds to the common config.
CONFIGS = {
    "llama": dict(architectures=["LlamaForCausalLM"], model_type="llama", attention_bias=True),
    "llama3": dict(architectures=["LlamaForCausalLM"], model_type="llama", rope_theta=500000.0,
                   tie_word_embeddings=True,
                   rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                                     high_freq_factor=4.0, original_max_position_embeddings=64)),
    "mistral": dict(architectures=["MistralForCausalLM"], model_type="mistral", head_dim=24),
    "mixtral": dict(architectures=["MixtralForCausalLM"], model_type="mixtral",
                    num_local_experts=4, num_experts_per_tok=2, rope_theta=1e6),
    "qwen2": dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2"),
    "qwen3": dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=32,
                  tie_word_embeddings=True),
    "qwen3moe": dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", head_dim=32,
                     num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
                     norm_topk_prob=True),
    "gemma": dict(architectures=["GemmaForCausalLM"], model_type="gemma", head_dim=32,
                  hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True),
    "gemma2": dict(architectures=["Gemma2ForCausalLM"], model_type="gemma2", head_dim=32,
                   hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True,
                   attn_logit_softcapping=3.0, final_logit_softcapping=8.0, sliding_window=40,
                   query_pre_attn_scalar=32),
    "phi3": dict(architectures=["Phi3ForCausalLM"], model_type="phi3"),
}


class Model:
    def __init__(self, name, vocab_size, seed=1):
        self.config = dict(BASE, vocab_size=vocab_size, **{k: v for k, v in CONFIGS[name].items()
                                                           if k not in BASE})
        self.config.update(CONFIGS[name])
        self.type = self.config["model_type"]
        self.random = np.random.default_rng(seed)
        self.weights = {}
        self._make_weights()

    def _add(self, name, *shape, scale=None, mean=0.0):
        scale = scale if scale is not None else 1.2 / math.sqrt(shape[-1])
        self.weights[name] = (mean + scale * self.random.standard_normal(shape)).astype(np.float32)

    def _make_weights(self):
        c, gemma = self.config, self.type.startswith("gemma")
        hidden, ff = c["hidden_size"], c["intermediate_size"]
        self.head = c.get("head_dim") or hidden // c["num_attention_heads"]
        q, kv = c["num_attention_heads"] * self.head, c["num_key_value_heads"] * self.head

        def norm(name, size=hidden):
            self._add(name, size, scale=0.2, mean=0.0 if gemma else 1.0)

        self._add("model.embed_tokens.weight", c["vocab_size"], hidden, scale=0.5)
        norm("model.norm.weight")
        if not c["tie_word_embeddings"]:
            self._add("lm_head.weight", c["vocab_size"], hidden)
        for layer in range(c["num_hidden_layers"]):
            p = f"model.layers.{layer}."
            norm(p + "input_layernorm.weight")
            norm(p + "post_attention_layernorm.weight")
            if self.type == "gemma2":
                norm(p + "pre_feedforward_layernorm.weight")
                norm(p + "post_feedforward_layernorm.weight")
            if self.type == "phi3":
                self._add(p + "self_attn.qkv_proj.weight", q + 2 * kv, hidden)
                self._add(p + "mlp.gate_up_proj.weight", 2 * ff, hidden)
            else:
                for part, size in (("q", q), ("k", kv), ("v", kv)):
                    self._add(f"{p}self_attn.{part}_proj.weight", size, hidden)
                    if self.type == "qwen2" or c.get("attention_bias"):
                        self._add(f"{p}self_attn.{part}_proj.bias", size, scale=0.5)
            self._add(p + "self_attn.o_proj.weight", hidden, q)
            if c.get("attention_bias"):
                self._add(p + "self_attn.o_proj.bias", hidden, scale=0.5)
            if self.type.startswith("qwen3"):
                norm(p + "self_attn.q_norm.weight", self.head)
                norm(p + "self_attn.k_norm.weight", self.head)
            if self.type in ("mixtral", "qwen3_moe"):
                mixtral = self.type == "mixtral"
                block = "block_sparse_moe" if mixtral else "mlp"
                gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj",
                                                                    "down_proj")
                size = c.get("moe_intermediate_size", ff)
                experts = c.get("num_local_experts") or c["num_experts"]
                self._add(f"{p}{block}.gate.weight", experts, hidden)
                for e in range(experts):
                    self._add(f"{p}{block}.experts.{e}.{gate}.weight", size, hidden)
                    self._add(f"{p}{block}.experts.{e}.{up}.weight", size, hidden)
                    self._add(f"{p}{block}.experts.{e}.{down}.weight", hidden, size)
            else:
                if self.type != "phi3":
                    self._add(p + "mlp.gate_proj.weight", ff, hidden)
                    self._add(p + "mlp.up_proj.weight", ff, hidden)
                self._add(p + "mlp.down_proj.weight", hidden, ff)

    def save(self, folder):
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
            json.dump(self.config, file)
        save_file(self.weights, os.path.join(folder, "model.safetensors"))

    # --- The forward pass, in double precision. ---

    def _linear(self, x, name):
        y = x @ self.weights[name + ".weight"].astype(np.float64).T
        return y + self.weights[name + ".bias"] if name + ".bias" in self.weights else y

    def _norm(self, x, name):
        weight = self.weights[name + ".weight"].astype(np.float64)
        if self.type.startswith("gemma"):
            weight = weight + 1
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * weight

    def _frequencies(self):
        c = self.config
        freqs = 1.0 / c["rope_theta"] ** (np.arange(0, self.head, 2) / self.head)
        scaling = c.get("rope_scaling")
        if not scaling:
            return freqs
        factor, low, high = (scaling[k] for k in ("factor", "low_freq_factor", "high_freq_factor"))
        original = scaling["original_max_position_embeddings"]
        turns = original * freqs / (2 * np.pi)  # of each frequency within the original context
        blend = np.clip((turns - low) / (high - low), 0, 1)
        return freqs * (blend + (1 - blend) / factor)

    def _rotate(self, x):  # [tokens, heads, head]; halves, as Hugging Face does
        angles = np.arange(x.shape[0])[:, None] * self._frequencies()[None]
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        a, b = x[..., :self.head // 2], x[..., self.head // 2:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def _attention(self, x, p, layer):
        c, n = self.config, x.shape[0]
        heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        if self.type == "phi3":
            qkv = self._linear(x, p + "self_attn.qkv_proj")
            q, k, v = np.split(qkv, [heads * self.head, (heads + kv_heads) * self.head], -1)
        else:
            q, k, v = (self._linear(x, f"{p}self_attn.{part}_proj") for part in "qkv")
        q, k, v = (y.reshape(n, -1, self.head) for y in (q, k, v))
        if self.type.startswith("qwen3"):
            q = self._norm(q, p + "self_attn.q_norm")
            k = self._norm(k, p + "self_attn.k_norm")
        q, k = self._rotate(q), self._rotate(k)
        k, v = (np.repeat(y, heads // kv_heads, axis=1) for y in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) / math.sqrt(self.head)
        if self.type == "gemma2":
            cap = c["attn_logit_softcapping"]
            scores = cap * np.tanh(scores / cap)
        distance = np.arange(n)[:, None] - np.arange(n)[None]
        # Of Gemma 2 every other layer, from the first, sees a window only.
        near = c["sliding_window"] if self.type == "gemma2" and layer % 2 == 0 else n
        scores[:, (distance < 0) | (distance >= near)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return self._linear(np.einsum("hij,jhd->ihd", weights, v).reshape(n, -1),
                            p + "self_attn.o_proj")

    def _activate(self, gate):
        if self.type.startswith("gemma"):
            return 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        return gate / (1 + np.exp(-gate))

    def _feed_forward(self, x, p):
        c = self.config
        if self.type == "phi3":
            gate, up = np.split(self._linear(x, p + "mlp.gate_up_proj"), 2, -1)
            return self._linear(self._activate(gate) * up, p + "mlp.down_proj")
        if self.type not in ("mixtral", "qwen3_moe"):
            gate, up = self._linear(x, p + "mlp.gate_proj"), self._linear(x, p + "mlp.up_proj")
            return self._linear(self._activate(gate) * up, p + "mlp.down_proj")
        mixtral = self.type == "mixtral"
        block = p + ("block_sparse_moe" if mixtral else "mlp")
        names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        router = self._linear(x, block + ".gate")
        router = np.exp(router - router.max(-1, keepdims=True))
        router /= router.sum(-1, keepdims=True)
        result = np.zeros_like(x)
        for i, row in enumerate(router):
            chosen = np.argsort(-row)[:c["num_experts_per_tok"]]
            for e in chosen:
                gate, up = (self._linear(x[i], f"{block}.experts.{e}.{w}") for w in names[:2])
                result[i] += row[e] / row[chosen].sum() * self._linear(
                    self._activate(gate) * up, f"{block}.experts.{e}.{names[2]}")
        return result

    def logits(self, tokens):
        c, gemma2 = self.config, self.type == "gemma2"
        embedding = self.weights["model.embed_tokens.weight"].astype(np.float64)
        x = embedding[tokens]
        if self.type.startswith("gemma"):
            x = x * math.sqrt(c["hidden_size"])
        for layer in range(c["num_hidden_layers"]):
            p = f"model.layers.{layer}."
            y = self._attention(self._norm(x, p + "input_layernorm"), p, layer)
            x = x + (self._norm(y, p + "post_attention_layernorm") if gemma2 else y)
            before = "pre_feedforward_layernorm" if gemma2 else "post_attention_layernorm"
            y = self._feed_forward(self._norm(x, p + before), p)
            x = x + (self._norm(y, p + "post_feedforward_layernorm") if gemma2 else y)
        x = self._norm(x, "model.norm")
        output = embedding if c["tie_word_embeddings"] else self.weights["lm_head.weight"]
        result = x @ output.astype(np.float64).T
        cap = c.get("final_logit_softcapping")
        return cap * np.tanh(result / cap) if cap else result
