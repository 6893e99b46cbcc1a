"""SentencePiece models: what they contain, and their conversion to a tokenizer.json.

The conversion is made where it is exact: for LLaMA-style models, BPE with byte fallback that take text as it is. All
other models are encoded and decoded by the sentencepiece library itself.

Source of the formats: sentencepiece_model.proto of google/sentencepiece; the conversion gives what transformers 4 makes
of a LLaMA model (`legacy=True`), piece for piece, so that fingerprints stay those of the hub's tokenizer.json.
"""

from __future__ import annotations

import json
import re
from typing import Any

from cepe_data.corpus import sniff
from cepe_data.errors import ArgumentError

SPACE = "\u2581"  # ▁, which stands for a space inside of pieces
BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")  # a piece of byte fallback
_BPE = 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
LLAMA_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


class SentencePieceModel:
    """A SentencePiece model, from the content of its file: `pieces` by id, `ids` by piece, and the ids of BOS and EOS,
    None if it has none.

    Raises:
        ArgumentError: if it is not one; `name` is that of the file.
    """

    def __init__(self, content: bytes, name: str) -> None:
        from google.protobuf.message import DecodeError
        from sentencepiece import SentencePieceProcessor
        from sentencepiece import sentencepiece_model_pb2 as protocol

        self.content = content
        self._proto = protocol.ModelProto()  # type: ignore[attr-defined]
        try:
            self._proto.ParseFromString(self.content)
            processor = SentencePieceProcessor(model_proto=self.content)
        except (DecodeError, RuntimeError):
            raise ArgumentError(f"{name} is not a SentencePiece model{_what_else(self.content)}") from None
        # Without them, the file was cut off between two fields, and defaults would stand for what it said.
        if not (self._proto.HasField("trainer_spec") and self._proto.HasField("normalizer_spec")):
            raise ArgumentError(f"{name} is empty or was cut off: download it again")
        self.pieces = [piece.piece for piece in self._proto.pieces]
        self.ids = {piece: number for number, piece in enumerate(self.pieces)}
        bos_id, eos_id, self._unk_id = processor.bos_id(), processor.eos_id(), processor.unk_id()
        self.bos_id, self.eos_id = (None if number < 0 else number for number in (bos_id, eos_id))

    @property
    def determining(self) -> dict[str, Any]:
        """What determines the ids of a text, for a fingerprint."""
        normalizer, trainer = self._proto.normalizer_spec, self._proto.trainer_spec
        return {
            "pieces": [[piece.piece, piece.score, piece.type] for piece in self._proto.pieces],
            "model_type": trainer.model_type,
            "byte_fallback": trainer.byte_fallback,
            "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
            "precompiled_charsmap": normalizer.precompiled_charsmap.hex(),
            "add_dummy_prefix": normalizer.add_dummy_prefix,
            "remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
            "escape_whitespaces": normalizer.escape_whitespaces,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
        }

    @property
    def converts_exactly(self) -> bool:
        """Whether `tokenizer_json` gives the same ids for every text."""
        normalizer, trainer = self._proto.normalizer_spec, self._proto.trainer_spec
        merged = [piece for piece in self._proto.pieces if piece.type == _NORMAL and len(piece.piece) > 1]
        # Of equal scores, SentencePiece merges the leftmost, tokenizers the first of its list. For LLaMA's runs of ▁,
        # which share a score, these are the same.
        scores = [piece.score for piece in merged if piece.piece.strip(SPACE)]
        return (
            trainer.model_type == _BPE
            and self._unk_id >= 0
            and len({*scores}) == len(scores)
            and trainer.byte_fallback
            and not trainer.treat_whitespace_as_suffix  # the ▁ stands behind the text then
            and not normalizer.precompiled_charsmap
            and normalizer.add_dummy_prefix
            and not normalizer.remove_extra_whitespaces
            and normalizer.escape_whitespaces
            # The first are found behind the ▁ that begins a text, before which tokenizers looks for added tokens; the
            # others are split again after the merges.
            and not {piece.type for piece in self._proto.pieces} & {_USER_DEFINED, _UNUSED}
        )

    def tokenizer_json(self) -> str:
        """The text of a tokenizer.json for a LLaMA-style model."""
        special = [
            (number, piece.piece)
            for number, piece in enumerate(self._proto.pieces)
            if piece.type in {_UNKNOWN, _CONTROL}
        ]
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        content = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": number, "content": piece, **flags} for number, piece in special],
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Prepend", "prepend": SPACE},
                    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
                ],
            },
            "pre_tokenizer": None,
            "post_processor": self._post_processor(),
            "decoder": LLAMA_DECODER,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": self.pieces[self._unk_id],
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": self.ids,
                "merges": self._merges(),
            },
        }
        return json.dumps(content, ensure_ascii=False)

    def _post_processor(self) -> dict[str, Any] | None:
        """BOS before each text, for those who read the saved folder with transformers."""
        if self.bos_id is None:
            return None
        bos = self.pieces[self.bos_id]

        def begin(sequence: str, number: int) -> list[dict[str, Any]]:
            return [
                {"SpecialToken": {"id": bos, "type_id": number}},
                {"Sequence": {"id": sequence, "type_id": number}},
            ]

        return {
            "type": "TemplateProcessing",
            "single": begin("A", 0),
            "pair": [*begin("A", 0), *begin("B", 1)],
            "special_tokens": {bos: {"id": bos, "ids": [self.bos_id], "tokens": [bos]}},
        }

    def _merges(self) -> list[tuple[str, str]]:
        """Every pair of pieces that makes a piece, the best score first, as SentencePiece merges. LLaMA's runs of ▁
        have one score: of equal scores, the pair with the longest left half comes first, then the longest right half.

        A piece such as `<s>` that stands for itself only is never the result of a merge.
        """
        merges = []
        for piece in self._proto.pieces:
            if piece.type != _NORMAL:
                continue
            text = piece.piece
            for cut in range(1, len(text)):
                left, right = text[:cut], text[cut:]
                if left in self.ids and right in self.ids:
                    merges.append((-piece.score, -len(left), -len(right), left, right))
        return [(left, right) for *_, left, right in sorted(merges, key=lambda merge: merge[:3])]


def _what_else(content: bytes) -> str:
    """What a file is that was taken for a SentencePiece model, for a message."""
    if sniff.is_lfs_pointer(content):
        return ", it is a git-lfs pointer to one: run `git lfs pull` in its folder"
    first_line = content.split(b"\n", 1)[0].split()
    if len(first_line) == 2 and first_line[1].isdigit():
        return (
            ", it is a tiktoken vocabulary (such as Llama 3's original/tokenizer.model), which does not say how text "
            "is split: pass the folder of the Hugging Face release, which has tokenizer.json"
        )
    return ": download it again, or pass a folder with tokenizer.json"
