"""One row for prompt, chosen and rejected answer gives what two rows give, for every kind of attention."""

import pytest
import torch

from prefkd.data.collate import collate_pairs
from prefkd.data.steps import Microbatch
from tests.models.architectures import ARCHITECTURES, model_of, random_pairs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_prompt_is_separate_rows(tmp_path, architecture):
    model = model_of(tmp_path, architecture)
    aligned = random_pairs(model.lm.config.vocab_size, seed=1)
    results = []
    for share in (True, False):
        batch = collate_pairs(aligned, Microbatch([0, 1, 2]), share_prompt=(share, share))
        logprobs = model(batch.student)
        weights = torch.linspace(-1, 1, len(logprobs), dtype=logprobs.dtype)
        gradients = torch.autograd.grad((weights * logprobs).sum(), list(model.parameters()))
        results.append((logprobs, *gradients))
    for shared, separate in zip(*results, strict=True):
        # The models compute norms and angles in float32 even here.
        torch.testing.assert_close(shared, separate, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing(tmp_path):
    model = model_of(tmp_path, "gemma3_text")
    aligned = random_pairs(100, seed=3)
    whole = collate_pairs(aligned, Microbatch([0, 1, 2]), share_prompt=(True, True))
    together = whole.parent_sums(model(whole.student), whole.student)
    for pair in range(3):
        alone = collate_pairs(aligned, Microbatch([pair]), share_prompt=(True, True))
        sums = alone.parent_sums(model(alone.student), alone.student)
        torch.testing.assert_close(sums[:, 0], together[:, pair, : sums.shape[-1]], rtol=1e-6, atol=1e-6)
        assert not together[:, pair, sums.shape[-1] :].any()
