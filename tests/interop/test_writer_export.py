"""An exported writer in transformers: it is read from its folder alone and writes the golden suggestions."""

import json

import jax
import pytest

from crops_jax.artifacts.folders import write_folder
from crops_jax.models import bart
from crops_jax.models.config import BartConfig
from crops_jax.parallel.sharding import RULES
from crops_jax.suggestions.arms import WriterConfig
from crops_jax.suggestions.config import BeamConfig
from crops_jax.suggestions.export import export_writer
from crops_jax.suggestions.reading import WriterText
from crops_jax.suggestions.suggester import Asked
from crops_jax.suggestions.writer import Writer
from crops_jax.text.tokenizer import TextConfig, Tokenizer, train_tokenizer

pytestmark = pytest.mark.interop
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

QUERIES = ["lamp", "lava rock", "desk lamp", "灯", "led strip"]
MODEL = BartConfig(
    vocab_size=270, width=16, encoder_layers=2, decoder_layers=1, encoder_heads=2, decoder_heads=4, encoder_ffn=24,
    decoder_ffn=32, max_positions=40, init_std=0.3,
)  # fmt: skip


@pytest.fixture(scope="module", params=[True, False], ids=["known", "free"])
def exported(request, tmp_path_factory):
    """(the exported folder, whether it writes known queries alone)."""
    work = tmp_path_factory.mktemp("writer")
    place = train_tokenizer(QUERIES, 270, work / "tokenizer.json")
    tokenizer = Tokenizer(TextConfig(tokenizer=str(place), append_eos=True, max_query_tokens=16, max_doc_tokens=16))
    config = WriterConfig(model=MODEL, max_source_tokens=24, max_query_tokens=14,
                          beam=BeamConfig(beams=5, suggestions=4, unfinished=not request.param))  # fmt: skip
    asked = Asked(["", "la", "灯", "led s"], [None] * 4, [[], ["desk lamp"], [], ["lamp"]])
    model = bart.init(MODEL, jax.random.key(1), RULES)
    with write_folder(work / "export", kind="export") as out:
        related = {"la": ["lamp"]}
        writer = Writer(model, WriterText(tokenizer, config), lambda prefixes: [related.get(p, []) for p in prefixes],
                        QUERIES if request.param else None)  # fmt: skip
        export_writer(writer, asked, out)
    return work / "export/writer", request.param


def test_transformers_writes_the_golden_suggestions(exported):
    folder, known = exported
    model, told = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    golden = json.loads((folder / "golden.json").read_text())
    assert golden["only_known"] == known
    end = model.generation_config.eos_token_id
    rows = []
    if known:
        queries = json.loads((folder / "queries.json").read_text())
        rows = [[*tokenizer(query)["input_ids"], end] for query in queries]

    def allowed(batch, written):
        text = written[1:].tolist()
        return sorted({row[len(text)] for row in rows if row[: len(text)] == text and len(row) > len(text)}) or [end]

    for request in golden["requests"]:
        with torch.no_grad():
            found = model.eval().generate(
                torch.tensor([request["source"]]), output_scores=True, return_dict_in_generate=True,
                prefix_allowed_tokens_fn=allowed if known else None,
            )  # fmt: skip
        texts = tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
        assert texts[: len(request["suggestions"])] == request["suggestions"]
        scores = found.sequences_scores.tolist()[: len(request["scores"])]
        assert scores == pytest.approx(request["scores"], abs=1e-4)


def test_a_source_is_read_as_golden_json_says(exported):
    """From the tokens of its pieces alone, as a server would make it."""
    folder, _ = exported
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    golden = json.loads((folder / "golden.json").read_text())
    end = tokenizer.eos_token_id
    assert golden["requests"]
    for request in golden["requests"]:
        row = []
        for piece in (request["prefix"], *request["related"], "", *request["recent"]):
            tokens = tokenizer(piece)["input_ids"] if piece else []
            if row and len(row) + len(tokens) + 1 > 24:
                break
            row += [*tokens, end]
        assert row == request["source"]
