"""What can be known to be wrong with a study before it is run: from the file alone, and from a model's shape."""

from transformers import PreTrainedModel

from core.errors import UserError
from pipeline import autointerp, hardware
from pipeline.config import ModelConfig, Study, layers_of
from pipeline.models.hooks import check_hooks
from pipeline.models.load import ModelInfo, at_revision, check_context, check_layers, check_revision
from pipeline.models.shapes import is_known, shape_of
from pipeline.saes.architectures import ARCHITECTURES, check_tokens
from pipeline.text.corpus import Corpus
from pipeline.text.documents import find_source
from pipeline.variants.make import check_variant
from pipeline.variants.table import find_variant


def check_names(study: Study) -> None:
    """Raise UserError for variants and a source of text that there are not."""
    for revision in _revisions(study):
        for config in study.models:
            at_revision(config, revision)
    find_source(study.corpus)


def check_tools(study: Study) -> None:
    """Raise UserError for scorers that lack what they need here, for revisions that the Hub does not have, for what
    later models cannot have (the first is loaded at once), and as `settled` does.
    """
    hardware.settled(study.precision)
    autointerp.check_scorers(study.autointerp)
    for revision in _revisions(study):
        for config in study.models:
            check_revision(config, revision)
    for config in study.models[1:]:
        if is_known(config):
            shape = shape_of(config)
            check_model(study, config, shape.info, shape.model)


def _revisions(study: Study) -> list[str]:
    """Published checkpoints that variants are."""
    return [row.revision for row in map(find_variant, study.variants) if row.revision]


def check_corpus(study: Study, corpus: Corpus) -> None:
    """Raise UserError where the SAEs have too few tokens to train on."""
    sequences = len(corpus.training) or int((~corpus.held_out).sum())
    for sae in study.saes:
        check_tokens(sae, sequences * (corpus.tokens.shape[1] - study.corpus.drop_positions))


def check_model(study: Study, config: ModelConfig, info: ModelInfo, model: PreTrainedModel) -> tuple[int, ...]:
    """The layers that the study asks for; `model` may be without memory.

    Raises UserError for layers, hook points, variants, lengths and SAEs that this model cannot have.
    """
    layers = layers_of(study, config, info.n_layers)
    check_layers(info, layers)
    check_hooks(model, layers, study.hooks)
    check_context(model, study.corpus.context_length)
    for name in study.variants:
        check_variant(name, model)
    for sae in study.saes:
        ARCHITECTURES[sae.architecture].check(sae, info.d_model)
    if study.collect.logit_tokens > info.vocab_size:
        raise UserError(
            f"collect.logit_tokens is {study.collect.logit_tokens}, but {info.model} has only {info.vocab_size} tokens:"
            " take fewer."
        )
    return layers
