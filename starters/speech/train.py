"""Train the starter speech model: spoken English digits, CTC over whole words.

    python starters/speech/train.py --data ../shared/data

`--data` is the folder that holds `spoken-digits/` (the Free Spoken Digit Dataset at 8 kHz).
Synthetic voices come from `speak.py`; they and the checkpoints are kept in `--work`, outside
the repository. An interrupted run goes on with `--resume`.

Recordings with index 5-9 and the voices that `speak.py` holds out are never loaded here.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import augment
import numpy as np
import recordings
import speak
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy, ctc_loss
from transformers import (
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2BertProcessor,
    Wav2Vec2CTCTokenizer,
)

HERE = Path(__file__).parent
BLANK, UNKNOWN = 0, -100
FRAME = 320
"""Samples in one frame of features: 20 ms."""
# The space inside each entry is what separates the words when the tokenizer joins them.
VOCABULARY = {"<pad>": BLANK, **{f"{word} ": i for i, word in enumerate(speak.DIGITS, 1)}, "|": 11, "<unk>": 12}
SYNTHETIC_SPEAKERS, SYNTHETIC_STRINGS = 420, 3000
FRAMES_PER_STEP = 2000
"""Of 20 ms, padding included."""
POINTED_STEPS = 1000
"""CTC alone sits on a plateau of blanks for long. Where training strung separate words together it
knows where each one lies: over these first steps it says so, less and less."""
BARE_SHARE = 0.8
"""Of the examples: one word with no silence around it. Features are normalised per recording, which takes
most from the shortest ones, so these need the most practice; they cost the fewest frames."""
PEAK_LEARNING_RATE, WARMUP_STEPS = 1.5e-3, 150
AVERAGING = 0.998
"""Decay of the running mean of the weights; the mean is what ships."""
EVALUATE_EVERY = 250

Sound = NDArray[np.float32]
Example = tuple[tuple[str, ...], Sound]
Spans = tuple[tuple[int, int], ...]
"""Where each word begins and ends, in samples; empty where that is not known."""


def new_model() -> Wav2Vec2BertForCTC:
    """1.5 M parameters, randomly initialised."""
    return Wav2Vec2BertForCTC(
        Wav2Vec2BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=144,
            output_hidden_size=144,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=384,
            feature_projection_input_dim=160,
            conv_depthwise_kernel_size=15,
            position_embeddings_type="relative_key",
            left_max_position_embeddings=32,
            right_max_position_embeddings=16,
            attention_dropout=0.0,
            hidden_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            conformer_conv_dropout=0.0,
            layerdrop=0.0,
            add_adapter=False,
            apply_spec_augment=False,
            ctc_loss_reduction="mean",
            ctc_zero_infinity=True,
            pad_token_id=BLANK,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def new_processor(folder: Path) -> Wav2Vec2BertProcessor:
    """Log-mel features in, words out. Writes `vocab.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps(VOCABULARY, indent=2) + "\n")
    tokenizer = Wav2Vec2CTCTokenizer(
        str(vocabulary), bos_token=None, eos_token=None, unk_token="<unk>", pad_token="<pad>", word_delimiter_token="|"
    )
    return Wav2Vec2BertProcessor(SeamlessM4TFeatureExtractor(), tokenizer)


def synthetic_pool(cache: Path) -> tuple[list[list[Example]], list[Example]]:
    """The synthetic training speech, made once: separate words by speaker, and whole strings."""
    if not cache.exists():
        print("making synthetic speech (about three minutes)", flush=True)
        alone, together = speak.training_pool(seed=1, speakers=SYNTHETIC_SPEAKERS, strings=SYNTHETIC_STRINGS)
        small = lambda u: (u.words, np.round(u.samples * 32767).astype(np.int16))  # noqa: E731
        cache.write_bytes(pickle.dumps(([[small(u) for u in s] for s in alone], [small(u) for u in together])))
    alone, together = pickle.loads(cache.read_bytes())
    wide = lambda pair: (pair[0], pair[1].astype(np.float32) / 32768)  # noqa: E731
    return [[wide(p) for p in speaker] for speaker in alone], [wide(p) for p in together]


@dataclass(frozen=True)
class Batch:
    """Several examples, padded to one length."""

    features: torch.Tensor
    """(batch, frames, 160)"""
    mask: torch.Tensor
    """(batch, frames), 1 where there is sound"""
    words: list[tuple[str, ...]]
    frames: torch.Tensor
    """(batch, frames): the vocabulary entry heard at each frame, or `UNKNOWN`"""


class Examples:
    """An endless, random stream of training speech."""

    def __init__(self, real: list[list[Example]], synthetic: list[list[Example]], strings: list[Example], seed: int) -> None:
        self.real, self.synthetic, self.strings = real, synthetic, strings
        self.random = random.Random(seed)
        self.augmenter = augment.Augmenter(seed)

    def _strung(self, speaker: Sequence[Example]) -> tuple[tuple[str, ...], Sound, Spans]:
        """One to six separate words of one speaker, one after the other, and where each lies."""
        random_ = self.random
        count = 1 if random_.random() < 0.5 else random_.randint(2, 6)
        chosen = random_.choices(speaker, k=count)
        pace, closeness = random_.uniform(0.84, 1.2), random_.random()
        pieces: list[Sound] = []
        spans: list[tuple[int, int]] = []
        end = 0
        for position, (_, sound) in enumerate(chosen):
            if position:
                pause = random_.uniform(0, 0.03) if random_.random() < closeness * 0.7 else random_.uniform(0.03, 0.45)
                pieces.append(np.zeros(int(pause * speak.RATE), np.float32))
                end += len(pieces[-1])
            piece = augment.respeed(sound, pace * random_.uniform(0.96, 1.04))
            if random_.random() < 0.3:  # a recording cut a little too tightly
                cut = int(0.02 * speak.RATE)
                piece = piece[random_.randint(0, cut) : len(piece) - random_.randint(0, cut)]
            pieces.append(piece * np.float32(10 ** (random_.uniform(-4, 4) / 20)))
            spans.append((end, end + len(piece)))
            end += len(piece)
        return tuple(word for words, _ in chosen for word in words), np.concatenate(pieces), tuple(spans)

    def _bare(self) -> tuple[tuple[str, ...], Sound, Spans]:
        """One word cut so tightly that hardly any silence is left."""
        words, sound = self.random.choice(self.random.choice(self.real if self.random.random() < 0.75 else self.synthetic))
        sound = augment.respeed(sound, self.random.uniform(0.85, 1.18))
        if self.random.random() < 0.6:  # the rest as it was recorded: a word this short bears little more
            sound = self.augmenter.as_recorded(sound, with_silence=self.random.random() < 0.15)[0]
        return words, sound, ((0, len(sound)),)

    def one(self) -> tuple[tuple[str, ...], Sound, Spans]:
        """The next example, as if recorded by some user."""
        if self.random.random() < BARE_SHARE:
            return self._bare()
        draw = self.random.random()
        if draw < 0.04:
            return (), self.augmenter.wordless(), ()
        if draw < 0.59:
            words, sound, spans = self._strung(self.random.choice(self.real))
        elif draw < 0.84:
            words, sound, spans = self._strung(self.random.choice(self.synthetic))
        else:
            words, sound = self.random.choice(self.strings)
            sound, spans = augment.respeed(sound, self.random.uniform(0.85, 1.2)), ()
        sound, before = self.augmenter.as_recorded(sound)
        return words, sound, tuple((start + before, end + before) for start, end in spans)

    def batches(self, log_mel: augment.LogMel) -> Iterator[Batch]:
        """Batches of similar lengths."""
        while True:
            drawn = [self.one() for _ in range(320)]
            drawn.sort(key=lambda example: len(example[1]))
            groups: list[list[tuple[tuple[str, ...], Sound, Spans]]] = [[]]
            for words, sound, spans in drawn:
                features = log_mel(sound)
                if groups[-1] and (len(groups[-1]) + 1) * len(features) > FRAMES_PER_STEP:
                    groups.append([])
                groups[-1].append((words, features, spans))
            self.random.shuffle(groups)
            for group in groups:
                features_, mask = padded([self._masked(f) for _, f, _ in group], self.random.randint(0, 30))
                frames = torch.full(mask.shape, UNKNOWN)
                for row, (words, features, spans) in enumerate(group):
                    if spans or not words:
                        frames[row, : len(features)] = BLANK
                    for word, (start, end) in zip(words, spans, strict=False):
                        middle = (start + end) // 2  # the word is clear once half of it has been heard
                        frames[row, middle // FRAME : min(end // FRAME + 1, len(features))] = VOCABULARY[f"{word} "]
                yield Batch(features_, mask, [words for words, _, _ in group], frames)

    def _masked(self, features: Sound) -> Sound:
        """SpecAugment: hide up to two bands of 12 mel bins and two stretches of 100 ms or a tenth of the sound."""
        rng, features = self.augmenter.rng, features.copy()
        bins = features.reshape(len(features), 2, 80)
        for _ in range(rng.integers(0, 3)):
            first, width = rng.integers(0, 70), rng.integers(1, 13)
            bins[:, :, first : first + width] = 0
        for _ in range(rng.integers(0, 3)):
            first, width = rng.integers(0, len(features)), rng.integers(1, max(2, min(6, len(features) // 10 + 1)))
            features[first : first + width] = 0
        return features


def padded(features: Sequence[Sound], beyond: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack features of different lengths, with their attention mask, and `beyond` frames of padding for all."""
    longest = max(len(f) for f in features) + beyond
    stacked = np.zeros((len(features), longest, 160), np.float32)
    mask = np.zeros((len(features), longest), np.int64)
    for row, f in enumerate(features):
        stacked[row, : len(f)], mask[row, : len(f)] = f, 1
    return torch.from_numpy(stacked), torch.from_numpy(mask)


def loss_of(model: Wav2Vec2BertForCTC, batch: Batch, pointed: float) -> torch.Tensor:
    """CTC loss per word, plus `pointed` times the loss of naming what is heard at each frame.

    Padding has to come out as blank: CTC does not look there, but whoever decodes a padded batch does.
    """
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_features=batch.features, attention_mask=batch.mask).logits
    logits = logits.float()
    targets = torch.tensor([VOCABULARY[f"{word} "] for each in batch.words for word in each], dtype=torch.long)
    loss = ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), targets, batch.mask.sum(1),
        torch.tensor([len(each) for each in batch.words]), blank=BLANK, zero_infinity=True,
    )  # fmt: skip
    if pointed and (batch.frames != UNKNOWN).any():
        loss = loss + pointed * cross_entropy(logits.flatten(0, 1), batch.frames.flatten(), ignore_index=UNKNOWN)
    padding = logits[batch.mask == 0]
    if len(padding):
        loss = loss + cross_entropy(padding, torch.full((len(padding),), BLANK))
    return loss


@torch.inference_mode()
def heard(model: Wav2Vec2BertForCTC, log_mel: augment.LogMel, sounds: Sequence[Sound]) -> list[list[str]]:
    """Greedy transcripts, decoded as users do: padding and all."""
    names = {i: token.strip() for token, i in VOCABULARY.items()}
    found: list[list[str]] = [[] for _ in sounds]
    order = sorted(range(len(sounds)), key=lambda i: len(sounds[i]))
    for start in range(0, len(order), 32):
        rows = order[start : start + 32]
        features, mask = padded([log_mel(sounds[i]) for i in rows], beyond=1)
        best = model(input_features=features, attention_mask=mask).logits.argmax(-1)
        for i, path in zip(rows, best.tolist(), strict=True):
            collapsed = [a for a, b in zip(path, [BLANK, *path[:-1]], strict=True) if a != b]
            found[i] = [names[token] for token in collapsed if token != BLANK]
    return found


def train(arguments: argparse.Namespace) -> None:
    """The whole run: data, steps, checkpoints, and the model folder at the end."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    work: Path = arguments.work / "speech"
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, folder = work / "checkpoint.pt", arguments.out
    processor = new_processor(folder)
    log_mel = augment.LogMel(processor.feature_extractor)

    spoken = recordings.load(arguments.data / "spoken-digits", "train")
    speakers = sorted({r.speaker for r in spoken})
    real: list[list[Example]] = [[((r.word,), r.samples) for r in spoken if r.speaker == s] for s in speakers]
    held = recordings.load(arguments.data / "spoken-digits", "development")
    development: dict[str, list[Example]] = {
        "alone": [((r.word,), r.samples) for r in held],
        "strings": recordings.strings(held, count=80, seed=1),
        "synthetic": [(u.words, u.samples) for u in speak.development(seed=2, count=80)],
    }
    alone, together = synthetic_pool(work / "synthetic.pickle")
    print(f"{len(spoken)} recordings, {len(alone)} synthetic speakers, {len(together)} synthetic strings", flush=True)

    model, average = new_model(), new_model()
    average.load_state_dict(model.state_dict())
    average.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.02, betas=(0.9, 0.98), fused=True)
    step = 0
    if arguments.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, from step {step}", flush=True)

    # A resumed run draws new examples rather than those it has seen already.
    batches = Examples(real, alone, together, seed=arguments.seed + step).batches(log_mel)
    began, first_step, running = time.monotonic(), step, 0.0
    model.train()
    while step < arguments.steps:
        rate = min(step / WARMUP_STEPS, 0.5 * (1 + math.cos(math.pi * step / arguments.steps)))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LEARNING_RATE * rate + 1e-6
        loss = loss_of(model, next(batches), pointed=5 * max(0.0, 1 - step / POINTED_STEPS))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        decay = min(AVERAGING, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        running = loss.item() if not running else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            a_step = (time.monotonic() - began) / (step - first_step)
            left = a_step * (arguments.steps - step) / 60
            print(
                f"step {step} loss {running:.3f} {a_step:.2f} s/step, {left:.1f} min left",
                flush=True,
            )
        if step % EVALUATE_EVERY == 0 or step == arguments.steps:
            rates = {}
            for name, examples in development.items():
                answers = heard(average, log_mel, [sound for _, sound in examples])
                rates[name] = recordings.word_error_rate([(t, h) for (t, _), h in zip(examples, answers, strict=True)])
            print("  development " + " ".join(f"{k} {v:.4f}" for k, v in rates.items()), flush=True)
            average.save_pretrained(folder)
            processor.save_pretrained(folder)
            processor.feature_extractor.save_pretrained(folder)
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds spoken-digits/")
    parser.add_argument(
        "--work", type=Path, default=Path("~/.cache/maasdam-starters").expanduser(), help="caches and checkpoints"
    )
    parser.add_argument("--out", type=Path, default=HERE / "model", help="where the model goes")
    parser.add_argument("--steps", type=int, default=12_500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --work")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
