"""theta, the semantic discriminator of Eqs. 1 and 2: a bi-encoder, by default the 6-layer MiniLM, or a cross-encoder.

The paper's discriminator is a 6-layer Transformer that scores query and document; its weights are not public. By
default all-MiniLM-L6-v2 takes its place. A bi-encoder encodes each unique text once, and a pair costs a dot product. A
cross-encoder reads every pair. What either has computed is kept on disk, where it is given a place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from crops_jax import __version__
from crops_jax.artifacts.manifest import digest_of_files
from crops_jax.errors import InputError
from crops_jax.hub import INSTALL_MINILM
from crops_jax.models import cross_encoder, hf_import, sentence_encoder
from crops_jax.models.config import THETA_FILES, WORD_OVERLAP, ThetaConfig
from crops_jax.models.cross_encoder import CrossEncoder
from crops_jax.models.sentence_encoder import SentenceEncoder
from crops_jax.models.sentence_folder import read_json
from crops_jax.models.vector_cache import Kept, VectorCache
from crops_jax.models.word_overlap import WordOverlap

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
_PAIRS_AT_ONCE = 1 << 16
_BETWEEN = "\0"  # of the parts of what a value is kept under
Pairs = tuple[Sequence[str], Sequence[str]]


@dataclass
class BiEncoder:
    """The discriminator as mining sees it (`mining.relevance.Relevance`): cosines of vectors."""

    query_encoder: SentenceEncoder
    document_encoder: SentenceEncoder
    tokens_per_batch: int
    cache: VectorCache | None = None  # None: nothing is kept from call to call

    def scores(self, queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """float32[n] in [0, 1]: cosine of query and document of each pair, negative ones as 0."""
        return np.clip(self._cosines(queries, texts, self.document_encoder, "theta"), 0, 1)

    def query_similarity(self, a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """float32[n] in [-1, 1]: cosine of the two queries of each pair."""
        return np.clip(self._cosines(a, b, self.query_encoder, "query similarity"), -1, 1)

    def prepare(self, pairs: Iterable[Pairs], documents: bool, share: tuple[int, int]) -> None:
        """Encodes the texts of these pairs into the cache, one of n processes the i-th part of them.

        Args:
          documents: whether the second text of a pair is a document.
          share: (i, n).
        """
        cache = self._cache()
        encoders = self.query_encoder, self.document_encoder if documents else self.query_encoder
        with ExitStack() as stack:
            takers = [stack.enter_context(self._kept(e, cache).preparing(share, "encode texts")) for e in encoders]
            for texts in pairs:
                for take, encoder, some in zip(takers, encoders, texts, strict=True):
                    take(_prompted(encoder, _distinct(some)[0]))

    def refresh(self) -> None:
        """Sees what other processes have put into the cache."""
        self._cache().look()

    def _cosines(self, a: Sequence[str], b: Sequence[str], of_b: SentenceEncoder, what: str) -> np.ndarray:
        if len(a) != len(b):
            raise ValueError(f"{what}: {len(a)} and {len(b)} texts do not make pairs")
        (first, left), (second, right) = _distinct(a), _distinct(b)
        cache = self._cache()
        first, second = _prompted(self.query_encoder, first), _prompted(of_b, second)
        kept = self._kept(self.query_encoder, cache)
        if of_b is self.query_encoder:  # a text of both sides is one text, and their batches are one
            both, place = _distinct([*first, *second])
            vectors = kept.of(both, f"{what}: encode texts")
            left, right = place[left], place[right + len(first)]
        else:
            vectors = [kept.of(first, f"{what}: encode texts")]
            vectors += [self._kept(of_b, cache).of(second, f"{what}: encode texts")]
            vectors, right = np.concatenate(vectors), right + len(first)
        out = np.empty(len(a), np.float32)
        for start in range(0, len(a), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            out[part] = np.einsum("nd,nd->n", vectors[left[part]], vectors[right[part]])
        return out

    def _cache(self) -> VectorCache:
        return VectorCache(None) if self.cache is None else self.cache

    def _kept(self, encoder: SentenceEncoder, cache: VectorCache) -> Kept:
        def compute(prompted: list[str], what: str) -> np.ndarray:
            return encoder.encode([text.partition(_BETWEEN)[2] for text in prompted], self.tokens_per_batch, what)

        return Kept(compute, cache)


@dataclass
class PairEncoder:
    """The discriminator as mining sees it: the sigmoid of a cross-encoder's logit, for queries and documents alike."""

    encoder: CrossEncoder
    query_prompt: str
    document_prompt: str
    tokens_per_batch: int
    cache: VectorCache | None = None

    def scores(self, queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """float32[n] in [0, 1]: what the network says of each pair of query and document."""
        return self._scores(self._prompted(queries, texts, True), "theta: score pairs")

    def query_similarity(self, a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """float32[n] in [0, 1]: the same of two queries, the second in the place of the document."""
        return self._scores(self._prompted(a, b, False), "query similarity: score pairs")

    def prepare(self, pairs: Iterable[Pairs], documents: bool, share: tuple[int, int]) -> None:
        """Scores these pairs into the cache (`BiEncoder.prepare`)."""
        with self._kept().preparing(share, "score pairs") as take:
            for first, second in pairs:
                take(_distinct(self._prompted(first, second, documents))[0])

    def refresh(self) -> None:
        """Sees what other processes have put into the cache."""
        if self.cache is not None:
            self.cache.look()

    def _prompted(self, first: Sequence[str], second: Sequence[str], documents: bool) -> list[str]:
        before = self.document_prompt if documents else self.query_prompt
        first = [text.replace(_BETWEEN, " ") for text in first]
        return [f"{self.query_prompt}{a}{_BETWEEN}{before}{b}" for a, b in zip(first, second, strict=True)]

    def _scores(self, pairs: list[str], what: str) -> np.ndarray:
        unique, place = _distinct(pairs)
        return self._kept().of(unique, what)[place, 0] if pairs else np.zeros(0, np.float32)

    def _kept(self) -> Kept:
        def compute(pairs: list[str], what: str) -> np.ndarray:
            first, _, second = zip(*(pair.partition(_BETWEEN) for pair in pairs), strict=True)
            return self.encoder.probabilities(first, second, self.tokens_per_batch, what)

        return Kept(compute, VectorCache(None) if self.cache is None else self.cache)


Theta = BiEncoder | PairEncoder


def load(config: ThetaConfig, cache: Path | None = None) -> Theta | WordOverlap:
    """The discriminator that `config.source` names, with its prompts or those of the config before the texts.

    Args:
      cache: folder of what is kept on disk, for any number of models. None: nothing is.

    Raises:
      InputError: it is nowhere to be found (says where was looked), its files are damaged, or they ask for something
        that is not implemented.
    """
    if config.source == WORD_OVERLAP:
        return WordOverlap()
    folder = find(config.source)
    if _kind(folder) == "cross":
        pairs = cross_encoder.load(folder, config.max_tokens)
        kept = _cache(cache, folder, pairs.max_tokens)
        prompts = config.query_prompt or "", config.document_prompt or ""
        return PairEncoder(pairs, *prompts, config.tokens_per_batch, kept)
    encoder = sentence_encoder.load(folder, config.max_tokens)
    own = encoder.said.query_prompt(), encoder.said.document_prompt()
    given = config.query_prompt, config.document_prompt
    query, document = (its if one is None else one for its, one in zip(own, given, strict=True))
    queries = encoder.with_prompt(query)
    documents = queries if document == query else encoder.with_prompt(document)
    return BiEncoder(queries, documents, config.tokens_per_batch, _cache(cache, folder, encoder.max_tokens))


def _kind(folder: Path) -> Literal["bi", "cross"]:
    """What a folder holds, by the files that say so.

    Raises:
      InputError: neither of the two; says what it is.
    """
    about = read_json(folder / "config_sentence_transformers.json", optional=True).get("model_type")
    named = read_json(folder / "config.json", optional=True).get("architectures") or []
    if about == "CrossEncoder":
        return "cross"
    if (folder / "modules.json").is_file():
        return "bi"  # or another kind that modules.json names: its reader says which
    if any(str(name).endswith("ForSequenceClassification") for name in named):
        return "cross"
    what = f"its config.json names {', '.join(map(str, named))}" if named else "it names no network"
    wanted = "a sentence-transformers folder has a modules.json, a cross-encoder is a BertForSequenceClassification"
    raise InputError(str(folder), f"is neither kind of discriminator: {what}, and there is no modules.json; {wanted}")


def _cache(root: Path | None, folder: Path, limit: int) -> VectorCache | None:
    """The part of a cache that belongs to one model: to its files, and to what else its vectors depend on."""
    if root is None:
        return None
    known = f"{__version__} {jax.default_backend()} {limit} {digest_of_files(folder, THETA_FILES)}"
    return VectorCache(root / hashlib.sha256(known.encode()).hexdigest()[:16])


def find(source: str) -> Path:
    """The folder of the discriminator's files; the published weights are verified by hash where they are used."""
    if source != "auto":
        return hf_import.find_source(source)
    if packaged := hf_import.package_folder():
        return packaged
    try:
        folder = hf_import.find_source(HUB_ID)
    except InputError as error:
        raise InputError(
            "theta",
            [
                "no local folder: theta.source names none",
                f"the package is not installed: {INSTALL_MINILM}",
                f"{HUB_ID} was not had from the hub: {error.problems[-1]}",
            ],
        ) from None
    hf_import.verify_minilm(folder)
    return folder


def _distinct(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """(each text once, int64[n]: where each of `texts` stands among these)."""
    place: dict[str, int] = {}
    rows = [place.setdefault(text, len(place)) for text in texts]
    return list(place), np.array(rows, np.int64)


def _prompted(encoder: SentenceEncoder, texts: Sequence[str]) -> list[str]:
    """What a vector is kept under: the prompt counts."""
    return [f"{encoder.prompt}{_BETWEEN}{text}" for text in texts]
