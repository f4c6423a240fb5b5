"""`python -m crops_jax.encode --config FILE`: encodes the corpus with a trained document tower, part by part.

Reads the items of the logs and the arm's train folder, writes `embeddings` in parts (`retrieval.vectors`). A part is
`encode.part` rows of the table of items: it is read, encoded and written, and no more than that is in memory. Started
as one of several processes (as `train`), it joins the others; each makes its own parts with its own devices. Finished
parts are kept, so that a killed run continues.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from crops_jax import __version__
from crops_jax.artifacts.folders import alone, kept_for, link_file, write_folder
from crops_jax.artifacts.manifest import fingerprint, read_manifest, require_unchanged, verify
from crops_jax.command_line import from_command_line, next_command
from crops_jax.config import Experiment
from crops_jax.errors import InputError, run_command
from crops_jax.logs.tables import write_table
from crops_jax.parallel import processes
from crops_jax.parallel.ahead import ahead
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import make_mesh
from crops_jax.progress import progress
from crops_jax.retrieval.corpus import ID_TABLE, Corpus, CorpusPart, corpus_parts
from crops_jax.retrieval.embedding import as_rows, encode_rows
from crops_jax.retrieval.vectors import IDS, VECTORS
from crops_jax.runs.compiled import keep_compiled
from crops_jax.runs.featurizer import featurizer_of
from crops_jax.runs.frozen_states import frozen_states
from crops_jax.runs.trained import settings, trained_experiment, trained_model
from crops_jax.text.featurizer import Featurizer, encode_documents
from crops_jax.text.hashed_ids import IdRows
from crops_jax.text.tokenizer import TokenRows


def run(experiment: Experiment) -> Path:
    """Encodes every item that has text and returns the embeddings folder; every process of the run calls it.

    Raises:
      InputError: there is no finished training run, the items are damaged, none of them has text, or another command
        encodes them now.
    """
    experiment.require_search()
    keep_compiled(experiment)
    target = experiment.arm_folder("embeddings")
    root = target.with_name(".embeddings.parts")
    with ExitStack() as stack:
        processes.first(lambda: stack.enter_context(alone(root)))
        _encode(experiment, root, target)
    return target


def _encode(experiment: Experiment, root: Path, target: Path) -> None:
    """Part by part into `root`, and the parts as `target`."""
    trained = trained_experiment(experiment)
    train, logs = experiment.arm_folder("train"), experiment.ready("logs")
    processes.first(partial(require_unchanged, logs))
    size = experiment.encode.part
    parts = corpus_parts(logs, size, trained.text.field_order)
    made_from = {"train": fingerprint(train), "logs": fingerprint(logs), "part": size, "code": __version__}
    left = processes.first(partial(_left, root, made_from, len(parts)))
    if left:
        featurizer, mesh = featurizer_of(trained), _mesh(experiment)
        with jax.set_mesh(mesh):
            model = trained_model(trained, mesh)  # which all processes read together
            states = frozen_states(trained, model)
            own = left[jax.process_index() :: jax.process_count()]
            # The next part's texts become tokens while this part's are encoded.
            read = ahead(_read(parts[number], featurizer) for number in own)
            shown = processes.is_first() and len(own) > 1
            for number in progress(own, "encode: parts", unit="part", shown=shown):
                corpus, rows = next(read)
                vectors = None
                if len(corpus):
                    vectors = encode_rows(
                        model, "document", as_rows(rows), experiment.encode, mesh, "encode corpus", states
                    )
                _write(_folder(root, number), corpus, vectors)
    processes.wait_for_all("encode: parts")
    processes.first(partial(_join, root, len(parts), target, settings(trained), {"train": train, "logs": logs}))


def _read(part: CorpusPart, featurizer: Featurizer) -> tuple[Corpus, TokenRows | IdRows]:
    corpus = part.read()
    return corpus, encode_documents(featurizer, corpus.item_ids.tolist(), corpus.keywords, corpus.texts)


def _mesh(experiment: Experiment) -> Mesh:
    """All devices of this process: no process waits for another one's part."""
    if jax.process_count() == 1:
        return make_mesh(experiment.mesh)
    return make_mesh(MeshConfig(tensor=experiment.mesh.tensor), jax.local_devices())


def _left(root: Path, made_from: dict[str, str | int], parts: int) -> list[int]:
    """The parts that no earlier run of this version with this model and corpus, cut in this way, has finished."""
    kept_for(root, made_from)
    left = [number for number in range(parts) if not _is_whole(_folder(root, number))]
    for number in left:  # a damaged one
        shutil.rmtree(_folder(root, number), ignore_errors=True)
    return left


def _is_whole(folder: Path) -> bool:
    try:
        verify(folder, deep=False)  # bytes are checked where the vectors are read
    except InputError:
        return False
    return True


def _folder(root: Path, number: int) -> Path:
    return root / f"part-{number:05d}"


def _write(folder: Path, corpus: Corpus, vectors: np.ndarray | None) -> None:
    """A part; one without any text has no arrays, and counts what it left out."""
    with write_folder(folder, kind="embeddings_part") as out:
        if vectors is not None:
            np.save(out / IDS, corpus.item_ids)
            np.save(out / VECTORS, vectors)
            if (names := corpus.id_table()) is not None:
                write_table(names.schema, names, out / ID_TABLE)
            out.counts["width"] = vectors.shape[1]
        out.counts.update(items=len(corpus), items_without_text=corpus.without_text)


def _join(root: Path, count: int, target: Path, config: dict, inputs: dict[str, Path]) -> None:
    """The parts as one artefact; they are linked, not copied, and go away when it is whole."""
    parts = [_folder(root, number) for number in range(count)]
    counts = [read_manifest(part)["counts"] for part in parts]
    full = [part for part, count in zip(parts, counts, strict=True) if count["items"]]
    if not full:
        raise InputError(f"{inputs['logs']}: items", "no item has text in any of its fields")
    with write_folder(target, kind="embeddings", config=config, inputs=inputs) as out:
        for part in full:
            shutil.copytree(part, out / part.name, copy_function=lambda source, to: link_file(Path(source), Path(to)))
        out.counts.update({key: sum(count[key] for count in counts) for key in ("items", "items_without_text")})
        out.counts.update(width=next(count["width"] for count in counts if count["items"]), parts=len(full))
    shutil.rmtree(root)


def main() -> None:
    """Encodes the corpus for the experiment of the command line."""
    processes.initialize()
    with processes.noticing_lost_peers():
        experiment = processes.together(partial(from_command_line, "encode"))
        folder = run(experiment)
    if processes.is_first():
        print(f"encoded: {folder}\nnext: {next_command('build_index')}")


if __name__ == "__main__":
    run_command(main, processes.leave)
