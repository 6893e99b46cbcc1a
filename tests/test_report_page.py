"""The page of `sanity_check.py report`: what it says beside what the sets have, and a real browser.

pytest tests/test_report_page.py
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from cepe_data.inspect.page import rows as page_rows
from cepe_data.retrieval.steps import EMBED, SEARCH, WRITE
from cepe_data.samples.steps import CONCAT, INSIDE
from cepe_data.storage import mds, provenance
from cepe_data.storage.steps import Script
from cepe_data.teacher.steps import ANNOTATE
from cepe_data.tokens.steps import TOKENIZE
from demo import models
from tests import reference
from tests.conftest import VOCAB_SIZE, Run, World, make_encoder, make_texts, write_jsonl
from tests.screenshot import SIZES, open_browser, open_page

# Ends the script that it stands in; is markup; has control characters and a character whose bytes windows cut apart.
PLANTED = (
    "</script><script>window.planted = 1</script><img src=x onerror='window.planted = 1'><!--<script> &lt; \x07\u202e"
)
FILE_NAME = "<img src=x onerror='window.planted = 1'>&amp;.jsonl"
TEACHER = "OUT/train-logits-enc32-dec48-teacher"
SHARED = page_rows.SHARED_TOKENS


@pytest.fixture(scope="module")
def made(run: Run, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a corpus with hostile texts, and its page."""
    folder = tmp_path_factory.mktemp("report")
    texts = [re.sub(r"(?<=\n)", f"{PLANTED} 😀😀 ", text) for text in make_texts(1, 40, 300)]
    write_jsonl(folder / "redpajama/arxiv" / FILE_NAME, texts[:20])
    write_jsonl(folder / "redpajama/wikipedia/wiki.jsonl", texts[20:])
    models.train_tokenizer([*make_texts(2, 40, 300), PLANTED], folder / "tokenizer.model", VOCAB_SIZE)
    (folder / "teacher").symlink_to(world.folder / "teacher")
    make_encoder(folder / "encoder")
    run("get_all_jsonl.py", "redpajama", cwd=folder)
    run("tokenize_jsonl.py", "--tokenizer", "tokenizer.model", cwd=folder)
    run("sample_mds_concat.py", "OUT", 64, 64, 12, 12, 60, 0, "--domains", "arxiv=0.5,wiki=0.5", "--allow_shortage",
        "--test_fraction", 0.3, "--train_fraction", 0.3, "--retrieval_shards", 1, "--retrieval_chunk_size", 32,
        cwd=folder)  # fmt: skip
    run("sample_mds_ab.py", "LONG", 2048, 64, 5000, 0, "--domains", "wiki=1", "--test_fraction", 0.3,
        "--allow_shortage", cwd=folder)  # fmt: skip
    for command in (
        "calculate_logits.py --input_dir OUT/train --model_dir teacher --domain wiki --topk 200 "
        "--num_encoder_tokens 32 --num_decoder_tokens 48 --num_words 790",
        "retrieval.embed_passages --corpus OUT/retrieval --output EMB --model_dir encoder --part_bytes 20000 "
        "--passage_prefix 'a passage: '",
        "retrieval.search --queries OUT/test --embeddings EMB --output HITS --model_dir encoder --topk 4 "
        "--query_tokens 20 --query_prefix 'a query: '",
        "retrieval.write_mds --hits HITS --embeddings EMB --queries OUT/test --output RET/test --rows_per_part 4",
        "sanity_check.py overlap OUT --span_tokens 20",
    ):
        run(*shlex.split(command), cwd=folder)
    (folder / "checks.json").write_text(run("sanity_check.py", "samples", "OUT", "--json", cwd=folder).stdout)
    run("sanity_check.py", "report", ".", "--checks", "checks.json", "--passages", 2, cwd=folder)
    return folder


class Parsed(HTMLParser):
    """The tables, lists and figures of a page, and the rows in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.elements: dict[str, list[str]] = defaultdict(list)  # the text of each, by its name
        self._open: list[tuple[str, list[str]]] = []
        self.scripts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.content = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in {"meta", "img", "input", "br", "link"}:
            self._open.append((tag, []))
        if tag == "tr" and self._open[-3][0] == "table":
            self.tables[self.elements["caption"][-1]].append([])

    def handle_data(self, data: str) -> None:
        for _, texts in self._open:
            texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        opened, texts = self._open.pop()
        assert opened == tag
        text = "".join(texts)
        self.elements[tag].append(text)
        if tag == "script":
            self.scripts.append(text)
        if tag == "caption":
            self.tables[text] = []
        if tag in {"th", "td"}:
            [*self.tables.values()][-1][-1].append(text)

    def numbers(self, title: str) -> dict[str, list[str]]:
        """The cells of a table behind the first, by that."""
        return {name: [cell.replace(",", "") for cell in cells] for name, *cells in self.tables[title][1:]}


def rows_of(parsed: Parsed, name: str) -> dict[int, dict[str, Any]]:
    of_set = {row["row"]: row for row in parsed.content["rows"] if parsed.content["sets"][row["set"]]["name"] == name}
    assert of_set
    return of_set


def text_of(segments: list[list[Any]], *kinds: str) -> str:
    return "".join(segment[1] for segment in segments if segment[0] in kinds)


def comparable(text: str) -> str:
    """Without the space that decoders take away at the beginning, and with one U+FFFD for any run of them."""
    return re.sub("\ufffd+", "\ufffd", text).lstrip(" ")


def test_what_the_page_says_is_what_the_sets_have(made: Path, run: Run) -> None:
    parsed = Parsed(made / "report.html")
    library = SentencePieceProcessor(model_file=str(made / "tokenizer.model"))
    for domain, name in (("arxiv", f"arxiv/{FILE_NAME.removesuffix('.jsonl')}.npy"), ("wiki", "wikipedia/wiki.npy")):
        lengths = [len(document) for document in reference.documents_of(made / "tokenized" / name)]
        assert parsed.numbers("Token files")[domain][:3] == ["1", str(len(lengths)), str(sum(lengths))]
    windows = parsed.numbers("Windows")
    for split in ("test", "train"):
        for domain in ("arxiv", "wiki"):
            taken = mds.num_rows(made / f"OUT/{split}/{domain}")
            assert windows[f"OUT/{split}/{domain}"][2:] == ["6", str(taken), str(128 * taken)]
    [shortage] = [item for item in parsed.elements["li"] if "requested rows were taken" in item]
    assert shortage.startswith(f"LONG/test/wiki: {windows['LONG/test/wiki'][3]} of 5,000 requested")
    lines = (made / "OUT/retrieval/0/wiki.jsonl").read_text().splitlines()
    assert parsed.numbers("Retrieval corpus")["OUT/retrieval/*/wiki"][4] == str(len(lines))

    is_broken = False
    for number, row in rows_of(parsed, "OUT/train/wiki").items():
        for shown, column in zip(row["texts"], ("prev_token_ids", "token_ids"), strict=True):
            ids = mds.Rows(made / "OUT/train/wiki")[number][column].tolist()
            decoded = library.decode([one for one in ids if one not in {1, 2}])
            assert shown["tokens"] == 64 and comparable(text_of(shown["segments"], "")) == comparable(decoded)
            assert text_of(shown["segments"], "border").count("<s>") == ids.count(1)
            is_broken |= "\ufffd" in text_of(shown["segments"], "")
    assert is_broken

    for number, row in rows_of(parsed, f"{TEACHER}/wiki").items():
        ids = mds.Rows(made / "OUT/train/wiki")[number]["token_ids"].tolist()
        stored = mds.Rows(made / TEACHER / "wiki")[number]
        assert len(row["expected"]) == 48 and [one["tokens"] for one in row["texts"]] == [32, 64]
        for position, one in enumerate(row["expected"]):
            index, prob = stored["target_index"][position].tolist(), stored["target_prob"][position]
            assert [p for _, p in one["best"]] == pytest.approx(prob[:5].tolist(), rel=1e-3)
            assert one["rest"] == pytest.approx(float(prob[-1]), rel=1e-3)
            rank = index.index(ids[position + 1]) if ids[position + 1] in index else None
            expected = None if rank is None else pytest.approx(float(prob[rank]), rel=1e-3)
            assert one["rank"] == rank and one["p"] == expected

    for number, row in rows_of(parsed, "RET/test/arxiv").items():
        query, window = row["texts"][0], mds.Rows(made / "OUT/test/arxiv")[number]
        stored = mds.Rows(made / "RET/test/arxiv")[number]
        assert query["tokens"] == 20 and len(row["texts"]) == 3
        whole = [*window["prev_token_ids"].tolist(), *window["token_ids"].tolist()]
        spans = {tuple(whole[start : start + SHARED]) for start in range(len(whole) - SHARED + 1)}
        passages = zip(stored["retrieved_token_ids"].tolist(), stored["retrieval_scores"], strict=True)
        for shown, (ids, score) in zip(row["texts"][1:], passages, strict=False):
            starts = [start for start in range(len(ids) - SHARED + 1) if tuple(ids[start : start + SHARED]) in spans]
            marked = {place for start in starts for place in range(start, start + SHARED)}
            assert f"score {score:.4f}, {len(marked)} of its tokens" in shown["title"]
            assert bool(text_of(shown["segments"], "shared")) == bool(marked)

    long = next(iter(rows_of(parsed, "LONG/test/wiki").values()))["texts"][0]
    [cut] = [segment[1] for segment in long["segments"] if segment[0] == "cut"]
    assert cut == 2048 - 64 - page_rows.FAR_TOKENS - page_rows.EDGE_TOKENS
    found = json.loads((made / "OUT/overlap.json").read_text())["domains"]
    shared = sum(one["train"]["rows"] for one in found.values())
    [sentence] = [caption for caption in parsed.elements["figcaption"] if "Overlap" in caption]
    assert f"{shared} with train" in sentence and "these share a span of 20 tokens" in sentence
    assert len(parsed.elements["svg"]) == 7 and "0 findings" in " ".join(parsed.elements["h3"])
    again = run(*"sanity_check.py report . --checks checks.json --passages 2 --output b.html".split(), cwd=made)
    assert "7 figures" in again.stdout and (made / "b.html").read_bytes() == (made / "report.html").read_bytes()


def commands_of(page: Path) -> dict[str, list[str]]:
    """The arguments of every command on a page, by its script."""
    lines = [shlex.split(line) for line in Parsed(page).elements["pre"][0].strip().splitlines()]
    commands = {words[1]: words[2:] for words in (line[1:] if line[1] == "-m" else line for line in lines)}
    assert len(commands) == len(lines)
    return commands


# Each script, and the files that have its arguments.
RECORDED = {
    TOKENIZE: "tokenized/*/*.meta.json",
    INSIDE: "LONG/manifest.json",
    CONCAT: "OUT/manifest.json",
    ANNOTATE: f"{TEACHER}/*/meta.json",
    EMBED: "EMB/**/part*/meta.json",
    SEARCH: "HITS/*/meta.json",
    WRITE: "RET/test/*/meta.json",
}
OF_OTHERS = {"embeddings", "hits", "tokenizer"}  # the provenance has a fingerprint of what these arguments name


@pytest.mark.parametrize("script", RECORDED, ids=lambda script: script.name)
def test_commands_on_the_page_have_every_argument_that_is_recorded(made: Path, script: Script) -> None:
    module = importlib.import_module(script.name.removesuffix(".py"))
    args = module.parse_args(commands_of(made / "report.html")[script.name])
    paths = sorted(made.glob(RECORDED[script]))
    assert paths
    for path in paths:
        content = json.loads(path.read_text())
        recorded = content.get("made_with") or content["arguments"]
        names = {*script.arguments} & {*recorded} - OF_OTHERS - {"domain"}
        assert names and {name: getattr(args, name) for name in names} == {name: recorded[name] for name in names}
        assert "domain" not in recorded or recorded["domain"] in args.domain.split(",")


def test_commands_on_the_page_give_the_same_bytes(made: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(made / "redpajama", tmp_path / "redpajama")
    for name in ("encoder", "teacher"):
        (tmp_path / name).symlink_to(made / name)
    (tmp_path / "tokenized").mkdir()
    shutil.copytree(made / "tokenized/tokenizer", tmp_path / "tokenized/tokenizer")
    for script, arguments in commands_of(made / "report.html").items():
        assert script in {"get_all_jsonl.py", *(one.name for one in RECORDED)}
        added = ["--allow_shortage"] if "sample" in script else []
        run(script, *(word.replace("ENCODER", "encoder") for word in arguments), *added, cwd=tmp_path)
    for name in ("all_jsonl.txt", "all_jsonl.json"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()
    for name in ("tokenized", "LONG", "OUT/test", "OUT/train", "OUT/retrieval", TEACHER, "EMB", "HITS", "RET"):
        assert reference.tree_bytes(tmp_path / name) == reference.tree_bytes(made / name), name


@pytest.mark.parametrize(
    ("flags", "weights"),
    [(("--domain_key", "kind", "--domain_map", "act=law"), "law=0.5,arxiv=0.5"),
     (("--domain_map", "acts=law,arxiv=press"), "law=0.5,press=0.5")],
    ids=["domains of records", "domains of folders"],
)  # fmt: skip
def test_commands_on_the_page_list_own_domains_and_mark_duplicates(
    made: Path, run: Run, tmp_path: Path, flags: tuple[str, ...], weights: str
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for name, kind in (("acts/of 2001", "act"), ("arxiv", "act")):
        texts = make_texts(3, 30, 60)
        (tmp_path / "data" / name).mkdir(parents=True)
        lines = [json.dumps({"text": text, "kind": kind}) + "\n" for text in [*texts, *texts[:5]]]
        (tmp_path / "data" / name / "a.jsonl").write_text("".join(lines))
    for folder in (one, other):
        folder.mkdir()
        (folder / "tokenizer.model").symlink_to(made / "tokenizer.model")
    run("get_all_jsonl.py", tmp_path / "data", *flags, cwd=one)
    run("tokenize_jsonl.py", "--tokenizer", "tokenizer.model", cwd=one)
    run("sanity_check.py", "duplicates", cwd=one)
    run("sample_mds_ab.py", "OUT", 16, 8, 10, 10, "--domains", weights, "--drop_duplicates", "--allow_shortage",
        "--test_fraction", 0.3, cwd=one)  # fmt: skip
    run("sanity_check.py", "report", "OUT", cwd=one)
    shutil.copytree(one / "tokenized/tokenizer", other / "tokenized/tokenizer")
    for script, arguments in commands_of(one / "report.html").items():
        run(script, *arguments, *(["--allow_shortage"] if "sample" in script else []), cwd=other)
    for name in ("all_jsonl.txt", "all_jsonl.json"):
        assert (other / name).read_bytes() == (one / name).read_bytes()
    for name in ("tokenized", "OUT"):
        assert reference.tree_bytes(other / name) == reference.tree_bytes(one / name)


def test_what_is_damaged_is_named_and_the_rest_is_shown(made: Path, run: Run, tmp_path: Path) -> None:
    for name in ("OUT", "RET", "tokenized"):
        shutil.copytree(made / name, tmp_path / name)
    for name in ("all_jsonl.txt", "all_jsonl.json"):
        shutil.copy(made / name, tmp_path)
    (tmp_path / "OUT/test/wiki/meta.json").write_text("{}")
    shard = tmp_path / "OUT/train/arxiv/shard.00000.mds"
    shard.write_bytes(b"\xff" * 8 + shard.read_bytes()[8:])
    (tmp_path / "tokenized/wikipedia/wiki.npy").unlink()
    (tmp_path / "OUT/overlap.json").write_text(json.dumps(provenance.signed({"compared_with": {}})))
    done = run("sanity_check.py", "report", "OUT", "RET", cwd=tmp_path, status=1)
    parsed = Parsed(tmp_path / "report.html")
    for name in ("OUT/test/wiki", "OUT/train/arxiv", "tokenized/wikipedia/wiki.npy", "OUT/overlap.json"):
        assert f"FOUND  {name}" in done.stdout and sum(item.startswith(name) for item in parsed.elements["li"]) == 1
    for name in ("OUT/test/arxiv", "RET/test/wiki", f"{TEACHER}/wiki"):
        assert rows_of(parsed, name)
    nothing = run("sanity_check.py", "report", "tokenized", cwd=tmp_path, status=2)
    assert "no set of this pipeline is in tokenized" in nothing.stderr


def test_in_a_browser_it_is_read_by_filter_search_keyboard_and_pointer(made: Path, tmp_path: Path) -> None:
    content = Parsed(made / "report.html").content
    rows, names = content["rows"], [one["name"] for one in content["sets"]]
    with open_browser() as browser:
        for width in SIZES:
            events: list[str] = []
            page = open_page(browser, made / "report.html", width, events)
            count, article, tooltip = (page.locator(name) for name in ("#count", "#row", "#expected"))
            assert count.inner_text() == f"{len(rows)} of {len(rows)} rows"
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.screenshot(path=tmp_path / f"{width}.png", full_page=True)

            page.locator("#group").select_option("train")
            page.locator("#domain").select_option("arxiv")
            chosen = [row for row in rows if names[row["set"]] == "OUT/train/arxiv"]
            assert 2 < len(chosen) < len(rows) and count.inner_text().startswith(f"{len(chosen)} of")
            page.locator("h2", has_text="Rows").click()
            places = []
            for key in ("j", "j", "k", "j", "j"):
                page.keyboard.press(key)
                places.append(article.locator("h3").inner_text())
            assert places == [f"OUT/train/arxiv row {chosen[place]['row']}" for place in (1, 2, 1, 2, 3)]

            # What is planted is text, of documents and of the name of their file; and it is all there.
            page.keyboard.press("/")
            page.keyboard.type("window.PLANTED = 1</script>")
            shown = [(row, "".join(text_of(one["segments"], "") for one in row["texts"])) for row in chosen]
            with_it = [row for row, text in shown if PLANTED in text]
            assert with_it and int(count.inner_text().split()[0]) >= len(with_it)
            assert "<img src=x onerror='window.planted = 1'>&amp;.jsonl" in article.locator(".source").inner_text()
            visible = " ".join(article.locator("pre").all_inner_texts())
            assert "window.planted = 1</script><img src=x" in visible and "U+0007U+202E" in visible and "↵" in visible
            assert article.locator("mark.found").first.inner_text() == "window.planted = 1</script>"
            assert page.evaluate("window.planted === undefined && document.images.length === 0")
            assert page.evaluate("document.scripts.length") == 2
            page.keyboard.press("Escape")
            assert count.inner_text().startswith(f"{len(chosen)} of")

            page.locator("#domain").select_option("")
            page.locator("#group").select_option("teacher")
            row = next(row for row in rows if row.get("expected"))
            place = next(place for place, one in enumerate(row["expected"]) if one["rank"] is not None)
            page.locator(".token").nth(place).scroll_into_view_if_needed()
            page.locator("h2", has_text="Rows").evaluate("() => new Promise(requestAnimationFrame)")
            page.locator(".token").nth(place).hover()
            one = row["expected"][place]
            [(rank, percent)] = re.findall(r"rank (\d+), (\S+) %", tooltip.inner_text())
            assert int(rank) == one["rank"] + 1 and float(percent) == pytest.approx(100 * one["p"], rel=0.01)
            page.keyboard.press("ArrowRight")
            assert page.locator(".token.looked-at").get_attribute("data-place") == str(place + 1)

            page.locator("#group").select_option("retrieved")
            assert article.locator("pre").count() == 3
            passages = [row for row in rows if names[row["set"]].startswith("RET")]
            marked = [text_of(one["segments"], "shared") for one in passages[0]["texts"]]
            assert article.locator("mark.shared").count() >= sum(map(bool, marked))
            [request, *others] = events
            assert request == f"request: {(made / 'report.html').as_uri()}" and not others
            page.close()
