"""What the config of a model says of its logits."""

import pytest
from transformers import AutoConfig, PreTrainedConfig

from prefkd.errors import PrefkdError
from prefkd.models.head import head_scale_and_cap

KNOWN = {
    "llama": ({}, (1.0, None)),
    "gemma2": ({}, (1.0, 30.0)),
    "gemma3_text": ({}, (1.0, None)),
    "granite": ({"logits_scaling": 16.0}, (1 / 16, None)),
    "granitemoe": ({"logits_scaling": 4.0}, (1 / 4, None)),
    "cohere": ({}, (0.0625, None)),
    "cohere2": ({"logit_scale": 0.25}, (0.25, None)),
    "minicpm3": ({"hidden_size": 2560, "dim_model_base": 256}, (0.1, None)),
    "hyperclovax": ({"logits_scaling": 0.125}, (0.125, None)),
    "falcon_h1": ({"lm_head_multiplier": 0.5}, (0.5, None)),
    "recurrent_gemma": ({}, (1.0, 30.0)),
    "nanochat": ({"final_logit_softcapping": 15.0}, (1.0, 15.0)),
    "qwen3_moe": ({}, (1.0, None)),
    "mixtral": ({}, (1.0, None)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_scale_and_cap(name):
    settings, expected = KNOWN[name]
    assert head_scale_and_cap(AutoConfig.for_model(name, **settings)) == expected


def test_a_model_of_text_and_pictures_has_them_in_its_text_part():
    config = AutoConfig.for_model("gemma3", text_config={"final_logit_softcapping": 5.0})
    assert head_scale_and_cap(config) == (1.0, 5.0)


@pytest.mark.parametrize("field", ["logits_multiplier", "logit_softcap", "lm_head_scale", "output_logits_scaling"])
def test_a_field_that_is_not_known_is_refused(field):
    with pytest.raises(PrefkdError, match=f"{field} is 2.0, which seems to change logits"):
        head_scale_and_cap(PreTrainedConfig(**{field: 2.0}))
    assert head_scale_and_cap(PreTrainedConfig(**{field: 1.0})) == (1.0, None)
    assert head_scale_and_cap(PreTrainedConfig(**{field: None})) == (1.0, None)


def test_fields_that_are_not_about_the_head_do_no_harm():
    fields = {"attn_logit_softcapping": 50.0, "router_logit_scale": 2.0, "logit_scale_init_value": 2.6}
    assert head_scale_and_cap(PreTrainedConfig(**fields, output_attentions=True)) == (1.0, None)
