"""Reports hold what was measured, stand alone, and survive odd text."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from spikeexport.calibration.records.model_id import CalibrationInfo, ModelId
from spikeexport.calibration.records.profile import LayerActivations, ModuleSpikes, Profile, SpikeToken
from spikeexport.compare.divergence import WindowDivergence
from spikeexport.compare.generations import Generation
from spikeexport.compare.layers import LayerError
from spikeexport.compare.result import CompareResult, NoiseFloor, WorstWindow
from spikeexport.compare.signal import SignalError
from spikeexport.compare.site_spikes import SiteSpikes, SpikeText
from spikeexport.report.compare_markdown import table, write_compare_markdown
from spikeexport.report.compare_report import Extras, write_compare_report
from spikeexport.report.plots import Series, series_plot
from spikeexport.report.profile_report import figure, write_profile_report
from spikeexport.report.verdict import judge

ODD = "<script>alert('&')</script>\n"


class Outline(HTMLParser):
    """Collects the text and fails on tags that are not closed."""

    VOID = frozenset({"meta", "br", "use", "path"})

    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read_page(path):
    page = path.read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!#)', page), "the page must not load anything"
    assert not re.search(r"url\((?!#)", page)
    assert "prefers-color-scheme: dark" in page
    return page, " ".join(outline.text.split())


@pytest.fixture
def profile():
    modules = []
    for layer in range(4):
        for site, readers in (("mlp.down_proj", ["down_proj"]), ("self_attn.q_proj", ["q_proj", "k_proj", "v_proj"])):
            ratio = 2148.0 if (layer, site) == (1, "mlp.down_proj") else 5.0 + layer
            name = f"model.layers.{layer}.{site}"
            modules += [
                ModuleSpikes(
                    name=name.rsplit(".", 1)[0] + "." + reader, site=name, max=2 * ratio, median=2.0, ratio=ratio
                )
                for reader in readers
            ]
    return Profile(
        model=ModelId(name="tiny & odd", model_type="llama", layers=4, fingerprint="0" * 16),
        calibration=CalibrationInfo(sources=("self",), samples=3, seqlen=64, seed=0, sha256="0" * 64),
        modules=tuple(sorted(modules, key=lambda spikes: -spikes.ratio)),
        spike_tokens=(
            SpikeToken(id=1, text=ODD, module="model.layers.1.mlp.down_proj", value=4296.0, position=0, count=3),
        ),
        hidden_states=tuple(LayerActivations(layer=i, max=1500.0, median=0.5, massive=i) for i in range(4)),
        seconds=1.0,
    )


def test_profile_report(profile, tmp_path):
    write_profile_report(profile, tmp_path / "p.html")
    page, text = read_page(tmp_path / "p.html")
    assert page.count("<svg") == 3
    for words in (
        "tiny & odd",
        "Input of q_proj, k_proj, v_proj",
        "Input of down_proj",
        "2 148",
        "1 of 8",
        "alert",
    ):
        assert words in text, words
    assert text.count("model.layers.1.mlp.down_proj") == 3


def test_profile_without_spikes_says_so(profile, tmp_path):
    write_profile_report(profile.model_copy(update={"spike_tokens": ()}), tmp_path / "p.html")
    assert "None: no token" in read_page(tmp_path / "p.html")[1]


@pytest.fixture
def comparison():
    random = np.random.default_rng(0)
    windows = tuple(
        WindowDivergence(*(np.full(80, value) for value in (3.0, 3.05)), random.random(80), *np.ones((5, 80)))
        for _ in range(4)
    )
    linears = [LayerError(f"model.layers.{i}.mlp.down_proj", "linear", 20.0 - i, 0.99, i != 2) for i in range(4)]
    layers = (*linears, LayerError("model.layers.3", "block", 15.0, 0.98, None))
    return CompareResult(
        candidate="x.onnx",
        reference="tiny",
        text="/home/someone/wiki.txt",
        seqlen=80,
        windows=windows,
        logits=SignalError(100.0, 1.0, 79.0, 80, 0.5),
        layers=layers,
        worst_windows=(WorstWindow(2, 0.5, 20.0, 21.0, (ODD, " the"), (1.5, 0.01)),),
        behind_prefix=None,
        facts={
            "linears": 28,
            "quantized": 27,
            "excluded": ["model.layers.2.mlp.down_proj"],
            "excluded_why": {"model.layers.2.mlp.down_proj": "w8a16: ratio 2148 >= 20"},
            "prefix": {"ids": [5, 1], "text": "  the<s>"},
            "decisions": {"smooth": "a = 0.8"},
            "trade_off": [
                {"sites": n, "linears": n, "weight_share": n / 100, "kl": 0.1 / (n + 1), "perplexity": 9.0}
                for n in range(3)
            ],
            "size_bytes": 12_300_000,
        },
        seconds=2.0,
        failures=("kl is 0.5, above 0.1",),
    )


def test_compare_report(comparison, tmp_path):
    write_compare_report(comparison, tmp_path / "c.html")
    page, text = read_page(tmp_path / "c.html")
    assert page.count("<svg") == 3
    expected = ("1.051", "5.1 % higher", "wiki.txt", "kl is 0.5, above 0.1", "ratio 2148 >= 20", "a = 0.8", "27 of 28")
    for words in (*expected, "alert", "12.3 MB"):
        assert words in text, words
    assert "/home/someone" not in page
    assert "What the backends really compiled" not in text


@pytest.fixture
def whole(comparison):
    """The comparison with everything that may be measured."""
    random = np.random.default_rng(1)
    moved = tuple(WindowDivergence(*random.random((8, 80))) for _ in range(2))
    alone = tuple(replace(layer, alone_snr_db=30.0) for layer in comparison.layers if layer.kind == "linear")
    return replace(
        comparison,
        layers=(*alone[:2], replace(alone[2], alone_snr_db=8.0), alone[3], comparison.layers[-1]),
        noise=NoiseFloor(moved, SignalError(100.0, 1.0, 79.0, 80, 0.5), 1e-6),
        generations=(
            Generation("Once upon", " a time", 2, " there", " we | never"),
            Generation("It was", " late", 64, "", ""),
        ),
        spikes=tuple(
            SiteSpikes(f"model.layers.{i}.mlp.{kind}", (1000.0 + i, 1.0), (9.0, 1.0))
            for i in range(3)
            for kind in ("gate_proj", "down_proj")
        ),
        spike_text=SpikeText("model.layers.2.mlp.down_proj", ("<s>", ODD, " the"), (1002.0, 1.0, 1.1)),
        facts={**comparison.facts, "plan_sha256": "ab" * 32, "opset": 23, "nodes": 99, "versions": {"onnx": "1.2"}},
    )


def test_everything_that_was_measured_is_shown(whole, tmp_path):
    write_compare_report(whole, tmp_path / "c.html")
    page, text = read_page(tmp_path / "c.html")
    # Two kinds of input before and after, errors added up and alone, KL by position, what exclusions buy.
    assert page.count("<svg") == 2 + 2 + 1 + 1
    for words in (
        "largest max/median 1002 → 9",
        "the darkest lies 911 medians high",
        "The error starts at model.layers.2.mlp.down_proj.",
        "They part after 2 tokens.",
        "They do not part within 64 tokens.",
        "we | never",
        "Noise floor",
        "SHA-256 abababababababab…",
        "opset 23, 99 nodes",
    ):
        assert words in text, words


def test_markdown_says_the_same(whole, tmp_path):
    write_compare_markdown(whole, tmp_path / "c.md")
    text = (tmp_path / "c.md").read_text(encoding="utf-8")
    for words in (
        "# x.onnx against tiny",
        "**Check failed:** kl is 0.5, above 0.1",
        "5.1 % higher",
        "of wiki.txt",
        "The error starts at `model.layers.2.mlp.down_proj`.",
        "| `model.layers.2.mlp.down_proj` | w8a16 | ratio 2148 >= 20 |",
        "the candidate: ` we | never`",
        "Noise floor",
    ):
        assert words in text, words
    assert "/home/someone" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    columns = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert columns <= {3, 4, 5}


def test_markdown_cells_survive_odd_text(comparison, tmp_path):
    assert table(("a", "b"), [("x|y", "one\ntwo")]).splitlines()[2] == "| x\\|y | one two |"
    write_compare_markdown(
        replace(comparison, worst_windows=(WorstWindow(0, 1.0, 2.0, 3.0, ("a`b", "``c"), (1.0, 1.0)),)),
        tmp_path / "c.md",
    )
    assert "``` a`b``c ```" in (tmp_path / "c.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["built.html", "beside.html"])
def test_engine_truth_is_shown(comparison, tmp_path, name):
    engine = {
        "backend": "tensorrt-rtx",
        "linears": 28,
        "planned": 27,
        "int8": 26,
        "int8_coverage": 26 / 27,
        "fallbacks": [{"name": "model.layers.0.mlp.up_proj", "why": "no kernel"}],
        "excluded": [],
        "attention_fused": 4,
        "attention_layers": 4,
        "leftovers": {"cast": {"count": 3, "bytes_moved": None}},
        "target": {"compute_capabilities": ["8.9"], "max_batch": 4},
        "versions": {"tensorrt-rtx": "1.7"},
        "prefix": None,
        "size_bytes": 1_000_000,
    }
    built = CompareResult(**{**comparison.__dict__, "facts": engine})
    write_compare_report(built, tmp_path / "built.html")
    write_compare_report(comparison, tmp_path / "beside.html", Extras(engines=(engine,)))
    text = read_page(tmp_path / name)[1]
    for words in ("26 of 27 planned (96.3%)", "up_proj: no kernel", "4 of 4 layers", "3 x cast"):
        assert words in text, words


def test_the_originals_profile_and_a_table_may_be_shown_too(comparison, profile, tmp_path):
    extras = Extras(profile=profile, table=(("subject", "perplexity"), ("ours", "24.1")))
    write_compare_report(comparison, tmp_path / "c.html", extras)
    page, text = read_page(tmp_path / "c.html")
    assert page.count("<svg") == 3 + 3
    assert "Input of down_proj" in text
    assert ">ours</td>" in page
    assert ">24.1</td>" in page


def test_plots_take_the_pages_colours():
    svg = series_plot([Series("one", [0, 1], [1.0, 2.0], "#040404")], x_label="x", y_label="y")
    assert "var(--high)" in svg
    assert "var(--muted)" in svg
    assert "#0404" not in svg
    assert "font-family" not in svg.lower()


@pytest.mark.parametrize(
    ("ratio", "interval", "level", "words"),
    [
        (1.001, (0.99, 1.01), "good", "includes no difference"),
        (0.98, (0.97, 0.99), "good", "2.0 % lower"),
        (1.05, (1.04, 1.06), "fair", "5.0 % higher"),
        (1.5, (1.4, 1.6), "bad", "clear loss"),
    ],
)
def test_verdicts(ratio, interval, level, words):
    verdict = judge(ratio, interval, 0.01)
    assert verdict.level == level
    assert words in verdict.sentence


FIGURES = [
    (0, "0"),
    (0.01234, "0.0123"),
    (1.2345, "1.23"),
    (123.4, "123"),
    (24926.3, "24\u202f926"),
    (3e9, "3e+09"),
]


@pytest.mark.parametrize(("value", "text"), FIGURES)
def test_figures_have_three_digits(value, text):
    assert figure(value) == text
