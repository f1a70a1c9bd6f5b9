"""Ouro in matrix operations, from a state dictionary with the published names: no module of any package."""

import torch


def rms_norm(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def rotate(x, theta):
    """Rotary positions of `(heads, seq, size)`: pairs are a number and the one half a head away."""
    seq, size = x.shape[-2:]
    angles = torch.arange(seq)[:, None] * theta ** -(torch.arange(0, size, 2) / size)
    cos, sin = angles.cos(), angles.sin()
    left, right = x[..., : size // 2], x[..., size // 2 :]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def layer(x, weights, heads, groups, theta, eps):
    normed = rms_norm(x, weights["input_layernorm.weight"], eps)
    query, key, value = (normed @ weights[f"self_attn.{part}_proj.weight"].T for part in "qkv")
    size = query.shape[-1] // heads
    query, key, value = (y.view(len(y), -1, size).transpose(0, 1) for y in (query, key, value))
    query, key = rotate(query, theta), rotate(key, theta)
    future = torch.ones(len(x), len(x)).triu(1).bool()
    outputs = []
    for head in range(heads):
        scores = (query[head] @ key[head // groups].T / size**0.5).masked_fill(future, float("-inf"))
        outputs.append(scores.softmax(-1) @ value[head // groups])
    attended = torch.cat(outputs, dim=-1) @ weights["self_attn.o_proj.weight"].T
    x = x + rms_norm(attended, weights["input_layernorm_2.weight"], eps)
    normed = rms_norm(x, weights["post_attention_layernorm.weight"], eps)
    gate, up = normed @ weights["mlp.gate_proj.weight"].T, normed @ weights["mlp.up_proj.weight"].T
    transformed = (gate * torch.sigmoid(gate) * up) @ weights["mlp.down_proj.weight"].T
    return x + rms_norm(transformed, weights["post_attention_layernorm_2.weight"], eps)


def naive_loops(state_dict, config: dict, ids):
    """
    Logits and gate logits of one row after each loop: lists of R tensors of shapes `(seq, vocabulary)` and `(seq,)`.

    Args:
        state_dict (`dict`): Parameters by their published names.
        config (`dict`): A `config.json` of transformers 4.
        ids (`torch.LongTensor` of shape `(seq,)`): The row.
    """
    groups = config["num_attention_heads"] // config["num_key_value_heads"]
    x = state_dict["model.embed_tokens.weight"][ids]
    logits, gates = [], []
    for _ in range(config["total_ut_steps"]):
        for number in range(config["num_hidden_layers"]):
            prefix = f"model.layers.{number}."
            weights = {name[len(prefix) :]: w for name, w in state_dict.items() if name.startswith(prefix)}
            x = layer(x, weights, config["num_attention_heads"], groups, config["rope_theta"], config["rms_norm_eps"])
        x = rms_norm(x, state_dict["model.norm.weight"], config["rms_norm_eps"])
        logits.append(x @ state_dict["lm_head.weight"].T)
        gate = x @ state_dict["model.early_exit_gate.weight"].T + state_dict["model.early_exit_gate.bias"]
        gates.append(gate[:, 0])
    return logits, gates
