"""The data of speech.py, digits that eSpeak NG says, and its picture of where they are heard."""

import ctypes
import pathlib

import espeakng_loader
import numpy as np
from matplotlib.figure import Figure

WORDS = ["blank", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ACCENTS = ["en-us", "en-029", "en-gb-x-rp", "en-gb-scotland"]
VOICES = "m1 m2 m3 m5 m7 f1 f2 f4 Andy Annie Denis Mario Lee adam belinda linda paul rob"
TEST_VOICES, SPEEDS, TEST_SPEEDS = "m4 m6 m8 f3 f5 Gene", (130, 160, 190), (145, 175, 205)
FRAMES, STRIDE, MELS = 336, 4, 40
BLUE, RED = "#1f5fa8", "#c8402f"


def log_mel(wave, rate):
    """Logarithms of the energy in bands of equal mels, in windows of 25 ms, one each 10 ms."""
    edges, hertz = np.geomspace(760, 8700, MELS + 2) - 700, np.arange(513) * rate / 1024
    bands = np.stack([np.interp(hertz, edges[i : i + 3], [0, 1, 0]) for i in range(MELS)])
    windows = np.lib.stride_tricks.sliding_window_view(wave, rate // 40)[:: rate // 100]
    power = np.abs(np.fft.rfft(windows * np.hanning(rate // 40), 1024)) ** 2
    return np.log(np.einsum("tf,mf->tm", power, bands))


def utterances(strings, voices, speeds, rng):
    """Features and labels, padded, and the numbers of steps and of labels of each utterance."""
    features, labels = np.zeros((len(strings), FRAMES, MELS)), np.zeros((len(strings), 5))
    lengths, sizes, wave = [], [len(string) for string in strings], []
    espeak = espeakng_loader.load_library()
    rate = espeak.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0)

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def receive(samples, count, events):
        wave.extend(samples[:count])
        return 0

    espeak.espeak_SetSynthCallback(receive)
    for i, string in enumerate(strings):
        text = " ".join(WORDS[label] for label in string).encode()
        voice = f"{rng.choice(ACCENTS)}+{rng.choice(voices.split())}"
        espeak.espeak_SetVoiceByName(voice.encode())
        espeak.espeak_SetParameter(1, int(rng.choice(speeds)), 0)  # words a minute
        espeak.espeak_SetParameter(3, int(rng.integers(20, 80)), 0)  # the pitch
        wave.clear()
        espeak.espeak_Synth(text, len(text) + 1, 0, 0, 0, 1, None, None)
        mels = log_mel(wave + rng.normal(0, 50, len(wave)), rate)
        features[i, : len(mels)] = (mels - mels.mean(0)) / mels.std()
        labels[i, : len(string)] = string
        lengths.append(-(-len(mels) // STRIDE))
    espeak.espeak_Terminate()
    return np.float32(features), np.int32(labels), np.int32(lengths), np.int32(sizes)


def load(learned, tested, rng):
    """Utterances to learn from and to test with, which differ in digits, voices and speeds."""
    drawn = [rng.integers(1, 11, rng.integers(2, 6)).tolist() for _ in range(2 * learned + tested)]
    strings = list(dict.fromkeys(map(tuple, drawn)))[: learned + tested]
    test = utterances(strings[:tested], TEST_VOICES, TEST_SPEEDS, rng)
    return utterances(strings[tested:], VOICES, SPEEDS, rng), test


def draw(path, features, labels, length, size, positions, frames):
    """The steps that CTC aligns with each label in blue, and the transducer's step in red."""
    figure = Figure(figsize=(12, 4), dpi=120, layout="constrained")
    axes, step = figure.subplots(), STRIDE / 100
    known, top = {"aspect": "auto", "origin": "lower"}, MELS / (MELS + 7)
    known["extent"] = 0, length * step, 0, MELS
    axes.imshow(features[: length * STRIDE].T, "Greys", **known)
    for n, (label, frame) in enumerate(zip(labels[:size], frames)):
        first, last = np.flatnonzero(positions == n)[[0, -1]] * step
        axes.axvspan(first, last + step, 0, top, color=BLUE, alpha=0.4, label="" if n else "CTC")
        axes.axvline((frame + 0.5) * step, 0, top, color=RED, label="" if n else "transducer")
        axes.text(first, MELS + 1, WORDS[label], color=BLUE)
        axes.text((frame + 0.5) * step, MELS + 4, WORDS[label], color=RED)
    axes.set(xlabel="seconds", ylabel="mel band", ylim=(0, MELS + 7))
    axes.legend(loc="lower right", framealpha=1)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"wrote {path}")
