"""The encoder beside the original: transformers' BertModel and tokenizer, the mean over the tokens, length 1.

    python Examples/encoder/compare.py sentences.txt vectors.npy

Exits with an error where a number differs by more than 1e-5.
"""

import pathlib
import sys

import numpy as np
import torch
from transformers import AutoTokenizer, BertModel

folder = pathlib.Path(__file__).parent.parent / "model"
sentences = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
ours = np.load(sys.argv[2])

tokens = AutoTokenizer.from_pretrained(folder)(
    sentences, padding=True, truncation=True, max_length=256, return_tensors="pt"
)
with torch.no_grad():
    states = BertModel.from_pretrained(folder, attn_implementation="eager").eval()(**tokens).last_hidden_state
mask = tokens["attention_mask"].unsqueeze(-1)
theirs = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy()

assert ours.shape == theirs.shape, f"{ours.shape} numbers, and the original has {theirs.shape}"
difference = np.abs(ours - theirs).max(axis=1)
for sentence, value in zip(sentences, difference):
    if not value <= 1e-5:
        print(f"{value:.1e}  {sentence[:70]}")
print(f"{len(sentences)} sentences, {difference.max():.1e} at most")
sys.exit(int(not difference.max() <= 1e-5))
