"""Tiny random language models of many architectures, built from their config classes without a download."""

import torch
import transformers
from torch import nn

BOS, EOS, PAD = 1, 2, 0
COMMON = {"vocab_size": 2048, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
LLAMA = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GPT = {**COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4}
FAMILIES = {  # name of the class before "ForCausalLM" and "Config", and options of the config
    "Llama": LLAMA,
    "Mistral": {**LLAMA, "sliding_window": 6},
    "Mixtral": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2": LLAMA,
    "Qwen3": {**LLAMA, "head_dim": 8},
    "Qwen3Moe": {**LLAMA, **EXPERTS, "head_dim": 8},
    "Gemma": {**LLAMA, "head_dim": 8},
    "Gemma2": {**LLAMA, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "Gemma3": {**LLAMA, "head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "Phi": LLAMA,
    "Phi3": LLAMA,
    "Olmo2": LLAMA,
    "Granite": LLAMA,
    "SmolLM3": {**LLAMA, "no_rope_layers": [1, 0]},
    "Cohere2": {**LLAMA, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "StableLm": LLAMA,
    "Starcoder2": {**LLAMA, "sliding_window": None},
    "GPTNeoX": LLAMA,
    "GPT2": {**GPT, "n_positions": 128},
    "GPTBigCode": {**GPT, "n_positions": 128},
    "OPT": {
        **COMMON, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "word_embed_proj_dim": 32, "max_position_embeddings": 128,
    },
    "GPTJ": {**GPT, "n_positions": 128, "rotary_dim": 4},
    "CodeGen": {**GPT, "n_positions": 128, "n_ctx": 128, "rotary_dim": 4},
    "Bloom": {**COMMON, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "XGLM": {
        **COMMON, "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 128,
    },
    "GptOss": {**LLAMA, "head_dim": 8, "sliding_window": 6, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Lfm2": {**LLAMA, "layer_types": ["conv", "full_attention"]},
    "Qwen3Next": {
        **LLAMA, **EXPERTS, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 32,
    },
    "Mamba": {**COMMON, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "intermediate_size": 64},
    "FalconH1": {**LLAMA, **MAMBA, "mamba_d_ssm": 64, "mamba_chunk_size": 8},
}  # fmt: skip
NATIVE = {"Gemma2", "GPTJ", "CodeGen", "Bloom", "XGLM", "GptOss", "Lfm2", "Qwen3Next", "Mamba"}
"""The families that need the attention of `transformers`, and whose texts `generate` writes."""
UNFIT = {"FalconH1": "generate does not continue embeddings"}


def family(name, **options):
    """A tiny random LM in evaluation mode; its embeddings are large, so that it says different things."""
    config = getattr(transformers, f"{name}{'Text' if name == 'Gemma3' else ''}Config")
    torch.manual_seed(0)
    made = getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")
    lm = made(config(**{**FAMILIES[name], **options}))
    nn.init.normal_(lm.get_input_embeddings().weight, std=1.0)
    return lm.eval()
