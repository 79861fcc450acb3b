"""Tiny models with random weights of as many kinds as users bring, each written to a folder as its own library writes it.

Knows how models are made and saved; refuses to convert any. `MODELS` is name -> (family, what writes it, answering with the
path to give `maasdam convert`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Maker = Callable[[Path], Path]
VOCABULARY = 120
WIDTH: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "initializer_range": 0.2,
}  # fmt: skip
TEXT: dict[str, Any] = WIDTH | {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0}
IMAGE: dict[str, Any] = {"image_size": 32, "num_labels": 5}
DECODER: dict[str, Any] = TEXT | {
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
SOUND: dict[str, Any] = WIDTH | {
    "vocab_size": 20, "conv_dim": (16, 16, 16), "conv_stride": (5, 4, 4), "conv_kernel": (10, 8, 4),
    "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


def _transformers(kind: str, config: str, side: dict[str, Any] | None = None, **sizes: Any) -> Maker:
    """A Hugging Face folder; `side` is its preprocessor_config.json."""

    def make(work: Path) -> Path:
        import json

        import torch
        import transformers

        transformers.logging.disable_progress_bar()
        transformers.logging.set_verbosity_error()
        torch.manual_seed(0)
        model = getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval()
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        with torch.no_grad():
            for name, module in model.named_modules():
                if isinstance(module, torch.nn.Linear) and name.endswith(("classifier", "lm_head", "decode_head")):
                    module.weight.normal_(0, 0.3)
            for norm in norms:
                norm.momentum = 1.0
            if norms:  # statistics of a network that has seen something, else little reaches the head
                model.train()(pixel_values=torch.randn(16, 3, 64, 64))
        model.eval()
        model.save_pretrained(work / "model")
        if side is not None:
            (work / "model" / "preprocessor_config.json").write_text(json.dumps(side))
        return work / "model"

    return make


def _pixels(size: int = 32) -> dict[str, Any]:
    return {"image_processor_type": "ViTImageProcessor", "size": {"height": size, "width": size}}


def _hugging_face() -> dict[str, Maker]:
    make = _transformers
    stages: dict[str, Any] = {"hidden_sizes": [16, 32], "depths": [1, 1]}
    waves = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "return_attention_mask": True}
    return {
        "ConvNeXt": make("ConvNextForImageClassification", "ConvNextConfig", _pixels(), num_stages=2, **stages, **IMAGE),
        "Swin": make(
            "SwinForImageClassification", "SwinConfig", _pixels(), patch_size=4, embed_dim=16, depths=[1, 1],
            num_heads=[2, 2], window_size=4, **IMAGE,
        ),
        "DeiT": make("DeiTForImageClassification", "DeiTConfig", _pixels(), patch_size=8, **IMAGE, **WIDTH),
        "BEiT": make(
            "BeitForImageClassification", "BeitConfig", _pixels(), patch_size=8, out_indices=[1], **IMAGE, **WIDTH
        ),
        "EfficientNet": make(
            "EfficientNetForImageClassification", "EfficientNetConfig", _pixels(64), width_coefficient=0.5,
            depth_coefficient=0.25, hidden_dim=640, image_size=64, num_labels=5, initializer_range=0.3,
        ),
        "RegNet": make("RegNetForImageClassification", "RegNetConfig", _pixels(), embedding_size=8, groups_width=8,
                       num_labels=5, **stages),
        "MobileViT": make(
            "MobileViTForImageClassification", "MobileViTConfig", _pixels(64), hidden_sizes=[16, 16, 16],
            neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 32], num_attention_heads=2, image_size=64, num_labels=5,
        ),
        "SegFormer": make(
            "SegformerForImageClassification", "SegformerConfig", _pixels(64), hidden_sizes=[8, 16, 16, 16],
            depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 2], decoder_hidden_size=16, num_labels=5,
        ),
        "SegFormer, segmentation": make(
            "SegformerForSemanticSegmentation", "SegformerConfig", _pixels(64), hidden_sizes=[8, 16, 16, 16],
            depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 2], decoder_hidden_size=16, num_labels=5,
        ),
        "DINOv2 encoder": make("Dinov2Model", "Dinov2Config", _pixels(), image_size=32, patch_size=8, mlp_ratio=2, **{
            k: v for k, v in WIDTH.items() if k != "intermediate_size"}),
        "DistilBERT": make("DistilBertForSequenceClassification", "DistilBertConfig", vocab_size=VOCABULARY, dim=32, n_layers=2,
                           n_heads=2, hidden_dim=48, max_position_embeddings=64, initializer_range=0.2, num_labels=3),
        "RoBERTa": make("RobertaForSequenceClassification", "RobertaConfig", num_labels=3, **(TEXT | {"pad_token_id": 1})),
        "ALBERT": make("AlbertForSequenceClassification", "AlbertConfig", embedding_size=16, num_labels=3, **TEXT),
        "DeBERTa-v2": make("DebertaV2ForSequenceClassification", "DebertaV2Config", relative_attention=True,
                           position_biased_input=False, pos_att_type=["p2c", "c2p"], num_labels=3, **TEXT),
        "ELECTRA": make("ElectraForSequenceClassification", "ElectraConfig", embedding_size=16, num_labels=3, **TEXT),
        "MPNet": make("MPNetForSequenceClassification", "MPNetConfig", num_labels=3, **(TEXT | {"pad_token_id": 1})),
        "XLM-R, tokens": make("XLMRobertaForTokenClassification", "XLMRobertaConfig", num_labels=5,
                              **(TEXT | {"pad_token_id": 1})),
        "ModernBERT": make("ModernBertForSequenceClassification", "ModernBertConfig", num_labels=3, local_attention=16,
                           cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2, **TEXT),
        "BERT, question answering": make("BertForQuestionAnswering", "BertConfig", **TEXT),
        "BERT, masked words": make("BertForMaskedLM", "BertConfig", **TEXT),
        "BERT, sentence encoder": make("BertModel", "BertConfig", **TEXT),
        "HuBERT-CTC": make("HubertForCTC", "HubertConfig", waves, feat_extract_norm="layer", do_stable_layer_norm=True,
                           **SOUND),
        "WavLM-CTC": make("WavLMForCTC", "WavLMConfig", waves, num_buckets=32, max_bucket_distance=64, **SOUND),
        "wav2vec2, audio classes": make("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", waves, num_labels=4,
                                        classifier_proj_size=16, **SOUND),
        "AST, audio classes": make(
            "ASTForAudioClassification", "ASTConfig", {"feature_extractor_type": "ASTFeatureExtractor", "num_mel_bins": 32},
            num_labels=4, max_length=64, num_mel_bins=32, **WIDTH,
        ),
        "DETR, objects": make(
            "YolosForObjectDetection", "YolosConfig", _pixels(64), image_size=[64, 64], patch_size=16, num_detection_tokens=6,
            num_labels=4, **WIDTH,
        ),
        "DPT, depth": make("DPTForDepthEstimation", "DPTConfig", _pixels(), image_size=32, patch_size=8,
                           backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16,
                           **(WIDTH | {"num_hidden_layers": 4})),
        "CLIP, images and texts": make("CLIPModel", "CLIPConfig", _pixels(), projection_dim=16, text_config=TEXT,
                                       vision_config=WIDTH | {"image_size": 32, "patch_size": 8}),
    }  # fmt: skip


def _decoders() -> dict[str, Maker]:
    make = _transformers
    bare = {k: v for k, v in DECODER.items() if k not in ("num_key_value_heads", "intermediate_size")}
    return {
        "Mistral": make("MistralForCausalLM", "MistralConfig", sliding_window=None, **DECODER),
        "Qwen2": make("Qwen2ForCausalLM", "Qwen2Config", **DECODER),
        "Qwen3": make("Qwen3ForCausalLM", "Qwen3Config", head_dim=16, **DECODER),
        "Gemma": make("GemmaForCausalLM", "GemmaConfig", head_dim=16, **DECODER),
        "Phi": make("PhiForCausalLM", "PhiConfig", partial_rotary_factor=0.5, **DECODER),
        "OPT": make("OPTForCausalLM", "OPTConfig", vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, ffn_dim=48,
                    num_attention_heads=2, max_position_embeddings=128, word_embed_proj_dim=32, init_std=0.2),
        "GPT-NeoX": make("GPTNeoXForCausalLM", "GPTNeoXConfig", **{k: v for k, v in DECODER.items()
                                                                   if k != "num_key_value_heads"}),
        "Bloom": make("BloomForCausalLM", "BloomConfig", vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2,
                      initializer_range=0.2),
        "SmolLM3": make("SmolLM3ForCausalLM", "SmolLM3Config", no_rope_layer_interval=2, **DECODER),
        "Falcon": make("FalconForCausalLM", "FalconConfig", new_decoder_architecture=False, multi_query=True, **bare),
    }  # fmt: skip


def _application(name: str, side: int = 64, **options: Any) -> Maker:
    """A network of keras.applications as a .keras file."""

    def make(work: Path) -> Path:
        import keras

        keras.utils.set_random_seed(0)
        model = getattr(keras.applications, name)(weights=None, input_shape=(side, side, 3), classes=10, **options)
        _enliven(model)
        model.save(work / "model.keras")
        return work / "model.keras"

    return make


def _enliven(model: Any) -> None:
    """Statistics of a network that has seen pictures, else little reaches the head, and a head whose answers differ."""
    import numpy as np

    norms = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    for norm in norms:
        norm.momentum = 0.0
    if norms:
        pictures = np.random.default_rng(0).uniform(0, 255, (16, *model.input_shape[1:])).astype(np.float32)
        model(pictures, training=True)
    head = next(layer for layer in reversed(model.layers) if layer.get_weights())
    kernel, *bias = head.get_weights()
    head.set_weights([kernel * 4, *bias])


def _keras(build: Callable[[Any, Any], Any], *, export: bool = False) -> Maker:
    """`build(keras, keras.layers)`, saved as .keras or exported as a SavedModel."""

    def make(work: Path) -> Path:
        import keras

        keras.utils.set_random_seed(0)
        model = build(keras, keras.layers)
        if export:
            model.export(work / "saved", verbose=False)
            return work / "saved"
        model.save(work / "model.keras")
        return work / "model.keras"

    return make


def _lstm(k: Any, layers: Any) -> Any:
    x = k.Input((None, 6), name="series")
    hidden = layers.LSTM(8, return_sequences=True)(x)
    return k.Model(x, layers.Dense(3, name="forecast")(layers.LSTM(5)(hidden)))


def _bidirectional(k: Any, layers: Any) -> Any:
    x = k.Input((None,), dtype="int32", name="ids")
    hidden = layers.Bidirectional(layers.LSTM(8, return_sequences=True))(layers.Embedding(50, 8, mask_zero=True)(x))
    hidden = layers.Bidirectional(layers.GRU(6))(hidden)
    return k.Model(x, layers.Dense(4, activation="softmax", name="classes")(hidden))


def _gru(k: Any, layers: Any) -> Any:
    x = k.Input((20, 4), name="series")
    return k.Model(x, layers.TimeDistributed(layers.Dense(2), name="steps")(layers.GRU(7, return_sequences=True)(x)))


def _attention(k: Any, layers: Any) -> Any:
    x = k.Input((None,), dtype="int64", name="tokens")
    hidden = layers.Embedding(60, 16)(x)
    hidden = layers.LayerNormalization()(hidden + layers.MultiHeadAttention(2, 8)(hidden, hidden))
    hidden = hidden + layers.Dense(16)(layers.Dense(32, activation="gelu")(hidden))
    return k.Model(x, layers.Dense(3, name="logits")(layers.GlobalAveragePooling1D()(hidden)))


def _conv1d(k: Any, layers: Any) -> Any:
    x = k.Input((None, 4), name="wave")
    hidden = layers.Conv1D(8, 5, padding="causal", dilation_rate=2, activation="relu")(x)
    hidden = layers.MaxPooling1D(2)(layers.SeparableConv1D(8, 3, padding="same")(hidden))
    return k.Model(x, layers.Dense(3, name="classes")(layers.GlobalMaxPooling1D()(hidden)))


def _two_headed(k: Any, layers: Any) -> Any:
    image, facts = k.Input((16, 16, 3), name="image"), k.Input((4,), name="facts")
    seen = layers.Flatten()(layers.Conv2D(4, 3, strides=2, activation="swish")(layers.Rescaling(1 / 255.0)(image)))
    both = layers.Concatenate()([layers.Dense(8)(seen), facts])
    return k.Model({"image": image, "facts": facts}, {
        "score": layers.Dense(1, activation="sigmoid", name="score")(both),
        "kind": layers.Dense(5, name="kind")(both)})  # fmt: skip


def _unet_keras(k: Any, layers: Any) -> Any:
    x = k.Input((None, None, 3), name="image")
    down = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    low = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(down)
    up = layers.Conv2DTranspose(8, 3, strides=2, padding="same")(low)
    both = layers.Concatenate()([down, layers.UpSampling2D(2)(low), up])
    return k.Model(x, layers.Conv2D(2, 1, name="mask")(both))


def _module(write: Callable[[Any], dict[str, Any]]) -> Maker:
    """A subclassed tf.Module as a SavedModel; `write(tf)` gives its functions by signature."""

    def make(work: Path) -> Path:
        import tensorflow as tf

        tf.random.set_seed(0)
        module = tf.Module()
        module.kept, signatures = write(tf)
        tf.saved_model.save(module, str(work / "saved"), signatures=signatures)
        return work / "saved"

    return make


def _several_signatures(tf: Any) -> Any:
    table, head = tf.Variable(tf.random.normal((30, 8))), tf.Variable(tf.random.normal((8, 4)))

    @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int32, name="ids")])
    def embed(ids: Any) -> Any:
        return {"states": tf.gather(table, ids)}

    @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int32, name="ids")])
    def classify(ids: Any) -> Any:
        return {"logits": tf.reduce_mean(tf.gather(table, ids), 1) @ head}

    return [table, head], {"serving_default": classify, "embed": embed}


def _preprocessing(tf: Any) -> Any:
    kernel, head = tf.Variable(tf.random.normal((3, 3, 3, 8))), tf.Variable(tf.random.normal((8, 4)))

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8, name="bytes")])
    def serve(images: Any) -> Any:
        small = tf.image.resize(tf.cast(images, tf.float32), (32, 32)) / 127.5 - 1
        hidden = tf.nn.relu6(tf.nn.conv2d(small, kernel, 2, "SAME"))
        logits = tf.reduce_mean(hidden, [1, 2]) @ head
        return {"probabilities": tf.nn.softmax(logits), "best": tf.argmax(logits, 1)}

    return [kernel, head], {"serving_default": serve}


def _while_loop(tf: Any) -> Any:
    weight = tf.Variable(tf.random.normal((6, 6)) / 4)

    @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float32, name="x")])
    def serve(x: Any) -> Any:
        for _ in tf.range(4):
            x = tf.tanh(x @ weight) + x
        return {"y": x}

    return [weight], {"serving_default": serve}


def _tensorflow() -> dict[str, Maker]:
    return {
        "MobileNetV3Small": _application("MobileNetV3Small"),
        "EfficientNetB0": _application("EfficientNetB0"),
        "DenseNet121": _application("DenseNet121"),
        "ResNet50V2": _application("ResNet50V2"),
        "Xception": _application("Xception", 71),
        "ConvNeXtTiny": _application("ConvNeXtTiny"),
        "Keras LSTM": _keras(_lstm),
        "Keras Bidirectional, masked": _keras(_bidirectional),
        "Keras GRU": _keras(_gru),
        "Keras MultiHeadAttention": _keras(_attention),
        "Keras Conv1D": _keras(_conv1d),
        "Keras two inputs, two outputs": _keras(_two_headed),
        "Keras U-Net, open size": _keras(_unet_keras),
        "Keras export, LSTM": _keras(_lstm, export=True),
        "Keras export, two inputs": _keras(_two_headed, export=True),
        "Keras export, MultiHeadAttention": _keras(_attention, export=True),
        "tf.Module, several signatures": _module(_several_signatures),
        "tf.Module, preprocessing inside": _module(_preprocessing),
        "tf.Module, a loop": _module(_while_loop),
    }


def _program(build: Callable[[Any], tuple[Any, tuple[Any, ...], Any]], way: str = "pt2") -> Maker:
    """`build(torch)` is (module, examples, dynamic shapes), written as .pt2, or as TorchScript "traced" or "scripted"."""

    def make(work: Path) -> Path:
        import torch

        torch.manual_seed(0)
        module, examples, axes = build(torch)
        module.eval()
        if way == "pt2":
            program = torch.export.export(module, examples, dynamic_shapes=axes)
            torch.export.save(program, work / "model.pt2")
            return work / "model.pt2"
        script = torch.jit.trace(module, examples, strict=False) if way == "traced" else torch.jit.script(module)
        torch.jit.save(script, work / "model.pt")
        return work / "model.pt"

    return make


def _unet(torch: Any) -> Any:
    nn = torch.nn

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(3, 8, 3, padding=1)
            self.low = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.GroupNorm(4, 16), nn.SiLU())
            self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
            self.end = nn.Conv2d(32, 2, 1)

        def forward(self, image):
            a = torch.relu(self.down(image))
            b = self.low(a)
            c = nn.functional.interpolate(b, scale_factor=2.0, mode="bilinear", align_corners=False)
            return self.end(torch.cat([a, self.up(b), c], 1))

    return UNet(), (torch.randn(2, 3, 32, 32),), ({0: torch.export.Dim("batch")},)


def _several(torch: Any) -> Any:
    class Several(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(40, 8)
            self.head = torch.nn.Linear(8, 3)

        def forward(self, ids, keep, weight):
            states = self.words(ids) * weight[..., None]
            mean = (states * keep[..., None]).sum(1) / keep.sum(1, keepdim=True).clamp(min=1)
            return {"states": states, "logits": self.head(mean), "best": self.head(states).argmax(-1)}

    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    both = {0: batch, 1: time}
    examples = (torch.randint(0, 40, (3, 7)), torch.rand(3, 7) < 0.6, torch.rand(3, 7))
    return Several(), examples, (both, both, both)


def _encoder(torch: Any) -> Any:
    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(40, 16)
            layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.look = torch.nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, ids):
            hidden = self.layers(self.words(ids))
            found, weights = self.look(hidden, hidden, hidden)
            return found, weights

    batch, time = torch.export.Dim("batch", min=1), torch.export.Dim("time", min=2)
    return Encoder(), (torch.randint(0, 40, (3, 7)),), ({0: batch, 1: time},)


def _mixed(torch: Any) -> Any:
    """einsum, PixelShuffle, grid_sample, cumsum, topk and friends."""

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 16, 3, padding=1)
            self.norm = torch.nn.InstanceNorm2d(16, affine=True)
            self.shuffle = torch.nn.PixelShuffle(2)
            self.mix = torch.nn.Parameter(torch.randn(4, 5))

        def forward(self, image, grid):
            hidden = self.shuffle(torch.nn.functional.gelu(self.norm(self.conv(image))))
            seen = torch.nn.functional.grid_sample(hidden, grid, align_corners=False)
            channels = torch.einsum("nchw,cd->ndhw", seen, self.mix)
            return channels, torch.cumsum(channels.mean((2, 3)), 1), channels.flatten(1).topk(3, 1)[0]

    batch = torch.export.Dim("batch")
    return Mixed(), (torch.randn(2, 3, 16, 16), torch.rand(2, 8, 8, 2) * 2 - 1), ({0: batch}, {0: batch})


def _recurrent(torch: Any) -> Any:
    class Recurrent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.LSTM(4, 8, batch_first=True, bidirectional=True)
            self.second = torch.nn.GRU(16, 6, batch_first=True)

        def forward(self, series):
            states, last = self.second(self.first(series)[0])
            return states, last

    return Recurrent(), (torch.randn(2, 9, 4),), ({0: torch.export.Dim("batch")},)


def _spectrum(torch: Any) -> Any:
    class Spectrum(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("window", torch.hann_window(64))
            self.head = torch.nn.Linear(33, 4)

        def forward(self, wave):
            frames = wave.unfold(1, 64, 32) * self.window
            power = torch.view_as_real(torch.fft.rfft(frames)).pow(2).sum(-1)
            return self.head(torch.log(power + 1e-3)).mean(1)

    return Spectrum(), (torch.randn(2, 640),), ({0: torch.export.Dim("batch")},)


def _convolutions(torch: Any) -> Any:
    nn = torch.nn
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6),
    )  # fmt: skip
    return module, (torch.randn(2, 3, 32, 32),), ({0: torch.export.Dim("batch")},)


def _perceptron(torch: Any) -> Any:
    layers = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ELU(), torch.nn.Linear(8, 2))
    return layers, (torch.randn(2, 6),), ({0: torch.export.Dim("batch")},)


def _torch() -> dict[str, Maker]:
    return {
        "pt2: U-Net": _program(_unet),
        "pt2: ids, booleans, numbers; a dict": _program(_several),
        "pt2: TransformerEncoder, MultiheadAttention": _program(_encoder),
        "pt2: einsum, PixelShuffle, grid_sample": _program(_mixed),
        "pt2: LSTM and GRU": _program(_recurrent),
        "pt2: FFT": _program(_spectrum),
        "TorchScript traced: CNN": _program(_convolutions, "traced"),
        "TorchScript scripted: CNN": _program(_convolutions, "scripted"),
        "TorchScript traced: U-Net": _program(_unet, "traced"),
        "TorchScript scripted: MLP": _program(_perceptron, "scripted"),
    }


def _exported(build: Callable[[Any], Any], *, dynamo: bool, opset: int, names: tuple[list[str], list[str]]) -> Maker:
    def make(work: Path) -> Path:
        import contextlib
        import io
        import warnings

        import torch

        torch.manual_seed(0)
        module, examples, axes = build(torch)
        options: dict[str, Any] = {"dynamic_shapes": axes} if dynamo else {
            "dynamic_axes": {n: {int(n == "last"): "batch"} for n in (*names[0], *names[1])}}  # fmt: skip
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(), examples, str(work / "model.onnx"), dynamo=dynamo, opset_version=opset, input_names=names[0],
                output_names=names[1], verbose=False, external_data=False, **options,
            )  # fmt: skip
        return work / "model.onnx"

    return make


def _plain(opset: int) -> Maker:
    """A network written by hand in an operator set: convolution, normalisation, pooling, Squeeze, Softmax, Clip, Slice."""

    def make(work: Path) -> Path:
        import numpy as np
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        random = np.random.default_rng(0)
        floats = {
            "kernel": random.normal(0, 0.4, (8, 3, 3, 3)), "scale": random.uniform(0.5, 1.5, 8),
            "shift": random.normal(0, 1, 8), "mean": random.normal(0, 1, 8), "var": random.uniform(0.5, 2, 8),
            "head": random.normal(0, 0.5, (8, 5)), "bias": random.normal(0, 0.5, 5),
        }  # fmt: skip
        weights = {n: a.astype(np.float32) for n, a in floats.items()}
        axes: dict[str, Any] = {"axes": [2, 3]} if opset < 13 else {}
        node = helper.make_node
        clip = node("Clip", ["n"], ["c"], min=0.0, max=6.0) if opset < 11 else node("Clip", ["n", "low", "high"], ["c"])
        cut = (
            node("Slice", ["q"], ["r"], axes=[1], starts=[0], ends=[5])
            if opset < 10
            else node("Slice", ["q", "start", "end", "axis"], ["r"])
        )
        if opset >= 11:
            weights |= {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
        if opset >= 10:
            weights |= {"start": np.array([0]), "end": np.array([5]), "axis": np.array([1])}
        if opset >= 13:
            weights |= {"where": np.array([2, 3])}
        nodes = [
            node("Conv", ["image", "kernel"], ["a"], pads=[1, 1, 1, 1]),
            node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["n"]),
            clip,
            node("GlobalAveragePool", ["c"], ["p"]),
            node("Squeeze", ["p"] if opset < 13 else ["p", "where"], ["s"], **axes),
            node("Gemm", ["s", "head", "bias"], ["q"]),
            cut,
            node("Softmax", ["r"], ["probabilities"], axis=1),
        ]
        graph = helper.make_graph(
            nodes, "plain", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 16, 16])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 5])],
            [numpy_helper.from_array(a, n) for n, a in weights.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=min(10, 3 + opset // 3))
        onnx.checker.check_model(model)
        onnx.save(model, work / "model.onnx")
        return work / "model.onnx"

    return make


IMAGE_IN = (["image"], ["logits"])


def _convolutional_onnx(work: Path) -> Path:
    return _exported(_convolutions, dynamo=False, opset=17, names=IMAGE_IN)(work)


def _transformer_onnx(work: Path) -> Path:
    return _exported(_encoder, dynamo=True, opset=18, names=(["ids"], ["states", "weights"]))(work)


def _half(work: Path) -> Path:
    """Weights of 16 bits, inputs and outputs of 32: every tensor cast where it enters and leaves."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    path = _convolutional_onnx(work)
    model = onnx.load(path)
    for weight in list(model.graph.initializer):
        array = numpy_helper.to_array(weight)
        if array.dtype.name == "float32":
            weight.CopyFrom(numpy_helper.from_array(array.astype("float16"), f"{weight.name}_half"))
            name = weight.name.removesuffix("_half")
            model.graph.node.insert(0, helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    onnx.save(model, path)
    return path


def _all_half(work: Path) -> Path:
    """Everything of 16 bits, inputs and outputs too."""
    import torch

    torch.manual_seed(0)
    module, examples, axes = _convolutions(torch)
    half = tuple(e.half() for e in examples)
    return _exported(lambda _: (module.half(), half, axes), dynamo=True, opset=18, names=IMAGE_IN)(work)


def _external(work: Path) -> Path:
    import onnx

    path = _convolutional_onnx(work)
    model = onnx.load(path)
    path.unlink()
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def _qdq(work: Path) -> Path:
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    plain = _convolutional_onnx(work)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            random = np.random.default_rng(0)
            self.left = iter([{"image": random.normal(size=(1, 3, 32, 32)).astype(np.float32)} for _ in range(8)])

        def get_next(self) -> Any:
            return next(self.left, None)

    (work / "quantised").mkdir()
    quantize_static(
        str(plain), str(work / "quantised" / "model.onnx"), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return work / "quantised" / "model.onnx"


def _dynamic_int8(work: Path) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    plain = _transformer_onnx(work)
    (work / "quantised").mkdir()
    quantize_dynamic(str(plain), str(work / "quantised" / "model.onnx"))
    return work / "quantised" / "model.onnx"


def _optimised(work: Path) -> Path:
    """As onnxruntime rewrites it: fused operators of its own domain."""
    import onnxruntime as ort

    plain = _transformer_onnx(work)
    (work / "optimised").mkdir()
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(work / "optimised" / "model.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    ort.InferenceSession(str(plain), options, providers=["CPUExecutionProvider"])
    return work / "optimised" / "model.onnx"


def _onnx() -> dict[str, Maker]:
    several = (["ids", "keep", "weight"], ["states", "logits", "best"])
    return {
        **{f"ONNX operator set {n}": _plain(n) for n in (7, 9, 11, 13, 15, 21, 23)},
        "ONNX, older exporter, set 11: CNN": _exported(_convolutions, dynamo=False, opset=11, names=IMAGE_IN),
        "ONNX, older exporter: U-Net": _exported(_unet, dynamo=False, opset=17, names=(["image"], ["mask"])),
        "ONNX, older exporter: LSTM": _exported(_recurrent, dynamo=False, opset=14, names=(["series"], ["states", "last"])),
        "ONNX, dynamo: transformer": _transformer_onnx,
        "ONNX, dynamo: several inputs": _exported(_several, dynamo=True, opset=18, names=several),
        "ONNX, dynamo, set 23: transformer": _exported(_encoder, dynamo=True, opset=23, names=(["ids"], ["states", "weights"])),
        "ONNX, weights of 16 bits": _half,
        "ONNX, all of 16 bits": _all_half,
        "ONNX, external weights": _external,
        "ONNX, int8 QDQ": _qdq,
        "ONNX, dynamic int8": _dynamic_int8,
        "ONNX, optimised by onnxruntime": _optimised,
    }


FAMILIES: dict[str, dict[str, Maker]] = {
    "transformers": _hugging_face(),
    "decoders": _decoders(),
    "tensorflow": _tensorflow(),
    "torch": _torch(),
    "onnx": _onnx(),
}
