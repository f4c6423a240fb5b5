"""Real queries, documents and grades, simulated users: MiniLM towers fine-tuned on a collection in the beir layout.

First turn its files into a collection (data/beir/README.md):
    python data/beir/recipe.py PATH/scifact --out runs/beir/collection
"""

from dataclasses import replace

from homedepot_minilm import EXPERIMENT as HOMEDEPOT

from crops_jax.batches.config import InputConfig, PackingConfig
from crops_jax.mining.config import HeldOutConfig, ThresholdConfig
from crops_jax.simulate.judged import JudgedWorldConfig
from crops_jax.simulate.platform import PlatformConfig
from crops_jax.simulate.sessions import SessionsConfig
from crops_jax.simulate.simulator import SimulateConfig
from crops_jax.simulate.users import UsersConfig

# The least score that counts as relevant: 1 of 0/1 and of 0..3. Where 1 means "on the topic, no answer", take 2.
RELEVANT = 1.0

EXPERIMENT = replace(
    HOMEDEPOT,
    workdir="runs/beir",
    world=JudgedWorldConfig(collection="runs/beir/collection", relevant_grade=RELEVANT),
    # Some collections have no titles: production reads the first words of title and text.
    simulate=SimulateConfig(
        users=UsersConfig(n_users=6000), sessions=SessionsConfig(train_sessions=15_000, test_sessions=20_000),
        platform=PlatformConfig(lexical_fields=("ocr_cover", "photo_caption"), lexical_words=12),
    ),
    # Not measured for the collection at hand (python -m crops_jax.calibrate, where it has judgments of score 0 too).
    mining=replace(
        HOMEDEPOT.mining, threshold=ThresholdConfig(alpha=0.4),
        # The simulated model answers with whole documents.
        world_knowledge=replace(HOMEDEPOT.mining.world_knowledge, max_field_chars=100_000),
    ),
    held_out=HeldOutConfig(min_grade=RELEVANT),
    text=replace(HOMEDEPOT.text, max_query_tokens=32, max_doc_tokens=64),
    # Documents that fill their slots, two a row: 64 in 10 to 12 groups.
    input=InputConfig(
        batch_queries=16, docs_per_query=7, shards=2,
        packing=PackingConfig(doc_row_tokens=128, doc_rows=32, query_row_tokens=64, query_rows=6),
    ),
)  # fmt: skip
