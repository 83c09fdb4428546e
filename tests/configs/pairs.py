"""The full-size pairs that are shipped: folder below configs/ -> Hub ids of teacher and student."""

PAIRS = {
    "mistral_7b_to_qwen2.5_1.5b": ("mistralai/Mistral-7B-Instruct-v0.3", "Qwen/Qwen2.5-1.5B-Instruct"),
    "mistral_7b_to_phi_3_mini": ("mistralai/Mistral-7B-Instruct-v0.3", "microsoft/Phi-3-mini-4k-instruct"),
    "mistral_7b_to_phi_3.5_mini": ("mistralai/Mistral-7B-Instruct-v0.3", "microsoft/Phi-3.5-mini-instruct"),
    "qwen2.5_7b_to_llama_3.2_1b": ("Qwen/Qwen2.5-7B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"),
    "qwen3_8b_to_qwen3_0.6b": ("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B"),
}
RECIPES = ("sft", "dpo", "score", "dpo_distill", "tis_dpo_distill", "dskd_distill")
