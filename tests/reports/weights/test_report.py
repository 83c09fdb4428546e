"""The weight report: its numbers against plain loops, its texts against offsets, its page against hostile text."""

import html.parser
import io
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from datasets import Dataset
from rich.console import Console
from transformers import AutoTokenizer

from prefkd.data.pairs import DataConfig
from prefkd.data.sides import ModelSide
from prefkd.data.tokenizing import align_pairs
from prefkd.errors import PrefkdError
from prefkd.method.parent_tokens import find_parents
from prefkd.reports.visible import visible, visible_block, visible_line
from prefkd.reports.weights import report as report_module
from prefkd.reports.weights import weight_table, write_weight_report
from prefkd.reports.weights.answers import weigh_answers
from prefkd.reports.weights.colours import LEVELS, ColourScale, colour_scale
from prefkd.reports.weights.numbers import distribution, histogram, piece_numbers, round_width, weight_numbers
from prefkd.reports.weights.pairs import FEWEST_PARENTS, choose_pairs
from prefkd.reports.weights.pieces import PieceReader, exacter_side, parent_texts
from prefkd.reports.weights.terminal import text_bars
from prefkd.weighting import WeightConfig
from tests.data.test_tokenizing import HARD_TEXTS, make_pairs
from tests.tiny import TEXTS, make_tokenizer

ANSWERS = ("chosen", "rejected")
HOSTILE = "<script>alert(1)</script> \"quotes\" 'too' & <b>x</b> [bold]y[/bold] </span></div> \u202eturned\u202c \x07"
ROOMY = DataConfig("pairs.jsonl", max_length=2000, max_prompt_length=1000)
STUDENT = ModelSide(make_tokenizer("byte_level"), name="tiny <student>")
TEACHER = ModelSide(make_tokenizer("metaspace"), name="tiny teacher")


def with_scores(answers, *, student=STUDENT, teacher=TEACHER, config=ROOMY, contrast=1.0) -> Dataset:
    """Aligned pairs with random scores; log-ratios are multiples of `contrast`."""
    aligned = align_pairs(make_pairs(answers), student, teacher, config=config)
    generator = np.random.default_rng(0)
    columns = {f"{answer}_{name}": [] for answer in ANSWERS for name in ("reference", "positive", "negative")}
    for row in aligned:
        for answer in ANSWERS:
            reference, negative = -generator.gamma(2, 2, (2, row[f"{answer}_parents"])).astype(np.float32)
            ratio = contrast * generator.normal(0.2 if answer == "chosen" else -0.2, 0.8, len(reference))
            columns[f"{answer}_reference"].append(reference)
            columns[f"{answer}_positive"].append(negative + ratio.astype(np.float32))
            columns[f"{answer}_negative"].append(negative)
    return Dataset.from_dict(aligned.to_dict() | columns)


@pytest.fixture(scope="module")
def scored() -> Dataset:
    plain = [(TEXTS[i % 7] * 2, TEXTS[(i + 3) % 7]) for i in range(70)]
    return with_scores([*HARD_TEXTS.values(), (HOSTILE, HOSTILE[::-1]), *plain])


def loops(scored: Dataset, config: WeightConfig) -> list[dict[str, dict[str, list[float]]]]:
    """Of each pair and answer: d and weight of each parent of text, and over all parents sums and margins."""
    pairs = []
    for row in scored:
        pair = {}
        for answer, sign in zip(ANSWERS, (1, -1), strict=True):
            ratios, sequence, margin, plain_margin = [], 0.0, 0.0, 0.0
            count, ends = row[f"{answer}_parents"], row[f"{answer}_ends"]
            for parent in range(count):
                d = row[f"{answer}_positive"][parent] - row[f"{answer}_negative"][parent]
                sequence += d
                if config.reduce == "mean":
                    d /= row[f"teacher_{answer}_parents"].count(parent)
                ratios.append(d)
            if config.method == "exp":
                weights = [math.exp(sign * min(max(d, -0.5), 1.5)) for d in ratios]
            else:
                weights = [min(max(sign * d, -1.0), 1.0) for d in ratios]
            if ends:
                weights[-1] = config.eos_weight
            for reference, weight in zip(row[f"{answer}_reference"], weights, strict=True):
                margin += weight * reference
                plain_margin += reference
            text = count - ends
            pair[answer] = {
                "d": ratios[:text],
                "w": weights[:text],
                "sequence": sequence,
                "margin": margin,
                "plain_margin": plain_margin,
            }
        pairs.append(pair)
    return pairs


CONFIGS = {
    "default": WeightConfig(),
    "mean": WeightConfig(reduce="mean", eos_weight=0.0),
    "threshold": WeightConfig(method="threshold"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_numbers_are_those_of_plain_loops(scored, name):
    config = CONFIGS[name]
    numbers = weight_numbers(weigh_answers(scored, config), config)
    pairs = loops(scored, config)
    assert numbers["pairs_read"] == len(pairs) == len(scored)
    for answer in ANSWERS:
        for key, quantity in (("d", "log_ratio"), ("w", "weight")):
            values = sorted(value for pair in pairs for value in pair[answer][key])
            found = numbers[quantity][answer]
            assert found["count"] == len(values) == sum(numbers[quantity]["histogram"][answer])
            assert found["mean"] == pytest.approx(sum(values) / len(values), abs=1e-5)
            assert found["percentile_50"] == pytest.approx(np.median(values), abs=1e-5)
            assert (found["minimum"], found["maximum"]) == pytest.approx((values[0], values[-1]), abs=1e-5)
        sign = -1 if (name, answer) == ("threshold", "rejected") else 1
        low, high = (-1.0, 1.0) if name == "threshold" else (-0.5, 1.5)
        values = [sign * d for pair in pairs for d in pair[answer]["d"]]
        clamp = numbers["clamp"]
        assert (clamp["low"], clamp["high"]) == (low, high)
        assert clamp[answer]["share_below"] == pytest.approx(sum(d < low for d in values) / len(values), abs=1e-5)
        assert clamp[answer]["share_above"] == pytest.approx(sum(d > high for d in values) / len(values), abs=1e-5)

    means = [[sum(pair[answer]["d"]) / len(pair[answer]["d"]) for answer in ANSWERS] for pair in pairs]
    contrast = numbers["contrast"]
    share = sum(chosen > rejected for chosen, rejected in means) / len(pairs)
    assert contrast["pairs_compared"] == len(pairs) and contrast["pairs_without_contrast"] == 0
    assert contrast["chosen_higher_by_mean"] == pytest.approx(share, abs=1e-6)
    wholes = [pair["chosen"]["sequence"] > pair["rejected"]["sequence"] for pair in pairs]
    assert contrast["chosen_higher_by_sum"] == pytest.approx(sum(wholes) / len(pairs), abs=1e-6)
    assert contrast["standard_error"] == pytest.approx(math.sqrt(share * (1 - share) / len(pairs)), abs=1e-6)
    assert contrast["mean_difference"]["mean"] == pytest.approx(np.mean([a - b for a, b in means]), abs=1e-5)

    margins = [pair["chosen"]["margin"] - pair["rejected"]["margin"] for pair in pairs]
    plain = [pair["chosen"]["plain_margin"] - pair["rejected"]["plain_margin"] for pair in pairs]
    reference = numbers["reference_margin"]
    assert reference["weighted"]["mean"] == pytest.approx(np.mean(margins), rel=1e-5)
    assert reference["weighted"]["deviation"] == pytest.approx(np.std(margins), rel=1e-5)
    assert reference["unweighted"]["deviation"] == pytest.approx(np.std(plain), rel=1e-5)
    for beta, found in reference["share_beyond_if_student_indifferent"].items():
        assert found == pytest.approx(sum(abs(float(beta) * m) > 10 for m in margins) / len(margins), abs=1e-6)


def test_methods_without_bounds_have_no_clamp(scored):
    config = WeightConfig(method="rank_based")
    assert weight_numbers(weigh_answers(scored, config), config)["clamp"] is None


def test_numbers_of_pieces(scored, monkeypatch):
    monkeypatch.setattr("prefkd.reports.weights.numbers.MINIMUM_COUNT", 2)
    answers = weigh_answers(scored, WeightConfig())
    side = answers["chosen"]
    texts = parent_texts(scored, "chosen", side, "student", PieceReader(STUDENT))
    groups: dict[str, list[float]] = {}
    for text, weight, is_text in zip(texts, side.weights, side.is_text, strict=True):
        if is_text:
            groups.setdefault(text, []).append(weight)
    found = piece_numbers(texts, side)
    frequent = {text: np.mean(weights) for text, weights in groups.items() if len(weights) >= 2}
    assert found["pieces_counted"] == len(frequent)
    for piece in (*found["most"], *found["least"]):
        assert piece["count"] == len(groups[piece["text"]])
        assert piece["mean_weight"] == pytest.approx(frequent[piece["text"]], abs=1e-5)
    assert not {piece["text"] for piece in found["most"]} & {piece["text"] for piece in found["least"]}
    ascending = sorted(frequent.values())
    assert [piece["mean_weight"] for piece in found["least"]] == pytest.approx(
        ascending[: len(found["least"])], abs=1e-5
    )
    assert [piece["mean_weight"] for piece in found["most"]] == pytest.approx(
        ascending[::-1][: len(found["most"])], abs=1e-5
    )


# ---------------------------------------------------------------------------------------------------- text of parents


def texts_and_spans(student: ModelSide, teacher: ModelSide, answers) -> list[tuple[str, str]]:
    """What each parent reads like by its tokens, and by its offsets in the text of the answer."""
    scored = with_scores(answers, student=student, teacher=teacher)
    side = exacter_side(student, teacher)
    reader = PieceReader({"student": student, "teacher": teacher}[side])
    columns = weigh_answers(scored, WeightConfig())
    found = []
    for answer in ANSWERS:
        read = parent_texts(scored, answer, columns[answer], side, reader)
        read = [text for text, is_text in zip(read, columns[answer].is_text, strict=True) if is_text]
        spans = []
        for row, pair in zip(scored, answers, strict=True):
            text = pair[ANSWERS.index(answer)][: row[f"{answer}_characters"]]
            offsets = [model.encode_responses([text])[1][0] for model in (student, teacher)]
            spans += [text[start:end] for start, end in find_parents(*offsets, len(text), text)[:, :2]]
        found += zip(read, spans, strict=True)
    return found


# Nothing that a template trims, a normalisation changes or a vocabulary lacks: there the tokens are all there is.
EXACT = [
    ("Yes 👍🏽 👨‍👩‍👧‍👦!", "no 🙃"),
    ("你好，世界。東京タワー", "我不知道"),
    ("مرحبا بالعالم، كيف حالك؟", "لا"),
    ("def f(x):\n\tif x:\n\t\treturn {'a': [1, 2]}  # ok", "f = lambda x: x"),
    ("two  and   three \t tabs\t\t\r\n end", "no\n\n\nyes"),
    ("𝒳y 123456789 3.14", "don't stop , ever !"),
    ("Write </s> or <|im_end|> or <eos>, then <bos>.", "<s>"),
]


@pytest.mark.parametrize(
    "kinds", [("byte_level", "metaspace"), ("metaspace", "byte_level"), ("metaspace", "metaspace")]
)
def test_texts_of_tiny_tokenizers(kinds):
    student, teacher = (ModelSide(make_tokenizer(kind)) for kind in kinds)
    for read, span in texts_and_spans(student, teacher, EXACT):
        assert read == span


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("smollm2-135m-instruct", "gemma-3-270m"),
        ("tokenizer-mistral-v3", "tokenizer-qwen"),
        ("tokenizer-mistral-v3", "tokenizer-mistral-v3"),
        ("gemma-3-270m", "tokenizer-mistral-v3"),
    ],
)
def test_texts_of_real_tokenizers(student, teacher, real_models):
    sides = [ModelSide(AutoTokenizer.from_pretrained(real_models / name), name=name) for name in (student, teacher)]
    for read, span in texts_and_spans(*sides, EXACT):
        assert read == span


def test_a_part_of_a_character_is_shown_as_bytes():
    for side in (STUDENT, TEACHER):
        reader = PieceReader(side)
        ids = side.encode_responses(["a𝒳"])[0][0]
        shown = "".join(reader.token(token) for token in ids)
        assert shown[0] == "a"
        assert re.findall("[0-9A-F]{2}", shown) == ["F0", "9D", "92", "B3"]


def test_text_of_others_is_visible_and_does_nothing():
    assert visible("a\n\tb\r\x00\x85") == "a↵\n⇥\tb⟨U+000D⟩⟨U+0000⟩⟨U+0085⟩"
    assert visible("x\u202ey") == "x⟨U+202E⟩y"
    assert visible("👨\u200d👩\ufe0f") == "👨\u200d👩\ufe0f"
    assert visible("\u200d") == "⟨U+200D⟩"
    assert visible_line(" a\n\tb") == "␣a↵⇥b"
    assert visible_block("a\n\tb") == "a\n\tb"


# ------------------------------------------------------------------------------------------------------- small parts


def test_distributions_and_histograms():
    assert distribution(np.array([]))["mean"] is None
    values = {"chosen": np.linspace(-1, 1, 1001), "rejected": np.array([5.0, -5.0, 0.05])}
    found = histogram(values)
    assert sum(found["chosen"]) == 1001 and sum(found["rejected"]) == 3
    assert found["rejected"][0] == found["rejected"][-1] == 1
    assert np.diff(found["edges"]) == pytest.approx(found["edges"][1] - found["edges"][0])
    constant = histogram({"chosen": np.ones(4), "rejected": np.ones(2)})
    assert (sum(constant["chosen"]), sum(constant["rejected"])) == (4, 2)
    assert [round_width(width) for width in (0, 0.1, 0.11, 0.3, 7)] == pytest.approx([0.1, 0.1, 0.2, 0.5, 10])
    assert text_bars([0, 1, 100, 50]) == " ▁█▄"
    assert text_bars([0, 0]) == "  "


def test_colours():
    scale = ColourScale(1.0, 1.5, logarithmic=True)
    assert scale.levels(np.array([0.0, math.exp(-1.5), 1.0, math.exp(0.375), 99])).tolist() == [-4, -4, 0, 1, 4]
    assert [scale.levels(np.array([scale.weight_at(level)]))[0] for level in range(-LEVELS, LEVELS + 1)] == list(
        range(-LEVELS, LEVELS + 1)
    )
    assert ColourScale(1.0, 0.5, logarithmic=False).levels(np.array([-1, 0.5, 1, 1.25])).tolist() == [-4, -4, 0, 2]


def test_colours_reach_as_far_as_the_weights():
    for contrast, reach in ((0.0, 0.1), (0.1, 0.3), (100.0, 1.5)):
        scored = with_scores([(TEXTS[0], TEXTS[4])], contrast=contrast)
        config = WeightConfig(parameters={"k": 2.0})
        scale = colour_scale(weigh_answers(scored, config), config)
        assert (scale.neutral, scale.logarithmic) == (2.0, True)
        assert scale.reach == pytest.approx(reach, rel=0.3)


def test_pairs_with_the_widest_spread_come_first(scored):
    answers = weigh_answers(scored, WeightConfig())
    pairs = loops(scored, WeightConfig())
    weights = [pair["chosen"]["w"] + pair["rejected"]["w"] for pair in pairs]
    spread = [np.std(both) if len(both) >= FEWEST_PARENTS else 0.0 for both in weights]
    chosen = choose_pairs(answers, np.random.default_rng(0))
    assert [pair.index for pair in chosen[:3]] == np.argsort(spread)[::-1][:3].tolist()
    assert len({pair.index for pair in chosen}) == len(chosen) == 8
    assert chosen == choose_pairs(answers, np.random.default_rng(0))
    assert chosen != choose_pairs(answers, np.random.default_rng(1))


# --------------------------------------------------------------------------------------------------------- the files


def write(folder, scored, config=None):
    return write_weight_report(folder, scored, config or WeightConfig(), student=STUDENT, teacher=TEACHER)


def paths(value, prefix="") -> set[str]:
    """The names in a JSON file, `[]` for the items of a list."""
    if isinstance(value, dict):
        return {path for name, part in value.items() for path in paths(part, f"{prefix}.{name}")} or {prefix}
    if isinstance(value, list):
        return {path for part in value for path in paths(part, f"{prefix}[]")} or {prefix}
    return {prefix}


def distribution_paths(prefix: str) -> set[str]:
    names = "count mean deviation minimum maximum " + " ".join(f"percentile_{p}" for p in (1, 5, 25, 50, 75, 95, 99))
    return {f"{prefix}.{name}" for name in names.split()}


def test_the_json_file_keeps_its_names(scored, tmp_path):
    numbers = write(tmp_path, scored)
    assert json.loads((tmp_path / "weight_report.json").read_text(encoding="utf-8")) == numbers
    expected = {".version", ".pairs", ".pairs_read"}
    expected |= {f".weights.{name}" for name in ("method", "parameters", "reduce", "eos_weight")}
    expected |= {f".clamp.{name}" for name in ("of", "low", "high")}
    expected |= {f".shown_pairs[].{name}" for name in ("file", "row", "why")}
    for name in ("log_ratio", "weight"):
        expected |= {f".{name}.histogram.{part}[]" for part in ("edges", *ANSWERS)}
        for answer in ANSWERS:
            expected |= distribution_paths(f".{name}.{answer}")
    for answer in ANSWERS:
        expected |= {f".clamp.{answer}.share_below", f".clamp.{answer}.share_above", f".end_of_answer.{answer}.answers"}
        expected |= distribution_paths(f".end_of_answer.{answer}.log_ratio")
        expected |= {f".pieces.{answer}.{name}" for name in ("minimum_count", "pieces_counted")}
        for end in ("most", "least"):
            expected |= {
                f".pieces.{answer}.{end}[].{name}" for name in ("text", "count", "mean_weight", "mean_log_ratio")
            }
    expected |= {f".contrast.pairs_{name}" for name in ("without_contrast", "compared")}
    expected |= {f".contrast.{name}" for name in ("chosen_higher_by_mean", "chosen_higher_by_sum", "standard_error")}
    expected |= distribution_paths(".contrast.mean_difference")
    verdict = ("verdict", "share", "low", "high", "pairs", "summary", "advice")
    expected |= {f".contrast.verdict.{name}" for name in verdict}
    for name in ("weighted", "unweighted"):
        expected |= distribution_paths(f".reference_margin.{name}")
    # A name with a dot in it, such as a beta, stands last.
    expected |= {f".reference_margin.share_beyond_if_student_indifferent.{beta}" for beta in (0.1, 0.3, 0.5)}
    assert paths(numbers) == expected


class Page(html.parser.HTMLParser):
    """What a browser would find: the elements, and the text of the parents and prompts."""

    def __init__(self, source: str):
        super().__init__()
        self.elements, self.attributes, self.parents, self.titles = [], [], [], []
        self._in_parent = False
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append(tag)
        self.attributes += [name for name, _ in attrs]
        self._in_parent = tag == "span" and "title" in attributes
        if self._in_parent:
            self.titles.append(attributes["title"])
            self.parents.append("")

    def handle_endtag(self, tag):
        self._in_parent = False

    def handle_data(self, data):
        if self._in_parent:
            self.parents[-1] += data


def test_hostile_text_stays_text(tmp_path):
    write(tmp_path, with_scores([(HOSTILE, HOSTILE[::-1]), *HARD_TEXTS.values()]))
    source = (tmp_path / "weight_report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert not {"script", "b", "img", "link", "iframe"} & set(page.elements)
    assert not {"src", "href"} & set(page.attributes) and not [name for name in page.attributes if name[:2] == "on"]
    assert "http:" not in source and "https:" not in source and "url(" not in source
    assert "default-src 'none'" in source
    assert page.elements.count("span") > 50
    assert HOSTILE.replace("\u202e", "⟨U+202E⟩").replace("\u202c", "⟨U+202C⟩").replace("\x07", "⟨U+0007⟩") in "".join(
        page.parents
    )
    assert "tiny &lt;student&gt;" in source


def test_details_of_a_parent(tmp_path):
    scored = with_scores([("𝒳 Boil the eggs.", "no")], contrast=100.0)
    write(tmp_path, scored, WeightConfig(eos_weight=0.25))
    page = Page((tmp_path / "weight_report.html").read_text(encoding="utf-8"))
    details = page.titles[0].splitlines()
    assert page.parents[0] == "𝒳"
    assert details[0] == "student: <F0> | <9D> | <92> | <B3>"
    assert details[1] == "teacher: <0xF0> | <0x9D> | <0x92> | <0xB3>"
    d = scored[0]["chosen_positive"][0] - scored[0]["chosen_negative"][0]
    limit = -0.5 if d < 0 else 1.5
    assert details[2] == f"log-ratio {d:+.3f}, clamped to {limit:+g}"
    assert details[3] == f"weight {math.exp(limit):.3f}"
    end = next(text for text in page.titles if "eos_weight" in text)
    assert "student: <|end|>" in end and end.endswith("weight 0.250")


def test_pairs_without_contrast(tmp_path):
    numbers = write(tmp_path, with_scores([(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[3])], contrast=0.0))
    contrast = numbers["contrast"]
    assert (contrast["pairs_without_contrast"], contrast["pairs_compared"]) == (2, 0)
    assert contrast["chosen_higher_by_mean"] is contrast["standard_error"] is None
    assert numbers["weight"]["chosen"]["mean"] == numbers["weight"]["rejected"]["mean"] == 1.0
    assert numbers["pieces"]["chosen"]["pieces_counted"] == 0
    assert "have no contrast" in shown(numbers)
    assert contrast["verdict"]["verdict"] == "tells nothing" and contrast["verdict"]["share"] == 0.5


@pytest.mark.parametrize(
    ("sign", "verdict", "advised"),
    [(1, "tells apart", ""), (-1, "the wrong way round", "exchange positive and negative")],
)
def test_the_verdict_on_the_contrast(tmp_path, sign, verdict, advised):
    """By the sum over all parents, EOS included; pairs without contrast, of which there is one, are halves."""
    answers = [(TEXTS[i % 7] * 2, TEXTS[(i + 3) % 7]) for i in range(40)]
    rows = with_scores(answers).to_dict()
    for answer, better in zip(ANSWERS, (sign, -sign), strict=True):
        rows[f"{answer}_positive"] = [
            [value + (0.1 * better if row else 0.0) for value in values]
            for row, values in enumerate(rows[f"{answer}_negative"])
        ]
    numbers = write(tmp_path, Dataset.from_dict(rows))
    found = numbers["contrast"]["verdict"]
    assert found["verdict"] == verdict and advised in found["advice"] and bool(found["advice"]) == bool(advised)
    assert found["share"] == pytest.approx(((39 if sign > 0 else 0) + 0.5) / 40, abs=1e-6) and found["pairs"] == 40
    assert found["low"] < found["share"] < found["high"]
    page = (tmp_path / "weight_report.html").read_text()
    for text in (" ".join(shown(numbers).split()), page):
        assert f"{found['share']:.1%} of 40 pairs" in text and verdict in text
        assert not advised or advised in text


def test_truncated_answers_have_no_end(tmp_path):
    config = DataConfig("pairs.jsonl", max_length=12, max_prompt_length=5)
    numbers = write(tmp_path, with_scores([(TEXTS[0], TEXTS[2]), (TEXTS[4], TEXTS[5])], config=config))
    assert numbers["end_of_answer"]["chosen"]["answers"] == 0
    assert "tokens cut off" in (tmp_path / "weight_report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", ["origin", "binary", "threshold_and_scale", "random", "rank_based"])
def test_every_method_has_a_report(scored, method, tmp_path):
    config = WeightConfig(method=method, parameters={"seed": 0} if method == "random" else {})
    numbers = write(tmp_path, scored, config)
    assert f"weight ({method})" in shown(numbers)
    scale = colour_scale(weigh_answers(scored, config), config)
    assert scale.weight_at(0) == 1.0


def test_large_data_sets_are_judged_by_a_part(scored, tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "MOST_PAIRS", 20)
    numbers = write(tmp_path, scored)
    assert (numbers["pairs"], numbers["pairs_read"]) == (len(scored), 20)
    assert numbers == write(tmp_path, scored)
    assert "20 of them looked at" in shown(numbers)
    assert "drawn at random" in (tmp_path / "weight_report.html").read_text(encoding="utf-8")


def test_long_answers_are_shown_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr("prefkd.reports.weights.pairs.MOST_PARENTS", 3)
    write(tmp_path, with_scores([(TEXTS[0], TEXTS[1])]))
    source = (tmp_path / "weight_report.html").read_text(encoding="utf-8")
    assert len(Page(source).parents) == 6
    assert "more parents are not shown" in source


def test_a_score_that_is_not_finite_is_named(scored):
    rows = scored.select(range(70)).to_dict()
    rows["rejected_positive"][66] = [float("nan"), *rows["rejected_positive"][66][1:]]
    with pytest.raises(PrefkdError, match=r"^pairs\.jsonl:67: a score .* not a finite number"):
        weigh_answers(Dataset.from_dict(rows), WeightConfig())


# ------------------------------------------------------------------------------------------------- where it is shown


def shown(numbers, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(weight_table(numbers))
    return console.file.getvalue()  # pyright: ignore


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_terminal_table_fits(scored, width, tmp_path):
    text = shown(write(tmp_path, scored), width)
    assert max(map(len, text.splitlines())) <= width
    for part in ("log-ratio (sum)", "weight (exp)", "clamped", "█"):
        assert part in text


def test_the_terminal_shows_markup_as_text(scored, tmp_path):
    numbers = write(tmp_path, scored)
    numbers["pieces"]["chosen"]["most"] = [{"text": " [red]\n", "mean_weight": 2.0}]
    assert "2.00  ␣[red]↵" in shown(numbers)


def test_a_browser_shows_the_page(tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium or Chrome")
    write(tmp_path, with_scores([(HOSTILE, HOSTILE[::-1]), *HARD_TEXTS.values()]))
    offline = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", *offline, f"--user-data-dir={tmp_path / 'user'}"]
    address = (tmp_path / "weight_report.html").as_uri()
    ended = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=300)
    if ended.returncode:
        pytest.skip(f"the browser does not start here: {ended.stderr.strip()[-200:]}")
    built, written = Page(ended.stdout), Page((tmp_path / "weight_report.html").read_text(encoding="utf-8"))
    assert built.parents == written.parents
    assert built.titles == written.titles
    assert "script" not in built.elements
