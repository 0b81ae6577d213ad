"""Small models in ONNX that truly compute, with real tokenizers, in folders as exporters write them."""

import json

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
KINDS = ["PER", "LOC", "ORG"]
NAMES = {
    **dict.fromkeys(["Ada", "Love", "##lace", "José", "张", "三", "丰"], "PER"),
    **dict.fromkeys(["Lis", "##bon", "北", "京"], "LOC"),
    "Initech": "ORG",
}
WORDS = ["so", "and", "or", "left", "for", "met", "went", "to", ".", ",", "我", "在", "见", "到", "了", "，", "。"]


def bert_tokenizer(pieces):
    """WordPiece with BERT's normalizer, whose Chinese characters are words of their own, and its special tokens."""
    vocabulary = {piece: number for number, piece in enumerate([*SPECIAL, *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    return tokenizer


def metaspace_tokenizer(pieces):
    """Unigram as sentencepiece makes it: a word's first piece holds the space before it."""
    tokenizer = Tokenizer(models.Unigram([("<unk>", -20.0), *((piece, -1.0) for piece in pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def byte_tokenizer(corpus):
    """BPE over bytes, as GPT-2 and RoBERTa have it: a Chinese character may be several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    return tokenizer


def _save(folder, nodes, inputs, outputs, weights, config, tokenizer):
    folder.mkdir(parents=True, exist_ok=True)
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "model", inputs, outputs, initializers)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(folder / "model.onnx"))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _inputs(names, shape=("batch", "sequence"), kind=TensorProto.INT64):
    return [helper.make_tensor_value_info(name, kind, list(shape)) for name in names]


def text_classifier(  # noqa: PLR0913  each is a way in which exports differ
    folder, tokenizer, embeddings, *, labels=("BENIGN", "INJECTION"), token_types=True, positions=None,
    shape=("batch", "sequence"), kind=TensorProto.INT64, hidden_first=False, more=(), config=None,
):  # fmt: skip
    """Embeddings (tokens, 2) with types and positions where wanted, mean pooling under the mask, and a linear layer of ones.

    So the logits are the mean of the embeddings of a text. `positions` is the number of those it knows; `more` are inputs that it
    asks for and does not use.
    """
    n = helper.make_node
    nodes = [n("Gather", ["words", "input_ids"], ["embedded"])]
    weights = {
        "words": np.asarray(embeddings, np.float32), "types": np.array([[0.25, 0], [9, 0]], np.float32),
        "head": np.eye(embeddings.shape[1], dtype=np.float32), "bias": np.zeros(embeddings.shape[1], np.float32),
        "last": np.array([2]), "second": np.array([1]), "zero": np.array(0), "one": np.array(1), "at_one": np.array(1),
    }  # fmt: skip
    last = "embedded"
    if token_types:
        nodes += [n("Gather", ["types", "token_type_ids"], ["typed"]), n("Add", [last, "typed"], ["with_types"])]
        last = "with_types"
    if positions:
        weights["positions"] = np.zeros((positions, 2), np.float32)
        nodes += [
            n("Shape", ["input_ids"], ["shape"]), n("Gather", ["shape", "at_one"], ["length"]),
            n("Range", ["zero", "length", "one"], ["at"]), n("Gather", ["positions", "at"], ["placed"]),
            n("Add", [last, "placed"], ["with_positions"]),
        ]  # fmt: skip
        last = "with_positions"
    nodes += [
        n("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT), n("Unsqueeze", ["mask", "last"], ["wide"]),
        n("Mul", [last, "wide"], ["hidden"]), n("ReduceSum", ["hidden", "second"], ["sum"], keepdims=0),
        n("ReduceSum", ["mask", "second"], ["count"], keepdims=1), n("Div", ["sum", "count"], ["pooled"]),
        n("Gemm", ["pooled", "head", "bias"], ["logits"]),
    ]  # fmt: skip
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", embeddings.shape[1]])]
    if hidden_first:
        outputs.insert(0, helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "sequence", 2]))
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if token_types else []), *more]
    told = {"id2label": {str(index): label for index, label in enumerate(labels)}, **(config or {})}
    return _save(folder, nodes, _inputs(names, shape, kind), outputs, weights, told, tokenizer)


def token_classifier(folder, tokenizer, kinds, *, token_types=True, config=None):
    """A model that looks at a token and the one before it: a second token of a kind goes on with the name.

    `kinds` maps tokens to PER, LOC or ORG. A convolution over one-hot embeddings gives the logits of LABELS.
    """
    n = helper.make_node
    vocabulary = tokenizer.get_vocab()
    words = np.zeros((max(vocabulary.values()) + 1, len(KINDS)), np.float32)
    for token, kind in kinds.items():
        words[vocabulary[token], KINDS.index(kind)] = 1
    filters = np.zeros((len(LABELS), len(KINDS), 2), np.float32)  # [..., 0] is the token before
    filters[0, :, 1] = -12
    for index in range(len(KINDS)):
        filters[1 + 2 * index, index] = [-8, 12]
        filters[2 + 2 * index, index] = [6, 6]
    bias = np.array([8, *[0] * (len(LABELS) - 1)], np.float32)
    nodes = [
        n("Gather", ["words", "input_ids"], ["embedded"]), n("Transpose", ["embedded"], ["channels"], perm=[0, 2, 1]),
        n("Conv", ["channels", "filters", "bias"], ["found"], pads=[1, 0]), n("Transpose", ["found"], ["raw"], perm=[0, 2, 1]),
    ]  # fmt: skip
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if token_types else [])]
    weighed = "raw"
    if token_types:  # and of the first text alone
        nodes += [
            n("Cast", ["token_type_ids"], ["types"], to=TensorProto.FLOAT), n("Unsqueeze", ["types", "last"], ["wide"]),
            n("Sub", ["raw", "wide"], ["of_first"]),
        ]  # fmt: skip
        weighed = "of_first"
    nodes.append(n("Identity", [weighed], ["logits"]))
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", len(LABELS)])]
    weights = {"words": words, "filters": filters, "bias": bias, "last": np.array([2])}
    told = {"id2label": {str(index): label for index, label in enumerate(LABELS)}, **(config or {})}
    return _save(folder, nodes, _inputs(names), outputs, weights, told, tokenizer)


def injection_model(folder, *, attack=("ignore", "忽", "略"), **options):
    """A text classifier for which the tokens of `attack` are an attack by far and all others harmless; returns its folder."""
    pieces = [*WORDS, *attack]
    tokenizer = bert_tokenizer(pieces)
    embeddings = np.zeros((len(tokenizer.get_vocab()), 2), np.float32)
    embeddings[:, 0] = 2
    embeddings[[tokenizer.token_to_id(token) for token in attack]] = [0, 8000]
    return text_classifier(folder, tokenizer, embeddings, **options)


def names_model(folder, **options):
    """A token classifier with BERT's tokenizer, which knows NAMES; returns its folder."""
    return token_classifier(folder, bert_tokenizer([*WORDS, *NAMES]), NAMES, **options)
