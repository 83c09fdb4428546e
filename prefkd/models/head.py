"""What models do to the output of their heads: a scale, and then a soft cap."""

import re

from transformers import PreTrainedConfig

from prefkd.errors import PrefkdError

CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
# HyperCLOVA X multiplies by what Granite divides by.
MULTIPLIES = "hyperclovax"


def head_scale_and_cap(config: PreTrainedConfig) -> tuple[float, float | None]:
    """The s and c of ``z = c tanh(s x / c)``, x the output of the head; c is None without a cap.

    MiniCPM divides the head's input, which comes to the same.

    Raises:
        PrefkdError: A field of the config seems to change logits, and is not known.
    """
    text = config.get_text_config()
    scale = 1.0
    for name in FACTORS:
        scale *= _number(text, name)
    for name in DIVISORS:
        value = _number(text, name)
        scale *= value if name == "logits_scaling" and text.model_type.startswith(MULTIPLIES) else 1 / value
    caps = [value for name in CAPS if (value := getattr(text, name, None)) is not None]
    for name, value in text.to_dict().items():
        if name not in (*CAPS, *FACTORS, *DIVISORS) and _seems_to_change_logits(name, value):
            raise PrefkdError(
                f"config.json of {text.model_type}: {name} is {value}, which seems to change logits and is not "
                "supported; use another model"
            )
    return scale, float(caps[0]) if caps else None


def _number(text: PreTrainedConfig, name: str) -> float:
    value = getattr(text, name, None)
    return 1.0 if value is None else float(value)


def _seems_to_change_logits(name: str, value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool) or value == 1:
        return False
    inside = re.search("attn|attention|router|expert|moe|init|loss", name)  # not the head's
    return not inside and re.search("(logit|lm_head|output).*(scal|cap|mult)", name) is not None
