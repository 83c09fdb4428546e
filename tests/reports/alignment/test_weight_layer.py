"""With scores the page is coloured by the weights that they make, which are those of a plain loop."""

import html
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from rich.console import Console

from prefkd.data.fingerprints import pairs_fingerprint, reading_fingerprint
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.rows import ANSWERS
from prefkd.data.scores import begin_scores, open_scores, plan_shards, write_shard
from prefkd.data.tokenizing import align_pairs
from prefkd.errors import PrefkdError
from prefkd.reports.alignment.report import inspect_pairs
from prefkd.reports.alignment.terminal import print_inspection
from tests.reports.alignment.test_page import POLICY, Reader
from tests.reports.conftest import HARD

CLICK = "document.querySelectorAll('#pairs th button')[{column}].click();"


def make_scores(folder: Path, source: Path, sides: dict, contrast: str = "models") -> Path:
    """A folder as recipe score writes it, with random log-probs, of which a part is held out."""
    config = DataConfig(str(source), held_out_fraction=0.3, held_out_limit=1)
    pairs = load_pairs(config)
    aligned = {split: align_pairs(getattr(pairs, split), **sides, config=config) for split in ("train", "held_out")}
    parts = reading_fingerprint(config, **sides) | pairs_fingerprint(aligned)
    parts |= {"contrast.kind": contrast, "pairs_per_shard": 3}
    begin_scores(folder, parts, sides["teacher"].tokenizer)
    generator = np.random.default_rng(0)
    names = ["reference"] if contrast == "none" else ["reference", "positive", "negative"]
    for shard in plan_shards(parts):
        rows = {i: aligned[shard.split][i] for i in shard.rows}
        columns = {
            i: {
                f"{answer}_{name}": -generator.gamma(2, 1, row[f"{answer}_parents"]).astype(np.float32)
                for answer in ANSWERS
                for name in names
            }
            for i, row in rows.items()
        }
        write_shard(folder, shard, aligned[shard.split], columns)
    return folder


@pytest.fixture(scope="module")
def scores(tmp_path_factory, hard_file, sides) -> Path:
    return make_scores(tmp_path_factory.mktemp("scores") / "scores", hard_file, sides)


@pytest.fixture(scope="module")
def weighted(hard_file, sides, scores):
    config = DataConfig(str(hard_file), held_out_fraction=0.0)
    return inspect_pairs(config, sides["student"], sides["teacher"], most=2000, scores=open_scores(scores))


@pytest.fixture(scope="module")
def log_ratios(scores) -> dict[tuple[int, str], list[float]]:
    """Row and answer -> log pi+ - log pi- of each parent, read from the files of both splits."""
    import pyarrow.parquet as pq

    rows = [row for file in scores.rglob("*.parquet") for row in pq.read_table(file).to_pylist()]
    return {
        (row["row"], answer): [p - n for p, n in zip(row[f"{answer}_positive"], row[f"{answer}_negative"], strict=True)]
        for row in rows
        for answer in ANSWERS
    }


def articles(page: str) -> dict[int, str]:
    found = re.findall(r"<article id=.*?</article>", page, re.DOTALL)
    return {int(re.search(r"<h3>Row (\d+) of", text)[1]): text for text in found}  # pyright: ignore


def test_colours_are_the_weights(weighted, log_ratios):
    numbers, shown = weighted.numbers, articles(weighted.page)
    scored = {row for row, _ in log_ratios}
    assert len(scored) == len(HARD) - numbers["pairs_not_scored"] == numbers["pairs"] == numbers[
        "pairs_in_data"
    ] and scored == set(shown)
    assert numbers["pairs_not_scored"] == 1  # of two pairs held out one was scored
    for row, text in shown.items():
        for answer, figure in zip(ANSWERS, text.split("<figure>")[1:], strict=True):
            sign = 1 if answer == "chosen" else -1
            parents = re.findall(r'<span class="(?:one|parent) ((?:low|high)\d)" title="([^"]*)"', figure)
            ratios = log_ratios[row, answer][: len(parents)]
            weights = [math.exp(sign * min(max(d, -0.5), 1.5)) for d in ratios]
            told = [float(re.search(r"\nweight (\S+)$", details)[1]) for _, details in parents]  # pyright: ignore
            assert told == pytest.approx(weights, abs=6e-4) and len(parents) > 0
            for (colour, _), weight in zip(parents, weights, strict=True):
                assert weight < 1 if colour.startswith("low") else weight > 0.8
                assert weight > 1.5 or colour != "high4"


def test_numbers_are_those_of_the_scores(weighted, log_ratios):
    distribution = weighted.numbers["weights"]["log_ratio"]["chosen"]
    assert distribution["count"] <= sum(len(values) for (_, answer), values in log_ratios.items() if answer == "chosen")
    assert "Pairs without scores, left out: 1." in weighted.page and json.dumps(weighted.numbers, allow_nan=False)


def test_the_contrast_of_the_scores_is_judged(weighted, log_ratios, capsys):
    """By the sums over all parents of an answer; made of random numbers, this one tells nothing."""
    sums = {place: sum(values) for place, values in log_ratios.items()}
    better = [sums[row, "chosen"] > sums[row, "rejected"] for row in {row for row, _ in sums}]
    verdict = weighted.numbers["weights"]["contrast"]["verdict"]
    assert verdict["share"] == pytest.approx(sum(better) / len(better), abs=1e-6) and verdict["pairs"] == len(better)
    assert verdict["verdict"] == "tells nothing"
    (advice,) = [text for text in weighted.verdict.advice if "contrast" in text]
    assert verdict["summary"] in advice and "weights.contrast=uniform" in advice
    print_inspection(weighted.numbers, weighted.verdict, Console(width=400))
    printed = capsys.readouterr().out
    assert advice in printed and "the contrast" in printed
    assert f"{verdict['share']:.1%} [{verdict['low']:.1%}, {verdict['high']:.1%}]" in printed
    assert html.escape(advice) in weighted.page or advice in html.unescape(weighted.page)


@pytest.mark.parametrize("disabled", [True, False])
def test_reading_scores_leaves_progress_bars_as_they_were(scores, disabled):
    were_disabled = are_progress_bars_disabled()
    try:
        (disable_progress_bars if disabled else enable_progress_bars)()
        assert open_scores(scores).read("train") is not None
        assert are_progress_bars_disabled() == disabled
    finally:
        (disable_progress_bars if were_disabled else enable_progress_bars)()


def test_pairs_are_sorted_by_weight_and_text_does_no_harm(weighted, dom):
    for column, clicks in ((7, 1), (9, 2)):  # mean weight of chosen answers, spread
        script = f"<script>{CLICK.format(column=column) * clicks}</script>"
        page = dom(POLICY.sub("", weighted.page).replace("</body>", f"{script}</body>"))
        body = page[page.index("<tbody>", page.index('id="pairs"')) :]
        rows = re.findall(r"<tr data-pair.*?</tr>", body, re.DOTALL)
        values = [float(re.findall(r'data-value="([^"]*)"', row)[column]) for row in rows]
        assert values == sorted(values, reverse=clicks == 2) and len(set(values)) == len(values) == len(HARD) - 1
    reader = Reader(dom(weighted.page))
    assert not {"script", "img"} & set(reader.tags) and reader.handlers == []
    assert "counts less" in reader.text


def test_without_scores_nothing_speaks_of_weights(hard):
    assert "mean weight" not in hard.page and 'class="weighted"' not in hard.page
    assert "weights" not in hard.numbers


def test_scores_that_do_not_fit_are_refused(hard_file, sides, scores, tmp_path):
    def look(folder: Path, source: Path = hard_file, **limits: int) -> None:
        config = DataConfig(str(source), held_out_fraction=0.0, **limits)  # pyright: ignore
        inspect_pairs(config, sides["student"], sides["teacher"], most=2000, scores=open_scores(folder))

    with pytest.raises(PrefkdError, match=r"data\.max_length: is 300 here, but was 512 when the scores were made"):
        look(scores, max_length=300)
    without = make_scores(tmp_path / "without", hard_file, sides, contrast="none")
    with pytest.raises(PrefkdError, match="was written without a contrast, so all weights are 1"):
        look(without)
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(PrefkdError, match="none of the 1 pairs are among the 6 in"):
        look(scores, other)
    changed = tmp_path / hard_file.name
    changed.write_text(hard_file.read_text(encoding="utf-8").replace("Yes", "No, not"), encoding="utf-8")
    with pytest.raises(PrefkdError, match=r"not what they were when they were scored, row 1 of hard\.jsonl"):
        look(scores, changed)
