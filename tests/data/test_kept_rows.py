"""What scores keep of distributions, as columns and back."""

import pytest
import torch

from prefkd.data.kept_rows import kept_bytes, kept_columns, kept_rows
from prefkd.method.top_rows import keep_top, rows_of


@pytest.mark.parametrize(
    ("tokens", "sizes"), [(32768, (128, 252, 500)), (49152, (132, 260, 516)), (262144, (140, 276, 548))]
)
def test_bytes_of_a_token(tokens, sizes):
    assert tuple(kept_bytes(k, tokens, ["teacher"]) for k in (32, 64, 128)) == sizes
    assert kept_bytes(64, 262144, ["teacher", "positive", "negative"]) == 276 + 276 + 132


def test_columns_come_back():
    """Log-probs are off by one part in two thousand, and impossible tokens stay impossible."""
    logits = torch.randn(2, 5, 3, 40, generator=torch.Generator().manual_seed(0))
    logits[:, :, :, 7] = -torch.inf
    rows, expected = [], {"teacher": [], "positive": [], "negative": []}
    for pair in range(2):
        row = {"kept_tokens": 40, "kept_temperature": 2.0}
        for side, answer in enumerate(("chosen", "rejected")):
            count = 5 - side - pair
            row[f"teacher_{answer}"] = [0] * count
            teacher, positive, negative = logits[pair, :count].unbind(1)
            kept = {"teacher": keep_top(teacher, 40, 2.0), "positive": keep_top(positive, 6, 2.0)}
            kept["negative"] = rows_of(negative.log_softmax(-1), kept["positive"].ids, 2.0)
            for number, (name, values) in enumerate(kept.items()):
                row |= {
                    key: list(value) if key.endswith("_value") else value
                    for key, value in kept_columns(name, answer, values, 10.0 * side + pair + number / 4).items()
                }
                expected[name].append((side, pair, values))
        rows.append(row)
    assert "chosen_negative_ids" not in rows[0]
    for number, name in enumerate(expected):
        found = kept_rows(rows, name)
        ordered = [values for *_, values in sorted(expected[name], key=lambda item: item[:2])]
        assert torch.equal(found.rows.ids, torch.cat([values.ids for values in ordered]))
        for part in ("logprobs", "rest", "cooled_rest"):
            wanted = torch.cat([getattr(values, part) for values in ordered])
            torch.testing.assert_close(getattr(found.rows, part), wanted, rtol=2**-11, atol=1e-6)
        assert found.values.tolist() == [side * 10 + pair + number / 4 for side in (0, 1) for pair in (0, 1)]
        assert found.rows.tokens == 40
